"""What a machine can hold, in numbers that can be."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_mllm.commands.hardware import Hardware


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"micro_batch": 0}, "hardware.micro_batch: found 0, expected at least 1"),
        ({"workers": -1}, "hardware.workers: found -1, expected at least 0"),
        ({"pack": True, "token_budget": 0}, "hardware.token_budget: found 0, expected at least 1"),
        ({"pack": True, "image_cost": -1}, "hardware.image_cost: found -1, expected at least 0"),
        ({"token_budget": 4096}, "hardware.token_budget: found 4096 with samples that are padded, expected none, or"),
        ({"image_cost": 8}, "hardware.image_cost: found 8 with samples that are padded, expected none, or"),
    ],
)
def test_numbers_out_of_range(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Hardware(**given)


def test_packing_is_a_choice() -> None:
    assert Hardware().pack is False and Hardware(pack=True).token_budget is None
