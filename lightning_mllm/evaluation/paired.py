"""Whether one side does better than another on the same test set: paired cluster bootstrap, seeds, power, Holm.

A side is one run, or several that differ in their seed alone. In each draw whole pictures are drawn, the same ones for
all runs, and every score is computed anew on them, scores of a corpus too:

    difference = mean over the seeds of one side - mean over those of the other
    draws of it  = that difference on drawn pictures + what other seeds would add

The second term is drawn from Student's t, as in his test of two means: s * sqrt(1/S + 1/R) * t of S + R - 2 degrees of
freedom, where the standard deviation s between seeds is taken to be that of both sides. It widens intervals as few
seeds deserve; drawing seeds with replacement would make them too narrow (of two seeds by sqrt(2)). Of two sides of one
seed each there is no such term: the interval is about these trained nets, and says nothing of other seeds. But where
both sides are seeds of one recipe, s is that around the mean of all of them, with S + R - 1 degrees of freedom: what
two seeds differ in is what seeds make.

Legend: B draws, C clusters, K scores, S and R runs of the two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_mllm.evaluation.bootstrap import Interval, Values, draws
from lightning_mllm.evaluation.metrics import SampleMetric

DRAWS = 5000
LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One score of two sides in the same draws."""

    value: float
    """The difference on the whole set: first - other."""
    drawn: Float[np.ndarray, " B"]
    """The difference on each drawn set; NaN where it holds no sample."""
    unpaired: Float[np.ndarray, " B"]
    """The same where each side had drawn pictures of its own."""
    seeds: Float[np.ndarray, " B"]
    """What of it other seeds add."""

    def interval(self, level: float = LEVEL) -> Interval:
        """Percentiles of the draws."""
        return self._interval(self.drawn, level)

    def unpaired_interval(self, level: float = LEVEL) -> Interval:
        """What the interval would be if the sides were not compared on the same pictures."""
        return self._interval(self.unpaired, level)

    def pictures_interval(self, level: float = LEVEL) -> Interval | None:
        """The interval for these seeds, over pictures alone; None where it is the same."""
        return self._interval(self.drawn - self.seeds, level) if self.seeds.any() else None

    def _interval(self, drawn: Float[np.ndarray, " B"], level: float) -> Interval:
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Interval(value=self.value, low=float(low), high=float(high))

    @property
    def p(self) -> float:
        """Two-sided: twice the share of draws beyond 0; at least 2 / (B + 1)."""
        known = self.drawn[~np.isnan(self.drawn)]
        beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
        return min(1.0, 2 * (1 + beyond) / (1 + len(known)))

    def detectable(self, *, alpha: float = 1 - LEVEL, power: float = POWER, seeds: bool = True) -> float:
        """The difference that a test at `alpha` would find in the share `power` of such tests, found differences being
        spread around the true one as the draws are; 0 where the sides never differ.

        Args:
            seeds: whether other seeds spread them too, or pictures alone.
        """
        drawn = self.drawn if seeds else self.drawn - self.seeds
        low, below, above, high = np.nanquantile(drawn, [alpha / 2, 1 - power, power, 1 - alpha / 2])
        return float((high - low) / 2 + (above - below) / 2)


def paired(
    first: Sequence[Values],
    other: Sequence[Values],
    clusters: int,
    *,
    one_recipe: bool = False,
    samples: int = DRAWS,
    seed: int = 0,
) -> list[Paired]:
    """Each of K scores of two sides, compared.

    Args:
        first: of each run of one side, from how often each cluster was drawn, f64[B, C], to its scores, f64[B, K].
        other: those of the other side, the same scores in the same order, on the same clusters.
        clusters: C.
        one_recipe: whether all runs of both sides are seeds of one recipe.
        samples: B, at least 2.
        seed: of the draws; same seed, same result.
    """
    blocks: list[Float[np.ndarray, "sides B K"]] = []
    for counts in draws(clusters, samples, seed):
        blocks.append(np.stack([np.mean([run(counts) for run in side], axis=0) for side in (first, other)]))
    drawn = np.concatenate(blocks, axis=1)
    exact = [values_of(side, clusters) for side in (first, other)]
    seeds = _other_seeds(exact[0], exact[1], one_recipe, samples, np.random.default_rng([seed, 1]))
    value = exact[0].mean(0) - exact[1].mean(0)
    same = drawn[0] - drawn[1] + seeds
    own = drawn[0] - np.roll(drawn[1], 1, axis=0) + seeds
    return [
        Paired(value=float(value[k]), drawn=same[:, k], unpaired=own[:, k], seeds=seeds[:, k])
        for k in range(len(value))
    ]


def _other_seeds(
    first: Float[np.ndarray, "S K"],
    other: Float[np.ndarray, "R K"],
    one_recipe: bool,
    samples: int,
    random: np.random.Generator,
) -> Float[np.ndarray, "B K"]:
    """What other seeds would add to the difference; 0 where nothing tells how far seeds spread."""
    groups = [np.concatenate([first, other])] if one_recipe else [first, other]
    freedom = len(first) + len(other) - len(groups)
    if not freedom:
        return np.zeros((samples, first.shape[1]))
    squares = np.sum([((group - group.mean(0)) ** 2).sum(0) for group in groups], axis=0)
    error = np.sqrt(squares / freedom * (1 / len(first) + 1 / len(other)))
    return error * random.standard_t(freedom, size=(samples, 1))


def values_of(runs: Sequence[Values], clusters: int) -> Float[np.ndarray, "S K"]:
    """Each of K scores of each run on the whole set."""
    return np.stack([run(np.ones((1, clusters)))[0] for run in runs])


def means(runs: Sequence[Values], clusters: int, *, samples: int = DRAWS, seed: int = 0) -> list[Interval]:
    """Each of K scores, averaged over runs, and its interval over drawn pictures; as in `paired`."""
    drawn = [np.mean([run(counts) for run in runs], axis=0) for counts in draws(clusters, samples, seed)]
    exact = values_of(runs, clusters).mean(0)
    low, high = np.nanquantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Interval(value=float(v), low=float(a), high=float(b)) for v, a, b in zip(exact, low, high, strict=True)]


def between_seeds(values: Sequence[float]) -> Interval:
    """The mean over seeds and the interval that holds the mean over all seeds, by Student's t; at least two values."""
    reach = student(len(values) - 1, (1 + LEVEL) / 2) * float(np.std(values, ddof=1)) / np.sqrt(len(values))
    mean = float(np.mean(values))
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def student(freedom: int, probability: float) -> float:
    """The quantile of Student's t: of an angle whose density is cos^(freedom - 1), sqrt(freedom) x its tangent."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    below = np.cumsum(np.cos(angle).clip(0) ** (freedom - 1))
    return float(np.sqrt(freedom) * np.tan(np.interp(probability, below / below[-1], angle)))


def of_clusters(metric: SampleMetric, cluster: Int[np.ndarray, " N"]) -> Values:
    """A function of how often each of all clusters was drawn, of a metric whose samples may belong to a part of them.

    Args:
        cluster: of each of the metric's samples, in the numbering of all.
    """
    present, number = np.unique(cluster, return_inverse=True)
    values = metric.resampled(number)

    def scores(counts: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "B K"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return values(counts[:, present])

    return scores


def together(parts: Sequence[Values]) -> Values:
    """The scores of several functions side by side."""
    return lambda counts: np.concatenate([part(counts) for part in parts], axis=1)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that they hold for any false finding among them (Holm 1979)."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted
