"""What BLIP-2 (arXiv 2301.12597) does to the captions of a source: plain words, or a beginning that is given."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from data_modules.sources.source import Source, Wrapped
from lightning_mllm.contracts import Sample, Turn

PUNCTUATION = re.compile(r'[.!"()*#:;~]')
MAX_WORDS = 50


class PlainCaptions(Wrapped):
    """The captions of another source in lower case, with blanks for `.!"()*#:;~` and at most 50 words: what BLIP and
    BLIP-2 train on (released blip_processors.py, `BlipCaptionProcessor`).

    Args:
        source: images with one caption each.
        references: whether references are changed too: texts that are to be found by retrieval are, those that captions
            are compared with stay as people wrote them.

    Raises:
        ValueError: it is no source of captions; a caption has no word left.
    """

    captions = True

    def __init__(self, source: Source, references: bool = False) -> None:
        super().__init__(_of_captions(source))
        self.references = references

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = self.source.sample(index, generator)
        request, answer = sample.turns
        references = sample.references
        if self.references:
            references = tuple(_plain(text, sample.id) for text in references)
        turns = (request, Turn(role="assistant", text=_plain(answer.text, sample.id)))
        return replace(sample, turns=turns, references=references)


class PrefixCaptions(Wrapped):
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
        super().__init__(_of_captions(source))

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = self.source.sample(index, generator)
        request, answer = sample.turns
        words = answer.text.split()
        cut = int(torch.randint(len(words) // 2 + 1, (), generator=generator))
        beginning = " ".join([request.text, *words[:cut]])
        return replace(
            sample, turns=(Turn(role="user", text=beginning), Turn(role="assistant", text=" ".join(words[cut:])))
        )


def _plain(text: str, id: str) -> str:
    words = PUNCTUATION.sub(" ", text.lower()).split()[:MAX_WORDS]
    if not words:
        raise ValueError(f"sample {id!r}: found the caption {text!r}, expected a word in it")
    return " ".join(words)


def _of_captions(source: Source) -> Source:
    if not source.captions:
        raise ValueError(f"source: found {type(source).__name__}, expected a source of captions")
    return source
