"""Muon for matrices and AdamW for the rest are those of torch, as one optimizer that goes on from its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.contracts import ParamGroup
from lightning_mllm.training.muon import MATRIX, MuonAdamW, hidden_matrices
from lightning_mllm.training.optimizer import parameter_groups
from lightning_mllm.training.stage import StageSettings
from tests.training.runs import fit, losses, settings, weights

TABLE = {"*": ParamGroup()}
SETTINGS: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3, bias=False))


def optimizer(net: nn.Module) -> MuonAdamW:
    trained = dict.fromkeys(dict(net.named_parameters()), "*")
    groups = parameter_groups(net, trained, TABLE, lr=0.1, weight_decay=0.2, matrices=hidden_matrices(net))
    return MuonAdamW(groups, fused=False, **SETTINGS)


def learn(net: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        net.zero_grad()
        net(torch.randn(5, 6)).square().sum().backward()
        for each in optimizers:
            each.step()


def same(found: nn.Module, expected: nn.Module) -> None:
    for (name, ours), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_both_are_those_of_torch() -> None:
    found, expected = small(), small()
    learn(found, optimizer(found))
    first, norm, last = expected
    assert isinstance(first, nn.Linear) and isinstance(norm, nn.LayerNorm) and isinstance(last, nn.Linear)
    muon = torch.optim.Muon([first.weight, last.weight], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([first.bias, norm.weight, norm.bias], weight_decay=0.0, **SETTINGS)
    learn(expected, muon, adamw)
    same(found, expected)


def test_an_update_is_as_large_as_one_of_adamw() -> None:
    """0.2 of the rate a number, AdamW's usual root mean square, whatever the gradient's scale and the shape."""
    net = nn.Linear(64, 16, bias=False)
    before = net.weight.detach().clone()
    net.weight.grad = 1e-3 * torch.randn(16, 64)
    groups = parameter_groups(net, {"weight": "*"}, TABLE, lr=0.1, weight_decay=0.0, matrices=hidden_matrices(net))
    MuonAdamW(groups, fused=False, **SETTINGS).step()
    change = (net.weight.detach() - before) / 0.1
    assert 0.14 < change.square().mean().sqrt() < 0.26
    # All directions of the matrix alike: Newton-Schulz in five steps ends between 0.7 and 1.2.
    values = torch.linalg.svdvals(change) / (0.2 * 64**0.5)
    assert values.min() > 0.6 and values.max() < 1.3


def test_it_goes_on_from_its_state() -> None:
    whole, stopped = small(), small()
    kept, first = optimizer(whole), optimizer(stopped)
    learn(whole, kept)
    learn(stopped, first)
    again = optimizer(stopped)
    again.load_state_dict(first.state_dict())
    assert {name for state in again.state.values() for name in state} == {
        "momentum_buffer",
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    learn(whole, kept)
    learn(stopped, again)
    same(stopped, whole)


def test_matrices_alone_have_the_settings_that_a_checkpoint_renews() -> None:
    """As adapters are trained; `resuming` renews them by name."""
    (group,) = optimizer(nn.Linear(4, 3, bias=False)).param_groups
    assert (group["betas"], group["eps"], group[MATRIX]) == (SETTINGS["betas"], SETTINGS["eps"], True)


def test_heads_embeddings_norms_and_biases_are_adamws() -> None:
    module = LLaVA.tiny()
    module.configure_model()
    found = hidden_matrices(module.net)
    assert any(name.startswith("connector.") for name in found)
    rest = {name for name, _ in module.net.named_parameters()} - found
    assert any(name.endswith("lm_head.weight") for name in rest)
    assert any(name.endswith("embed_tokens.weight") for name in rest)
    assert not any(name.endswith("bias") or "norm" in name for name in found)
    assert all(dict(module.net.named_parameters())[name].ndim == 2 for name in found)


def test_a_stage_of_it(tmp_path: Path) -> None:
    """Both experts' matrices, and the rates of their patterns; the loss falls."""
    stage = settings("chat_lm", lr=3e-2, optimizer="muon")
    module = fit(tmp_path, build=lambda own: CogVLM.tiny(stage=own), stage=stage, data={"steps": 6})
    groups = module.trainer.optimizers[0].param_groups
    assert isinstance(module.trainer.optimizers[0], MuonAdamW)
    assert {each[MATRIX] for each in groups} == {True, False} and any("muon" in each["name"] for each in groups)
    values = [loss for _, loss in losses(tmp_path)]
    assert values[-1] < values[0] and weights(module)


def test_a_stage_without_matrices_is_refused() -> None:
    norm = nn.LayerNorm(3)
    with pytest.raises(ValueError, match=r"stage.optimizer: found muon in a stage that trains no weight of a linear"):
        optimizer(norm)
    with pytest.raises(ValueError, match=r"stage.optimizer: found 'sgd', expected adamw or muon"):
        StageSettings(name="align", optimizer="sgd")  # pyright: ignore[reportArgumentType]


def test_sharded_parameters_are_refused() -> None:
    stage = StageSettings(name="align", optimizer="muon")
    stage.check_optimizer(sharded=False)
    with pytest.raises(ValueError, match=r"stage.optimizer: found muon with sharded parameters, expected adamw"):
        stage.check_optimizer(sharded=True)


def test_it_is_no_other_optimizer_where_none_is_asked_for() -> None:
    net = small()
    trained = dict.fromkeys(dict(net.named_parameters()), "*")
    groups = parameter_groups(net, trained, TABLE, lr=0.1, weight_decay=0.2)
    assert not any(MATRIX in each for each in groups)
    assert sum(len(each["params"]) for each in groups) == len(trained)
