"""Which sample comes when: a pure function of the seed and the position, so that a position is all there is to resume.

position 0 ........ n-1 | n ........ 2n-1 | 2n ...        n samples a data epoch, drawn from all sources
         global batch | global batch | global ...         batches run on across the borders of epochs
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch

Group = Literal["none", "length", "similar_length", "modality_length", "modality_similar_length", "source"]

WINDOW = 50
"""Most global batches whose samples are sorted together for batches of similar length, as in transformers' sampler."""


class Place(NamedTuple):
    """Where a sample stands: it is the same whenever it is asked for."""

    epoch: int
    source: str
    index: int


def seeded(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for `key`; different keys are unrelated."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


class MixtureSampler:
    """The order of a mixture of sources, repeated without end.

    A data epoch has as many samples as the sources together. Without weights it holds each of them once. With weights
    it holds each source's share, rounded by largest remainder; a source then walks its own endless chain of
    permutations, so that no sample comes k+1 times before all came k times.

    Args:
        sizes: samples of each source.
        weights: share of each source, up to a common factor; None for the union.
        seed: of all permutations.
        group: "length": the samples of one global batch stand in order of length, so that those that share a
            micro-batch need little padding. "similar_length": moreover a global batch holds samples of similar length,
            those of up to WINDOW batches being sorted and then cut (transformers' `group_by_length`).
            "modality_length": as "length", but a global batch holds samples with images or samples without, but for at
            most one mixed batch an epoch and those on the border of two epochs (LLaVA's released
            `group_by_modality_length`, whose mega-batch is the global batch too). "modality_similar_length": as that,
            and all samples of a kind are sorted from short to long and then cut, so that a global batch is of one kind
            and of like lengths (LLaMA2-Accessory's `FinetuneDistSampler` over its sorted annotations, accessory/data/
            alpaca.py, which leaves out the longest ones that fill no batch; here they share the mixed batches). Which
            batch comes when is random, and but for similar lengths also which samples share one.
            "source": each `run` samples are of one source, drawn by the shares (LAVIS's `MultiIterLoader`, whose ranks
            fill each micro-batch from one data set).
        lengths: words of sample `index` of a source; needed to group.
        modalities: whether sample `index` of a source has an image; needed to group by modality.
        batch: the global batch, in samples.
        run: samples in a row that are of one source, where grouped by source. A data epoch then has as many whole runs
            as the sources fill together, and a source its share of them, also without weights.

    Raises:
        ValueError: a source is empty or would never be seen, or the weights name other sources.
    """

    def __init__(
        self,
        sizes: dict[str, int],
        weights: dict[str, float] | None = None,
        seed: int = 0,
        group: Group = "none",
        lengths: Callable[[str, int], int] | None = None,
        modalities: Callable[[str, int], bool] | None = None,
        batch: int = 1,
        run: int = 1,
    ) -> None:
        if not sizes:
            raise ValueError("train: found no source, expected at least one")
        if empty := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"train.{empty[0]}: found 0 samples, expected at least one")
        if group not in get_args(Group):
            raise ValueError(f"group: found {group!r}, expected one of {', '.join(get_args(Group))}")
        assert group in ("none", "source") or lengths, "grouping by length needs lengths"
        assert not group.startswith("modality") or modalities, "grouping by modality needs modalities"
        self.sizes, self.seed, self.group, self.batch = dict(sizes), seed, group, batch
        self._lengths, self._modalities = lengths, modalities
        self.run = run if group == "source" else 1
        whole = self.run == 1 and weights is None
        shares = self.sizes if whole else _shares(self.sizes, weights or self.sizes, self.run)
        self.counts = {name: share * self.run for name, share in shares.items()}
        """Samples of each source in one data epoch."""
        self._cached: tuple[int, list[tuple[str, int]]] | None = None

    def __len__(self) -> int:
        """Samples of a data epoch."""
        return sum(self.counts.values())

    def effective_epochs(self) -> dict[str, float]:
        """How often one data epoch shows each source."""
        return {name: self.counts[name] / size for name, size in self.sizes.items()}

    def at(self, position: int) -> Place:
        """The sample at a position counted over all epochs."""
        epoch, place = divmod(position, len(self))
        return Place(epoch, *self.epoch(epoch)[place])

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Source and index of every sample of a data epoch."""
        if self._cached is None or self._cached[0] != epoch:
            drawn = [(name, index) for name in self.sizes for index in self._drawn(name, epoch)]
            random = seeded(self.seed, "epoch", epoch)
            runs = torch.randperm(len(drawn) // self.run, generator=random).tolist()
            shuffled = [place for k in runs for place in drawn[k * self.run : (k + 1) * self.run]]
            plain = self.group in ("none", "source")
            self._cached = (epoch, shuffled if plain else self._grouped(shuffled, epoch, random))
        return self._cached[1]

    def _drawn(self, name: str, epoch: int) -> list[int]:
        """What the source's chain of permutations gives this epoch."""
        size, count = self.sizes[name], self.counts[name]
        drawn: list[int] = []
        while len(drawn) < count:
            turn, offset = divmod(epoch * count + len(drawn), size)
            permutation = torch.randperm(size, generator=seeded(self.seed, "source", name, turn))
            drawn += permutation[offset : offset + count - len(drawn)].tolist()
        return drawn

    def _grouped(self, places: list[tuple[str, int]], epoch: int, random: torch.Generator) -> list[tuple[str, int]]:
        """`places`, already shuffled, so that global batches are of one kind and run from long to short.

        Contract: global batches begin at multiples of `batch` counted over all epochs, so the first samples of an epoch
        complete the batch that the epoch before it left open.
        """
        lengths, modalities, size = self._lengths, self._modalities, self.batch
        assert lengths is not None
        words = {place: lengths(*place) for place in places}
        if self.group == "similar_length":
            # At least four windows, so that not the same samples meet in every epoch.
            span = max(1, min(WINDOW, len(places) // (4 * size))) * size
            windows = (places[k : k + span] for k in range(0, len(places), span))
            places = [place for window in windows for place in sorted(window, key=lambda place: -words[place])]
        pools = [places]
        if self.group.startswith("modality"):
            assert modalities is not None
            pools = [[place for place in places if modalities(*place) is kind] for kind in (True, False)]
        if self.group == "modality_similar_length":
            pools = [sorted(pool, key=lambda place: words[place]) for pool in pools]
        head = min(-epoch * len(places) % size, len(places))
        whole = (len(places) - head) // size
        pure = [pool[k : k + size] for pool in pools for k in range(0, len(pool) - size + 1, size)]
        rest = [place for pool in pools for place in pool[len(pool) // size * size :]]
        pure = [pure[k] for k in torch.randperm(len(pure), generator=random).tolist()]
        rest += [place for group in pure[whole:] for place in group]
        rest = [rest[k] for k in torch.randperm(len(rest), generator=random).tolist()]
        mixed = [rest[k : k + size] for k in range(head, len(rest), size)]
        groups = [rest[:head], *pure[:whole], *mixed]
        return [place for group in groups for place in sorted(group, key=lambda place: -words[place])]


def _shares(sizes: dict[str, int], weights: Mapping[str, float], run: int = 1) -> dict[str, int]:
    """The runs of one epoch, each of so many samples, shared out by weight, rounded by largest remainder."""
    if odd := sorted(set(weights) - set(sizes)):
        near = difflib.get_close_matches(odd[0], sizes, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(f"weights.{odd[0]}: found no such source, expected {', '.join(sizes)}{hint}")
    if missing := [name for name in sizes if name not in weights]:
        raise ValueError(f"weights: found none for '{missing[0]}', expected one for each source")
    if wrong := [name for name, weight in weights.items() if not (math.isfinite(weight) and weight > 0)]:
        raise ValueError(f"weights.{wrong[0]}: found {weights[wrong[0]]}, expected a finite number above 0")
    total, sum_of_weights = sum(sizes.values()) // run, math.fsum(weights.values())
    exact = {name: total * weights[name] / sum_of_weights for name in sizes}
    counts = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    if unseen := [name for name, count in counts.items() if count == 0]:
        raise ValueError(
            f"weights.{unseen[0]}: found {weights[unseen[0]]}, expected enough for one of the epoch's {total}"
            f" {'samples' if run == 1 else f'runs of {run} samples of one source'}"
        )
    return counts
