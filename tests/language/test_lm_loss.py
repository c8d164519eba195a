"""One loss for causal and for encoder-decoder models: that of transformers, whatever the padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from lightning_mllm.contracts import IGNORE, Batch
from lightning_mllm.language import lm_loss as lm_loss_module
from lightning_mllm.language.lm_loss import head, lm_hidden_states, lm_losses, target_logits
from lightning_mllm.language.seq2seq import Seq2SeqLM
from tests.language.models import FLAN, T5, perturbed, small

LENGTHS = (7, 4)


def causal(name: str) -> Callable[[], PreTrainedModel]:
    return lambda: small(name)


def seq2seq(config: dict[str, Any]) -> Callable[[], PreTrainedModel]:
    return lambda: perturbed(Seq2SeqLM(config=config).build())


MODELS = {"llama": causal("llama"), "opt": causal("opt"), "t5": seq2seq(T5), "flan": seq2seq(FLAN)}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(1)
    return MODELS[request.param]()


def is_seq2seq(model: PreTrainedModel) -> bool:
    return bool(model.config.is_encoder_decoder)


def rows(model: PreTrainedModel, side: str = "right", extra: int = 0) -> tuple[Tensor, Batch]:
    """Two rows of embeddings and answers, padded on `side` with numbers that must not matter."""
    generator = torch.Generator().manual_seed(2)
    real = [torch.randn(length, 32, generator=generator) for length in LENGTHS]
    answers = [torch.randint(3, 64, (length // 2,), generator=generator) for length in LENGTHS]
    length = max(LENGTHS) + extra

    def pad(values: list[Tensor], fill: float, side: str, length: int) -> Tensor:
        padded = torch.full((len(values), length, *values[0].shape[1:]), fill).to(values[0].dtype)
        for row, value in zip(padded, values, strict=True):
            row[: len(value)] = value
            row.copy_(row if side == "right" else row.roll(length - len(value), 0))
        return padded

    labels = [
        F.pad(answer, (size - len(answer), 0), value=IGNORE) for answer, size in zip(answers, LENGTHS, strict=True)
    ]
    tokens = pad([torch.zeros(size).long() for size in LENGTHS], 0, side, length)
    return pad(real, 7.0, side, length), Batch(
        ids=["a", "b"],
        tokens=tokens,
        labels=pad(labels, IGNORE, side, length),
        kinds=tokens.to(torch.uint8),
        segments=pad([torch.ones(size).long() for size in LENGTHS], 0, side, length),
        positions=pad([torch.arange(size) for size in LENGTHS], 0, side, length),
        images=torch.zeros(1, 3, 1, 1, dtype=torch.uint8),
        num_images=0,
        targets=pad(answers, IGNORE, "right", max(map(len, answers)) + extra) if is_seq2seq(model) else None,
    )


def lm_loss(model: PreTrainedModel, embeds: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean over all tokens, and their number."""
    losses, tokens = lm_losses(model, embeds, batch)
    return losses.sum() / tokens.sum().clamp(min=1), tokens.sum()


def theirs(model: Any, embeds: Tensor, batch: Batch) -> Tensor:
    labels = batch.targets if model.config.is_encoder_decoder else batch.labels
    return model(inputs_embeds=embeds, attention_mask=(batch.segments > 0).long(), labels=labels).loss


