"""Samples of a micro-batch in one row of tokens, without padding between; those of one image share what is before it.

    samples       <s> V V V  what ? a dog </s>     <s> V V V  where ? here </s>     <s> why ? so </s>
    row           <s> V V V  what ? a dog </s>  |  where ? here </s>  |  <s> why ? so </s>
    span                                     1                     2                     3
    its prefix    -                                <s> V V V             -
    positions      0  1 2 3   4   5 6  7   8         4   5  6     7       0   1  2  3   4

Losses are those of the samples apart: a token attends to its own sample alone (spans.py), at its own positions. A few
tokens of padding, a span of their own, end the row, so that its length is one that recurs (`spans.recurring`).

Legend: K samples, T tokens of the row, t of a sample, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch, Encoded, Supervised, TokenKind, runs_of
from lightning_mllm.layout import Layout
from lightning_mllm.processing.collate import check_slots, kept, pad_rows, positions
from lightning_mllm.processing.shared_positions import shared_positions
from lightning_mllm.spans import Range, recurring, spans_of


@dataclass(frozen=True)
class Piece:
    """What the row takes of a sample."""

    number: int
    """Of the sample."""
    start: int
    """The first of its tokens that the row takes; those before it stand in the row already."""
    sharing: int | None = None
    """The sample whose first `start` tokens they are."""


def pack_samples(rows: Sequence[Encoded], pad_id: int, blank: Tensor, shared: bool = False) -> Batch:
    """One row of all samples: `tokens` i64[1, T]; padding behind them makes T a size that recurs.

    Args:
        rows: At least one.
        pad_id: The token of padding.
        blank: An image u8[1, 3, S, S], which a batch without images carries.
        shared: Whether all vectors of an image have one position.

    Raises:
        ValueError: A sample has decoder tokens, or not as many IMAGE slots as its images have visual vectors.
    """
    check_slots(rows)
    if any(row.targets is not None for row in rows):
        raise ValueError(
            f"hardware.pack: found decoder tokens (sample {rows[0].id!r}), expected false for an encoder-decoder"
        )
    pieces = shared_prefixes(rows)
    own = [_shared(row) if shared else positions(row) for row in rows]

    sizes = [len(rows[piece.number].tokens) - piece.start for piece in pieces]
    total = sum(sizes)
    padding = recurring(total) - total

    def joined(values: Sequence[Tensor], fill: int) -> Tensor:
        taken = [values[p.number][p.start :] if p.start else values[p.number] for p in pieces]
        return torch.cat([*taken, taken[0].new_full((padding,), fill)])

    starts = {piece.number: end - size for piece, size, end in zip(pieces, sizes, accumulate(sizes), strict=True)}
    ranges: list[tuple[Range, Range]] = []
    for piece, size in zip(pieces, sizes, strict=True):
        segments = rows[piece.number].segments
        lengths = [size] if segments is None else _lengths(segments[piece.start :])
        before = (0, 0) if piece.sharing is None else (starts[piece.sharing], starts[piece.sharing] + piece.start)
        at = starts[piece.number]
        for length in lengths:
            ranges.append(((at, at + length), before))
            at += length
    segments = len(ranges)
    if padding:
        ranges.append(((total, total + padding), (0, 0)))
    spans = spans_of([span for span, _ in ranges], [prefix for _, prefix in ranges])
    labels = joined([row.labels for row in rows], IGNORE)
    kinds = joined([row.kinds for row in rows], TokenKind.TEXT)
    samples = torch.tensor([*(piece.number for piece in pieces), 0]).repeat_interleave(torch.tensor([*sizes, padding]))
    shown = [piece for piece in pieces if piece.sharing is None]
    images = torch.cat([rows[piece.number].images for piece in shown])
    read = [row.query_text for row in rows if row.query_text is not None]
    numbers = torch.tensor([*range(1, segments + 1), *([0] if padding else [])])
    numbered = numbers.repeat_interleave(spans.queries.diff().long())
    batch = Batch(
        tokens=joined([row.tokens for row in rows], pad_id)[None],
        labels=labels[None],
        kinds=kinds[None],
        segments=numbered.int()[None],
        positions=joined(own, 0)[None],
        images=images if len(images) else blank,
        num_images=len(images),
        query_text=pad_rows(read, IGNORE, "right") if read else None,
        image_ids=torch.tensor([number for p in shown for number in rows[p.number].image_ids], dtype=torch.long),
        num_files=len({number for row in rows for number in row.image_ids}),
        image_rows=torch.tensor([p.number for p in shown for _ in range(len(rows[p.number].images))] or [0]),
        visual_counts=tuple(count for p in shown for count in rows[p.number].visual_counts),
        **kept(rows),
    )
    known = sorted({*map(int, TokenKind)} - {int(TokenKind.TEXT)})
    vars(batch)["layout"] = Layout(
        packed=segments > 1,
        spans=spans,
        padded=padding > 0,
        padded_left=False,
        supervised=_supervised(labels, kinds == TokenKind.TEXT, samples, spans.previous(), len(rows)),
        slots={kind: (kinds == kind).nonzero()[:, 0] for kind in known},
        runs=runs_of(kinds[None]),
    )
    return batch


def _shared(row: Encoded) -> Int[Tensor, " T"]:
    """Positions where all vectors of an image have one."""
    segments = torch.ones_like(row.tokens) if row.segments is None else row.segments.long()
    return shared_positions(row.kinds[None], segments[None])[0]


def _lengths(segments: Int[Tensor, " T"]) -> list[int]:
    """Tokens of each segment."""
    return segments.unique_consecutive(return_counts=True)[1].tolist()


def _supervised(
    labels: Int[Tensor, " T"],
    text: Bool[Tensor, " T"],
    samples: Int[Tensor, " T"],
    previous: Int[Tensor, " T"],
    count: int,
) -> Supervised:
    """Padded like the row: by targets that are not learned, and by positions that nothing reads."""
    learned = ((labels != IGNORE) & (previous >= 0)).nonzero()[:, 0]
    hidden, samples = previous[learned], samples[learned]
    read = torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, hidden, True)
    positions, others = read.nonzero()[:, 0], (text & ~read).nonzero()[:, 0]
    more = min(recurring(len(positions)) - len(positions), len(others))
    missing = recurring(len(hidden)) - len(hidden)
    return Supervised(
        hidden=F.pad(hidden, (0, missing)),
        positions=torch.cat([positions, others[:more]]),
        targets=F.pad(labels[learned], (0, missing), value=IGNORE),
        samples=F.pad(samples, (0, missing)),
        counts=samples.bincount(minlength=count),
    )


def shared_prefixes(rows: Sequence[Encoded]) -> list[Piece]:
    """What the row takes of each sample, in order; samples that share their images stand behind one another.

    Shared is what two samples begin with alike, all images included, as long as nothing of it is learned: the same
    tokens, pixels and, for a Q-Former, instruction.
    """
    groups: dict[object, list[int]] = {}
    for number, row in enumerate(rows):
        alone = not row.image_ids or row.segments is not None
        read = None if row.query_text is None else tuple(row.query_text.tolist())
        groups.setdefault(number if alone else (row.image_ids, read), []).append(number)
    pieces: list[Piece] = []
    for first, *others in groups.values():
        pieces.append(Piece(first, 0))
        for other in others:
            length = _alike(rows[first], rows[other])
            pieces.append(Piece(other, length, first) if length else Piece(other, 0))
    return pieces


def _alike(a: Encoded, b: Encoded) -> int:
    """Tokens that two samples of the same image files can share; 0 if not all images are among them."""
    most = min(len(a.tokens), len(b.tokens)) - 1
    for row in (a, b):
        learned = (row.labels[:most] != IGNORE).nonzero()
        most = int(learned[0]) if len(learned) else most
    differs = ((a.tokens[:most] != b.tokens[:most]) | (a.kinds[:most] != b.kinds[:most])).nonzero()
    most = int(differs[0]) if len(differs) else most
    outside = any((row.kinds[most:] != TokenKind.TEXT).any() for row in (a, b))
    return 0 if outside or not torch.equal(a.images, b.images) else most
