"""The estimate of what training costs, and accelerators by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_mllm.contracts import Batch
from lightning_mllm.evaluation.flops import CountedProducts, measured_peak, peak_flops, training_flops
from tests.architectures.samples import ONE, OTHER, batch_of
from tests.training.test_parallelize import FULL, STAGES, built


def test_a_net_that_is_trained_whole_needs_six_operations_a_parameter_and_token() -> None:
    assert training_flops(2048, 7e9, 7e9) == 6 * 2048 * 7e9
    assert training_flops(2048, 7e9, 0) == 4 * 2048 * 7e9


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 836e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce GTX 970", None),
    ],
)
def test_accelerators_are_known_by_a_word_of_their_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def needed(module: Any, batch: Batch) -> float:
    with CountedProducts() as found:
        loss = module(batch).loss
    loss.backward()
    return found.operations


@pytest.mark.parametrize("stage", STAGES)
def test_operations_are_those_that_torch_counts_in_both_passes(stage: str) -> None:
    """Frozen weights, towers, experts, adapters and attention of all nets, from the forward pass alone."""
    module = built(stage)
    batch = batch_of(module, ONE, OTHER)
    fast = needed(module, batch)
    torch.backends.mha.set_fastpath_enabled(False)  # torch does not see into the kernel of a frozen tower
    try:
        with FlopCounterMode(display=False) as both:
            module(batch).loss.backward()
        counts = both.get_flop_counts()["Global"]
        # torch counts the scores that attention's backward kernel makes again: one product of five.
        again = sum(count / 5 for op, count in counts.items() if "attention" in str(op) and "backward" in str(op))
        assert needed(module, batch) == sum(counts.values()) - again
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert fast == sum(counts.values()) - again


def test_what_is_computed_again_is_not_needed() -> None:
    batch = batch_of(module := built("llava, instruct"), ONE, OTHER)
    assert needed(built("llava, instruct", FULL), batch) == needed(module, batch)


def test_a_measured_peak_is_that_of_a_product() -> None:
    before = torch.get_rng_state()
    assert 1e8 < measured_peak(torch.device("cpu"), torch.float32, seconds=0.01) < 1e14
    assert torch.equal(torch.get_rng_state(), before), "dropout would be another"
