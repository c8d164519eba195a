"""What a machine can hold, and the accumulation that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mllm.commands.config import ConfigError
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


def accumulation(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro-batches per optimizer step of one rank; `micro_batch` is the stage's or the hardware's (`at_once`).

    Raises:
        ValueError: The global batch is no multiple of what the ranks take at once.
    """
    together = micro_batch * world_size
    if global_batch % together:
        raise ConfigError(
            f"stage.global_batch: found {global_batch}, expected a multiple of {together} = micro_batch "
            f"{micro_batch} x {world_size} devices"
        )
    return global_batch // together


def at_once(stage: int | None, hardware: int) -> int:
    """Samples a rank takes at once: what the stage says, else what the hardware holds."""
    return hardware if stage is None else stage
