"""Generation of a model with visual experts: what the prompt's kinds and positions do, and where new tokens stand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_mllm.language.generation import AnswerEnd, Decoding, generate
from lightning_mllm.language.lm_loss import head, lm_hidden_states
from lightning_mllm.processing.shared_positions import shared_positions
from tests.language.batches import batch_of
from tests.language.experts import kinds_of, plain_of, segments_of, small
from tests.language.models import LLAMA

VOCAB, PAD = 64, 0
ROWS = ("TBIIIIET", "..TBIETT", "TBIETBIE", ".....TTT", "...BIIET")


def model_of(kind: str = "llama", **settings):
    model = small(kind, **settings)
    with torch.no_grad():  # larger weights, so that tokens differ clearly in score
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


def written(model, embeds: Tensor, rows: tuple[str, ...], positions: Tensor | None = None, **how) -> list[list[int]]:
    kinds, segments = kinds_of(*rows), segments_of(*rows)
    positions = shared_positions(kinds, segments) if positions is None else positions
    end = AnswerEnd(tokens=(VOCAB,), pad=PAD)
    return generate(model, embeds, segments > 0, Decoding(**how), end, positions=positions, kinds=kinds)


def scores(model, embeds: Tensor, row: str, *tokens: int) -> Tensor:
    """Logits at the last token of one row with new tokens behind, everything run anew."""
    real, kept = row.lstrip("."), embeds[row.count(".") :]
    more = model.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long))
    kinds, segments = (each(real + "T" * len(tokens)) for each in (kinds_of, segments_of))
    positions = shared_positions(kinds, segments)
    with torch.no_grad():
        hidden = lm_hidden_states(model, torch.cat([kept, more])[None], batch_of(segments, positions, kinds))
        return head(model)(hidden[0, -1])


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_cached_equals_uncached_and_padding_is_invisible(kind: str) -> None:
    model, embeds = model_of(kind), torch.randn(len(ROWS), 8, 32)
    found = written(model, embeds, ROWS, max_new_tokens=8)
    for row, each, tokens in zip(ROWS, embeds, found, strict=True):
        expected: list[int] = []
        while len(expected) < 8:
            expected.append(int(scores(model, each, row, *expected).argmax()))
        assert tokens == expected, row
    assert len({tuple(tokens) for tokens in found}) == len(ROWS)


def test_a_single_row_without_padding_is_no_packed_one() -> None:
    """transformers takes positions that stand still for the borders of packed sequences where it is given no mask."""
    model, embeds = model_of(), torch.randn(1, 8, 32)
    found = written(model, embeds, ROWS[:1], max_new_tokens=8)[0]
    assert found == written(model, embeds.expand(2, -1, -1), (ROWS[0], ROWS[0]), max_new_tokens=8)[1]
    assert all(int(scores(model, embeds[0], ROWS[0], *found[:n]).argmax()) == token for n, token in enumerate(found))


def test_exhaustive_beams_find_the_best_pair_of_each_row() -> None:
    model, rows = model_of(), ROWS[:2]
    embeds = torch.randn(2, 8, 32)
    found = written(model, embeds, rows, max_new_tokens=2, num_beams=VOCAB)
    for row, each, tokens in zip(rows, embeds, found, strict=True):
        first = scores(model, each, row).log_softmax(-1)
        pairs = [first[token] + scores(model, each, row, token).log_softmax(-1) for token in range(VOCAB)]
        assert tuple(tokens) == divmod(int(torch.stack(pairs).argmax()), VOCAB), row


def test_beams_of_a_batch_are_those_of_its_rows() -> None:
    model, embeds = model_of(), torch.randn(len(ROWS), 8, 32)
    together = written(model, embeds, ROWS, max_new_tokens=6, num_beams=3)
    for row, each, tokens in zip(ROWS, embeds, together, strict=True):
        kept = each[row.count(".") :][None]
        assert written(model, kept, (row.lstrip("."),), max_new_tokens=6, num_beams=3) == [tokens]


def test_kinds_and_positions_both_matter_and_text_needs_neither() -> None:
    model, embeds = model_of(), torch.randn(len(ROWS), 8, 32)
    plain, mask = plain_of(model, LLAMA), segments_of(*ROWS) > 0
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    found = written(model, embeds, ROWS, max_new_tokens=8)
    others = written(model, embeds, ROWS, counted, max_new_tokens=8)
    alone = written(plain, embeds, ROWS, max_new_tokens=8)
    left_out = generate(plain, embeds, mask, Decoding(max_new_tokens=8), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    assert written(plain, embeds, ROWS, counted, max_new_tokens=8) == left_out
    for one, other in ((found, others), (found, alone), (alone, left_out)):
        assert one[3] == other[3]
        assert one[:3] + one[4:] != other[:3] + other[4:]
