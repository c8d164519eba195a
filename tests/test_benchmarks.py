"""The benchmarks that need a GPU run in small on the CPU."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

from lightning_mllm.training.memory import _apart

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"


def test_the_plan_on_a_gpu() -> None:
    """The oracle, a step, its useful FLOPs by hand, and a checkpoint that is read back."""
    script = runpy.run_path(str(BENCHMARKS / "plan_on_gpu.py"))
    found: dict[str, Any] = _apart(lambda: script["main"](["--tiny", "--rows", "2", "--steps", "1"]))
    assert found["oracle"] > 0 and found["peak"] is None
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    # Rows of 256 tokens, four slots; width 32, two layers of 4 x 32 x 32 + 3 x 32 x 64; 272 words, all but the slots'.
    assert found["checkpoint"]["bytes"] == 4 * sum(
        (2 * 272 * 32, 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32), 32, 2 * (32 * 32 + 32))
    )
    tokens, supervised = 2 * 256, 2 * (256 - 1 - 4)
    layers, attention = 2 * tokens * 2 * (4 * 32 * 32 + 3 * 32 * 64), 2 * tokens * 2 * 256 * 32
    head, connector = 2 * supervised * 272 * 32, 2 * 2 * 4 * 2 * 32 * 32
    tower = 2 * 2 * 4 * 2 * (4 * 32 * 32 + 2 * 32 * 128)
    assert found["flops"] == 3 * (layers + attention + head + connector) + tower
