"""Relaxed accuracy: a number may be off by a twentieth (Masry et al. 2022, ChartQA, arXiv 2203.10244, sec. 5.1).

Agrees with the published evaluation of Pix2Struct (arXiv 2210.03347), its quirks included: percentages are hundredths,
no other sign or separator is read in a number, and an answer to the reference 0 is compared as a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric

TOLERANCE = 0.05
"""Of the reference's value."""


class RelaxedAccuracy(TextMetric):
    """`relaxed_accuracy`: how many answers are within 5 % of a reference that is a number, or equal one that is none.

    Texts are compared without blanks around them and in lower case.
    """

    names = ("relaxed_accuracy",)

    def statistics(self) -> np.ndarray:
        return np.array([[right(a, r)] for a, r in zip(self.answers, self.references, strict=True)])


def right(answer: str, references: Sequence[str]) -> float:
    """1 or 0 for one answer."""
    return float(any(_agrees(answer.strip(), text.strip()) for text in references))


def _agrees(answer: str, reference: str) -> bool:
    said, true = _number(answer), _number(reference)
    if said is not None and true:
        return abs(said - true) / abs(true) <= TOLERANCE
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
