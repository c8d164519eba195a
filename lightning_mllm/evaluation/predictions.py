"""The answers to sets that are not scored, gathered over ranks: what `mllm predict` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.results import write_lines
from lightning_mllm.evaluation.scores import OTHERS, Key, gather, keys_of

ANSWERS = "answers.jsonl"


class Predictions:
    """Collects the answers to some sets; a sample that several ranks answered stands there once.

    Args:
        sets: in the order of their loaders.

    Raises:
        ValueError: one of them is not answered in text.
    """

    def __init__(self, sets: Sequence[Evaluation]) -> None:
        if unanswered := [each.task for each in sets if each.task in OTHERS]:
            raise ValueError(
                f"predict: found a set of the task '{unanswered[0]}', expected sets that are answered in text"
            )
        self.sets = list(sets)
        self._rows: dict[tuple[int, Key], dict[str, str]] = {}

    def update(self, batch: Batch, answers: Sequence[str], number: int) -> list[dict[str, str]]:
        """Adds the answers to the rows of a batch of set `number`, and gives them: task, part, id, prompt, answer."""
        own = self.sets[number]
        rows = [
            {"task": own.task, "part": own.part, "id": id, "prompt": prompt, "answer": answer}
            for id, prompt, answer in zip(batch.ids, batch.prompts, answers, strict=True)
        ]
        self._rows |= {(number, index): row for index, row in zip(keys_of(batch), rows, strict=True)}
        return rows

    def write(self, folder: Path, *, main: bool) -> tuple[Path, int]:
        """Writes `answers.jsonl`, a line for each answer of all ranks in the order of the sets; for all ranks together.

        Args:
            main: whether this rank writes; the others only tell it theirs.
        """
        everywhere: dict[tuple[int, Key], dict[str, str]] = {}
        for rows in gather(self._rows):
            everywhere = rows | everywhere
        if main:
            write_lines(folder / ANSWERS, (everywhere[place] for place in sorted(everywhere)))
        return folder / ANSWERS, len(everywhere)
