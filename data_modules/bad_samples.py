"""Bad samples that training replaces: how many there may be, and the file of the run that lists them.

    bad_samples.jsonl   {"source": "photos", "index": 41, "where": "a.jsonl:42", "id": "7", "rule": "7.jpg: image file
                         is truncated", "replaced_by": "a.jsonl:43", "replaced_by_id": "8"}

A line a sample, whichever rank, worker, data epoch or restart met it first: the ranks of a run share its folder, and
each adds its lines under a lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from lightning import Trainer

FILE = "bad_samples.jsonl"
"""In the folder of the run."""
Line = Mapping[str, Any]
"""Of the file."""
REPLACED = "replaced: {"
"""How the note about a replaced sample begins (`Encoded.notes`): a line of the file follows."""


@dataclass(frozen=True, kw_only=True)
class BadLimits:
    """How many bad samples training replaces (`bad_records: skip`) before it stops.

    Args:
        share: of a data epoch: what the bad samples found so far count for in it, each as often as it is shown.
        in_a_row: of one source.

    Raises:
        ValueError: a share out of range, or a number below 1.
    """

    share: float = 0.01
    in_a_row: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"data.bad_limits.share: found {self.share}, expected a share from 0 to 1")
        if self.in_a_row < 1:
            raise ValueError(f"data.bad_limits.in_a_row: found {self.in_a_row}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that cannot be used."""

    kind: Literal["replaced", "dropped"]
    """As it is counted; those that are dropped because they are too long are not listed."""
    source: str
    """Its name in `data.train`."""
    index: int
    """In the source."""
    where: str
    """File and record; empty where that is not known."""
    id: str
    rule: str
    """What it breaks, in a sentence."""

    @property
    def sentence(self) -> str:
        """All of it as errors say it."""
        return _sentence(asdict(self))

    def note(self, where: str, id: str) -> str:
        """What travels with the row of the sample that took its place, which stands at `where`."""
        line = {key: value for key, value in asdict(self).items() if key != "kind"}
        return f"{self.kind}: {json.dumps({**line, 'replaced_by': where, 'replaced_by_id': id})}"


def identified(sentence: str) -> dict[str, str]:
    """Id and rule of a processor's sentence, "sample 'id': rule"; the id is empty where it names none."""
    found = re.match(r"sample ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"): ", sentence)
    return {"id": found[1][1:-1] if found else "", "rule": sentence[found.end() if found else 0 :]}


def replaced_in(notes: Iterable[str]) -> list[Line]:
    """What the notes of a row say of replaced samples, as the lines of the file."""
    return [json.loads(note.partition(": ")[2]) for note in notes if note.startswith(REPLACED)]


def told(note: str) -> tuple[str, str]:
    """Kind and sentence of any note; the sentence may be empty."""
    kind, _, sentence = note.partition(": ")
    return kind, _sentence(json.loads(sentence)) if sentence.startswith("{") else sentence


class BadSampleList:
    """The bad samples of a run, each once, in a file that its ranks share, and whether they are too many.

    Args:
        path: the file; None keeps the list in memory.
        limits: how many there may be.
        total: samples of a data epoch.
        shown: source -> how often a data epoch shows each of its samples; once where nothing is said.
    """

    def __init__(
        self, path: Path | None, limits: BadLimits, total: int, shown: Mapping[str, float] | None = None
    ) -> None:
        self.path, self.limits, self.total, self.shown = path, limits, total, dict(shown or {})
        self._known: set[tuple[str, int]] = set()
        self._read = 0
        """Bytes of the file that are known."""

    @classmethod
    def of(cls, trainer: Trainer | None, limits: BadLimits, total: int, shown: Mapping[str, float]) -> Self:
        """The list of a training, in its folder; a stage that begins at its beginning begins it anew.

        Called by every rank, once it is known where training goes on.
        """
        if trainer is None or getattr(trainer, "fast_dev_run", 0):
            return cls(None, limits, total, shown)
        path = Path(trainer.default_root_dir, FILE)
        if trainer.global_step == 0:
            if trainer.is_global_zero:
                path.unlink(missing_ok=True)
            trainer.strategy.barrier("bad_samples")
        return cls(path, limits, total, shown)

    def add(self, lines: Sequence[Line]) -> None:
        """Lists those that are not listed yet.

        Raises:
            ValueError: the samples listed count for more than `limits.share` of a data epoch.
        """
        if not lines:
            return
        if self.path is None:
            self._known.update(map(_key, lines))
        else:
            self._append(self.path, lines)
        counts = Counter(source for source, _ in self._known)
        bad = sum(count * self.shown.get(source, 1.0) for source, count in counts.items())
        if bad > self.limits.share * self.total:
            listed = "" if self.path is None else f", listed in {self.path}"
            raise ValueError(
                f"data.bad_limits.share: found {bad:g} bad samples in a data epoch of {self.total}{listed}, expected at"
                f" most {self.limits.share:.2%} of it (the latest: {_sentence(lines[-1])}); repair them and move the"
                " file away, or raise the share"
            )

    def _append(self, path: Path, lines: Sequence[Line]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._known_of_others(file.fileno())
            new = {_key(line): line for line in lines if _key(line) not in self._known}
            if new:
                text = "".join(json.dumps(line) + "\n" for line in new.values()).encode()
                try:
                    if file.write(text) < len(text):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError as error:
                    free = shutil.disk_usage(path.parent).free
                    told = f"cannot write {len(text)} bytes, {free} are free ({error.strerror})"
                    raise OSError(error.errno, told, str(path)) from None
                self._known.update(new)
                self._read += len(text)

    def _known_of_others(self, file: int) -> None:
        """Reads what was added since; a line that a killed process left torn goes."""
        size = os.fstat(file).st_size
        if size < self._read:  # it was removed meanwhile
            self._known, self._read = set(), 0
        rest = os.pread(file, size - self._read, self._read)
        whole = rest[: rest.rfind(b"\n") + 1]
        if len(whole) < len(rest):
            os.ftruncate(file, self._read + len(whole))
        self._known.update(_key(json.loads(line)) for line in whole.splitlines())
        self._read += len(whole)


def _key(line: Line) -> tuple[str, int]:
    return str(line["source"]), int(line["index"])


def _sentence(line: Line) -> str:
    id = f"sample {line['id']!r}" if line["id"] else ""
    return ": ".join(each for each in (line["where"], id, line["rule"]) if each)
