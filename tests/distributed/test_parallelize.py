"""The parallel plan on ranks: what bf16 changes, what is exchanged when, and what stays equal to one process."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning import Callback
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_collectives
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.training.callbacks.averaging import EMA
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.sharding import ShardedStrategy, copy_into_shard, full_tensor, to_local
from lightning_mllm.vision.eva import EvaEncoder
from lightning_mllm.weights.files import TensorFiles, write_tensors
from tests.architectures.blip2s import EVA, OPT
from tests.distributed.ranks import on_ranks
from tests.training.runs import fit, losses, settings, weights


def train(folder: Path, plan: ParallelPlan, *, name: str = "instruct", ranks: int = 2, **more: Any) -> Any:
    data = {"steps": more.pop("steps", 3), "micro_batch": more.pop("micro_batch", 4 // ranks)}
    strategy = ShardedStrategy() if ranks > 1 or plan.precision == "bf16" else "auto"
    return fit(
        folder,
        stage=settings(name, lr=1e-3, eps=1e-6, gradient_clip=more.pop("gradient_clip", 0.0)),
        data=data,
        build=more.pop("build", lambda stage: LLaVA.tiny(stage=stage)),
        parallel=plan,
        devices=ranks,
        strategy=strategy,
        every_n_steps=0,
        **more,
    )


class Dtypes(Callback):
    """Of what is stored, at the end of training."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        state = trainer.optimizers[0].state
        self.found = {
            "trained": {p.dtype for p in pl_module.parameters() if p.requires_grad},
            "frozen": {p.dtype for p in pl_module.parameters() if not p.requires_grad},
            "moments": {each[k].dtype for each in state.values() for k in ("exp_avg", "exp_avg_sq")},
        }


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of 50 steps of one process in float32."""
    folder = tmp_path_factory.mktemp("fp32")
    train(folder, ParallelPlan(), steps=50, ranks=1)
    return [loss for _, loss in losses(folder)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_bf16_learns_as_float32_does(ranks: int, fifty: list[float], tmp_path: Path) -> None:
    """Over 50 steps, with selective checkpointing; what is trained is stored in float32, Adam's moments too."""

    def work(rank: int) -> tuple[Any, Any]:
        look = Dtypes()
        module = train(tmp_path, ParallelPlan(precision="bf16"), steps=50, ranks=ranks, callbacks=[look])
        return look.found, {tensor.dtype for tensor in weights(module).values()}

    (dtypes, handed_over), *_ = on_ranks(ranks, work)
    assert dtypes == {"trained": {torch.float32}, "frozen": {torch.bfloat16}, "moments": {torch.float32}}
    assert handed_over == {torch.float32}
    found = [loss for _, loss in losses(tmp_path)]
    assert found == pytest.approx(fifty, rel=1e-2) and found != fifty
    assert fifty[-1] < 0.8 * fifty[0], "nothing was learned that rounding could have spoiled"


def test_a_tower_that_is_published_in_float16_computes_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLIP-2's; the language model, stored in float16 too, computes in bfloat16 with all else."""
    seen: set[torch.dtype] = set()
    through = EvaEncoder._through

    def watched(self: EvaEncoder, pixels: Tensor) -> Tensor:
        visual = through(self, pixels)
        seen.add(visual.dtype)
        return visual

    monkeypatch.setattr(EvaEncoder, "_through", watched)

    def run(dtype: str | None, plan: ParallelPlan, ranks: int) -> list[float]:
        parts = {"vision": replace(EVA, dtype=dtype), "language": replace(OPT, dtype=dtype)}
        folder = tmp_path / str(dtype)
        train(folder, plan, name="generative", ranks=ranks, build=lambda stage: Blip2.tiny(stage=stage, **parts))
        return [loss for _, loss in losses(folder)]

    def work(rank: int) -> tuple[list[float], set[torch.dtype]]:
        return run("float16", ParallelPlan(precision="bf16"), 2), seen

    (found, dtypes), _ = on_ranks(2, work)
    # What the blocks add up is kept in the dtype of the class token, float32.
    assert dtypes == {torch.float32}
    assert found == pytest.approx(run(None, ParallelPlan(), 1), rel=1e-2)


