"""How far a score may be off: percentile bootstrap over clusters (Efron and Tibshirani 1993, ch. 13; Davison and
Hinkley 1997, sec. 3.8).

Questions about one picture are not independent: a picture that is hard is hard for all of them. Drawing questions one
by one makes intervals too narrow, so whole clusters (a picture with all its questions) are drawn, with replacement:

    statistics f64[N, K] --cluster i64[N]--> sums f64[C, K] --counts f64[B, C] of B draws--> values f64[B, names]

Two runs are compared in evaluation/paired.py, on the same draws.

Legend: N samples, C clusters, B draws, K statistics of a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_mllm.evaluation.metrics.text import Answer, SampleMetric

BLOCK = 1 << 21
"""Counts held at once."""

Values = Callable[[Float[np.ndarray, "B C"]], Float[np.ndarray, "B names"]]
"""From how often each cluster was drawn to the scores of each draw."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score of the whole set and the range that holds it."""

    value: float
    low: float
    high: float


def cluster_numbers(shared: Sequence[Sequence[str]]) -> Int[np.ndarray, " N"]:
    """The cluster of each sample, numbered from 0 in the order of their first samples.

    Args:
        shared: what each sample may share with others. Those that share any are of one cluster, directly or through
            others; one that shares nothing is a cluster of its own.
    """
    parent = list(range(len(shared)))

    def root(sample: int) -> int:
        while parent[sample] != sample:
            parent[sample] = parent[parent[sample]]
            sample = parent[sample]
        return sample

    first: dict[str, int] = {}
    for sample, names in enumerate(shared):
        for name in names:
            one, other = root(first.setdefault(name, sample)), root(sample)
            parent[max(one, other)] = min(one, other)
    roots = [root(sample) for sample in range(len(shared))]
    number = {sample: k for k, sample in enumerate(sorted(set(roots)))}
    return np.array([number[each] for each in roots], dtype=np.int64)


def interval(
    per_item: Sequence[float],
    clusters: Int[np.ndarray, " N"] | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of `per_item` and its interval.

    Args:
        per_item: the score of each sample; at least one.
        clusters: the number of each sample's cluster; None where each is its own.
        samples: how often the set is drawn anew, with replacement.
        seed: of the draws; same seed, same interval.
        level: how often such an interval holds the value.
    """
    rows = np.asarray(per_item, dtype=float).reshape(-1, 1)
    cluster = _clusters(len(rows), clusters)
    sums, sizes = np.bincount(cluster, weights=rows[:, 0])[:, None], np.bincount(cluster).astype(float)
    return _intervals(lambda counts: counts @ sums / (counts @ sizes)[:, None], len(sizes), samples, seed, level)[0]


def metric_intervals(
    metric: SampleMetric[Answer],
    clusters: Int[np.ndarray, " N"] | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Every value of a metric and its interval; corpus scores are computed anew on each drawn corpus."""
    cluster = _clusters_of(metric, clusters)
    found = _intervals(metric.resampled(cluster), int(cluster.max()) + 1, samples, seed, level)
    return dict(zip(metric.names, found, strict=True))


def _clusters_of(metric: SampleMetric[Answer], clusters: Int[np.ndarray, " N"] | None) -> Int[np.ndarray, " N"]:
    if not metric.answers:
        raise ValueError(f"{type(metric).__name__}: no answer to score, expected at least one")
    return _clusters(len(metric.answers), clusters)


def _clusters(total: int, clusters: Int[np.ndarray, " N"] | None) -> Int[np.ndarray, " N"]:
    if clusters is not None and len(clusters) != total:
        raise ValueError(f"bootstrap: found {len(clusters)} clusters of {total} samples, expected one each")
    return np.arange(total) if clusters is None else np.unique(clusters, return_inverse=True)[1]


def draws(clusters: int, samples: int, seed: int) -> Iterator[Float[np.ndarray, "B C"]]:
    """How often each cluster was drawn, a block of draws at a time."""
    random = np.random.default_rng(seed)
    at_once = max(1, BLOCK // clusters)
    for start in range(0, samples, at_once):
        some = min(at_once, samples - start)
        drawn = random.integers(clusters, size=(some, clusters))
        drawn += np.arange(0, some * clusters, clusters)[:, None]
        yield np.bincount(drawn.ravel(), minlength=some * clusters).reshape(some, clusters).astype(float)


def _intervals(values: Values, clusters: int, samples: int, seed: int, level: float) -> list[Interval]:
    """From a function of how often each of `clusters` counts."""
    if not clusters:
        raise ValueError("bootstrap: found no sample, expected at least one")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap: samples is {samples} and level {level}, expected at least 1 and in (0, 1)")
    drawn = np.concatenate([values(counts) for counts in draws(clusters, samples, seed)])
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    exact = values(np.ones((1, clusters)))[0]
    return [Interval(value=float(v), low=float(a), high=float(b)) for v, a, b in zip(exact, low, high, strict=True)]
