"""The estimate of what training costs, and accelerators by name."""

from __future__ import annotations

import pytest

from lightning_mllm.evaluation.flops import peak_flops, training_flops


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
