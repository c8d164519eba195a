"""What stands behind a prompt is read as if the prompt were read with it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.language.lm_loss import lm_hidden_states
from lightning_mllm.language.prompts import Prompts
from lightning_mllm.processing.shared_positions import shared_positions
from tests.language.batches import batch_of
from tests.language.experts import kinds_of, segments_of, small
from tests.language.models import small as small_plain

PROMPTS, BEHIND = ("TBIIIIET", "..TBIETT", ".....TTT", "...BIIET"), ("TTT", "TT.", "T..", "TTT")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "opt"])
def test_prompts_and_what_stands_behind_them_are_as_whole_rows(kind: str) -> None:
    model = small_plain("opt") if kind == "opt" else small(kind)
    rows = tuple(one + other for one, other in zip(PROMPTS, BEHIND, strict=True))
    kinds, segments = kinds_of(*rows), segments_of(*rows)
    positions, embeds = shared_positions(kinds, segments), torch.randn(4, 11, 32)
    with torch.no_grad():
        whole = lm_hidden_states(model, embeds, batch_of(segments, positions, kinds))
        known = Prompts(model, embeds[:, :8], segments[:, :8], 3, positions=positions[:, :8], kinds=kinds[:, :8])
        assert_close(known.hidden, whole[:, 7], atol=1e-5, rtol=1e-5)
        behind = segments[:, 8:] > 0
        for _ in range(2):  # what was read behind them is forgotten
            found = known.behind(embeds[:, 8:])
            assert_close(found[behind], whole[:, 8:][behind], atol=1e-5, rtol=1e-5)
        found = known.behind(embeds[:, 8:9])
        assert_close(found, whole[:, 8:9], atol=1e-5, rtol=1e-5)


def test_tokens_are_read_one_by_one_and_rows_leave() -> None:
    model, rows = small(), tuple(one + "TTT" for one in PROMPTS)
    kinds, segments = kinds_of(*rows), segments_of(*rows)
    positions, embeds = shared_positions(kinds, segments), torch.randn(4, 11, 32)
    kept = [2, 0]
    with torch.no_grad():
        whole = lm_hidden_states(model, embeds, batch_of(segments, positions, kinds))
        known = Prompts(model, embeds[:, :8], segments[:, :8], 3, positions=positions[:, :8], kinds=kinds[:, :8])
        assert_close(known.step(embeds[:, 8], 0), whole[:, 8], atol=1e-5, rtol=1e-5)
        known.keep(kept)
        assert_close(known.step(embeds[kept, 9], 1), whole[kept, 9], atol=1e-5, rtol=1e-5)
        assert_close(known.step(embeds[kept, 10], 2), whole[kept, 10], atol=1e-5, rtol=1e-5)
