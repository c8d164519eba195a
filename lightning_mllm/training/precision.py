"""Which precisions of Trainer, plan and device go together."""

from __future__ import annotations

from lightning_mllm.training.compute_copies import has_bf16
from lightning_mllm.training.parallelize import ParallelPlan


def check_precision(trainer: str, sharded: bool, plan: ParallelPlan) -> None:
    """Refuses what would train in less than float32 or keep more than the plan says.

    Args:
        trainer: The Trainer's `precision`.
        sharded: Whether its strategy is `ShardedStrategy`.

    Raises:
        ValueError: The Trainer's precision, the strategy and the plan do not go together.
    """
    # What is a copy on each rank is neither gathered nor kept gathered, and DDP reduces once a step.
    without = {"shard": (None, 1), "gather_frozen": (False,), "prefetch": (0,), "reduce_every": ("auto", "step")}
    for name, allowed in () if sharded else without.items():
        if (found := getattr(plan, name)) not in allowed:
            raise ValueError(
                f"hardware.{name}: found {found} without sharded parameters, expected {allowed[0]}, or trainer.strategy"
                " lightning_mllm.training.sharding.ShardedStrategy"
            )
    if trainer == "16-mixed":
        raise ValueError(
            "trainer.precision: found 16-mixed, which scales gradients before they are clipped and checked, expected"
            " 32-true with hardware.precision=bf16, or bf16-mixed without sharded parameters"
        )
    if trainer in ("bf16-true", "16-true"):
        raise ValueError(
            f"trainer.precision: found {trainer}, by which the optimizer updates weights of 16 bits, expected 32-true"
            " with hardware.precision=bf16"
        )
    if trainer.endswith("-mixed") and (sharded or plan.precision == "bf16"):
        raise ValueError(
            f"trainer.precision: found {trainer}, whose autocast copies every sharded parameter anew, expected 32-true"
            " with hardware.precision=bf16"
        )


def check_device(device: str, plan: ParallelPlan) -> None:
    """Refuses bf16 where it would be slower than float32.

    Args:
        device: Its type.

    Raises:
        ValueError: The plan computes in bf16, and this CPU has no instructions for it.
    """
    if plan.precision == "bf16" and not has_bf16(device):
        raise ValueError(
            "hardware.precision: found bf16 for a CPU without bf16 instructions (AVX512_BF16, AMX, Arm's BF16),"
            " expected fp32, which is faster here"
        )
