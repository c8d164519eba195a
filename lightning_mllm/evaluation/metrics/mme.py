"""MME: two yes-or-no questions about each picture, one true and one false (Fu et al. 2023, arXiv 2306.13394, sec. 2.2).

Rules of the released eval_tool/calculation.py. Of each subtask,

    score = 100 accuracy + 100 accuracy+        accuracy+: how many pictures have both of their questions right

and perception and cognition are sums of such scores: at most 2,000 over 10 subtasks and 800 over 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lightning_mllm.evaluation.metrics.text import Asked, TextMetric, ratio

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = (*PERCEPTION, *COGNITION)


def read_yes_or_no(answer: str) -> str:
    """'yes' or 'no' where it stands in the first four characters, in any case; else 'other'."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def pair_of(question: Asked) -> tuple[str, tuple[str, ...]]:
    """What the two questions of a pair share: subtask and picture."""
    return question.kind, question.pictures or (question.id,)


class MmeScores(TextMetric):
    """`mme_perception` (0 to 2,000), `mme_cognition` (0 to 800) and `mme_total`, their sum.

    Each question names its subtask (`Asked.kind`) and its picture. A subtask that a set lacks adds nothing. Where one
    question of a pair is missing, as among those that two runs share, the other one is the pair.
    """

    names = ("mme_perception", "mme_cognition", "mme_total")
    by_kind = "mme_total"

    def check(self, references: Sequence[str]) -> None:
        if len(references) != 1 or references[0] not in ("yes", "no"):
            raise ValueError(f"mme: found the references {list(references)}, expected one, 'yes' or 'no'")

    def check_questions(self, asked: Sequence[Asked]) -> None:
        for question in asked:
            _subtask(question)
        for (subtask, pictures), count in Counter(map(pair_of, asked)).items():
            if count != 2:
                raise ValueError(
                    f"mme: found {count} questions of {subtask} about {', '.join(pictures)}, expected 2, for accuracy+"
                    " is of pairs; a limit cuts them"
                )

    def statistics(self) -> np.ndarray:
        """f64[N, 14 * 4]: of each subtask, right answers, answers, pairs that are all right, pairs; a pair counts at
        its first question."""
        right = [
            read_yes_or_no(answer) == label for answer, (label,) in zip(self.answers, self.references, strict=True)
        ]
        of_pair: dict[object, list[bool]] = {}
        for question, each in zip(self.asked, right, strict=True):
            of_pair.setdefault(pair_of(question), []).append(each)
        rows = np.zeros((len(right), len(SUBTASKS), 4))
        for row, question, each in zip(rows, self.asked, right, strict=True):
            pair = of_pair.pop(pair_of(question), None)
            row[_subtask(question)] = [each, 1, pair is not None and all(pair), pair is not None]
        return rows.reshape(len(right), -1)

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        right, answers, full, pairs = np.moveaxis(sums.reshape(*sums.shape[:-1], len(SUBTASKS), 4), -1, 0)
        scores = 100 * (ratio(right, answers) + ratio(full, pairs))
        perception = scores[..., : len(PERCEPTION)].sum(-1)
        cognition = scores[..., len(PERCEPTION) :].sum(-1)
        return np.stack([perception, cognition, perception + cognition], axis=-1)


def _subtask(question: Asked) -> int:
    if question.kind not in SUBTASKS:
        raise ValueError(f"mme: found the subtask '{question.kind}', expected one of {', '.join(SUBTASKS)}")
    return SUBTASKS.index(question.kind)
