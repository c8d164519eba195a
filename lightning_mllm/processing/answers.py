"""Answers behind the prompts of a batch, whose likelihood is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch, TokenKind
from lightning_mllm.processing.collate import pad_rows


def append_answers(batch: Batch, answers: Sequence[Tensor], pad_id: int, seq2seq: bool) -> Batch:
    """A batch of prompts (left-padded) with the tokens i64[S] of an answer behind each, which alone are learned.

    Args:
        batch: B prompts.
        answers: B answers.
        pad_id: The token behind an answer that is shorter than others.
        seq2seq: Whether answers are an encoder-decoder's `targets`.
    """
    labels = pad_rows(answers, IGNORE, "right")
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
