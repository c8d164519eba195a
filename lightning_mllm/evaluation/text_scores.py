"""How well a language model predicts one evaluation set of plain text, gathered over ranks."""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.bootstrap import Interval, metric_intervals
from lightning_mllm.evaluation.metrics.perplexity import DocumentLoss, Perplexity
from lightning_mllm.evaluation.scores import Example, gather


class TextScores:
    """Collects the losses of documents; the interface is that of `Scores`.

    Each rank calls `update` with its own batches, then all of them call `compute`. A document that several ranks read
    counts once. Intervals draw documents, not tokens.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.examples: list[Example] = []
        """None: nothing is answered."""
        self._losses: dict[str, DocumentLoss] = {}
        self._intervals: dict[str, Interval] | None = None
        self.num_answers = 0
        """Different documents, over all ranks; known after `compute`."""

    def update(self, batch: Batch, losses: Float[Tensor, " B"], counts: Int[Tensor, " B"]) -> None:
        """Adds the documents of `batch`.

        Args:
            losses: Of each, summed over its tokens.
            counts: Their number.

        Raises:
            ValueError: A row is no document, or its loss is not finite.
        """
        assert self._intervals is None, "compute was called already"
        for id, loss, count in zip(batch.ids, losses.tolist(), counts.tolist(), strict=True):
            if not count or batch.num_images:
                raise ValueError(f"sample {id}: found an image or nothing to predict, expected plain text")
            if not math.isfinite(loss):
                raise ValueError(f"sample {id}: found a loss of {loss}, expected a finite one")
            self._losses[id] = DocumentLoss(loss, count)

    def compute(self) -> dict[str, Interval]:
        """Score name with the set's suffix -> value and interval, over the documents of all ranks; the same on each."""
        if self._intervals is None:
            everywhere: dict[str, DocumentLoss] = {}
            for losses in gather(self._losses):
                everywhere |= losses
            metric = Perplexity()
            # Ordered, so that intervals do not depend on how many ranks there were.
            metric.update([everywhere[id] for id in sorted(everywhere)], [()] * len(everywhere))
            found = metric_intervals(metric)
            self._intervals = {name + self.evaluation.suffix: value for name, value in found.items()}
            self.num_answers = len(everywhere)
        return self._intervals