class Clipped(Callback):
    """The weights after each step, and the norm of the gradients by which they moved."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append(pl_module.trained_tensors())
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(full_tensor(torch.nn.utils.get_total_norm(gradients))))


def test_averages_and_clipping_in_bf16(tmp_path: Path) -> None:
    """Both are of the float32 weights and gradients of all ranks."""

    def work(rank: int) -> tuple[Any, ...]:
        look = Clipped()
        plan = ParallelPlan(precision="bf16", gather_frozen=True, prefetch=1)
        train(tmp_path, plan, callbacks=[EMA(decay=0.75), look], gradient_clip=1e-2)
        return look.weights, look.norms

    (steps, norms), _ = on_ranks(2, work)
    assert norms == pytest.approx([1e-2] * 3, rel=1e-3)
    average = steps[0]
    for each in steps[1:]:
        average = {name: 0.75 * tensor + 0.25 * each[name] for name, tensor in average.items()}
    handed_over = load_file(tmp_path / "weights" / "model.safetensors")
    assert set(handed_over) == set(average)
    for name, tensor in average.items():
        assert_close(handed_over[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_a_rank_reads_only_its_part_of_a_file(tmp_path: Path) -> None:
    """Files are mapped, and a tensor is cut before it is read."""
    path, size = tmp_path / "model.safetensors", 64 * 2**20
    write_tensors(path, {"weight": torch.arange(size // 4, dtype=torch.float32).view(64, -1)})

    def work(rank: int) -> tuple[int, bool]:
        dist.init_process_group("gloo")
        empty, mesh = torch.empty(64, size // 256), init_device_mesh("cpu", (2,))
        target = distribute_tensor(empty, mesh, [Shard(0)], src_data_rank=None)
        source = TensorFiles(path)["weight"]
        copy_into_shard(target, source)
        mapped = re.search(rf"{path}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
        assert mapped is not None, "the file is not mapped"
        part = torch.arange(size // 4, dtype=torch.float32).view(2, 32, -1)[rank]
        return 1024 * int(mapped[1]), torch.equal(to_local(target), part)

    for read, right in on_ranks(2, work):
        assert right
        assert size // 2 <= read < 0.6 * size


COUNTS: Counter[str] = Counter()
"""Collectives that FSDP2 has called in this process."""


def count_collectives() -> None:
    for name in ("DefaultAllGather", "DefaultReduceScatter"):
        kind = getattr(_fsdp_collectives, name)

        def counted(*args: Any, name: str = name, call: Any = kind.__call__, **kwargs: Any) -> Any:
            COUNTS[name] += 1
            return call(*args, **kwargs)

        kind.__call__ = counted


class LastStep(Callback):
    """How many gathers and reductions it took."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            COUNTS.clear()

    def on_train_batch_end(self, *_: Any) -> None:
        self.found = COUNTS["DefaultAllGather"], COUNTS["DefaultReduceScatter"]


PLANS = {
    "as it is": ParallelPlan(),
    "reduced after each micro-batch": ParallelPlan(reduce_every="micro_batch"),
    "a copy on each rank": ParallelPlan(shard=1, reduce_every="micro_batch"),
    "frozen blocks stay gathered": ParallelPlan(gather_frozen=True, prefetch=1),
}


def test_plans_that_exchange_otherwise_learn_the_same(tmp_path: Path) -> None:
    """Alignment in two micro-batches a step; frozen are two blocks of the tower and two of the language model."""

    def work(rank: int) -> dict[str, Any]:
        count_collectives()
        found = {}
        for name, plan in PLANS.items():
            look = LastStep()
            module = train(tmp_path / name, plan, name="align", micro_batch=1, callbacks=[look])
            found[name] = (weights(module), look.found)
        return found

    expected = weights(train(tmp_path / "alone", ParallelPlan(), name="align", ranks=1, micro_batch=2))
    found, _ = on_ranks(2, work)
    for name, (tensors, _) in found.items():
        assert set(tensors) == set(expected)
        for each, tensor in expected.items():
            assert_close(tensors[each], tensor, rtol=0, atol=1e-6, msg=f"{name}: {each}")
        curve, alone = ([loss for _, loss in losses(tmp_path / folder)] for folder in (name, "alone"))
        assert curve == pytest.approx(alone, rel=1e-6), name
    counts = {name: counts for name, (_, counts) in found.items()}
    assert {name: reductions for name, (_, reductions) in counts.items()} == {
        "as it is": 1,
        "reduced after each micro-batch": 2,
        "a copy on each rank": 0,
        "frozen blocks stay gathered": 1,
    }
    # The outermost unit once a pass; else the blocks of the tower and, in both directions, of the language model too.
    assert counts["frozen blocks stay gathered"][0] == 2
    assert counts["as it is"][0] >= 2 * (1 + 2 + 2 * 2)


def test_a_validation_may_come_before_training(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        validated: dict[str, Any] = {"num_sanity_val_steps": 1, "limit_val_batches": 1, "val_check_interval": 2}
        plan = ParallelPlan(gather_to_generate=False)
        module = fit(tmp_path / "one", data={"steps": 2}, strategy=ShardedStrategy(), parallel=plan, **validated)
        return weights(module)

    expected, (found,) = weights(fit(tmp_path / "alone", data={"steps": 2})), on_ranks(1, work)
    for name, tensor in expected.items():
        assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
