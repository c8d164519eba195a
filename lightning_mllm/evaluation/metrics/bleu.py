"""BLEU of a corpus of captions (Papineni et al. 2002), with the closest reference length, as in coco-caption."""

from __future__ import annotations

from collections import Counter

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric
from lightning_mllm.evaluation.metrics.words import Gram, grams, words

LONGEST = 4
# coco-caption's guards against zero: a corpus without one match scores nearly, not exactly, 0.
TINY, SMALL = 1e-15, 1e-9


class Bleu(TextMetric):
    """`bleu_1` .. `bleu_4` in [0, 1]: clipped n-gram precision over the whole corpus times the brevity penalty."""

    names = tuple(f"bleu_{n}" for n in range(1, LONGEST + 1))

    def statistics(self) -> np.ndarray:
        """f64[N, 10]: matches of length 1..4, n-grams of length 1..4, length, reference length."""
        rows = []
        for answer, references in zip(self.answers, self.references, strict=True):
            caption, texts = words(answer), [words(text) for text in references]
            most: Counter[Gram] = Counter()
            for text in texts:
                most |= grams(text, LONGEST)
            matches = [0] * LONGEST
            for gram, count in (grams(caption, LONGEST) & most).items():
                matches[len(gram) - 1] += count
            guesses = [max(0, len(caption) - n) for n in range(LONGEST)]
            closest = min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
            rows.append([*matches, *guesses, len(caption), closest])
        return np.array(rows, dtype=float)

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        matches, guesses = sums[..., :LONGEST], sums[..., LONGEST : 2 * LONGEST]
        precision = np.cumprod((matches + TINY) / (guesses + SMALL), axis=-1) ** (1 / np.arange(1, LONGEST + 1))
        relative = (sums[..., -2:-1] + TINY) / (sums[..., -1:] + SMALL)
        brevity = np.exp(np.minimum(0, 1 - 1 / relative))
        return precision * brevity
