"""An order that reads few shards at a time: shards in a random order, and within a few of them samples at random."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

AT_ONCE = 4
"""Shards, or row groups, whose samples are shuffled together."""


def shard_order(runs: Int[np.ndarray, " R"], random: torch.Generator, dtype: torch.dtype) -> Int[np.ndarray, " N"]:
    """The numbers 0 to N - 1, shuffled.

    Args:
        runs: how many of them, one after another, lie in each shard.
        random: what is drawn from.
        dtype: of the numbers.
    """
    starts = np.cumsum(runs) - runs
    shards = torch.randperm(len(runs), generator=random).numpy()
    if not len(runs) or runs.max() == 1:
        return starts[shards].astype(torch.empty(0, dtype=dtype).numpy().dtype)
    orders = list[np.ndarray]()
    for first in range(0, len(shards), AT_ONCE):
        open_now = shards[first : first + AT_ONCE].tolist()
        numbers = np.concatenate([np.arange(int(runs[k])) + int(starts[k]) for k in open_now])
        orders.append(numbers[torch.randperm(len(numbers), generator=random).numpy()])
    return np.concatenate(orders).astype(torch.empty(0, dtype=dtype).numpy().dtype)
