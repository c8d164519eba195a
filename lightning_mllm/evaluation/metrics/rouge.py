"""ROUGE-L: the longest common subsequence of a caption and its references (Lin 2004, sec. 3), as in coco-caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric
from lightning_mllm.evaluation.metrics.words import words

BETA = 1.2
"""How much more recall counts than precision."""


class RougeL(TextMetric):
    """`rouge_l`: mean F-measure in [0, 1] of the best precision and the best recall over the references."""

    names = ("rouge_l",)

    def statistics(self) -> np.ndarray:
        return np.array([[f_measure(a, r)] for a, r in zip(self.answers, self.references, strict=True)])


def f_measure(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L of one caption."""
    # coco-caption splits at single spaces, so that an empty text counts as one empty word.
    caption = words(answer) or [""]
    texts = [words(text) or [""] for text in references]
    shared = [longest_common_subsequence(caption, text) for text in texts]
    precision = max(shared) / len(caption)
    recall = max(count / len(text) for count, text in zip(shared, texts, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words both share in order."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, candidate in enumerate(other, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == candidate else max(above, row[place - 1])
            diagonal = above
    return row[-1]
