"""The hooks of a LightningModule that score a net: which sets there are, and what each batch of them adds.

The net says how batches are answered and judged (`answers`, `likelihoods`, `losses`); `evaluation/` says what that is
worth. Nothing here trains.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float, Int
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.checks import check_sets, score_names
from lightning_mllm.evaluation.predictions import Predictions
from lightning_mllm.evaluation.results import write_results
from lightning_mllm.evaluation.retrieval import Retrieval
from lightning_mllm.evaluation.scores import Scores
from lightning_mllm.evaluation.text_scores import TextScores
from lightning_mllm.nets.encoded_images import EncodedImages
from lightning_mllm.training.reduction import held_out_loss
from lightning_mllm.weights.lineage import RECORD, WEIGHTS
from lightning_mllm.weights.run_records import read_record


class EvaluatedModule(LightningModule):
    """Validates, tests and predicts on the sets of a data module (`datamodule.evaluations(split)`)."""

    read_by_scoring: ClassVar[tuple[str, ...]] = ("decoding",)
    """Arguments that training does not read: other values of them make no other stage."""
    monitored: ClassVar[tuple[str, ...]] = ("train/loss",)
    """What a callback may monitor beside the scores of `data.val`; a net that logs more under own names adds them."""

    def __init__(self) -> None:
        super().__init__()
        self._scores: list[Scores | Retrieval | TextScores] = []
        self._predictions: Predictions | None = None
        self._started = 0.0
        self.encoded_images: EncodedImages | None = None
        """Within a step of an evaluation: what was encoded in its earlier steps, by the same weights."""
        self._encoded_images: EncodedImages | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes in it which hook runs, some 50 times a step; torch would first look for a parameter, a module
        # and a buffer of that name.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def scores(self) -> Sequence[Scores | Retrieval | TextScores]:
        """Of the sets that were validated or tested last."""
        return self._scores

    def answers(self, batch: Batch, part: str = "") -> list[str]:
        """What the net says to each row of a batch of prompts (left-padded).

        Args:
            part: Of the test data, as in `Evaluation`; it may have decoding settings of its own.
        """
        raise AssertionError(f"{type(self).__name__} has no answers")

    def likelihoods(self, batch: Batch) -> list[list[float]]:
        """The log-likelihood of each candidate of each row: minus its loss, summed or a token's mean.

        Where parameters are sharded, every rank must take as many passes, however many candidates its rows have.
        """
        raise AssertionError(f"{type(self).__name__} has no likelihoods")

    def losses(self, batch: Batch) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        """The cross-entropy of each row, summed over its supervised tokens in nats, and their number."""
        raise AssertionError(f"{type(self).__name__} has no losses")

    def setup(self, stage: str) -> None:
        if stage == "fit":
            # Before the net is built: what cannot be scored is not worth training for.
            data: Any = getattr(self.trainer, "datamodule", None)
            check_sets(data)
            for split in ("val", "test") if hasattr(data, "evaluations") else ():
                for each in data.evaluations(split):
                    self._scores_of(each)
            if hasattr(data, "evaluations"):
                self._check_monitors([f"val/{name}" for each in data.evaluations("val") for name in score_names(each)])
        if stage == "predict":
            left_out = self._predicted().left_out
            if left_out and self.trainer.is_global_zero:
                print(f"data.test: sets of {', '.join(left_out)} are left out, for they are not answered")

    def _check_monitors(self, scores: list[str]) -> None:
        """Raises ValueError if a callback looks at what no validation will give."""
        known, callbacks = [*self.monitored, *scores], self.trainer.callbacks  # pyright: ignore
        for each in callbacks:
            monitor = getattr(each, "monitor", None)
            if isinstance(monitor, str) and monitor not in known:
                near = difflib.get_close_matches(monitor, known, n=1)
                hint = f" (did you mean '{near[0]}'?)" if near else ""
                raise ValueError(
                    f"trainer.callbacks: found {type(each).__name__} of {monitor!r}, expected one of"
                    f" {', '.join(known)}{hint}"
                )

    def _begin(self, split: str) -> None:
        datamodule: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self._scores = [self._scores_of(each) for each in datamodule.evaluations(split)]
        self._answer_anew()
        self._started = time.perf_counter()

    def _answer_anew(self) -> None:
        sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        self._encoded_images = EncodedImages(0) if sharded else EncodedImages()

    @contextmanager
    def _step(self) -> Iterator[None]:
        # An evaluation that is interrupted leaves nothing to those who ask later, when weights may be others.
        self.encoded_images = self._encoded_images
        try:
            yield
        finally:
            self.encoded_images = None

    def _scores_of(self, evaluation: Evaluation) -> Scores | Retrieval | TextScores:
        if evaluation.task == "retrieval":
            return Retrieval(evaluation, self)
        return TextScores(evaluation) if evaluation.task in ("perplexity", "loss") else Scores(evaluation)

    def _evaluate(self, batch: Batch, dataloader_idx: int) -> None:
        scores = self._scores[dataloader_idx]
        if isinstance(scores, Retrieval):
            scores.update(batch)
        elif isinstance(scores, TextScores):
            rows = held_out_loss(self(batch)) if scores.evaluation.task == "loss" else self.losses(batch)
            scores.update(batch, *rows)
        elif any(batch.candidates):
            scores.rank(batch, self.likelihoods(batch))
        else:
            scores.update(batch, self.answers(batch, scores.evaluation.part))

    def _log_scores(self, split: str) -> None:
        self._encoded_images = None
        self.log("step", float(self.trainer.global_step))
        for scores in self._scores:
            # Retrieval runs the net here, outside of the steps, to which Lightning gives their precision.
            with self.trainer.precision_plugin.forward_context():
                found = scores.compute()
            for name, interval in found.items():
                self.log(f"{split}/{name}", interval.value)

    def on_validation_epoch_start(self) -> None:
        self._begin("val")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self._step():
            self._evaluate(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_start(self) -> None:
        self._begin("test")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self._step():
            self._evaluate(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")
        seconds = time.perf_counter() - self._started
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            write_results(folder / "test.json", self._scores, seconds, weights=self._tested_weights(folder))

    def _tested_weights(self, folder: Path) -> str | None:
        """SHA-256 of the hand-over of a run folder, where the net was filled from it and from no checkpoint."""
        sources = getattr(getattr(self, "stage", None), "init_from", {})
        record = folder / WEIGHTS / RECORD
        if set(sources) != {str(folder.resolve())} or self.trainer.ckpt_path or not record.is_file():
            return None
        return read_record(record, needs=("sha256",))["sha256"]

    def on_predict_epoch_start(self) -> None:
        self._predictions = self._predicted()
        self._answer_anew()

    def _predicted(self) -> Predictions:
        datamodule: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        return Predictions([each for each in datamodule.evaluations("test") if not each.blind])

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, str]]:
        assert self._predictions is not None
        part = self._predictions.sets[dataloader_idx].part
        with self._step():
            return self._predictions.update(batch, self.answers(batch, part), dataloader_idx)

    def on_predict_epoch_end(self) -> None:
        assert self._predictions is not None
        self._encoded_images = None
        main = self.trainer.is_global_zero
        path, count = self._predictions.write(Path(self.trainer.default_root_dir), main=main)
        if main:
            print(f"{path} ({count:,} answers)")
