from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lightning_mllm.weights.files import write_in_pieces
from lightning_mllm.weights.finite import is_finite, refuse_non_finite
from lightning_mllm.weights.stage_weights import write_stage

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_among_many_is_found(dtype: torch.dtype, value: float) -> None:
    """In the middle of numbers of both signs, up to the largest of the dtype."""
    tensor = torch.linspace(-1, 1, 1001).to(dtype)
    tensor[0], tensor[-1] = torch.finfo(dtype).min, torch.finfo(dtype).max
    assert is_finite(tensor) and is_finite(tensor[:0])
    if dtype == torch.float8_e4m3fn and math.isinf(value):
        return  # it has none
    tensor[500] = value
    assert not is_finite(tensor) and not is_finite(tensor[500]) and not is_finite(tensor.view(77, 13).T)
    with pytest.raises(ValueError, match=r"^head: found (nan|inf|-inf) in 1 of 1001 values, expected finite numbers"):
        refuse_non_finite("head", tensor)


def test_whole_numbers_are_finite() -> None:
    assert is_finite(torch.tensor([2**62])) and is_finite(torch.tensor(True)) and is_finite(torch.zeros(0))


def test_no_weights_file_holds_such_a_value(tmp_path: Path) -> None:
    """What was there before stays."""
    good, bad = torch.zeros(3), torch.tensor([0.0, math.nan, 1.0])
    path = tmp_path / "model.safetensors"
    layout = {"a": (torch.float32, good.shape)}
    write_in_pieces(path, layout, lambda name: [good])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="a: found nan in 1 of 3 values"):
        write_in_pieces(path, layout, lambda name: [bad])
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"connector\.bias: found nan"):
        write_stage(tmp_path / "run", {"connector.bias": bad}, stage="align", settings={}, init_from={}, steps=1)
    assert not list((tmp_path / "run" / "weights").iterdir())
