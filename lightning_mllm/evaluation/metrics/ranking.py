"""Scores of closed sets: candidates are ranked by their likelihood instead of answered in writing.

Candidates of equal likelihood have no order: each score is what an order drawn at random would give on average, so
that a model that tells nothing apart scores chance, wherever the right candidate stands in its list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lightning_mllm.evaluation.metrics.text import Asked, SampleMetric


@dataclass(frozen=True)
class Ranking:
    """The candidates of one sample, each with its log-likelihood."""

    candidates: tuple[str, ...]
    likelihoods: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.candidates) != len(self.likelihoods) or not self.candidates:
            raise ValueError(
                f"found {len(self.likelihoods)} likelihoods of {len(self.candidates)} candidates, expected one each"
            )
        if not np.isfinite(self.likelihoods).all():
            raise ValueError(f"found the likelihoods {list(self.likelihoods)}, expected finite ones")

    @property
    def best(self) -> str:
        """The most likely candidate, the first of equals."""
        return self.candidates[int(np.argmax(self.likelihoods))]

    def rank(self, references: Sequence[str]) -> tuple[int, int, int]:
        """How many wrong candidates are likelier than the best reference, how many are as likely, and how many
        references are as likely as the best; a text that stands in the list several times is one candidate."""
        likelihood = dict(zip(self.candidates, self.likelihoods, strict=True))
        right = [likelihood[text] for text in set(references) & likelihood.keys()]
        best = max(right)
        wrong = np.array([value for text, value in likelihood.items() if text not in references])
        return int((wrong > best).sum()), int((wrong == best).sum()), right.count(best)


class RankMetric(SampleMetric[Ranking]):
    """A score of ranked candidates; at least one reference of each sample is among them."""

    def update(
        self, answers: Sequence[Ranking], references: Sequence[Sequence[str]], asked: Sequence[Asked] = ()
    ) -> None:
        for ranking, accepted in zip(answers, references, strict=False):
            self.check_sample(accepted, ranking.candidates)
        super().update(answers, references, asked)

    def check_sample(self, references: Sequence[str], candidates: Sequence[str]) -> None:
        super().check_sample(references, candidates)
        if not candidates:
            raise ValueError(f"{self.names[0]}: found no candidates, expected some to rank")
        if not set(references) & set(candidates):
            raise ValueError(
                f"{self.names[0]}: found the references {list(references)}, expected one of the"
                f" {len(candidates)} candidates {list(candidates[:5])}"
            )

    def _ranks(self) -> list[tuple[int, int, int]]:
        return [ranking.rank(accepted) for ranking, accepted in zip(self.answers, self.references, strict=True)]


class Choice(RankMetric):
    """`choice_accuracy`: how often the most likely candidate is right."""

    names = ("choice_accuracy",)

    def statistics(self) -> np.ndarray:
        return np.array([[hit_chance(*rank, 1)] for rank in self._ranks()])


class ReciprocalRank(RankMetric):
    """`mrr`, `recall_1`, `recall_5`, `recall_10` in [0, 1] and `mean_rank` from 1 on (Das et al. 2017, Visual Dialog).

    Of several references the likeliest counts.
    """

    names = ("mrr", "recall_1", "recall_5", "recall_10", "mean_rank")

    def statistics(self) -> np.ndarray:
        rows = []
        for before, tied, right in self._ranks():
            first = first_chances(tied, right)
            ranks = before + 1 + np.arange(tied + 1)
            recalls = [hit_chance(before, tied, right, k) for k in (1, 5, 10)]
            rows.append([first @ (1 / ranks), *recalls, first @ ranks])
        return np.array(rows)


class RocAuc(RankMetric):
    """`auc`: the area under the ROC curve of the probability of `yes`, candidates being `yes` and `no`.

    The probability is the softmax over both likelihoods. The area is how often a positive sample has a higher one than
    a negative (Hanley and McNeil 1982); it is 0.5 where all samples are of one class.
    """

    names = ("auc",)

    def check(self, references: Sequence[str]) -> None:
        if len(references) != 1 or references[0] not in ("yes", "no"):
            raise ValueError(f"auc: found the references {list(references)}, expected one, 'yes' or 'no'")

    def check_sample(self, references: Sequence[str], candidates: Sequence[str]) -> None:
        if sorted(candidates) != ["no", "yes"]:
            raise ValueError(f"auc: found the candidates {list(candidates)}, expected 'yes' and 'no'")
        super().check_sample(references, candidates)

    def statistics(self) -> np.ndarray:
        """f64[N, 2]: the log-odds of yes, which is in the order of its probability but never rounds to 1; and whether
        yes is right."""
        odds = [
            a.likelihoods[a.candidates.index("yes")] - a.likelihoods[a.candidates.index("no")] for a in self.answers
        ]
        return np.array([[each, label == "yes"] for each, (label,) in zip(odds, self.references, strict=True)])

    def resampled(self, cluster: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        odds, positive = self.statistics().T
        level = np.unique(odds, return_inverse=True)[1]  # equal odds, equal level; levels rise

        def area(counts: np.ndarray) -> float:
            yes = np.bincount(level, weights=counts * positive)
            no = np.bincount(level, weights=counts * (1 - positive))
            pairs = yes.sum() * no.sum()
            won = yes @ (np.cumsum(no) - no / 2)  # over all lower levels, half of its own
            return won / pairs if pairs else 0.5

        return lambda counts: np.array([[area(drawn[cluster])] for drawn in counts])


@lru_cache(maxsize=4096)
def first_chances(tied: int, right: int) -> np.ndarray:
    """f64[tied + 1]: how likely the first of `right` right ones stands behind 0, 1, .. of `tied` wrong ones."""
    place = np.arange(tied + 1)
    behind = np.cumprod([1.0, *((tied - place[:-1]) / (tied + right - place[:-1]))])
    return behind * right / (tied + right - place)


def hit_chance(before: int, tied: int, right: int, k: int) -> float:
    """How likely a right one is among the first `k`: behind `before` wrong ones, in random order with `tied` more."""
    return float(first_chances(tied, right)[: max(k - before, 0)].sum())
