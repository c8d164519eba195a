from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.language.attention import block_mask
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.lm_loss import head, lm_hidden_states
from tests.language.batches import batch_of
from tests.language.models import LLAMA, perturbed, small

LENGTHS = (5, 3, 4)


def rows(lengths: tuple[int, ...], padding: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, segments and positions of one packed row, with padding behind."""
    embeds = torch.randn(1, sum(lengths) + padding, 32)
    segments = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)] + [torch.zeros(padding).long()])
    positions = torch.cat([torch.arange(n) for n in (*lengths, padding)])
    return embeds, segments[None], positions[None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_packed_segments_are_separate_rows(name: str, attention: str) -> None:
    model = small(name)
    model.set_attn_implementation(attention)
    embeds, segments, positions = rows(LENGTHS, padding=2)
    embeds.requires_grad_()
    together = lm_hidden_states(model, embeds, batch_of(segments, positions))
    assert together.isfinite().all()
    start = 0
    for length in LENGTHS:
        alone = embeds[:, start : start + length]
        ones, places = torch.ones(1, length).long(), torch.arange(length)[None]
        assert_close(
            together[:, start : start + length],
            lm_hidden_states(model, alone, batch_of(ones, places)),
            atol=1e-5,
            rtol=0,
        )
        start += length
    (gradient,) = torch.autograd.grad(together[:, 5:8].sum(), embeds)
    assert gradient.isfinite().all()
    assert (gradient[:, 5:8] != 0).any() and (gradient[:, :5] == 0).all() and (gradient[:, 8:] == 0).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side: str) -> None:
    model = small("llama")
    embeds = torch.randn(1, 4, 32)
    alone = lm_hidden_states(model, embeds, batch_of(torch.ones(1, 4).long(), torch.arange(4)[None]))
    zeros = torch.zeros(1, 3).long()
    order = -1 if side == "left" else 1

    def pad(real: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return torch.cat([real, padding][::order], 1)

    segments, positions = pad(torch.ones(1, 4).long(), zeros), pad(torch.arange(4)[None], zeros)
    padded = lm_hidden_states(model, pad(embeds, torch.randn(1, 3, 32)), batch_of(segments, positions))
    assert_close(padded[segments > 0], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("places", ["in order", "shared"])
def test_rows_of_different_lengths_need_no_mask(places: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = small("llama"), []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(kwargs.get("attn_mask"))
        return kernel(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    embeds, lengths = torch.randn(2, 6, 32), (6, 4)
    segments = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    # Tokens that share a position, as those of an image in CogVLM, are not taken for borders of packed rows.
    positions = torch.tensor([[0, 1, 1, 1, 2, 3]] * 2) if places == "shared" else torch.arange(6).expand(2, 6)
    together = lm_hidden_states(model, embeds, batch_of(segments, positions))
    assert masks and all(mask is None for mask in masks)
    for row, length in enumerate(lengths):
        part = (slice(row, row + 1), slice(length))
        alone = lm_hidden_states(model, embeds[part], batch_of(segments[part], positions[part]))
        assert_close(together[part], alone, atol=1e-5, rtol=0)


def test_a_sliding_window_that_is_narrower_than_a_row_is_kept() -> None:
    plain = small("llama")
    model = CausalLM(config={**LLAMA, "model_type": "mistral", "sliding_window": 3}).build().eval()
    model.load_state_dict(plain.state_dict())
    embeds, batch = torch.randn(1, 6, 32), batch_of(torch.ones(1, 6).long(), torch.arange(6)[None])
    found, whole = (lm_hidden_states(each, embeds, batch) for each in (model, plain))
    mask = torch.ones(1, 6).long()
    expected = model.base_model(inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions)
    assert torch.equal(found, expected.last_hidden_state)
    assert_close(found[:, :3], whole[:, :3], atol=1e-5, rtol=0)
    assert not torch.isclose(found[:, 3:], whole[:, 3:], atol=1e-4).all()
    halves = torch.tensor([[0, 1, 2, 0, 1, 2]])
    packed = lm_hidden_states(model, embeds, batch_of(torch.tensor([[1, 1, 1, 2, 2, 2]]), halves))
    assert_close(packed[:, :3], whole[:, :3], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"packed rows with a segment of 4 tokens .* sliding_window = 3, expected"):
        lm_hidden_states(model, embeds, batch_of(torch.tensor([[1, 1, 1, 1, 2, 2]]), batch.positions))


def test_blocks_that_hand_no_keyword_to_attention_are_given_a_mask() -> None:
    torch.manual_seed(0)
    model = perturbed(CausalLM(config={**LLAMA, "model_type": "stablelm"}).build())
    embeds, segments = torch.randn(1, 6, 32), torch.tensor([[0, 1, 1, 2, 2, 2]])
    found = lm_hidden_states(model, embeds, batch_of(segments, torch.tensor([[0, 0, 1, 0, 1, 2]])))
    for part in (slice(1, 3), slice(3, 6)):
        length = part.stop - part.start
        alone = batch_of(torch.ones(1, length).long(), torch.arange(length)[None])
        assert_close(found[:, part], lm_hidden_states(model, embeds[:, part], alone), atol=1e-5, rtol=0)


def test_packed_rows_are_refused_where_layers_read_across_segments() -> None:
    """A convolution, which would read the segment before."""
    config = {**LLAMA, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
    model = CausalLM(config=config).build().eval()
    embeds, positions = torch.randn(1, 6, 32), torch.tensor([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(ValueError, match=r"found packed rows .* a 'lfm2' model, .* expected one segment a row"):
        lm_hidden_states(model, embeds, batch_of(torch.tensor([[1, 1, 1, 2, 2, 2]]), positions))
    assert lm_hidden_states(model, embeds, batch_of(torch.ones(1, 6).long(), torch.arange(6)[None])).isfinite().all()


def test_what_the_head_reads_gives_the_models_logits() -> None:
    model = small("llama")
    tokens = torch.randint(0, 64, (2, 5))
    batch = batch_of(torch.ones(2, 5).long(), torch.arange(5).expand(2, 5))
    hidden = lm_hidden_states(model, model.get_input_embeddings()(tokens), batch)
    assert_close(head(model)(hidden), model(tokens).logits, atol=1e-5, rtol=0)


def test_block_mask() -> None:
    mask = block_mask(torch.tensor([[1, 1, 2, 0, 0]]), torch.float32)
    assert mask.shape == (1, 1, 5, 5)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert (mask[0, 0] == 0).int().tolist() == expected
