"""How many files of the project a reader opens along a path, counted while the path runs.

    python -m tests.walks        prints every walk of `tests/test_walks.py`: its files and their lines

Image bytes to loss: the files in which a function is called. YAML to optimizer and checkpoint to folder, which pass
through Lightning and jsonargparse: the files on the call stack wherever the path begins, turns and ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / package) for package in ("lightning_mllm", "data_modules"))


@contextmanager
def files_run() -> Iterator[set[Path]]:
    """Files of the project in which a function is called meanwhile, by the calling thread."""
    found: set[Path] = set()

    def called(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(OURS) and frame.f_code.co_name != "<module>":
            found.add(Path(name))

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield found
    finally:
        sys.setprofile(before)


@contextmanager
def files_on_the_stack(*points: str) -> Iterator[set[Path]]:
    """Files of the project on the call stack whenever one of `points`, dotted names of functions, is called."""
    found: set[Path] = set()

    def noting(own: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            frame = sys._getframe(1)
            while frame is not None:
                if frame.f_code.co_filename.startswith(OURS):
                    found.add(Path(frame.f_code.co_filename))
                frame = frame.f_back
            return own(*arguments, **named)

        return noted

    patches = []
    for point in points:
        owner, _, name = point.rpartition(".")
        each = patch(point, noting(getattr(_found(owner), name)))
        each.start()
        patches.append(each)
    try:
        yield found
    finally:
        for each in patches:
            each.stop()


def _found(dotted: str) -> Any:
    """A module, or a class of one."""
    try:
        return __import__(dotted, fromlist=["_"])
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(__import__(module, fromlist=["_"]), name)


def lines_of(files: set[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def modules_behind(module: str) -> tuple[list[str], set[str]]:
    """What a fresh interpreter has imported after `module`: files of the project, and packages of others."""
    program = (
        f"import sys, {module}\n"
        "ours = [n for n in sys.modules if n.split('.')[0] in ('lightning_mllm', 'data_modules')]\n"
        "print(*sorted(n for n in ours if not hasattr(sys.modules[n], '__path__')))\n"
        "print(*sorted({n.split('.')[0] for n in sys.modules}))\n"
    )
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    ours, packages = printed.stdout.splitlines()
    return ours.split(), set(packages.split())
