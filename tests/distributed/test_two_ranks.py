"""Two ranks give the losses and final weights of one process, whatever the strategy and wherever the images are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_mllm.contracts import ParamGroup
from lightning_mllm.training.sharding import ShardedStrategy
from tests.distributed.ranks import on_two_ranks
from tests.toy import Toy
from tests.training.data import ToyData
from tests.training.runs import fit, losses, settings, trainer, weights
from tests.training.test_restarts import StopIn, Stopped

STEPS = 6
CASES: dict[str, dict[str, Any]] = {
    "align": {"stage": settings("align")},
    "instruct": {"stage": settings("instruct", gradient_clip=0.5)},
    # The second rank never sees an image.
    "one text-only rank": {"stage": settings("instruct"), "data": {"half_text": True}},
    "accumulated": {"stage": settings("instruct"), "data": {"micro_batch": 1}},
    "nothing but the outermost unit": {"stage": settings("own", train={"language.*": ParamGroup()}), "depth": 0},
    # Rounding hides nothing here.
    "in double precision": {"stage": settings("instruct"), "dtype": torch.float64},
}
STRATEGIES = {"ddp": lambda: DDPStrategy(process_group_backend="gloo"), "fsdp2": ShardedStrategy}
OF_LINEAGES = list(STRATEGIES) if os.environ.get("MLLM_FULL") else ["fsdp2"]
"""Of whole lineages, which DDP treats as it treats the toy net."""


def run(folder: Path, case: str, *, ranks: int = 1, strategy: str = "auto", **arguments: Any) -> Toy:
    given = dict(CASES[case])
    data = {"steps": STEPS, "micro_batch": 4 // ranks, **given.pop("data", {})}
    chosen = STRATEGIES[strategy]() if ranks > 1 else "auto"
    torch.set_default_dtype(given.pop("dtype", torch.float32))
    try:
        return fit(folder / case, data=data, devices=ranks, strategy=chosen, **given, **arguments)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[tuple[int, float]], dict[str, Tensor]]]:
    """Case -> losses and final weights of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {case: (weights_of := run(folder, case)) and (losses(folder / case), weights(weights_of)) for case in CASES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one_process(strategy: str, alone: Any, tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Any]:
        found: dict[str, Any] = {case: weights(run(tmp_path, case, ranks=2, strategy=strategy)) for case in CASES}
        stop = tmp_path / "stopped"
        with pytest.raises(Stopped):
            run(stop, "accumulated", ranks=2, strategy=strategy, callbacks=[StopIn(5, "after")])
        found["resumed"] = weights(run(stop, "accumulated", ranks=2, strategy=strategy, resume=True))
        found["dropped"] = dropout_streams(strategy)
        module = Toy(stage=settings("instruct", train={}, init_from={"instruct": 1.0}), runs=str(tmp_path))
        tester = trainer(tmp_path / "instruct", devices=2, strategy=STRATEGIES[strategy](), logger=False)
        found["scores"] = tester.test(module, datamodule=ToyData(), verbose=False)[0]
        return found

    first, second = on_two_ranks(work)
    for case, (curve, expected) in alone.items():
        close = 1e-12 if "double" in case else 1e-6
        assert set(first[case]) == set(expected)
        assert second[case] == {}, "only rank 0 gathers what is trained"
        for name, tensor in expected.items():
            torch.testing.assert_close(first[case][name], tensor, rtol=0, atol=close, msg=f"{case}: {name}")
        found = losses(tmp_path / case)
        assert [step for step, _ in found] == [step for step, _ in curve]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in curve], rel=close)

    for name, tensor in first["accumulated"].items():
        assert torch.equal(first["resumed"][name], tensor), name
    assert first["dropped"] != second["dropped"], "each rank has its own dropout"
    assert first["scores"] == second["scores"]


def dropout_streams(strategy: str) -> list[float]:
    from lightning_mllm.training.callbacks.rng import RandomStates

    seen = []

    class Look(RandomStates):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            seen.append(float(torch.rand(())))

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        fit(
            Path(folder),
            data={"steps": 2, "micro_batch": 2},
            devices=2,
            strategy=STRATEGIES[strategy](),
            callbacks=[Look()],
            every_n_steps=0,
            logger=False,
        )
    return seen


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stage_begun_on_two_ranks_ends_on_one(strategy: str, alone: Any, tmp_path: Path) -> None:
    """Checkpoints are whole tensors under plain names, so the layout may change between a stop and a start."""

    def work(rank: int) -> None:
        with pytest.raises(Stopped):
            run(tmp_path, "instruct", ranks=2, strategy=strategy, callbacks=[StopIn(2, "after")])

    on_two_ranks(work)
    _, expected = alone["instruct"]
    found = weights(run(tmp_path, "instruct", resume=True))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_a_sharded_net_holds_a_part_on_each_rank(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[int, int]:
        module = run(tmp_path, "instruct", ranks=2, strategy="fsdp2")
        held = sum(p.to_local().numel() for p in module.parameters())  # pyright: ignore[reportAttributeAccessIssue]
        return held, sum(p.numel() for p in module.parameters())

    (first, whole), (second, _) = on_two_ranks(work)
    assert first + second == whole
    assert max(first, second) < 0.6 * whole
