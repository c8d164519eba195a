"""ANLS: average normalised Levenshtein similarity (Biten et al. 2019, arXiv 1905.13648, sec. 4; DocVQA's score).

Agrees with the published evaluation of DocVQA: texts are compared in lower case and single-spaced, their lengths are
those of what was written, and a similarity of exactly one half still counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric

THRESHOLD = 0.5
"""A similarity below it counts as 0: the answer is another one, not a misread one."""


class Anls(TextMetric):
    """`anls`: the mean similarity of answers and their most similar reference, 0 to 1."""

    names = ("anls",)

    def statistics(self) -> np.ndarray:
        return np.array([[similarity(a, r)] for a, r in zip(self.answers, self.references, strict=True)])


def similarity(answer: str, references: Sequence[str]) -> float:
    """Of one answer: 1 minus the edits to the nearest reference over the longer of the two lengths."""
    said = " ".join(answer.lower().split())
    best = 0.0
    for reference in references:
        longer = max(len(answer), len(reference))
        edits = distance(said, " ".join(reference.lower().split()))
        best = max(best, 1 - edits / longer if longer else 1.0)
    return best if best >= THRESHOLD else 0.0


def distance(one: str, other: str) -> int:
    """Characters to insert, delete or replace to turn one text into the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for place, character in enumerate(one, 1):
        last, row[0] = row[0], place
        for k, wanted in enumerate(other, 1):
            last, row[k] = row[k], min(row[k] + 1, row[k - 1] + 1, last + (character != wanted))
    return row[-1]