def test_loss_and_gradients_are_those_of_transformers(model: PreTrainedModel) -> None:
    embeds, batch = rows(model)
    embeds.requires_grad_()
    # OPT's padding embedding gets no gradient of its own in either.
    inputs = [embeds, *(each for each in model.parameters() if each.requires_grad)]
    loss, count = lm_loss(model, embeds, batch)
    expected = theirs(model, embeds, batch)
    assert_close(loss, expected, atol=1e-6, rtol=0)
    assert count == sum(length // 2 for length in LENGTHS)
    mine = torch.autograd.grad(loss, inputs, allow_unused=True)
    others = torch.autograd.grad(expected, inputs, allow_unused=True)
    assert mine[0] is not None and (mine[0] != 0).any()
    for one, other in zip(mine, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_logits_computed_in_parts_give_the_same(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more of them than that exist at a time; the backward pass computes them again."""
    embeds, batch = rows(model)
    seen = list[int]()
    head(model).register_forward_hook(lambda head, given, logits: seen.append(logits.shape[0]))
    inputs = [embeds.requires_grad_(), *(each for each in model.parameters() if each.requires_grad)]

    def learned() -> tuple[Tensor, tuple[Tensor | None, ...]]:
        losses, _ = lm_losses(model, embeds, batch)
        return losses.detach(), torch.autograd.grad(losses.sum(), inputs, allow_unused=True)

    expected, gradients = learned()
    total = sum(length // 2 for length in LENGTHS)
    assert seen == [total]
    monkeypatch.setattr(lm_loss_module, "LOGITS_AT_ONCE", 2 * model.config.vocab_size + 1)
    seen.clear()
    found, others = learned()
    once = [2, 2, 1]
    assert seen[:3] == once and sorted(seen[3:]) == sorted(once)
    assert_close(found, expected, atol=0, rtol=1e-6)
    for one, other in zip(others, gradients, strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-5)
    seen.clear()
    with torch.no_grad():
        assert_close(lm_losses(model, embeds, batch)[0], expected, atol=0, rtol=1e-6)
    assert seen == once


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(model: PreTrainedModel, side: str) -> None:
    expected, counts = lm_losses(model, *rows(model))
    losses, again = lm_losses(model, *rows(model, side, extra=3))
    assert_close(losses, expected, atol=1e-5, rtol=0)
    assert torch.equal(counts, again)


def test_the_rows_losses_add_up(model: PreTrainedModel) -> None:
    embeds, batch = rows(model)
    losses, counts = lm_losses(model, embeds, batch)
    loss, count = lm_loss(model, embeds, batch)
    assert counts.tolist() == [length // 2 for length in LENGTHS]
    assert_close(losses.sum() / counts.sum(), loss)
    assert count == counts.sum()
    assert_close(losses[:1], lm_losses(model, embeds[:1], first(batch))[0], atol=1e-5, rtol=0)


def first(batch: Batch) -> Batch:
    cut: dict[str, Any] = {
        name: value[:1] for name, value in vars(batch).items() if isinstance(value, Tensor) and name != "images"
    }
    return replace(batch, **cut, ids=batch.ids[:1])


def test_logits_are_of_the_supervised_tokens_in_reading_order(model: PreTrainedModel) -> None:
    embeds, batch = rows(model)
    logits, known = target_logits(model, embeds, batch), batch.layout.supervised
    targets, owners = known.targets, known.samples
    labels = batch.targets if model.config.is_encoder_decoder else batch.labels
    assert labels is not None
    assert torch.equal(targets, labels[labels != IGNORE])
    assert owners.tolist() == [0, 0, 0, 1, 1]
    assert logits.shape == (5, 64) and logits.dtype == torch.float32


def test_only_supervised_positions_pass_through_the_head(model: PreTrainedModel) -> None:
    shapes = list[torch.Size]()
    hook = head(model).register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    lm_loss(model, *rows(model))
    hook.remove()
    assert shapes == [(5, 32)]


def test_a_segment_does_not_predict_the_next_one() -> None:
    model = small("llama")
    embeds, batch = rows(model)
    segments = batch.segments.clone()
    segments[0, 5:] *= 2
    packed = replace(batch, segments=segments)
    losses, counts = lm_losses(model, embeds, packed)
    labels = batch.labels.clone()
    labels[0, 5] = IGNORE
    expected, fewer = lm_losses(model, embeds, replace(packed, labels=labels))
    assert counts.tolist() == fewer.tolist() == [2, 2] and torch.equal(losses, expected)
    hidden = lm_hidden_states(model, embeds, packed)
    logits = head(model)(hidden)[:, :-1].flatten(0, 1)
    assert_close(losses.sum(), F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"))


def test_it_is_computed_in_float32() -> None:
    model = small("llama").bfloat16()
    embeds, batch = rows(model)
    assert lm_losses(model, embeds.bfloat16(), batch)[0].dtype == torch.float32


def test_nothing_to_learn_is_zero_with_a_gradient(model: PreTrainedModel) -> None:
    embeds, batch = rows(model)
    batch.labels.fill_(IGNORE)
    if batch.targets is not None:
        batch.targets.fill_(IGNORE)
    embeds.requires_grad_()
    loss, count = lm_loss(model, embeds, batch)
    assert loss == 0 and count == 0
    (gradient,) = torch.autograd.grad(loss, embeds)
    assert not gradient.any()


def test_an_encoder_decoder_needs_targets_and_one_segment_a_row() -> None:
    model = MODELS["t5"]()
    embeds, batch = rows(model)
    batch.targets = None
    with pytest.raises(ValueError, match=r"found a batch without targets \(samples \['a', 'b'\]\)"):
        lm_loss(model, embeds, batch)
    embeds, batch = rows(model)
    batch.segments[0, 3:] = 2
    with pytest.raises(ValueError, match=r"found several segments in a row \(samples \['a', 'b'\]\), expected one"):
        lm_loss(model, embeds, batch)
