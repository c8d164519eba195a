"""The answers to sets that are not scored, gathered over ranks: what `mllm predict` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.results import write_lines
from lightning_mllm.evaluation.scores import Key, gather, keys_of

ANSWERS = "answers.jsonl"


class Predictions:
    """Collects the answers to some sets; a sample that several ranks answered stands there once.

    Args:
        sets: in the order of their loaders; those that are not answered are left out, and have no loader.

    Raises:
        ValueError: none of them is answered.
    """

    def __init__(self, sets: Sequence[Evaluation]) -> None:
        self.sets = [each for each in sets if each.answered]
        self.left_out = sorted({each.task for each in sets if not each.answered})
        if not self.sets:
            found = f"only sets of {', '.join(self.left_out)}" if self.left_out else "no set"
            raise ValueError(f"data.test: found {found}, expected one that is answered, for mllm predict")
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
