"""Where in the rows of a batch the tokens of each kind stand, and which of them are learned: found once, on the host.

A forward pass that asked the device for it would wait for the device. Indices count the tokens of all rows, one row
behind the other: token t of row b has index b * T + t.

Legend: B rows, T tokens a row, K samples, S supervised tokens, n tokens of one kind.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, is_dataclass
from enum import IntEnum
from typing import TypeVar, cast

import torch.nn.functional as F
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from lightning_mllm.spans import Spans, spans_of_segments

IGNORE = -100
"""The label of a token that is not learned; cross-entropy skips it."""

Value = TypeVar("Value")


class TokenKind(IntEnum):
    """What a token is, one byte each; visual slots, expert choice and shared positions are derived from it."""

    TEXT = 0
    IMAGE = 1
    """A slot: the network overwrites its embedding with one visual vector."""
    IMAGE_BEGIN = 2
    IMAGE_END = 3


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """The tokens that are learned, in reading order; of a packed row IGNORE among `targets`, and positions that nothing
    reads, make sizes recur."""

    hidden: Int[Tensor, " S"]
    """Index of the hidden state that predicts each: that of the token before it; of a decoder, which reads its targets
    shifted by one, that of the target itself."""
    targets: Int[Tensor, " S"]
    positions: Int[Tensor, " P"]
    """The same, each once: continuations of one prefix may be predicted from one token."""
    samples: Int[Tensor, " S"]
    """The sample of each: its row, where rows hold one sample each."""
    counts: Int[Tensor, " K"]
    """How many each sample has."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the host knows of a batch's rows."""

    packed: bool
    """Whether a row has several segments."""
    spans: Spans | None
    """Where segments stand, if a row has several or begins with padding."""
    padded: bool
    """Whether a row has padding."""
    padded_left: bool
    """Whether a row begins with padding."""
    supervised: Supervised
    slots: dict[int, Int[Tensor, " n"]]
    """Kind, of all but TEXT -> indices of its tokens."""
    runs: tuple[tuple[int, int], ...]
    """(kind, length) of the runs of tokens of one kind, one row behind the other; the lengths add up to B * T."""

    @classmethod
    def of(
        cls,
        labels: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"],
        kinds: UInt8[Tensor, "B T"] | Int[Tensor, "B T"],
        targets: Int[Tensor, "B _"] | None = None,
    ) -> Layout:
        """Of rows as `Batch` has them. Its tensors are on their device; where that is not the host, this waits."""
        if labels.device.type != "cpu":
            found = cls.of(labels.cpu(), segments.cpu(), kinds.cpu(), None if targets is None else targets.cpu())
            return map_tensors(found, lambda tensor: tensor.to(labels.device))
        flat = kinds.flatten()
        runs = runs_of(kinds)
        packed, padded_left = bool((segments > 1).any()), bool((segments[:, 0] == 0).any())
        known = sorted({*map(int, TokenKind), *(kind for kind, _ in runs)} - {int(TokenKind.TEXT)})
        return cls(
            spans=spans_of_segments(segments) if packed or padded_left else None,
            padded=bool((segments == 0).any()),
            packed=packed,
            padded_left=padded_left,
            supervised=_supervised(labels, segments, targets),
            slots={kind: (flat == kind).nonzero()[:, 0] for kind in known},
            runs=runs,
        )


def runs_of(kinds: UInt8[Tensor, "B T"] | Int[Tensor, "B T"]) -> tuple[tuple[int, int], ...]:
    """As `Layout.runs`; waits for the device of `kinds`."""
    values, lengths = kinds.flatten().cpu().unique_consecutive(return_counts=True)
    return tuple(zip(values.tolist(), lengths.tolist(), strict=True))


def predicted(labels: Int[Tensor, "B T"], segments: Int[Tensor, "B T"]) -> Bool[Tensor, "B t"]:
    """Whether token t + 1 is learned from token t: it has a label, and both are of one segment.

    Labels are shifted here and nowhere else.
    """
    return (labels[:, 1:] != IGNORE) & (segments[:, 1:] == segments[:, :-1])


def _supervised(labels: Tensor, segments: Tensor, targets: Tensor | None) -> Supervised:
    if targets is None:
        learned, words = F.pad(predicted(labels, segments), (0, 1)), labels.roll(-1, 1)
    else:
        learned, words = targets != IGNORE, targets
    hidden = learned.flatten().nonzero()[:, 0]
    samples, targets = hidden // learned.shape[1], words.flatten()[hidden]
    return Supervised(hidden=hidden, targets=targets, positions=hidden, samples=samples, counts=learned.sum(1))


def map_tensors(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """`value` with every tensor in it changed, those in tuples, lists, dicts and dataclasses too."""
    found: object = value
    if isinstance(value, Tensor):
        found = change(value)
    elif isinstance(value, dict):
        found = {key: map_tensors(each, change) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        several = [map_tensors(each, change) for each in value]
        found = type(value)(*several) if hasattr(value, "_fields") else type(value)(several)
    elif is_dataclass(value):
        found = copy(value)
        vars(found).update({name: map_tensors(each, change) for name, each in vars(value).items()})
    return cast(Value, found)
