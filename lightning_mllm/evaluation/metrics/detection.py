"""Detection by written boxes: how many are found, and how many of those that are named are true.

A model that writes boxes gives no confidences to average precision over, so this is F1 at one overlap (as in Pix2Seq's,
arXiv 2109.10852, reading of boxes as text; the score itself is ours).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.boxes import Box, dialect_of, iou
from lightning_mllm.evaluation.metrics.box_accuracy import OVERLAP, boxes_in
from lightning_mllm.evaluation.metrics.text import TextMetric, ratio


class DetectionScores(TextMetric):
    """`detection_f1` of all boxes of the corpus, of which `detection_precision` and `detection_recall` are the parts.

    A reference is all true boxes of a sample in one text; an answer is read in its dialect. Pairs of answered and true
    boxes are made once each, those that overlap most first, down to half of their union. `detection_malformed` is the
    share of answers that are no boxes.
    """

    names = ("detection_f1", "detection_precision", "detection_recall", "detection_malformed")

    def check(self, references: Sequence[str]) -> None:
        if len(references) != 1 or dialect_of(references[0]) is None:
            raise ValueError(f"detection: found the references {list(references)}, expected one text of boxes")

    def statistics(self) -> np.ndarray:
        """f64[N, 4]: pairs, answered boxes, true boxes, malformed."""
        rows = np.zeros((len(self.answers), 4))
        for row, answer, (reference,) in zip(rows, self.answers, self.references, strict=True):
            dialect = dialect_of(reference)
            said, true = boxes_in(answer, dialect), boxes_in(reference, dialect)
            row[:] = pairs(said, true), len(said), len(true), not said
        return rows

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        paired, said, true, malformed = np.moveaxis(sums, -1, 0)
        f1 = ratio(2 * paired, said + true)
        return np.stack([f1, ratio(paired, said), ratio(paired, true), malformed / samples], axis=-1)


def pairs(said: Sequence[Box], true: Sequence[Box]) -> int:
    """How many pairs of boxes overlap by half or more of their union, no box being in two."""
    near = sorted(((iou(a, b), i, j) for i, a in enumerate(said) for j, b in enumerate(true)), reverse=True)
    rows, columns = set[int](), set[int]()
    for overlap, i, j in near:
        if overlap >= OVERLAP and i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
    return len(rows)
