"""Captions whose beginning is given: what an encoder-decoder language model learns in BLIP-2's second stage."""

from __future__ import annotations

from dataclasses import replace

import torch

from data_modules.sources.source import Source
from lightning_mllm.contracts import Sample, Turn


class PrefixCaptions(Source):
    """The captions of another source, cut in two (prefix language modelling; BLIP-2, arXiv 2301.12597, sec. 3.2).

    The user turn gets the beginning behind what it says, the answer is the rest. Where the cut lies is drawn uniformly,
    anew in every data epoch, from no word of the caption to the half of its words, rounded down: the paper says
    "randomly", its authors "between the first position and the middle" (github.com/salesforce/LAVIS, issue 139).

    Args:
        source: images with one caption each.

    Raises:
        ValueError: it is no source of captions.
    """

    captions = True

    def __init__(self, source: Source) -> None:
        if not source.captions:
            raise ValueError(f"source: found {type(source).__name__}, expected a source of captions")
        self.source = source

    def load(self) -> None:
        self.source.load()

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return self.source.length(index)

    def has_image(self, index: int) -> bool:
        return self.source.has_image(index)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = self.source.sample(index, generator)
        request, answer = sample.turns
        words = answer.text.split()
        cut = int(torch.randint(len(words) // 2 + 1, (), generator=generator))
        beginning = " ".join([request.text, *words[:cut]])
        return replace(
            sample, turns=(Turn(role="user", text=beginning), Turn(role="assistant", text=" ".join(words[cut:])))
        )
