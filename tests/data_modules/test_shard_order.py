from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from data_modules.mixture_sampler import MixtureSampler, seeded
from data_modules.shard_order import AT_ONCE, shard_order

RUNS = np.array([7, 1, 30, 12, 25, 3, 19, 8, 40, 5])


def shards_of(numbers: np.ndarray, runs: np.ndarray = RUNS) -> np.ndarray:
    return np.searchsorted(np.cumsum(runs), numbers, side="right")


def test_each_number_comes_once_and_few_shards_are_read_at_a_time() -> None:
    order = shard_order(RUNS, seeded(0), torch.int32)
    assert order.dtype == np.int32 and sorted(order.tolist()) == list(range(RUNS.sum()))
    shards = shards_of(order)
    first, last = ([int(np.flatnonzero(shards == k)[at]) for k in range(len(RUNS))] for at in (0, -1))
    read = [sum(a <= place <= b for a, b in zip(first, last, strict=True)) for place in range(len(order))]
    assert max(read) <= AT_ONCE and np.mean(read) > 2
    assert (np.diff(order) == 1).mean() < 0.1
    assert shard_order(RUNS, seeded(0), torch.int32).tolist() == order.tolist()
    assert shard_order(RUNS, seeded(1), torch.int32).tolist() != order.tolist()


@pytest.mark.parametrize("runs", [np.ones(50, dtype=np.int64), np.zeros(0, dtype=np.int64), np.array([9])])
def test_shards_of_one_record_and_one_shard_are_shuffled_whole(runs: np.ndarray) -> None:
    order = shard_order(runs, seeded(0), torch.int64)
    assert sorted(order.tolist()) == list(range(runs.sum())) and order.dtype == np.int64
    assert len(order) < 2 or order.tolist() != sorted(order)


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 3.0}])
def test_a_mixture_keeps_the_order_of_each_of_its_sources(weights: dict[str, float] | None) -> None:
    runs = {"a": RUNS, "b": np.array([20, 11, 34])}
    sizes = {name: int(each.sum()) for name, each in runs.items()}
    sampler = MixtureSampler(sizes, weights, 3, "shard", runs=runs.__getitem__)
    epochs = 4
    locations = [sampler.at(position) for position in range(epochs * len(sampler))]
    for name in sizes:
        seen = [each.index for each in locations if each.source == name]
        assert len(seen) == epochs * sampler.counts[name]
        turns = [seen[k : k + sizes[name]] for k in range(0, len(seen), sizes[name])]
        for number, turn in enumerate(turns):
            order = shard_order(runs[name], seeded(3, "source", name, number), torch.int64)
            assert turn == order[: len(turn)].tolist()
    names = [each.source for each in locations]
    assert 0.05 < np.mean([one != other for one, other in pairwise(names)]) < 0.95
    again = MixtureSampler(sizes, weights, 3, "shard", runs=runs.__getitem__)
    assert again.at(len(sampler) + 5) == locations[len(sampler) + 5]  # without the epoch before
