"""What every score of answers shares: per-sample statistics, summed, then turned into values.

    answers, references --> statistics f64[N, K] --> sum over samples f64[K] --> {name: value}

A score that is a mean keeps one statistic a sample; a corpus score (BLEU, F1) keeps the counts it is a function of.
Sums of resampled rows give the bootstrap of any of them (lightning_mllm/evaluation/bootstrap.py); a score that is no
function of sums (the area under a curve) says itself what it is where samples count several times.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

Answer = TypeVar("Answer")


class Asked(NamedTuple):
    """A question, for scores that are more than a function of its answer and references: of pairs, or by kind."""

    id: str = ""
    prompt: str = ""
    """The last user turn."""
    kind: str = ""
    """`question_type` of its sample."""
    pictures: tuple[str, ...] = ()
    """`cluster` of its sample."""


class SampleMetric(Metric, Generic[Answer]):
    """A score of answers (texts, or rankings of candidates) against reference texts.

    Answers are kept as Python lists, so a metric knows those of its own process only; `Scores` gathers them over ranks
    before it scores.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    names: ClassVar[tuple[str, ...]]
    """What `compute` returns, in order; the first is the headline."""
    by_kind: ClassVar[str] = ""
    """Which of them is also told of each kind of question (`Asked.kind`); empty for none."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Answer] = []
        self.references: list[tuple[str, ...]] = []
        self.asked: list[Asked] = []

    def update(
        self, answers: Sequence[Answer], references: Sequence[Sequence[str]], asked: Sequence[Asked] = ()
    ) -> None:
        """Adds one answer and its accepted references per sample, and where given what was asked."""
        if len(answers) != len(references):
            raise ValueError(
                f"{type(self).__name__}: {len(answers)} answers but {len(references)} references, expected equally many"
            )
        for answer, accepted, question in zip(answers, references, asked or [Asked()] * len(answers), strict=True):
            self.check(accepted)
            self.answers.append(answer)
            self.references.append(tuple(accepted))
            self.asked.append(question)

    def check(self, references: Sequence[str]) -> None:
        """Raises ValueError if a sample with these references cannot be scored."""
        if not references:
            raise ValueError(f"{type(self).__name__}: found a sample without a reference, expected at least one")

    def check_sample(self, references: Sequence[str], candidates: Sequence[str]) -> None:
        """Raises ValueError if a sample that is still to be answered cannot be scored."""
        self.check(references)

    def check_questions(self, asked: Sequence[Asked]) -> None:
        """Raises ValueError if a whole set that is still to be answered cannot be scored; any can, unless
        overridden."""

    @abstractmethod
    def statistics(self) -> np.ndarray:
        """f64[N, K]: what each sample adds to the sums."""

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """f64[B, len(names)] from sums f64[B, K] over `samples` f64[B] rows each; a mean unless overridden."""
        return sums / samples[:, None]

    def resampled(self, cluster: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """A function of how often each cluster of samples counts, f64[B, C], that gives f64[B, len(names)]; of sums
        unless overridden.

        Args:
            cluster: i64[N], the number of each sample's cluster, from 0 to C - 1.
        """
        rows = self.statistics()
        sums = np.stack([np.bincount(cluster, weights=column) for column in rows.T], axis=1)
        sizes = np.bincount(cluster).astype(float)
        return lambda counts: self.values(counts @ sums, counts @ sizes)

    @property
    def is_mean(self) -> bool:
        """Whether the score is a mean over samples, rather than one of the whole corpus."""
        return type(self).values is SampleMetric.values and type(self).resampled is SampleMetric.resampled

    def per_item(self) -> list[float]:
        """The score of each sample; only of scores that are means over samples."""
        if not self.is_mean:
            raise TypeError(f"{type(self).__name__} is a score of a corpus, not a mean over samples")
        return self.statistics()[:, 0].tolist()

    def compute(self) -> dict[str, Tensor]:
        """Every name with its value, f64[]."""
        if not self.answers:
            raise ValueError(f"{type(self).__name__}: no answer to score, expected at least one")
        values = self.resampled(np.arange(len(self.answers)))(np.ones((1, len(self.answers))))[0]
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in zip(self.names, values, strict=True)}

    def reset(self) -> None:
        super().reset()
        self.answers, self.references, self.asked = [], [], []

    def forward(
        self, answers: Sequence[Answer], references: Sequence[Sequence[str]], asked: Sequence[Asked] = ()
    ) -> dict[str, Tensor]:
        """Adds a batch and returns the values of that batch alone."""
        batch = type(self)()
        batch.update(answers, references, asked)
        self.update(answers, references, asked)
        return batch.compute()


class TextMetric(SampleMetric[str]):
    """A score of written answers."""


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where nothing was counted."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=float), where=denominator != 0)
