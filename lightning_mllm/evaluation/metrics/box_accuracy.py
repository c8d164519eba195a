"""Box accuracy: how many boxes are where they should be (Yu et al. 2016, arXiv 1608.00272, sec. 6: IoU above 0.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.boxes import Box, Malformed, dialect_of, iou, read
from lightning_mllm.evaluation.metrics.text import TextMetric

OVERLAP = 0.5
"""Intersection over union from which on a box counts as right."""


class BoxAccuracy(TextMetric):
    """`box_accuracy`: how many answers overlap one of their references by half or more of the union.

    `box_malformed` is the share of answers that are no box at all; they count as wrong. Each reference is one box. An
    answer is read in the references' dialect (lightning_mllm/boxes.py); of several boxes the first one counts.
    """

    names = ("box_accuracy", "box_malformed")

    def check(self, references: Sequence[str]) -> None:
        super().check(references)
        dialects = [dialect_of(text) for text in references]
        if None in dialects:
            odd = references[dialects.index(None)]
            raise ValueError(f"box_accuracy: found the reference {odd!r}, expected a box in one of the dialects")
        if len(set(dialects)) > 1:
            raise ValueError(f"box_accuracy: found references in {' and '.join(map(str, dialects))}, expected one")
        if odd := [text for text in references if len(boxes_in(text, dialects[0])) != 1]:
            raise ValueError(f"box_accuracy: found several boxes in the reference {odd[0]!r}, expected one")

    def statistics(self) -> np.ndarray:
        """f64[N, 2]: right, malformed."""
        rows = np.zeros((len(self.answers), 2))
        for row, answer, references in zip(rows, self.answers, self.references, strict=True):
            dialect = dialect_of(references[0])
            if not (found := boxes_in(answer, dialect)):
                row[1] = 1
            else:
                row[0] = max(iou(found[0], box) for text in references for box in boxes_in(text, dialect)) >= OVERLAP
        return rows


def boxes_in(text: str, dialect: str | None) -> tuple[Box, ...]:
    """The boxes of a text, none if it is malformed."""
    assert dialect is not None, "references are checked when they are added"
    found = read(text, dialect)
    return () if isinstance(found, Malformed) else found
