"""bf16 without sharded parameters: float32's losses and gradients within rounding, float32's parameters and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_mllm.language import lm_loss
from lightning_mllm.training.compute_copies import ComputeCopies
from lightning_mllm.training.parallelize import ParallelPlan
from tests.architectures.samples import ONE, OTHER, TEXT, batch_of
from tests.training.runs import fit, losses, saved_tensors, settings, weights
from tests.training.test_parallelize import STAGES, built, learned

BF16 = ParallelPlan(precision="bf16", language_checkpointing="none", vision_checkpointing="none")
FULL = ParallelPlan(precision="bf16", language_checkpointing="full", vision_checkpointing="full")
SELECTIVE = ParallelPlan(precision="bf16", language_checkpointing="selective", vision_checkpointing="selective")


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """L2, relative."""
    apart = sum(float((found[name] - each).square().sum()) for name, each in expected.items())
    return (apart / sum(float(each.square().sum()) for each in expected.values())) ** 0.5


class Products(TorchDispatchMode):
    """The dtypes of what matrix products read, and how often each of some weights is copied to bfloat16."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()
        self.copied = {each.untyped_storage().data_ptr(): 0 for each in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.products |= {each.dtype for each in args if isinstance(each, Tensor)}
        copied = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16
        if copied and (storage := args[0].untyped_storage().data_ptr()) in self.copied:
            self.copied[storage] += 1
        return func(*args, **(kwargs or {}))


def matrices(net: nn.Module) -> list[Tensor]:
    """The weights of linear layers, but for those of `nn.MultiheadAttention`."""
    own = {f"{name}.out_proj" for name, each in net.named_modules() if isinstance(each, nn.MultiheadAttention)}
    found = [m.weight for name, m in net.named_modules() if isinstance(m, nn.Linear) and name not in own]
    return list({id(each): each for each in found}.values())


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_are_those_of_float32_within_rounding(stage: str) -> None:
    plain = built(stage)
    batch = batch_of(plain, ONE, OTHER) if stage == "blip2, representation" else batch_of(plain, ONE, OTHER, TEXT)
    loss, gradients = learned(plain, batch)
    module = built(stage, BF16)
    trained = [each for each in matrices(module.net) if each.requires_grad]
    words = [each.weight for each in module.net.modules() if isinstance(each, nn.Embedding)]
    frozen = [w for w in matrices(module.net) if not w.requires_grad and all(w is not each for each in words)]
    with Products(trained) as seen:
        found = learned(module, batch)
    assert abs(found[0] - loss) < 1e-3 * loss
    assert found[1].keys() == gradients.keys()
    assert distance(found[1], gradients) < 5e-2
    assert torch.bfloat16 in seen.products
    assert {each.dtype for each in trained} == {each.dtype for each in found[1].values()} == {torch.float32}
    assert {each.dtype for each in frozen} <= {torch.bfloat16}
    assert set(seen.copied.values()) == {1}
    assert list(dict(plain.net.named_parameters())) == list(dict(module.net.named_parameters()))


@pytest.mark.parametrize("stage", ["llava, instruct", "cogvlm, chat", "blip2 of t5, caption"])
def test_checkpointed_blocks_compute_the_same_again(stage: str) -> None:
    plain = built(stage, BF16)
    batch = batch_of(plain, ONE, OTHER)
    loss, gradients = learned(plain, batch)
    for plan in (FULL, SELECTIVE):
        found = learned(built(stage, plan), batch)
        assert found[0] == loss
        for name, gradient in gradients.items():
            assert torch.equal(found[1][name], gradient), name


def test_a_net_on_one_device_is_not_checkpointed_unless_told_to() -> None:
    assert set(built("llava, instruct", ParallelPlan(precision="bf16")).checkpointing.values()) == {"none"}


def test_parameters_are_back_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    weight, copies = net[0].weight, ComputeCopies(net)
    with pytest.raises(RuntimeError, match="in the middle"), copies():
        assert net[0].weight.dtype == torch.bfloat16 and net[1].weight.dtype == torch.float32
        with copies():
            pass
        assert net[0].weight.dtype == torch.bfloat16, "an inner pass ended the outer one"
        raise RuntimeError("in the middle")
    assert net[0].weight is weight


def test_a_matrix_that_an_embedding_shares_is_stored_in_float32_and_copied() -> None:
    net = nn.ModuleDict({"words": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
    net["head"].weight = net["words"].weight
    net.requires_grad_(False)
    copies = ComputeCopies(net)
    assert net["words"].weight.dtype == torch.float32
    with copies():
        assert net["words"].weight.dtype == torch.float32 and net["head"].weight.dtype == torch.bfloat16


def test_checkpoints_and_weights_are_those_of_a_float32_run_in_form(tmp_path: Path) -> None:
    data, stage = {"steps": 4}, settings(lr=1e-3, eps=1e-6)
    plain = fit(tmp_path / "fp32", data=data, stage=stage)
    module = fit(tmp_path / "bf16", data=data, stage=stage, parallel=BF16)
    for kind in (weights, lambda each: saved_tensors(Path(each.trainer.default_root_dir))):
        found, expected = kind(module), kind(plain)
        assert [(n, t.dtype, t.shape) for n, t in found.items()] == [(n, t.dtype, t.shape) for n, t in expected.items()]
    a, b = losses(tmp_path / "bf16"), losses(tmp_path / "fp32")
    assert a != b and [v for _, v in a] == pytest.approx([v for _, v in b], rel=1e-3)


@pytest.mark.parametrize(("instruction", "precision"), [("avx512_bf16", "bf16"), ("bf16", "fp32"), ("avx2", "fp32")])
def test_auto_is_bf16_where_a_cpu_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, instruction: str, precision: str
) -> None:
    """Arm's BF16 (`bf16`) is taken where it is asked for, and not by itself."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True})
    assert ParallelPlan(precision="auto").precision == precision


@pytest.mark.parametrize("stage", ["llava, align", "llava, instruct", "llava, instruct_lora"])
def test_logits_computed_in_parts_in_bf16(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward pass computes again, it computes in bfloat16 as before."""
    found, passes = [], list[int]()
    for run, limit in enumerate((1 << 26, 1000)):
        monkeypatch.setattr(lm_loss, "LOGITS_AT_ONCE", limit)
        module = built(stage, BF16)
        lm_loss.head(module.net.language).register_forward_hook(lambda *_, run=run: passes.append(run))
        trained = [each for each in matrices(module.net) if each.requires_grad]
        torch.manual_seed(0)
        with Products(trained) as products:
            found.append(learned(module, batch_of(module, ONE, OTHER, TEXT)))
        assert set(products.copied.values()) == {1}, "the backward pass copies a matrix again"
    (loss, gradients), (other, others) = found
    assert passes.count(0) == 1 and passes.count(1) > 2
    assert abs(float(loss - other)) <= 1e-6
    assert distance(others, gradients) <= 4e-3  # half a unit in the last place of bfloat16
