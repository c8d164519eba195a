"""`mllm data list`: the published data sets that the sources read."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_modules import sources
from data_modules.sources.source import Published, Source

HELP = """\
mllm data list                the published data sets that the sources read: class, task, scores, files, paper
mllm data convert IN --to OUT  conversations in another dialect, another kind of file, or both
mllm data check EXPERIMENT    every record that an experiment reads, and some of its pictures, before a run
mllm data shares STAGE.yaml   what each training source of a stage counts for in the loss, under each reduction

A class is named in YAML as data_modules.sources.CLASS; its docstring says what its files look like.
"""

LENGTHS = Path(__file__).with_name("lengths") / "instructblip.yaml"
"""Sizes and mean lengths of InstructBLIP's training sets, for `mllm data shares`."""

HEADINGS = ("data set", "source", "InstructBLIP", "templates", "scores", "paper", "files")


def published() -> list[tuple[type[Source], Published]]:
    """Every published data set with the class that reads it; those that InstructBLIP trains on come first,
    then those that it tests on, then the others."""
    found = [(kind, each) for kind in _sources() for each in vars(kind).get("published", ())]
    return sorted(found, key=lambda row: ((True, False, None).index(row[1].held_in), row[1].title.lower()))


def _sources() -> Iterator[type[Source]]:
    """The classes of the package of sources."""
    for module in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Source) and value.__module__ == module.name:
                yield value


def table() -> str:
    """One line a data set, in plain columns."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for kind, each in published():
        role = {True: "held-in", False: "held-out", None: "-"}[each.held_in]
        scores, files = ", ".join(each.tasks) or "-", ", ".join(each.files)
        rows.append((each.title, kind.__name__, role, each.family or "-", scores, each.paper, files))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """The verb."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif list(arguments) == ["list"]:
        print(table(), end="")
    elif arguments[0] == "convert":
        from data_modules.convert import main as convert

        convert(arguments[1:])
    else:
        raise ValueError(f"data: found '{' '.join(arguments)}', expected list, convert or shares")
