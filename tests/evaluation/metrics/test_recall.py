from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.evaluation.metrics.recall import chance, highest, recalls, reranked


@pytest.mark.parametrize("k", [0, 1, 3, 7, 29, 30, 31])
def test_the_highest_are_those_of_a_stable_sort(k: int) -> None:
    scores = np.round(np.random.default_rng(k).normal(size=30)).astype(np.float32)  # many equals
    assert set(highest(scores, k)) == set(np.argsort(-scores, kind="stable")[:k])


def test_the_right_one_is_found_as_early_as_it_stands() -> None:
    scores = np.array([0.1 * c for c in range(12)])
    assert recalls(scores, [11]) == [1, 1, 1]
    assert recalls(scores, [9]) == [0, 1, 1]
    assert recalls(scores, [2]) == [0, 0, 1]
    assert recalls(scores, [0, 1]) == [0, 0, 0]
    assert recalls(scores, [0, 10]) == [0, 1, 1]


def test_equals_share_their_places() -> None:
    scores = np.array([3.0, 1, 1, 1, 1, 0])
    assert recalls(scores, [2]) == [0, 1, 1]
    assert recalls(scores[1:], [1]) == [0.25, 1, 1]
    assert recalls(np.zeros(40), [5, 7]) == pytest.approx(chance(40, 2))
    # One of two among the first five of forty: 1 - (35/40 * 34/39).
    assert chance(40, 2) == pytest.approx([2 / 40, 1 - 35 * 34 / (40 * 39), 1 - 30 * 29 / (40 * 39)])


def test_reranking_puts_the_first_in_front_by_match_and_similarity() -> None:
    similarity = np.array([0.5, 0.9, 0.1, 0.8, 0.2], dtype=np.float32)
    scores = reranked(similarity, np.array([1, 3, 0]), np.array([-9.0, -9.05, -8.0], dtype=np.float32))
    assert np.argsort(-scores).tolist() == [0, 1, 3, 4, 2]
    assert np.array_equal(reranked(similarity, np.array([], dtype=int), np.array([])), similarity)
