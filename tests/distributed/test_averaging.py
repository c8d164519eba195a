"""Averages of the weights on two ranks, each of its own parts: those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file
from torch import Tensor

from lightning_mllm.training.callbacks.averaging import EMA, LAWA, SWA
from lightning_mllm.training.stage import StageSettings
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.toy import Toy, ToyConnector, ToyLanguage
from tests.training.callbacks.test_averaging import differing
from tests.training.runs import fit, weights
from tests.training.test_restarts import StopIn, Stopped

KINDS: dict[str, Any] = {
    "ema": lambda: EMA(decay=0.8, warmup=True),
    "swa": lambda: SWA(update_starting_at_step=2),
    "lawa": lambda: LAWA(snapshots=2, update_every_n_steps=2),
}
STEPS = 6


class Seen(Callback):
    """The trained weights that validation is about, and how much of them this rank averages."""

    def __init__(self, average: Any) -> None:
        self.average = average
        self.held = 0
        self.weights: dict[str, Tensor] = {}

    def on_validation_batch_start(self, trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self.weights = weights(pl_module)
        self.held = sum(tensor.numel() for tensor in self.average.held[0].values())


def odd(stage: StageSettings) -> Toy:
    """Rows that two ranks cannot share equally: 25 and, in the norms of one block, 25 again."""
    return Toy(connector=ToyConnector(out_width=25), language=ToyLanguage(width=25, dropout=0.0), stage=stage)


def run(folder: Path, kind: str, *, ranks: int = 1, strategy: str = "", stop: int = 0, **arguments: Any) -> Any:
    average = KINDS[kind]()
    seen = Seen(average)
    chosen = STRATEGIES[strategy]() if ranks > 1 else "auto"
    module = fit(
        folder / kind,
        build=odd,
        data={"steps": STEPS, "micro_batch": 2 // ranks},
        devices=ranks,
        strategy=chosen,
        callbacks=[average, seen, *([StopIn(2 * stop, "before")] if stop else [])],
        **{"limit_val_batches": 1, "val_check_interval": 4 * 2, **arguments},
    )
    return weights(module), seen.weights, seen.held


def handed_over(folder: Path, kind: str) -> dict[str, Tensor]:
    return load_file(folder / kind / "weights" / "model.safetensors")


def close(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=f"{what}: {name}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Kind -> final weights, what was validated, how much was held, what was handed over, by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {kind: (*run(folder, kind), handed_over(folder, kind)) for kind in KINDS}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_average_as_one(strategy: str, alone: Any, tmp_path: Path) -> None:
    """Validated before the last two steps: FSDP2's outermost unit, gathered by then, takes the weights back."""

    def work(rank: int) -> dict[str, Any]:
        found = {kind: run(tmp_path, kind, ranks=2, strategy=strategy) for kind in KINDS}
        with pytest.raises(Stopped):
            run(tmp_path / "stopped", "ema", ranks=2, strategy=strategy, stop=5)
        found["resumed"] = run(tmp_path / "stopped", "ema", ranks=2, strategy=strategy, resume=True)
        return found

    first, second = on_two_ranks(work)
    for kind, (final, validated, held, handed) in alone.items():
        found, seen, part = first[kind]
        close(found, final, f"{kind}, weights")
        close(seen, validated, f"{kind}, validated")
        close(handed_over(tmp_path, kind), handed, f"{kind}, handed over")
        assert any(not torch.equal(handed[name], final[name]) for name in final)
        parts = [part, second[kind][2]]
        if issubclass(STRATEGIES[strategy]().__class__, ModelParallelStrategy):
            assert sum(parts) == held and parts[0] != parts[1], "each rank averages its own part"
        else:
            assert parts == [held, held]
    assert differing(first["resumed"][0], first["ema"][0]) == []
    assert differing(handed_over(tmp_path / "stopped", "ema"), handed_over(tmp_path, "ema")) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_average_begun_on_two_ranks_ends_on_one(strategy: str, alone: Any, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with pytest.raises(Stopped):
            run(tmp_path, "lawa", ranks=2, strategy=strategy, stop=4)

    on_two_ranks(work)
    final, _, _, handed = alone["lawa"]
    close(run(tmp_path, "lawa", resume=True)[0], final, "weights")
    close(handed_over(tmp_path, "lawa"), handed, "handed over")
