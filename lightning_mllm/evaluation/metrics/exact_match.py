"""Exact match: as SQuAD defined it (Rajpurkar et al. 2016, sec. 6.1), and as SPHINX scores GQA and OCR-VQA."""

from __future__ import annotations

import re
import string

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-cased, without ASCII punctuation and articles, single-spaced."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


class ExactMatch(TextMetric):
    """`exact_match`: how many answers equal any of their references, both normalised."""

    names = ("exact_match",)

    def statistics(self) -> np.ndarray:
        return np.array(
            [
                [float(normalise(answer) in {normalise(text) for text in references})]
                for answer, references in zip(self.answers, self.references, strict=True)
            ]
        )


class SphinxExactMatch(TextMetric):
    """`exact_match_sphinx`: how many answers equal any of their references without full stops, capitals and blanks
    around them (LLaMA2-Accessory, accessory/eval_mm/utils/metric.py, `evaluate_exact_match_accuracy`).

    Articles, other punctuation and number words stay. The released evaluation also shortens answers to GQA ("is a red"
    to "red": accessory/eval_mm/evaluate.py, line 230), but after it has copied those that it scores.
    """

    names = ("exact_match_sphinx",)

    def statistics(self) -> np.ndarray:
        return np.array(
            [
                [float(_bare(answer) in {_bare(text) for text in references})]
                for answer, references in zip(self.answers, self.references, strict=True)
            ]
        )


def _bare(text: str) -> str:
    return text.replace(".", "").strip().lower()
