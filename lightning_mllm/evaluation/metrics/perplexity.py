"""Perplexity of plain text: the exponential of the mean cross-entropy of a token (Jelinek et al. 1977)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_mllm.evaluation.metrics.text import SampleMetric


class DocumentLoss(NamedTuple):
    """How well a document is predicted."""

    loss: float
    """Cross-entropy in nats, summed over tokens."""
    tokens: int
    """That were predicted."""


class Perplexity(SampleMetric[DocumentLoss]):
    """`perplexity` in [1, inf), over the tokens of all documents; lower is better. There are no references.

    Tokens depend on the tokenizer: only nets that share one can be compared.
    """

    higher_is_better = False
    names = ("perplexity",)

    def check(self, references: Sequence[str]) -> None:
        pass

    def statistics(self) -> np.ndarray:
        return np.array(self.answers, dtype=float)

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return np.exp(sums[..., :1] / sums[..., 1:])


class Loss(Perplexity):
    """`loss` in nats a token, over the tokens of all samples; lower is better. There are no references."""

    names = ("loss",)

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return sums[..., :1] / sums[..., 1:]
