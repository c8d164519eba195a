"""Which sample comes when: a pure function of the seed and the position, so that a position is all there is to resume.

position 0 ........ n-1 | n ........ 2n-1 | 2n ...        n samples a data epoch, drawn from all sources
         global batch | global batch | global ...         batches run on across the borders of epochs

The current epoch is one array of 4 bytes a sample that the processes of a machine share: half a byte a sample for each
of 8 ranks. BLIP-2's 129 million pairs take 516 MB a machine, and 18 seconds of one core at the beginning of an epoch. A
permutation computed for each position (a Feistel network) would need no array; but batches of similar length are sorted
and need one anyway, and published seeds would give other orders.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int

from data_modules.shard_order import shard_order
from data_modules.shared_array import shared_array

Group = Literal[
    "none", "length", "similar_length", "modality_length", "modality_similar_length", "source", "shard", "image"
]

UNGROUPED = ("none", "source", "shard", "image")
"""Groups that no length is needed for."""
WINDOW = 50
"""Most global batches whose samples are sorted together for batches of similar length, as in transformers' sampler."""


class SampleLocation(NamedTuple):
    """Where a sample stands: it is the same whenever it is asked for."""

    epoch: int
    source: str
    index: int


def seeded(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for `key`; different keys are unrelated."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def index_type(size: int) -> torch.dtype:
    """The smallest dtype that numbers so many things."""
    return torch.int32 if size <= torch.iinfo(torch.int32).max else torch.int64


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
            "shard": the samples of a source come from a few shards at a time (see shard_order.py), so that they are
            read from a network disk, or from row groups, in few large pieces.
            "image": all samples of an epoch that show the same image stand together, in random order, where packed rows
            share its tokens. Which samples share a global batch is then another recipe: five captions of one image
            count together in one step, not in five.
        lengths: words of sample `index` of a source; needed to group.
        modalities: whether sample `index` of a source has an image; needed to group by modality.
        batch: the global batch, in samples.
        runs: of a source, how many samples after one another lie in one shard; needed to group by shard.
        images: `Source.image_key` of sample `index` of a source; needed to group by image.
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
        runs: Callable[[str], np.ndarray] | None = None,
        images: Callable[[str, int], int | None] | None = None,
    ) -> None:
        if not sizes:
            raise ValueError("train: found no source, expected at least one")
        if empty := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"train.{empty[0]}: found 0 samples, expected at least one")
        if group not in get_args(Group):
            raise ValueError(f"group: found {group!r}, expected one of {', '.join(get_args(Group))}")
        assert group in UNGROUPED or lengths, "grouping by length needs lengths"
        assert not group.startswith("modality") or modalities, "grouping by modality needs modalities"
        self.sizes, self.seed, self.group, self.batch = dict(sizes), seed, group, batch
        assert group != "image" or images, "grouping by image needs its keys"
        self._lengths, self._modalities, self._images = lengths, modalities, images
        assert group != "shard" or runs, "grouping by shard needs their sizes"
        self._runs = {name: runs(name) for name in sizes} if group == "shard" and runs else {}
        assert all(int(each.sum()) == sizes[name] for name, each in self._runs.items())
        self.run = run if group == "source" else 1
        whole = self.run == 1 and weights is None
        shares = self.sizes if whole else _shares(self.sizes, weights or self.sizes, self.run)
        self.counts = {name: share * self.run for name, share in shares.items()}
        """Samples of each source in one data epoch."""
        self._dtype = index_type(sum(self.sizes.values()))
        self._names, self._starts = list(self.sizes), [0, *accumulate(self.sizes.values())]
        """Number of each source's first sample among those of all sources."""
        self._current: tuple[int, Int[np.ndarray, " N"]] | None = None

    def __len__(self) -> int:
        """Samples of a data epoch."""
        return sum(self.counts.values())

    def effective_epochs(self) -> dict[str, float]:
        """How often one data epoch shows each source."""
        return {name: self.counts[name] / size for name, size in self.sizes.items()}

    def at(self, position: int) -> SampleLocation:
        """The sample at a position counted over all epochs."""
        epoch, offset = divmod(position, len(self))
        number = int(self._epoch(epoch)[offset])
        source = bisect_right(self._starts, number) - 1
        return SampleLocation(epoch, self._names[source], number - self._starts[source])

    def global_batches(self, steps: int) -> Iterator[Int[np.ndarray, "_ G"]]:
        """The samples of the first global batches, a batch a row, some at a time: their numbers, counted over all
        sources."""
        left, epoch = np.zeros(0, dtype=np.int64), 0
        while steps:
            numbers = np.concatenate([left, self._epoch(epoch)])
            count = min(len(numbers) // self.batch, steps)
            if count:
                yield numbers[: count * self.batch].reshape(count, self.batch)
            left, epoch, steps = numbers[count * self.batch :], epoch + 1, steps - count

    def _epoch(self, epoch: int) -> Int[np.ndarray, " N"]:
        """The numbers of the samples of a data epoch, counted over all sources; the last one asked for is kept."""
        if self._current is None or self._current[0] != epoch:
            self._current = None
            build = partial(self._build, epoch)
            self._current = epoch, shared_array(lambda: f"{self._key}-{epoch}", len(self), build)
        return self._current[1]

    @cached_property
    def _key(self) -> str:
        """A digest of all that the order depends on."""
        settings = (self.sizes, self.counts, self.seed, self.group, self.batch, self.run)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        if self.group not in UNGROUPED:
            digest.update(self._words().tobytes())
        if self.group.startswith("modality"):
            digest.update(self._with_image().tobytes())
        if self.group == "image":
            digest.update(self._image_keys().tobytes())
        for runs in self._runs.values():
            digest.update(runs.astype(np.int64).tobytes())
        return digest.hexdigest()

    def _build(self, epoch: int) -> Int[np.ndarray, " N"]:
        drawn = np.concatenate([self._drawn(name, epoch) for name in self.sizes])
        random = seeded(self.seed, "epoch", epoch)
        if self.group == "shard":  # those of a source stay in their order
            sources = np.repeat(np.arange(len(self.counts)), list(self.counts.values()))
            mixed = sources[self._permutation(len(drawn), random)]
            shuffled = np.empty_like(drawn)
            shuffled[np.argsort(mixed, kind="stable")] = drawn
            return shuffled
        runs = self._permutation(len(drawn) // self.run, random)
        shuffled = drawn.reshape(-1, self.run)[runs].ravel()
        if self.group == "image":  # all at the place of the first
            _, first, same = np.unique(self._image_keys()[shuffled], return_index=True, return_inverse=True)
            return shuffled[np.argsort(first[same], kind="stable")]
        return shuffled if self.group in UNGROUPED else self._grouped(shuffled, epoch, random)

    def _permutation(self, size: int, random: torch.Generator) -> Int[np.ndarray, " N"]:
        return torch.randperm(size, generator=random, dtype=self._dtype).numpy()

    def _drawn(self, name: str, epoch: int) -> Int[np.ndarray, " N"]:
        """What the source's chain of permutations gives this epoch."""
        size, count = self.sizes[name], self.counts[name]
        drawn, missing = list[np.ndarray](), count
        while missing:
            turn, offset = divmod((epoch + 1) * count - missing, size)
            random = seeded(self.seed, "source", name, turn)
            runs = self._runs.get(name)
            permutation = self._permutation(size, random) if runs is None else shard_order(runs, random, self._dtype)
            drawn.append(permutation[offset : offset + missing])
            missing -= len(drawn[-1])
        return np.concatenate(drawn) + drawn[0].dtype.type(self._starts[self._names.index(name)])

    def _words(self) -> Int[np.ndarray, " T"]:
        """The length of every sample of all sources."""
        assert self._lengths is not None
        lengths = (self._lengths(name, index) for name, size in self.sizes.items() for index in range(size))
        return np.fromiter(lengths, dtype=np.int32)

    def _with_image(self) -> Bool[np.ndarray, " T"]:
        """Whether each sample of all sources has an image."""
        assert self._modalities is not None
        kinds = (self._modalities(name, index) for name, size in self.sizes.items() for index in range(size))
        return np.fromiter(kinds, dtype=bool)

    def _image_keys(self) -> Int[np.ndarray, " T"]:
        """Of every sample of all sources; negative numbers, each of them once, of those that share no image."""
        assert self._images is not None
        keys = (self._images(name, index) for name, size in self.sizes.items() for index in range(size))
        numbers = (-1 - number if key is None else key for number, key in enumerate(keys))
        return np.fromiter(numbers, dtype=np.int64)

    def _grouped(self, numbers: Int[np.ndarray, " N"], epoch: int, random: torch.Generator) -> Int[np.ndarray, " N"]:
        """`numbers`, already shuffled, so that global batches are of one kind and run from long to short.

        Contract: global batches begin at multiples of `batch` counted over all epochs, so the first samples of an epoch
        complete the batch that the epoch before it left open.
        """
        words, size = self._words(), self.batch

        def long_first(some: Int[np.ndarray, "... K"]) -> Int[np.ndarray, "... K"]:
            return np.take_along_axis(some, np.argsort(-words[some], axis=-1, kind="stable"), axis=-1)

        if self.group == "similar_length":
            # At least four windows, so that not the same samples meet in every epoch.
            span = max(1, min(WINDOW, len(numbers) // (4 * size))) * size
            numbers = np.concatenate([long_first(numbers[k : k + span]) for k in range(0, len(numbers), span)])
        pools = [numbers]
        if self.group.startswith("modality"):
            seen = self._with_image()[numbers]
            pools = [numbers[seen], numbers[~seen]]
        if self.group == "modality_similar_length":
            pools = [pool[np.argsort(words[pool], kind="stable")] for pool in pools]
        head = min(-epoch * len(numbers) % size, len(numbers))
        whole = (len(numbers) - head) // size
        pure = np.concatenate([pool[: len(pool) // size * size].reshape(-1, size) for pool in pools])
        pure = pure[self._permutation(len(pure), random)]
        rest = np.concatenate([*(pool[len(pool) // size * size :] for pool in pools), pure[whole:].ravel()])
        rest = rest[self._permutation(len(rest), random)]
        mixed = [long_first(rest[k : k + size]) for k in range(head, len(rest), size)]
        return np.concatenate([long_first(rest[:head]), long_first(pure[:whole]).ravel(), *mixed])


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
