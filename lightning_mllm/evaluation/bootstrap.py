"""How far a score may be off: percentile bootstrap over samples (Efron and Tibshirani 1993, ch. 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_mllm.evaluation.metrics.text import SampleMetric


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score of the whole set and the range that holds it."""

    value: float
    low: float
    high: float


def interval(per_item: Sequence[float], *, samples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of `per_item` and its interval.

    Args:
        per_item: the score of each sample; at least one.
        samples: how often the set is drawn anew, with replacement.
        seed: of the draws; same seed, same interval.
        level: how often such an interval holds the value.
    """
    rows = np.asarray(per_item, dtype=float).reshape(-1, 1)
    return _intervals(len(rows), lambda counts: counts @ rows / len(rows), samples, seed, level)[0]


def metric_intervals(
    metric: SampleMetric[Any], *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Every value of a metric and its interval; corpus scores are computed anew on each drawn corpus."""
    if not metric.answers:
        raise ValueError(f"{type(metric).__name__}: no answer to score, expected at least one")
    found = _intervals(len(metric.answers), metric.counted(), samples, seed, level)
    return dict(zip(metric.names, found, strict=True))


def _intervals(
    total: int, values: Callable[[np.ndarray], np.ndarray], samples: int, seed: int, level: float
) -> list[Interval]:
    """From a function of how often each of `total` samples counts."""
    if not total:
        raise ValueError("bootstrap: found no sample, expected at least one")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap: samples is {samples} and level {level}, expected at least 1 and in (0, 1)")
    random = np.random.default_rng(seed)
    drawn = np.stack([values(np.bincount(random.integers(total, size=total), minlength=total)) for _ in range(samples)])
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    exact = values(np.ones(total, dtype=int))
    return [Interval(value=float(v), low=float(a), high=float(b)) for v, a, b in zip(exact, low, high, strict=True)]
