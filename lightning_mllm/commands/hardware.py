"""What a machine can hold."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mllm.training.parallelize import ParallelPlan


@dataclass(frozen=True, kw_only=True)
class Hardware(ParallelPlan):
    """What a machine can hold, and how a stage is laid out on it: speed and memory, and rounding in bf16.

    Raises:
        ValueError: A number is out of range.
    """

    micro_batch: int = 8
    """Samples a rank takes at once, unless the stage itself says; accumulation to its global batch is derived."""
    text_micro_batch: int = 1
    """Rows of plain text a rank takes at once, where a stage has any beside its samples."""
    workers: int = 0
    """Data loading processes per rank."""
    eval_batch: int = 64
    """Samples a rank answers at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("micro_batch", 1), ("text_micro_batch", 1), ("workers", 0), ("eval_batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"hardware.{name}: found {getattr(self, name)}, expected at least {least}")


def at_once(stage: int | None, hardware: int) -> int:
    """Samples a rank takes at once: what the stage says, else what the hardware holds."""
    return hardware if stage is None else stage
