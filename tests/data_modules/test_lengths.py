"""Tokens of samples by their words, from some that are read."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_modules.dealing import Size
from data_modules.lengths import PROBES, LengthIndex, Scale
from data_modules.mixture_sampler import SampleLocation
from lightning_mllm.contracts import Encoded, Sample
from tests.data_modules.test_stream import VECTORS, Packed, Shown, sources_of


def index(processor: Any = None, **sources: Any) -> LengthIndex:
    return LengthIndex(sources or sources_of(), processor or Packed(), seed=5)


def test_words_are_scaled_to_tokens() -> None:
    found = index()
    assert found.scale("a") == Scale(0.0, 2.0, VECTORS)
    source = found.sources["a"]
    for number in range(29):
        shared = source.image_key(number)
        expected = Size(2 * source.length(number), VECTORS, shared) if number % 3 else Size(2 * source.length(number))
        assert found.size(SampleLocation(3, "a", number)) == expected


def test_all_sizes_at_once_are_those_of_each_sample() -> None:
    found = index()
    places = [SampleLocation(0, name, number) for name, each in found.sources.items() for number in range(len(each))]
    assert found.sizes().of(torch.arange(47).numpy()) == [found.size(place) for place in places]


class Noisy(Packed):
    """A prompt of seven tokens, three a word, and one more or less; decoder tokens count."""

    read = 0

    def encode(self, sample: Sample, **named: Any) -> Encoded:
        row = super().encode(sample, **named)
        type(self).read += 1
        visual = sum(row.visual_counts)
        words, noise = (len(row.tokens) - visual) // 2, int(sample.turns[-1].text) % 3 - 1
        tokens = torch.ones(visual + 7 + words + noise, dtype=torch.long)
        return replace(row, tokens=tokens, labels=tokens, kinds=tokens.byte(), targets=tokens.new_ones(2 * words))


def test_a_line_through_samples_of_all_lengths() -> None:
    scale = index(Noisy(), a=Shown(5000, "a")).scale("a")
    assert scale.base == pytest.approx(7, abs=1.2) and scale.per_word == pytest.approx(3, abs=0.2)
    assert scale.visual == VECTORS and Noisy.read <= PROBES, "few are read, of however many"


def test_samples_that_cannot_be_read_are_left_out() -> None:
    class Broken(Packed):
        def encode(self, sample: Sample, **named: Any) -> Encoded:
            raise ValueError(f"sample {sample.id}: no such file")

    with pytest.raises(
        ValueError, match=r"^data.train.a: found none of \d+ samples that can be read \(sample a\d+: no"
    ):
        index(Broken(), a=Shown(29, "a")).scale("a")


def test_images_of_which_training_shows_random_parts_are_not_shared() -> None:
    processor = Packed()
    processor.image = SimpleNamespace(random=True)
    assert index(processor).size(SampleLocation(0, "b", 4)) == Size(2 * Shown(9).length(4), VECTORS, None)
