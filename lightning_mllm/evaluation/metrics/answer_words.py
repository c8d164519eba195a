"""How long open answers are: all that can be told of MM-Vet's and LLaVA-Bench's before a judge has read them."""

from __future__ import annotations

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric


class AnswerWords(TextMetric):
    """`answer_words`: words of an answer, split at blanks, on average. It is no score of quality."""

    names = ("answer_words",)
    higher_is_better = None

    def statistics(self) -> np.ndarray:
        return np.array([[float(len(answer.split()))] for answer in self.answers])
