"""Which of a run's checkpoints it goes on from: the newest whole one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_mllm.training.checkpoints.manifest import MANIFEST, OLD
from lightning_mllm.weights.files import write_text

STEPS = "step-*"
"""The checkpoints of a stage."""
PART, REMOVED = ".part", ".removed"
"""Ends of the hidden names of those that are being written, or removed."""


def number_of(name: str, pattern: str = STEPS) -> int | None:
    """The number in a checkpoint's name; None where it is no such name."""
    found = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
    return None if found is None else int(found[1])


def newest(folder: Path, pattern: str = STEPS) -> Path | None:
    """The checkpoint with the largest number in `folder` that was published; whether it is whole is not looked at."""
    found = {number_of(each.parent.name, pattern): each.parent for each in folder.glob(f"{pattern}/{MANIFEST}")}
    return max(((number, path) for number, path in found.items() if number is not None), default=(0, None))[1]


def candidates(folder: Path, pattern: str = STEPS) -> list[Path]:
    """All that may be a checkpoint, damaged and unfinished ones too, the newest first.

    One that was about to be replaced by another of the same name counts where that is not there.
    """
    found: list[tuple[int, str, Path]] = []
    for each in folder.iterdir() if folder.is_dir() else ():
        name = each.name
        hidden = next((end for end in (PART, OLD) if name.startswith(".") and name.endswith(end)), "")
        plain = name[1:].removesuffix(hidden) if hidden else name
        number = number_of(plain, pattern)
        if number is not None and not (hidden == OLD and (folder / plain).exists()):
            found.append((number, hidden, each))
    return [path for *_, path in sorted(found, key=lambda each: (-each[0], each[1]))]


class Found(NamedTuple):
    """What was chosen in a folder of checkpoints."""

    path: Path | None
    """The newest whole one; None where there is none."""
    skipped: list[str]
    """A sentence for each that was passed over."""


def newest_whole(folder: Path, known: Sequence[Path], damage: Callable[[Path], str]) -> Found:
    """Passes over what is damaged, unfinished or gone.

    Args:
        known: The folder's candidates.
        damage: Why a checkpoint must not be used; empty where it is whole.
    """
    chosen, reasons = None, []
    for path in known:
        reason = "was not written to its end" if path.name.endswith(PART) else damage(path)
        if not reason:
            chosen = path
            break
        reasons.append((path, reason))
    have = 0 if chosen is None else _number(chosen)
    try:
        written = last_written(folder)
    except ValueError:
        written = None
    if written is not None and written > have and all(_number(path) != written for path, _ in reasons):
        reasons.insert(
            0, (folder / STEPS.replace("*", str(written)), f"is gone, though {record(folder).name} names it")
        )
    used = "" if chosen is None else f", {chosen.name} is used"
    return Found(
        chosen, [f"{path}: skipped ({reason}); {_number(path) - have} steps are lost{used}" for path, reason in reasons]
    )


def _number(path: Path) -> int:
    return int(re.findall(r"\d+", path.name)[-1])


# ---- what was written ------------------------------------------------------------------------------------------------


def record(folder: Path) -> Path:
    """The file beside a folder of checkpoints that says which step was written last."""
    return folder.with_name(f"{folder.name}.json")


def note_written(folder: Path, step: int) -> None:
    """Says that the checkpoint of `step` was published."""
    write_text(record(folder), json.dumps({"step": step}) + "\n")


def last_written(folder: Path) -> int | None:
    """The step of the checkpoint that was published last; None where none was.

    Raises:
        ValueError: The record is damaged.
    """
    file = record(folder)
    if not file.is_file():
        return None
    try:
        return int(json.loads(file.read_bytes())["step"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: found {type(error).__name__}, expected the step of the last checkpoint") from None


def must_have(folder: Path) -> bool:
    """Whether there is a checkpoint, whole or not, in `folder`; one that was never written to its end, before any other
    was, is none.

    Raises:
        ValueError: There is none, but one was written.
    """
    if any(not each.name.endswith(PART) for each in candidates(folder)):
        return True
    if (step := last_written(folder)) is not None:
        raise ValueError(
            f"{folder}: found no checkpoint, expected that of step {step}, which {record(folder).name} says was"
            f" written; {REMEDY}"
        )
    return False


REMEDY = "put one back from a backup, or name another run folder to train anew (--overwrite does so in this one)"
