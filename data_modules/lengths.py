"""How many tokens each sample has, about, without reading it: words of the length index, scaled by some that are read.

tokens = base + per_word * words        by least squares over the samples that are read
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from data_modules.dealing import Size, Sizes
from data_modules.mixture_sampler import SampleLocation, seeded
from data_modules.processor import SampleProcessor
from data_modules.sources.source import Source
from lightning_mllm.contracts import Encoded

PROBES, LOOKED_AT = 16, 1024
"""Samples of a source that are read, and those that they are chosen from, from the shortest to the longest."""


class Scale(NamedTuple):
    """What turns the words of a source into tokens."""

    base: float
    per_word: float
    visual: int
    """Visual tokens of a sample with images."""

    def own(self, words: int) -> int:
        """All tokens but the visual ones of a sample."""
        return max(1, round(self.base + self.per_word * words))


class LengthIndex:
    """The sizes of training samples; all processes find the same.

    Args:
        sources: by the names that locations have; loaded.
        processor: turns some samples into tokens.
        seed: of what it draws.
    """

    def __init__(self, sources: Mapping[str, Source], processor: SampleProcessor, seed: int) -> None:
        self.sources, self.processor, self.seed = dict(sources), processor, seed
        self.shares_images = not getattr(getattr(processor, "image", None), "random", False)
        """Whether an image is the same in all samples that show it: training may show random parts of it."""
        self.scale = cache(self._measured)
        """Of a source, by its name."""

    def size(self, location: SampleLocation) -> Size:
        """Of a sample."""
        source, index, scale = self.sources[location.source], location.index, self.scale(location.source)
        if not source.has_image(index):
            return Size(scale.own(source.length(index)))
        images = source.image_key(index) if self.shares_images else None
        return Size(scale.own(source.length(index)), scale.visual, images)

    def sizes(self) -> Sizes:
        """Of all samples of all sources, one source behind the other."""
        every = (
            SampleLocation(0, name, index) for name, source in self.sources.items() for index in range(len(source))
        )
        rows = (
            (size.own, size.visual, -1 - number if size.images is None else size.images)
            for number, size in enumerate(map(self.size, every))
        )
        own, visual, images = np.fromiter(rows, dtype=np.dtype((np.int64, 3))).T
        return Sizes(own.astype(np.int32), visual.astype(np.int32), images.copy())

    def _measured(self, name: str) -> Scale:
        source = self.sources[name]
        some = sorted({k * len(source) // LOOKED_AT for k in range(LOOKED_AT)}, key=source.length)
        chosen = sorted({k * (len(some) - 1) // (PROBES - 1) for k in range(PROBES)})
        words, tokens, visual = list[int](), list[int](), list[int]()
        first: ValueError | None = None
        for index in (some[each] for each in chosen):
            random = seeded(self.seed, "length", name, index)
            try:
                found = self.processor.encode(source.sample(index, random), random=random)
            except ValueError as error:
                first = first or error
                continue
            words.append(source.length(index))
            tokens.append(_tokens(found) - sum(found.visual_counts))
            visual += [sum(found.visual_counts)] if found.visual_counts else []
        if not words:
            raise ValueError(f"data.train.{name}: found none of {len(chosen)} samples that can be read ({first})")
        return Scale(*_line(words, tokens), math.ceil(sum(visual) / max(1, len(visual))))


def _tokens(sample: Encoded) -> int:
    """Those that a language model reads, its decoder's included."""
    return len(sample.tokens) + (0 if sample.targets is None else len(sample.targets))


def _line(words: list[int], tokens: list[int]) -> tuple[float, float]:
    """Base and slope of the least squares line, which never falls; to hundredths, the same on every machine."""
    count = len(words)
    mean_words, mean_tokens = sum(words) / count, sum(tokens) / count
    spread = sum((each - mean_words) ** 2 for each in words)
    common = sum((each - mean_words) * (own - mean_tokens) for each, own in zip(words, tokens, strict=True))
    slope = round(max(0.0, common / spread), 2) if spread else 0.0
    return round(mean_tokens - slope * mean_words, 2), slope
