"""POPE: does the model see objects that are not there (Li et al. 2023, sec. 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric, ratio


def says_yes(answer: str) -> bool:
    """Whether the first sentence holds none of the words No, no and not (the published reading of free answers)."""
    return not {"No", "no", "not"} & set(answer.split(".")[0].replace(",", "").split(" "))


class PopeScores(TextMetric):
    """Scores of yes-or-no questions about objects; `yes` is the positive class and each reference is `yes` or `no`.

    `pope_yes_ratio` is how often the model says yes: 0.5 is unbiased on the balanced published sets. A ratio of which
    nothing was counted is 0 (the published script stops there).
    """

    names = ("pope_f1", "pope_accuracy", "pope_precision", "pope_recall", "pope_yes_ratio")

    def check(self, references: Sequence[str]) -> None:
        if len(references) != 1 or references[0] not in ("yes", "no"):
            raise ValueError(f"pope: found the references {list(references)}, expected one, 'yes' or 'no'")

    def statistics(self) -> np.ndarray:
        """f64[N, 4]: true positive, false positive, true negative, false negative."""
        rows = np.zeros((len(self.answers), 4))
        for row, answer, (label,) in zip(rows, self.answers, self.references, strict=True):
            row[(0 if label == "yes" else 1) if says_yes(answer) else (3 if label == "yes" else 2)] = 1
        return rows

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        true_yes, false_yes, true_no, false_no = np.moveaxis(sums, -1, 0)
        precision = ratio(true_yes, true_yes + false_yes)
        recall = ratio(true_yes, true_yes + false_no)
        f1 = ratio(2 * precision * recall, precision + recall)
        scores = (f1, (true_yes + true_no) / samples, precision, recall, (true_yes + false_yes) / samples)
        return np.stack(scores, axis=-1)
