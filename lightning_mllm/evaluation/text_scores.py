"""How well a model predicts one evaluation set, plain text or given answers, gathered over ranks."""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.bootstrap import Interval, cluster_numbers, metric_intervals
from lightning_mllm.evaluation.metrics.perplexity import DocumentLoss, Loss, Perplexity
from lightning_mllm.evaluation.scores import Example, Key, gather, keys_of


class _Read(NamedTuple):
    id: str
    cluster: tuple[str, ...]
    loss: DocumentLoss
    text: bytes
    """Of the tokens that are predicted, a digest."""


class TextScores:
    """Collects the losses of documents, or of samples of the task "loss"; the interface is that of `Scores`.

    A sample that has nothing to learn, as some policies of reading mask it, has no loss.

    Each rank calls `update` with its own batches, then all of them call `compute`. A document that several ranks read
    counts once. Intervals draw documents, not tokens; rows that one document is cut into are drawn together
    (`Batch.clusters`).
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.examples: list[Example] = []
        """None: nothing is answered."""
        self._losses: dict[Key, _Read] = {}
        self._intervals: dict[str, Interval] | None = None
        self.num_answers = 0
        """Documents, over all ranks; known after `compute`."""
        self.num_clusters = 0
        """What intervals draw; known after `compute`."""
        self.rows: list[dict[str, Any]] = []
        """The loss of every document, in the order of the set; known after `compute`."""

    def update(self, batch: Batch, losses: Float[Tensor, " B"], counts: Int[Tensor, " B"]) -> None:
        """Adds the documents of `batch`.

        Args:
            losses: Of each, summed over its tokens.
            counts: Their number.

        Raises:
            ValueError: A row is no document, its loss is not finite, or it stands in the place of another document.
        """
        assert self._intervals is None, "compute was called already"
        clusters = batch.clusters or [()] * len(batch.ids)
        rows = zip(keys_of(batch), batch.ids, clusters, losses.tolist(), counts.tolist(), _texts(batch), strict=True)
        for index, id, cluster, loss, count, text in rows:
            if self.evaluation.task == "loss" and not count:
                continue
            if not count or (batch.num_images and self.evaluation.task != "loss"):
                raise ValueError(f"sample {id}: found an image or nothing to predict, expected plain text")
            if not math.isfinite(loss):
                raise ValueError(f"sample {id}: found a loss of {loss}, expected a finite one")
            self._add(self._losses, index, _Read(id, cluster, DocumentLoss(loss, count), text))

    def compute(self) -> dict[str, Interval]:
        """Score name with the set's suffix -> value and interval, over the documents of all ranks; the same on each."""
        if self._intervals is None:
            everywhere: dict[Key, _Read] = {}
            for losses in gather(self._losses):
                for index, read in losses.items():
                    self._add(everywhere, index, read)
            # Ordered, so that intervals do not depend on how many ranks there were.
            documents = [everywhere[index] for index in sorted(everywhere)]
            clusters = cluster_numbers([each.cluster for each in documents])
            if not documents:
                raise ValueError(f"{self.evaluation.task}: found nothing to predict in the whole set, expected some")
            metric = Loss() if self.evaluation.task == "loss" else Perplexity()
            metric.update([each.loss for each in documents], [()] * len(documents))
            found = metric_intervals(metric, clusters)
            self._intervals = {name + self.evaluation.suffix: value for name, value in found.items()}
            self.num_answers, self.num_clusters = len(documents), int(clusters.max()) + 1
            self.rows = [
                {"id": each.id, "cluster": cluster, **each.loss._asdict()}
                for each, cluster in zip(documents, clusters.tolist(), strict=True)
            ]
        return self._intervals

    def _add(self, losses: dict[Key, _Read], index: Key, new: _Read) -> None:
        known = losses.setdefault(index, new)
        if (known.id, known.text) != (new.id, new.text):
            raise ValueError(
                f"sample {new.id}: found in the place of {known.id} in the evaluation set"
                f" '{self.evaluation.task}{self.evaluation.suffix}', with another text, expected one sample at each"
                " position, or unique ids"
            )


def _texts(batch: Batch) -> list[bytes]:
    learned = batch.labels if batch.targets is None else batch.targets
    return [hashlib.sha256(row[row >= 0].numpy().tobytes()).digest() for row in learned.cpu()]
