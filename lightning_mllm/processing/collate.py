"""Rows to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch, Encoded, TokenKind
from lightning_mllm.processing.shared_positions import shared_positions

Side = Literal["right", "left"]


def collate_rows(rows: Sequence[Encoded], pad_id: int, padding: Side, blank: Tensor, shared: bool = False) -> Batch:
    """Rows of one length T, the longest; padding is `pad_id`, 0 in `segments` and IGNORE in `labels`.

    Args:
        rows: At least one, all with decoder tokens or none.
        pad_id: The token behind (or before) a row.
        padding: The side of it.
        blank: An image u8[1, 3, S, S], which a batch without images carries.
        shared: Whether all vectors of an image have one position.

    Raises:
        ValueError: A row has not as many IMAGE slots as its images have visual vectors.
    """
    assert rows and padding in ("right", "left"), (len(rows), padding)
    for row in rows:
        if (slots := int((row.kinds == TokenKind.IMAGE).sum())) != (vectors := sum(row.visual_counts)):
            raise ValueError(
                f"sample {row.id!r}: found {slots} IMAGE slots for {vectors} visual vectors of"
                f" {len(row.visual_counts)} images, expected as many"
            )
    images = torch.cat([row.images for row in rows])
    decoded = [row.targets for row in rows if row.targets is not None]
    assert len(decoded) in (0, len(rows)), "rows with and without decoder tokens"
    read = [row.query_text for row in rows if row.query_text is not None]
    one = (torch.ones(len(row.tokens), dtype=torch.int32) for row in rows)
    segments = [single if row.segments is None else row.segments for row, single in zip(rows, one, strict=True)]
    padded_kinds, padded_segments = (
        pad_rows([row.kinds for row in rows], TokenKind.TEXT, padding),
        pad_rows(segments, 0, padding),
    )
    apart = pad_rows([positions(each) for each in segments], 0, padding)
    batch = Batch(
        ids=[row.id for row in rows],
        tokens=pad_rows([row.tokens for row in rows], pad_id, padding),
        labels=pad_rows([row.labels for row in rows], IGNORE, padding),
        kinds=padded_kinds,
        segments=padded_segments,
        positions=shared_positions(padded_kinds, padded_segments) if shared else apart,
        images=images if len(images) else blank,
        num_images=len(images),
        targets=pad_rows(decoded, IGNORE, "right") if decoded else None,
        query_text=pad_rows(read, IGNORE, "right") if read else None,
        image_ids=torch.tensor([number for row in rows for number in row.image_ids], dtype=torch.long),
        num_files=len({number for row in rows for number in row.image_ids}),
        image_rows=torch.tensor([i for i, row in enumerate(rows) for _ in row.images] or [0]),
        visual_counts=tuple(count for row in rows for count in row.visual_counts),
        references=[row.references for row in rows],
        tasks=[row.task for row in rows],
        prompts=[row.prompt for row in rows],
        candidates=[row.candidates for row in rows],
        indices=[row.index for row in rows],
        clusters=[row.cluster for row in rows],
        question_types=[row.question_type for row in rows],
        notes=[row.notes for row in rows],
    )
    assert batch.layout, "found now, on the host"
    return batch


def positions(segments: Int[Tensor, " T"]) -> Int[Tensor, " T"]:
    """Of each token in its own segment, from 0."""
    index = torch.arange(len(segments))
    begins = torch.ones_like(index, dtype=torch.bool)
    begins[1:] = segments[1:] != segments[:-1]
    return index - (index * begins).cummax(0).values


def pad_rows(rows: Sequence[Tensor], value: int, side: Side) -> Tensor:
    """Rows [T] of one length, the longest."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
