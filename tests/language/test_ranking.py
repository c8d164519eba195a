"""Candidates cost behind a prompt that is read once what they cost with it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.contracts import IGNORE, Batch
from lightning_mllm.language.lm_loss import lm_losses
from lightning_mllm.language.ranking import answer_losses
from lightning_mllm.processing.answers import append_answers
from lightning_mllm.processing.shared_positions import shared_positions
from tests.language.batches import batch_of
from tests.language.experts import kinds_of, segments_of, small
from tests.language.models import small as small_plain

ROWS = ("TBIIIIET", "..TBIETT", ".....TTT", "...BIIET")
ANSWERS = [[3, 1, 2, 1], [1, 1, 1, 1], [2, 5, 1, 3]]


def prompts() -> Batch:
    kinds, segments = kinds_of(*ROWS), segments_of(*ROWS)
    batch = batch_of(segments, shared_positions(kinds, segments), kinds)
    batch.tokens = torch.randint(1, 64, segments.shape)
    batch.labels = torch.full_like(batch.tokens, IGNORE)
    return batch


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt"])
def test_candidates_cost_what_whole_rows_do(kind: str) -> None:
    model, batch = small_plain("opt") if kind == "opt" else small(kind), prompts()
    words = model.get_input_embeddings()
    answered = [
        append_answers(batch, [torch.randint(1, 64, (length,)) for length in lengths], 0, False) for lengths in ANSWERS
    ]
    passes: list[tuple[int, ...]] = []
    with torch.no_grad():
        expected = [lm_losses(model, words(each.tokens), each)[0] for each in answered]
        model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs: passes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        )
        found = answer_losses(model, words(batch.tokens), batch, answered)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert passes == [(4, 8), (4, 3), (4, 1), (4, 5)], "the prompts once, then answers alone"
