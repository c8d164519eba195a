"""Rows to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch, Encoded, TokenKind
from lightning_mllm.processing.shared_positions import shared_positions

Side = Literal["right", "left"]

KEPT = {"ids": "id", "references": "references", "tasks": "task", "prompts": "prompt", "candidates": "candidates"}
KEPT |= {"indices": "index", "clusters": "cluster", "question_types": "question_type", "notes": "notes"}


def collate_rows(rows: Sequence[Encoded], pad_id: int, padding: Side, blank: Tensor, shared: bool = False) -> Batch:
    """Rows of one length T, the longest; padding is `pad_id`, 0 in `segments` and IGNORE in `labels`.

    Args:
        rows: At least one, all with decoder tokens or none.
        pad_id: The token behind (or before) a row.
        padding: The side of it.
        blank: An image u8[1, 3, S, S], which a batch without images carries.
        shared: Whether all vectors of an image have one position.

    Raises:
        ValueError: As `check_slots`.
    """
    assert rows and padding in ("right", "left"), (len(rows), padding)
    check_slots(rows)
    images = torch.cat([row.images for row in rows])
    decoded = [row.targets for row in rows if row.targets is not None]
    assert len(decoded) in (0, len(rows)), "rows with and without decoder tokens"
    read = [row.query_text for row in rows if row.query_text is not None]
    one = (torch.ones(len(row.tokens), dtype=torch.int32) for row in rows)
    segments = [single if row.segments is None else row.segments for row, single in zip(rows, one, strict=True)]
    padded_kinds = pad_rows([row.kinds for row in rows], TokenKind.TEXT, padding)
    padded_segments = pad_rows(segments, 0, padding)
    apart = pad_rows([positions(row) for row in rows], 0, padding)
    batch = Batch(
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
        image_rows=torch.tensor([i for i, row in enumerate(rows) for _ in range(len(row.images))] or [0]),
        visual_counts=tuple(count for row in rows for count in row.visual_counts),
        **kept(rows),
    )
    assert batch.layout, "found now, on the host"
    return batch


def check_slots(rows: Sequence[Encoded]) -> None:
    """ValueError if a sample has not as many IMAGE slots as its images have visual vectors."""
    for row in rows:
        if (slots := row.kinds.tolist().count(TokenKind.IMAGE)) != sum(row.visual_counts):
            shown = f"{sum(row.visual_counts)} visual vectors of {len(row.visual_counts)} images"
            raise ValueError(f"sample {row.id!r}: found {slots} IMAGE slots for {shown}, expected as many")


def kept(rows: Sequence[Encoded]) -> dict[str, Any]:
    """Fields of a batch that its samples bring along, in their order."""
    return {of_batch: [getattr(row, of_sample) for row in rows] for of_batch, of_sample in KEPT.items()}


def positions(row: Encoded) -> Int[Tensor, " T"]:
    """Of each token in its own segment, from 0."""
    index = torch.arange(len(row.tokens))
    if row.segments is None:
        return index
    begins = torch.ones_like(index, dtype=torch.bool)
    begins[1:] = row.segments[1:] != row.segments[:-1]
    return index - (index * begins).cummax(0).values


def pad_rows(rows: Sequence[Tensor], value: int, side: Side) -> Tensor:
    """Rows [T] of one length, the longest."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
