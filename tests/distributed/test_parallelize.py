"""The parallel plan on ranks: what bf16 changes, what is exchanged when, and what stays equal to one process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch.distributed.fsdp._fully_shard import _fsdp_collectives
from torch.testing import assert_close

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.sharding import ShardedStrategy
from tests.distributed.ranks import on_ranks
from tests.training.runs import fit, losses, settings, weights


def train(folder: Path, plan: ParallelPlan, *, name: str = "instruct", ranks: int = 2, **more: Any) -> Any:
    data = {"steps": more.pop("steps", 3), "micro_batch": more.pop("micro_batch", 4 // ranks)}
    strategy = ShardedStrategy() if ranks > 1 or plan.precision == "bf16" else "auto"
    return fit(
        folder,
        stage=settings(name, lr=1e-3, eps=1e-6),
        data=data,
        build=lambda stage: LLaVA.tiny(stage=stage),
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
