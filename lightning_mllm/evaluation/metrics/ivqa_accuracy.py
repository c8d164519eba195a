"""iVQA accuracy: how many of five people gave the answer (Yang et al. 2021, "Just Ask", the iVQA data set)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric
from lightning_mllm.evaluation.metrics.vqa_accuracy import normalise

PEOPLE = 5


class IvqaAccuracy(TextMetric):
    """`ivqa_accuracy`: the mean of min(people who agree / 2, 1); each sample has the answers of five people.

    Texts are normalised as for VQA accuracy.
    """

    names = ("ivqa_accuracy",)

    def check(self, references: Sequence[str]) -> None:
        if len(references) != PEOPLE:
            raise ValueError(
                f"ivqa_accuracy: found a sample with {len(references)} references, expected {PEOPLE} people's answers"
            )

    def statistics(self) -> np.ndarray:
        return np.array([[accuracy(a, r)] for a, r in zip(self.answers, self.references, strict=True)])


def accuracy(answer: str, references: Sequence[str]) -> float:
    """The accuracy of one answer."""
    said = normalise(answer)
    return min(sum(normalise(text) == said for text in references) / 2, 1.0)
