"""What a net's weights descend from: stages of ours, found again wherever their runs were moved to, and foreign files.

runs/x/instruct/weights/stage.json   init_from {align: 1.0}    the stage `align` in the same run folder, runs/x
                                     lineage [{source, stage, sha256}]

A name without a slash is a stage beside the one that names it; any other is relative to the folder of runs, or a path.
The digest in the record says which of the folders found under a name is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_mllm.weights.files import INDEXES, WHOLE, resource, sha256
from lightning_mllm.weights.run_records import REMEDY, read_stage

WEIGHTS = "weights"
RECORD = "stage.json"
FORMAT = 1
Record = Mapping[str, Any]
"""The content of `stage.json`."""


@dataclass(frozen=True, kw_only=True)
class InitSource:
    """A source of weights: a stage's run folder, a folder in the layout of transformers, or a file of tensors."""

    source: str
    """As `init_from` calls it."""
    path: Path
    """The folder or file that holds the tensors."""
    record: Record | None
    """`stage.json`; None for weights that no stage of ours wrote."""

    @property
    def stage(self) -> str | None:
        return None if self.record is None else self.record["stage"]

    @cached_property
    def digest(self) -> str:
        return sha256(self.path)

    @property
    def init_from(self) -> dict[str, float]:
        """What its tensors are laid over; nothing where all are in the folder."""
        return {} if self.record is None or self.record.get("whole") else dict(self.record["init_from"])

    def parents(self, runs: Path) -> dict[str, InitSource]:
        """What it was trained from, by the names that its record gives.

        Raises:
            ValueError: One is gone; names this stage, the one it needs, and where that was looked for.
        """
        used = {each["source"]: each for each in self.record["lineage"]} if self.record else {}
        return {
            source: InitSource.find(source, runs, self.path.parent, used.get(source, {})) for source in self.init_from
        }

    @classmethod
    def find(cls, source: str, runs: Path, near: Path | None = None, used: Record | None = None) -> InitSource:
        """The source called `source`: below a folder above `near`, beside `near`, below `runs`, or a path of its own.

        Args:
            near: The run folder of the stage that names it.
            used: What the record of that stage says of it: `stage` and `sha256`. A folder with this digest is taken
                before one that only has the name; one that has only the last part of the name needs the digest.

        Raises:
            ValueError: There is none, or it is a run that has not finished.
        """
        locations = list(dict.fromkeys(_locations(source, Path(runs), near)))
        digest = (used or {}).get("sha256")
        found = [each for each in (cls._at(source, location) for location in locations) if each is not None]
        for each in (*found, *(cls._renamed(source, near) if near is not None and digest is not None else ())):
            if digest is None or (each.record is not None and each.record["sha256"] == digest):
                return each
        if found:
            return found[0]
        unfinished = next((location for location in locations if location.is_dir()), None)
        expected = f"expected a finished stage with {WEIGHTS}/{RECORD}"
        if near is None:
            if unfinished is not None:
                raise ValueError(f"init_from: {source!r} is {unfinished}, {expected}")
            raise ValueError(f"init_from: found no {source!r} in {runs}, expected a finished stage, a folder or a file")
        stage = f" (stage {used['stage']!r})" if used and used.get("stage") else ""
        looked = " or ".join(str(each) for each in dict.fromkeys((near.parent / source, Path(runs) / source)))
        raise ValueError(
            f"init_from: found no {source!r}{stage}, whose weights {near} starts from, at {looked}, {expected}; put"
            " that run folder back"
        )

    @classmethod
    def _renamed(cls, source: str, near: Path) -> Iterator[InitSource]:
        """Of a run that was renamed: what was runs/old/align is beside runs/new/instruct."""
        location = near.resolve().parent / Path(source).name
        if location != near.resolve() and (found := cls._at(source, location)) is not None:
            yield found

    @classmethod
    def _at(cls, source: str, location: Path) -> InitSource | None:
        if (record := _record(location)) is not None:
            return cls(source=source, path=location / WEIGHTS, record=record)
        if location.is_file() or any((location / name).is_file() for name in (*WHOLE, *INDEXES)):
            return cls(source=source, path=location, record=None)
        return None


def _locations(source: str, runs: Path, near: Path | None) -> Iterator[Path]:
    if near is not None:
        yield from (parent / source for parent in near.resolve().parents)
    yield runs / source
    yield resource(source)


def starts_from(name: str, record: Record, other: str, other_record: Record) -> bool:
    """Whether the stage in the folder `name` descends from the one in the folder `other` of the same run."""
    if name == other:
        return False
    named = other in (record.get("init_from") or {})
    return named or other_record.get("sha256") in {each["sha256"] for each in record.get("lineage") or ()}


def portable(init_from: Mapping[str, float], run_dir: Path, runs: Path) -> dict[str, float]:
    """The same sources by names that hold after a move: a stage of the same run by its own, others as below `runs`.

    Raises:
        ValueError: A source is missing.
    """
    names = {}
    for source, weight in init_from.items():
        earlier, name = InitSource.find(source, runs, run_dir), source
        if earlier.record is not None:
            folder, root = earlier.path.parent.resolve(), Path(runs).resolve()
            if folder.parent == run_dir.resolve().parent:
                name = folder.name
            elif folder.is_relative_to(root):
                name = str(folder.relative_to(root))
        names[name] = weight
    return names


@dataclass(frozen=True)
class Lineage:
    """All that a net's weights descend from, each once, before what descends from it."""

    sources: tuple[InitSource, ...]

    @classmethod
    def read(cls, init_from: Mapping[str, float], runs: Path, near: Path | None = None) -> Lineage:
        """Follows `init_from` to its roots.

        Raises:
            ValueError: A source is missing, has changed since it was used, or descends from itself.
        """
        found: dict[Path, InitSource] = {}

        def visit(sources: Mapping[str, InitSource], below: tuple[Path, ...]) -> None:
            for source, earlier in sources.items():
                location = earlier.path.resolve()
                if location in below:
                    raise ValueError(f"init_from: {source!r} ({earlier.path}) descends from itself")
                visit(earlier.parents(runs), (*below, location))
                _check_unchanged(earlier, found)
                found.setdefault(location, earlier)

        visit({source: InitSource.find(source, runs, near) for source in init_from}, ())
        return cls(tuple(found.values()))


def _record(run: Path) -> Record | None:
    file = run / WEIGHTS / RECORD
    if not file.is_file():
        return None
    record = read_stage(file)
    if record.get("format") != FORMAT:
        raise ValueError(f"{file}: found another format, expected a record with format {FORMAT}; {REMEDY}")
    if missing := [name for name in ("stage", "sha256", "init_from", "lineage") if name not in record]:
        raise ValueError(f"{file}: found no '{missing[0]}', expected the record of a stage; {REMEDY}")
    return record


def _check_unchanged(earlier: InitSource, found: Mapping[Path, InitSource]) -> None:
    if earlier.record is None:
        return
    if earlier.record["sha256"] != earlier.digest:
        raise ValueError(f"{earlier.path}: the weights are not those that {RECORD} names, they changed or were cut")
    present = {each.digest for each in found.values()}
    for used in earlier.record["lineage"] if earlier.init_from else ():
        if used["sha256"] not in present:
            raise ValueError(
                f"{earlier.path}: was trained from {used['source']!r} as it was then, found other weights there now"
            )
