"""What a person sees of a synthesis at work: a bar, and a line for what is out of the ordinary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display(Protocol):
    """Where the runner tells how far it is."""

    def show(self, counts: Mapping[str, int], spent: str) -> None:
        """Requests by state, and what was spent."""
        ...

    def say(self, sentence: str) -> None:
        """One line that stays."""
        ...


class Bar:
    """A progress bar on stderr."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, told="")

    def show(self, counts: Mapping[str, int], spent: str) -> None:
        """As in `Display`."""
        ended = {state: counts.get(state, 0) for state in ("accepted", "rejected", "refused")}
        told = ", ".join([*(f"{count} {state}" for state, count in ended.items() if count), spent])
        total = sum(counts.values()) - counts.get("written", 0)
        self._progress.update(self._task, total=total, completed=sum(ended.values()), told=told)

    def say(self, sentence: str) -> None:
        """As in `Display`."""
        self._progress.console.print(sentence, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar() -> Iterator[Bar]:
    """A bar for as long as the block runs."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}", markup=False))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        yield Bar(progress)
