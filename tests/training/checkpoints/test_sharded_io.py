"""A folder that never is without a whole checkpoint, however a run that saves is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.training.checkpoints import Replaced, ShardedCheckpointIO
from lightning_mllm.training.checkpoints.finding import candidates
from lightning_mllm.training.checkpoints.manifest import damage
from lightning_mllm.training.checkpoints.writing import Writer

KILLS = 50 if os.environ.get("MLLM_FULL") else 8
EVERY = 0.01
"""Seconds between two looks."""


def save_for_ever(folder: Path, keep: int, again: bool, waits: bool) -> None:
    """On a slow disk, with and without waiting for each, under new names or the same one."""
    write, finish = Writer.write_data, Writer.finish

    def slow(act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*arguments: Any, **named: Any) -> Any:
            time.sleep(0.004)
            return act(*arguments, **named)

        return acted

    Writer.write_data, Writer.finish = slow(write), slow(finish)
    io, step = ShardedCheckpointIO(), 1
    while True:
        tensors = {"weights.w": torch.full((20_000,), float(step))}
        io.save(folder / f"step-{7 if again else step}", tensors, {"step": step}, Replaced("step-*", keep))
        if waits:
            io.wait()
        step += 1


def holds_a_whole_one(folder: Path) -> bool:
    """A checkpoint may be removed while it is looked at: then there is another."""
    return any(not damage(path) for _ in range(3) for path in candidates(folder) if not path.name.endswith(".part"))


@pytest.mark.fault
def test_never_without_a_whole_checkpoint(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    seed, looks = random.Random(0), 0
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(folder, 1 + kill % 2, again=kill % 4 >= 2, waits=kill % 8 >= 4)
            finally:
                os._exit(1)
        end, first = time.monotonic() + 60, None
        while time.monotonic() < end:
            if first is None and holds_a_whole_one(folder):
                first = time.monotonic()
                end = first + seed.uniform(0, 0.25)
            elif first is not None:
                assert holds_a_whole_one(folder), (kill, os.listdir(folder))
                looks += 1
            time.sleep(EVERY)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert first is not None and holds_a_whole_one(folder), (kill, os.listdir(folder))
        chosen = ShardedCheckpointIO().choose(folder)
        assert not damage(chosen)
    assert looks
    fault_row("T7", f"{KILLS} of {KILLS}", f"kills of a run that saves: a whole checkpoint at each of {looks} looks")
