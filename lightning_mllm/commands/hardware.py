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
    pack: bool = False
    """Whether the samples that a rank takes at once share one row without padding, those of one image its tokens; and
    whether samples are dealt to ranks so that all have equally much to do. The losses of every step stay the same."""
    token_budget: int | None = None
    """Tokens of such a row, in place of `micro_batch`: a step is accumulated over the fewest rows of so many tokens at
    most. Tokens are estimated from the lengths of samples; one that alone has more has a row of its own."""
    image_cost: int = 0
    """Of packed samples, what the tower spends on an image, in tokens of the language model: about tower parameters x
    patches / language parameters, a third of it where the tower is frozen and the language model trains."""
    workers: int = 0
    """Data loading processes per rank."""
    worker_timeout: int = 60
    """Seconds that a rank waits for a batch of one of them before it ends, naming the process and its sample; 0 waits
    without end."""
    eval_batch: int = 64
    """Samples a rank answers at once."""
    feature_cache: str | None = None
    """The folder in which `mllm cache` has written what the frozen tower makes of images; training then reads that, and
    does not build the tower. It changes no result but by the rounding of the dtype that was asked for."""
    requeue: bool = True
    """Whether a job of SLURM that is told of its end (SIGUSR1, SIGUSR2) is queued again when it has saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("micro_batch", "text_micro_batch", "eval_batch", "token_budget")
        counts = ("workers", "worker_timeout", "image_cost")
        for name, least in (*((each, 1) for each in positive), *((each, 0) for each in counts)):
            if (found := getattr(self, name)) is not None and found < least:
                raise ValueError(f"hardware.{name}: found {found}, expected at least {least}")
        for name in ("token_budget", "image_cost"):
            if getattr(self, name) and not self.pack:
                raise ValueError(
                    f"hardware.{name}: found {getattr(self, name)} with samples that are padded, expected none, or"
                    " hardware.pack: true"
                )


def at_once(stage: int | None, hardware: int) -> int:
    """Samples a rank takes at once: what the stage says, else what the hardware holds."""
    return hardware if stage is None else stage
