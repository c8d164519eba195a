"""Rows to a batch, and answers behind the prompts of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch, Encoded, TokenKind
from lightning_mllm.processing.packing import positions, shared_positions

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
        _pad([row.kinds for row in rows], TokenKind.TEXT, padding),
        _pad(segments, 0, padding),
    )
    apart = _pad([positions(each) for each in segments], 0, padding)
    batch = Batch(
        ids=[row.id for row in rows],
        tokens=_pad([row.tokens for row in rows], pad_id, padding),
        labels=_pad([row.labels for row in rows], IGNORE, padding),
        kinds=padded_kinds,
        segments=padded_segments,
        positions=shared_positions(padded_kinds, padded_segments) if shared else apart,
        images=images if len(images) else blank,
        num_images=len(images),
        targets=_pad(decoded, IGNORE, "right") if decoded else None,
        query_text=_pad(read, IGNORE, "right") if read else None,
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


def append_answers(batch: Batch, answers: Sequence[Tensor], pad_id: int, seq2seq: bool) -> Batch:
    """A batch of prompts (left-padded) with the tokens i64[S] of an answer behind each, which alone are learned.

    Args:
        batch: B prompts.
        answers: B answers.
        pad_id: The token behind an answer that is shorter than others.
        seq2seq: Whether answers are an encoder-decoder's `targets`.
    """
    labels = _pad(answers, IGNORE, "right")
    if seq2seq:
        return replace(batch, targets=labels)
    labels = labels.to(batch.tokens.device)
    real = labels != IGNORE
    last = batch.positions[:, -1:]
    prompt = torch.full_like(batch.labels, IGNORE)
    return replace(
        batch,
        tokens=torch.cat([batch.tokens, labels.masked_fill(~real, pad_id)], 1),
        labels=torch.cat([prompt, labels], 1),
        kinds=torch.cat([batch.kinds, torch.full_like(labels, TokenKind.TEXT, dtype=batch.kinds.dtype)], 1),
        segments=torch.cat([batch.segments, real.to(batch.segments.dtype)], 1),
        positions=torch.cat([batch.positions, (last + real.cumsum(1)) * real], 1),
    )


def _pad(rows: Sequence[Tensor], value: int, side: Side) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
