from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lightning_mllm.weights.folder_beside import folder_beside


def test_a_killed_process_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    to = tmp_path / "made" / "it.v1"
    pid = os.fork()
    if pid == 0:
        with folder_beside(to) as folder:
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = to.parent.iterdir()
    other = left.with_name(left.name.replace(".it.v1.", ".it.v1.elsewhere-"))
    mine = to.parent / ".it.v1.notes.unfinished"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        busy = left.with_name(left.name.replace(f".{pid}.", f".{living.pid}."))
        for each in (other, mine, busy):
            each.mkdir()
        with folder_beside(to) as folder:
            assert {each.name for each in to.parent.iterdir()} == {folder.name, other.name, mine.name, busy.name}
        assert not folder.exists() and living.stdin is not None
        living.stdin.close()
