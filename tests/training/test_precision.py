"""Precisions of Trainer, plan and device that do not go together are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.precision import check_device, check_precision
from tests.training.runs import fit

BF16 = ParallelPlan(precision="bf16")


@pytest.mark.parametrize(
    ("trainer", "sharded", "plan", "told"),
    [
        ("bf16-true", True, BF16, "trainer.precision: found bf16-true, by which"),
        ("bf16-true", False, ParallelPlan(), "trainer.precision: found bf16-true, by which"),
        ("bf16-mixed", True, ParallelPlan(), "trainer.precision: found bf16-mixed, whose autocast"),
        ("16-mixed", False, ParallelPlan(), "trainer.precision: found 16-mixed, which scales gradients"),
        ("32-true", False, ParallelPlan(shard=2), "hardware.shard: found 2 without sharded parameters"),
        ("32-true", False, ParallelPlan(gather_frozen=True), "hardware.gather_frozen: found True without sharded"),
        ("32-true", False, ParallelPlan(prefetch=1), "hardware.prefetch: found 1 without sharded parameters"),
        (
            "32-true",
            False,
            ParallelPlan(reduce_every="micro_batch"),
            "hardware.reduce_every: found micro_batch without sharded parameters, expected auto",
        ),
    ],
)
def test_precisions_that_do_not_go_together(trainer: str, sharded: bool, plan: ParallelPlan, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_precision(trainer, sharded, plan)


def test_precisions_that_go_together(tmp_path: Path) -> None:
    check_precision("32-true", True, BF16)
    check_precision("32-true", False, BF16)
    check_precision("bf16-mixed", False, ParallelPlan())
    check_precision("32-true", False, ParallelPlan(reduce_every="step"))  # as DDP does it
    check_precision("32-true", True, ParallelPlan(gather_frozen=True, prefetch=1, reduce_every="micro_batch"))
    with pytest.raises(ValueError, match=r"trainer\.precision: found bf16-true"):
        fit(tmp_path, precision="bf16-true")


def test_a_cpu_without_bf16_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False, "bf16": 0})
    check_device("cpu", ParallelPlan())
    check_device("cuda", BF16)
    with pytest.raises(ValueError, match=r"hardware\.precision: found bf16 for a CPU without bf16 instructions"):
        check_device("cpu", BF16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    check_device("cpu", BF16)
