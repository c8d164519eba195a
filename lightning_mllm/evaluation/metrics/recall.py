"""Recall among the first k of an ordered gallery, by which retrieval is scored; equals are in random order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lightning_mllm.evaluation.metrics.ranking import hit_chance

CUTS = (1, 5, 10)


def recalls(scores: Float[np.ndarray, " C"], right: Sequence[int] | Int[np.ndarray, " R"]) -> list[float]:
    """For each of CUTS, how likely one of the `right` entries of the gallery is among the k with the highest score."""
    best = scores[right].max()
    ours = int((scores[right] == best).sum())
    before, tied = int((scores > best).sum()), int((scores == best).sum()) - ours
    return [hit_chance(before, tied, ours, k) for k in CUTS]


def chance(gallery: int, right: int) -> list[float]:
    """The recalls of scores that are all equal."""
    return [hit_chance(0, gallery - right, right, k) for k in CUTS]


def highest(scores: Float[np.ndarray, " C"], k: int) -> Int[np.ndarray, " K"]:
    """The indices of the k highest scores, in no order, of equals the first ones; all indices if k is larger."""
    if not 0 < k < len(scores):
        return np.arange(len(scores) if k > 0 else 0)
    least = np.partition(scores, -k)[-k]
    above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
    return np.concatenate([above, equal[: k - len(above)]])


def reranked(
    similarity: Float[np.ndarray, " C"], first: Int[np.ndarray, " K"], match: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " C"]:
    """Scores that put the `first` ones in front, by match + similarity (LAVIS, blip2_qformer.py), the rest as is."""
    scores = similarity.astype(np.float64)
    if len(first):
        among = match + scores[first]
        scores[first] = among + (scores.max() - among.min() + 1.0)
    return scores
