"""What the micro-batches of an optimizer step add up to: their losses, and what they count.

Nothing is asked of the device before the step is whole. Sums are f64, in few tensors: each operation of a micro-batch
takes the host some microseconds, however small its tensors are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mllm.contracts import Batch, Output
from lightning_mllm.training import step_row
from lightning_mllm.training.reduction import MicroBatchWeights

LOSSES, COUNTS = "losses", "counts"


@dataclass(frozen=True)
class Totals:
    """The sums over all ranks."""

    losses: dict[str, float]
    """The mean loss ("train/loss") and that of each of its terms, if there are several."""
    sources: dict[str, float]
    """The mean loss of each source, as the row of the step names it."""
    tokens: float
    """Supervised ones."""
    read: float
    """All tokens but padding."""
    wrong: float
    """Rows of which the net counts other tokens than their labels have."""
    images: float

    def check(self, net: str, step: int) -> None:
        """Raises ValueError if optimizer step `step` learns nothing, or `net` counts other tokens than labels have."""
        if self.tokens == 0:
            raise ValueError(f"optimizer step {step}: found no supervised item in the global batch, expected some")
        if self.wrong:
            raise ValueError(
                f"{net}.forward: found terms that count other tokens than labels have in {self.wrong:.0f} rows of"
                f" step {step}, expected Term.tokens to be the supervised tokens of each row"
            )


class StepSums:
    """Adds up the micro-batches of one optimizer step of this rank."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._images = 0

    def add(
        self,
        batch: Batch,
        output: Output,
        weights: MicroBatchWeights,
        values: Mapping[str, Float[Tensor, ""]],
        sources: Sequence[str],
    ) -> None:
        """One more micro-batch.

        Args:
            batch: Its rows.
            output: What the net made of them.
            weights: What its rows count for.
            values: As `weights.values` gives.
            sources: The training sources by name, where there are several.
        """
        counts = torch.stack([weights.tokens.sum(), (batch.segments > 0).sum(), weights.wrong(output)])
        losses = torch.stack([value.detach() for value in values.values()])
        new = {LOSSES: losses.double(), COUNTS: counts.double()}
        new |= step_row.losses_of_sources(sources, batch, output)
        self._sums = {name: value + self._sums[name] for name, value in new.items()} if self._sums else new
        self._names, self._images = list(values), self._images + batch.num_images

    def totals(self) -> Totals:
        """Of all ranks, which call this together; the host waits for its device."""
        sums = step_row.reduced(self._sums, [self._images])
        means = {f"train/{name}": mean for name, mean in zip(self._names, sums[LOSSES], strict=True)}
        tokens, read, wrong = sums[COUNTS]
        return Totals(
            losses=means if len(means) > 2 else {"train/loss": means["train/loss"]},  # the loss and its one term
            sources=step_row.means_of_sources(sums),
            tokens=tokens,
            read=read,
            wrong=wrong,
            images=sums[step_row.HOST][0],
        )
