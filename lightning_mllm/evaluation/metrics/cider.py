"""CIDEr-D: agreement of a caption with its references in rare words (Vedantam et al. 2015, sec. 3 and 5)."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric
from lightning_mllm.evaluation.metrics.words import Gram, grams, words

LONGEST = 4
SIGMA = 6.0
"""Of the Gaussian penalty on length differences (sec. 5)."""

Vector = list[dict[Gram, float]]


class CiderD(TextMetric):
    """`cider`: CIDEr-D as coco-caption computes it, 10 at best.

    How rare an n-gram is counts the samples of the evaluated set whose references hold it, so that values of sets of
    different size do not compare.
    """

    names = ("cider",)

    def statistics(self) -> np.ndarray:
        references = [[grams(words(text), LONGEST) for text in texts] for texts in self.references]
        holders = Counter(gram for texts in references for gram in set().union(*texts))
        log_samples = math.log(len(references))

        def weigh(counts: Counter[Gram]) -> tuple[Vector, list[float], int]:
            """tf-idf per n-gram length, the norms, and the number of bigrams, which stands for the length."""
            vector: Vector = [{} for _ in range(LONGEST)]
            for gram, count in counts.items():
                vector[len(gram) - 1][gram] = count * (log_samples - math.log(max(1, holders[gram])))
            norms = [math.sqrt(sum(weight * weight for weight in part.values())) for part in vector]
            return vector, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

        def agreement(caption: Counter[Gram], texts: list[Counter[Gram]]) -> float:
            vector, norms, length = weigh(caption)
            total = 0.0
            for other, other_norms, other_length in map(weigh, texts):
                penalty = math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))
                for n in range(LONGEST):
                    shared = sum(
                        min(weight, other[n][gram]) * other[n][gram]
                        for gram, weight in vector[n].items()
                        if gram in other[n]
                    )
                    product = norms[n] * other_norms[n]
                    total += penalty * (shared / product if product else shared)
            return 10 * total / (LONGEST * len(texts))

        captions = [grams(words(answer), LONGEST) for answer in self.answers]
        return np.array([[agreement(c, texts)] for c, texts in zip(captions, references, strict=True)])
