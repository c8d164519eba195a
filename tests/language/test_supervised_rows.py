"""The last feed-forward at supervised positions alone: losses and gradients are those of all positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from lightning_mllm.contracts import IGNORE, Batch
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.lm_loss import SELECTS, lm_hidden_states, lm_losses
from lightning_mllm.language.lora import Lora, add_lora
from lightning_mllm.language.supervised_rows import select_supervised_rows
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.training.parallelize import ParallelPlan, parallelize
from tests.language.batches import batch_of
from tests.language.experts import kinds_of
from tests.language.models import LLAMA, OPT, QWEN, perturbed

GEMMA = {**LLAMA, "head_dim": 16, "sliding_window": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": QWEN,
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 16},
    "gemma3, with a norm behind": {**GEMMA, "model_type": "gemma3_text"},
    "opt": OPT,
    "opt 350m, with norms behind": {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
}
EXPERTS = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4}
PLACES = [2, 4, 9]
"""Of the tokens of both rows, those that predict a learned one."""


def batch(kinds: Tensor | None = None, places: list[int] = PLACES) -> Batch:
    labels = torch.full((2, 6), IGNORE)
    labels.view(-1)[[place + 1 for place in places]] = torch.arange(len(places)) + 5
    return batch_of(torch.ones(2, 6).long(), torch.arange(6).expand(2, 6), kinds, labels)


def two(config: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model, and its copy that selects."""
    plain = perturbed(CausalLM(config=config).build())
    model = CausalLM(config=config).build().eval()
    model.load_state_dict(plain.state_dict())
    select_supervised_rows(model)
    return plain, model


def learned(model: PreTrainedModel, found: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    width = model.get_input_embeddings().weight.shape[1]  # pyright: ignore
    embeds = torch.randn(2, 6, int(width), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    losses, _ = lm_losses(model, embeds, found)
    losses.sum().backward()
    return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(model: PreTrainedModel, plain: PreTrainedModel, found: Batch) -> None:
    (losses, gradients), (all_losses, all_gradients) = learned(model, found), learned(plain, found)
    assert_close(losses, all_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == all_gradients.keys()
    for name, gradient in all_gradients.items():
        assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def watched(model: nn.Module, name: str) -> list[int]:
    """How many rows each call of the module is given from now on."""
    seen: list[int] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2).shape[0]))
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_all_rows(name: str) -> None:
    plain, model = two(MODELS[name])
    assert hasattr(model, SELECTS) and not hasattr(plain, SELECTS)
    opt = "opt" in name
    first, last = (f"decoder.layers.{k}.fc2" if opt else f"layers.{k}.mlp.down_proj" for k in (0, 1))
    seen, all_seen = watched(model.base_model, last), watched(model.base_model, first)
    assert_alike(model, plain, batch())
    assert (seen, all_seen) == ([len(PLACES)], [12])
    assert_alike(model, plain, batch(places=[]))
    assert seen[1:] == [0], "nothing to learn"


def test_other_blocks_stay_as_they_are() -> None:
    plain, model = two(EXPERTS)
    assert not hasattr(model, SELECTS)
    assert_alike(model, plain, batch())


def test_passes_without_a_loss_see_all_rows() -> None:
    """Also after a pass that ended in the middle of the last block."""
    plain, model = two(LLAMA)
    embeds = torch.randn(2, 6, 32)
    last = model.base_model.layers[-1].mlp  # pyright: ignore

    def stop(*_: object) -> None:
        raise RuntimeError("stopped")

    handle = last.down_proj.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stopped"):
        learned(model, batch())
    handle.remove()
    assert torch.equal(lm_hidden_states(model, embeds, batch()), lm_hidden_states(plain, embeds, batch()))
    assert torch.equal(model(inputs_embeds=embeds).logits, plain(inputs_embeds=embeds).logits)
    assert_alike(model, plain, batch())


@pytest.mark.parametrize("how", ["full", "selective"])
def test_blocks_that_are_computed_again_take_the_positions_of_their_batch(how: Any) -> None:
    plain, model = two(LLAMA)
    net = nn.ModuleDict({"language": model})
    parallelize(net, {"language": list(model.base_model.layers)}, ParallelPlan(language_checkpointing=how))  # pyright: ignore
    embeds, other = torch.randn(2, 6, 32), batch(places=[1, 2, 3, 7])
    for each in (model, plain):
        first, _ = lm_losses(each, embeds, batch())
        second, _ = lm_losses(each, embeds, other)
        (first.sum() + 2 * second.sum()).backward()
    for (name, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        if expected.grad is not None:
            assert found.grad is not None
            assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_adapters_of_the_feed_forward() -> None:
    plain = perturbed(CausalLM(config=LLAMA).build())
    model = CausalLM(config=LLAMA).build().eval()
    model.load_state_dict(plain.state_dict())
    for each in (plain, model):
        add_lora(each, Lora(r=2, alpha=2, dropout=0.0))
    perturbed(plain)
    model.load_state_dict(plain.state_dict())
    select_supervised_rows(model)
    assert hasattr(model, SELECTS)
    assert_alike(model, plain, batch())


@pytest.mark.parametrize(("rows", "fewer"), [(("TBIETT", "TTTTTT"), True), (("TIIITT", "TTITTT"), False)])
def test_visual_experts(rows: tuple[str, ...], fewer: bool) -> None:
    """Where no end stands behind an image, a word is predicted from its last vector, which is the expert's."""
    plain = perturbed(VisualExpertLM(config=LLAMA).build())
    model = VisualExpertLM(config=LLAMA).build().eval()
    model.load_state_dict(plain.state_dict())
    select_supervised_rows(model)
    seen = watched(model.base_model, "layers.1.mlp.language")
    found = batch(kinds_of(*rows), [3, 8, 10])
    (losses, gradients), (all_losses, all_gradients) = learned(model, found), learned(plain, found)
    assert_close(losses, all_losses, rtol=1e-5, atol=1e-6)
    for name, gradient in all_gradients.items():
        assert_close(gradients.get(name, torch.zeros_like(gradient)), gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert (seen == [3]) == fewer
