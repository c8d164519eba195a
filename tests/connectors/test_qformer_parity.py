"""The same numbers and gradients as transformers' Q-Formers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    InstructBlipQFormerConfig,
)
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from lightning_mllm.interop.keys.qformer import BLIP2_QFORMER_KEYS, INSTRUCTBLIP_QFORMER_KEYS
from lightning_mllm.weights.keymap import KeyMap
from tests.connectors.qformers import HF_SIZES, SIZES, qformer, rows

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


def load(theirs: nn.Module, ours: nn.Module, keys: KeyMap, prefix: str = "") -> dict[str, str]:
    """Gives `theirs` the values of `ours`; their name -> ours."""
    state = {name.removeprefix(prefix): t for name, t in keys.to_theirs(ours.state_dict().items())}
    extra = {} if hasattr(theirs, "query_tokens") else {"query_tokens"}
    found = theirs.load_state_dict({n: t for n, t in state.items() if n not in extra}, strict=False)
    assert found.unexpected_keys == []
    return {there: here for here in ours.state_dict() for there in [keys.theirs(here).theirs[0].removeprefix(prefix)]}


def same_gradients(theirs: nn.Module, ours: nn.Module, names: dict[str, str]) -> None:
    own = dict(ours.named_parameters())
    compared = 0
    for name, parameter in theirs.named_parameters():
        if name in names and parameter.grad is not None and parameter.grad.any():
            assert_close(own[names[name]].grad, parameter.grad, msg=name, **CLOSE)
            compared += 1
    assert compared > 30


@pytest.mark.parametrize("images", [1, 3])
def test_queries_as_in_blip2(images: int) -> None:
    ours = qformer("none")
    theirs = Blip2QFormerModel(Blip2QFormerConfig(**HF_SIZES)).eval()
    names = load(theirs, ours, BLIP2_QFORMER_KEYS, "qformer.")
    visual = torch.randn(images, 5, SIZES["in_width"])
    queries = ours.queries.detach().clone().requires_grad_()
    expected = theirs(
        query_embeds=queries.expand(images, -1, -1),
        encoder_hidden_states=visual,
        encoder_attention_mask=torch.ones(images, 5, dtype=torch.long),
    ).last_hidden_state
    found, weight = ours.encode_images(visual), torch.randn_like(expected)
    assert_close(found, expected, **CLOSE)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    same_gradients(theirs, ours, names)
    assert_close(ours.queries.grad, queries.grad, **CLOSE)


def retrieval() -> Blip2ForImageTextRetrieval:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=10, intermediate_size=12, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2
        ),
        qformer_config={**HF_SIZES, "use_qformer_text_input": True},
        num_query_tokens=SIZES["queries"],
        image_text_hidden_size=6,
    )
    return Blip2ForImageTextRetrieval(config).eval()


def test_text_as_in_blip2() -> None:
    ours, theirs = qformer("full"), retrieval()
    names = load(theirs, ours, BLIP2_QFORMER_KEYS)
    tokens, real = rows(6, 2)
    embeds = theirs.embeddings(input_ids=tokens.clamp(min=0))
    expected = theirs.qformer(query_embeds=embeds, query_length=0, attention_mask=real.long()).last_hidden_state
    found, weight = ours.encode_text(tokens, real), torch.randn_like(expected) * real[:, :, None]
    assert_close(found[real], expected[real], **CLOSE)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    same_gradients(theirs, ours, names)


@pytest.mark.parametrize("side", ["right", "left"])
def test_both_as_in_blip2(side: str) -> None:
    ours, theirs = qformer("full"), retrieval()
    names = load(theirs, ours, BLIP2_QFORMER_KEYS)
    visual, (tokens, real) = torch.randn(2, 5, SIZES["in_width"]), rows(6, 2, side=side)
    queries = theirs.query_tokens.expand(2, -1, -1)
    found = ours.encode_multimodal(visual, tokens, real)
    mask = torch.cat([torch.ones(2, SIZES["queries"], dtype=torch.long), real.long()], 1)
    expected = theirs.qformer(
        query_embeds=theirs.embeddings(input_ids=tokens.clamp(min=0), query_embeds=queries),
        query_length=SIZES["queries"],
        attention_mask=mask,
        encoder_hidden_states=visual,
        encoder_attention_mask=torch.ones(2, 5, dtype=torch.long),
    ).last_hidden_state
    assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)
    weight = torch.randn_like(expected) * mask[:, :, None]
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    same_gradients(theirs, ours, names)


@pytest.mark.parametrize("text", ["instruction", "full"])
@pytest.mark.parametrize(("lengths", "side"), [((6, 2, 4), "right"), ((6, 2, 4), "left"), ((5,), "right")])
def test_instructed_queries_as_in_instructblip(text: str, lengths: tuple[int, ...], side: str) -> None:
    ours = qformer(text)
    theirs = InstructBlipQFormerModel(InstructBlipQFormerConfig(**HF_SIZES)).eval()
    names = load(theirs, ours, INSTRUCTBLIP_QFORMER_KEYS, "qformer.")
    tokens, real = rows(*lengths, side=side)
    count = len(lengths)
    visual: Tensor = torch.randn(count, 5, SIZES["in_width"])
    queries = ours.queries.detach().clone().requires_grad_()
    expected = theirs(
        input_ids=tokens.clamp(min=0),
        query_embeds=queries.expand(count, -1, -1),
        attention_mask=torch.cat([torch.ones(count, SIZES["queries"], dtype=torch.long), real.long()], 1),
        encoder_hidden_states=visual,
        encoder_attention_mask=torch.ones(count, 5, dtype=torch.long),
    ).last_hidden_state[:, : SIZES["queries"]]
    found, weight = ours.encode_instructed(visual, tokens, real), torch.randn_like(expected)
    assert_close(found, expected, **CLOSE)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    own = {name: p.grad for name, p in ours.named_parameters()}
    # transformers has a feed-forward for the text of the last block, of which nothing comes out.
    dead = {n for n, p in theirs.named_parameters() if p.grad is None or not p.grad.any()}
    assert {".".join(n.split(".")[:4]) for n in dead} == {"encoder.layer.2.intermediate", "encoder.layer.2.output"}
    assert all(own[names[n]] is None for n in dead if n in names)
    same_gradients(theirs, ours, names)
    assert_close(ours.queries.grad, queries.grad, atol=1e-5, rtol=1e-6)  # sums of up to 30, in another order
