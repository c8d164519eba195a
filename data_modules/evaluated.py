"""The sets that a data module validates, tests and predicts with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import ClassVar, Literal

from torch.utils.data import DataLoader

from data_modules.evaluation import EvaluationSamples, EvaluationSet
from data_modules.loader import TIMEOUT, Collate, SampleLoader, loading
from data_modules.processor import SampleProcessor
from data_modules.tally import TalliedDataModule
from lightning_mllm.contracts import Evaluation, Sample


class EvaluatedDataModule(TalliedDataModule):
    """The loaders of sets to answer; those of samples to train on are added by a subclass.

    Args:
        val: sets answered in the course of training.
        test: sets answered by a test, each with its blind twin unless it says otherwise; also those of predict.
        eval_batch: samples answered at once.
        workers: processes that read samples ahead, for each training process.
        worker_timeout: seconds to wait for a batch of one of them; 0 waits without end.
        processor: turns samples into batches (`encode`, `collate`); may be set later.

    Raises:
        ValueError: two sets would give scores of the same names.
    """

    read_by_scoring: ClassVar[tuple[str, ...]] = ("val", "test")
    """Arguments that training does not read: other values of them make no other stage."""

    def __init__(
        self,
        val: dict[str, EvaluationSet] | None,
        test: dict[str, EvaluationSet] | None,
        eval_batch: int,
        workers: int,
        processor: SampleProcessor | None,
        worker_timeout: int = TIMEOUT,
    ) -> None:
        super().__init__()
        self.val, self.test = dict(val or {}), dict(test or {})
        self.eval_batch, self.workers, self.processor = eval_batch, workers, processor
        self.worker_timeout = worker_timeout
        for name, sets in (("val", self.val), ("test", self.test)):
            _check_names(name, sets)

    def evaluations(self, split: Literal["val", "test"]) -> list[Evaluation]:
        """What each loader of the split is about; only a test has blind twins."""
        sets = self.test if split == "test" else self.val
        return [each for chosen in sets.values() for each in chosen.evaluations(twins=split == "test")]

    def evaluation_samples(self, split: Literal["val", "test"]) -> Iterator[tuple[str, Evaluation, Iterator[Sample]]]:
        """Each set of the split: its name, what it is scored by, and what is asked, without pixels; reads the sources.

        Raises:
            ValueError: a set cannot be read.
        """
        for name, chosen in (self.test if split == "test" else self.val).items():
            try:
                chosen.source.load()
            except ValueError as error:
                raise ValueError(f"data.{split}.{name}: {error}") from error
            samples = (chosen.sample(*question) for question in chosen.questions())
            yield name, chosen.evaluations(twins=False)[0], samples

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders("val", self.val, twins=False)

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders("test", self.test, twins=True)

    def predict_dataloader(self) -> list[DataLoader]:
        """Of the test sets that are answered."""
        answered = {name: each for name, each in self.test.items() if each.evaluations(twins=False)[0].answered}
        return self._evaluation_loaders("predict", answered, twins=False)

    def _evaluation_loaders(self, what: str, sets: dict[str, EvaluationSet], *, twins: bool) -> list[DataLoader]:
        if not sets:
            # Lightning asks whether no loader at all was meant; it was.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return [
            self._loader(chosen, blind=each.blind, whole=self._whole(what))
            for chosen in sets.values()
            for each in chosen.evaluations(twins=twins)
        ]

    def _loader(self, chosen: EvaluationSet, *, blind: bool, whole: bool) -> DataLoader:
        rank, world = self._rank_and_world()
        samples = EvaluationSamples(chosen, self._processor(), blind=blind, rank=rank, world=world)
        # Plain arguments only: to predict, Lightning builds each loader anew from its attributes.
        return SampleLoader(
            samples,
            batch_size=self.eval_batch,
            # The first batches alone would be those of the longest samples.
            sampler=samples.order(self.eval_batch) if whole else list(range(len(samples))),
            collate_fn=Collate(self._processor(), "right" if chosen.task == "loss" else "left"),
            **loading(self.workers, self.worker_timeout),
        )

    def _whole(self, what: str) -> bool:
        """Whether all batches are answered: no `trainer.limit_val_batches` and the like."""
        limit = getattr(self.trainer, f"limit_{what}_batches", 1.0)
        return isinstance(limit, float) and limit == 1  # 1 is one batch

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _processor(self) -> SampleProcessor:
        if self.processor is None:
            raise ValueError(
                "data.processor: found none, expected the model's (datamodule.processor = model.processor)"
            )
        return self.processor


def _check_names(split: str, sets: dict[str, EvaluationSet]) -> None:
    """Two sets must not give scores of the same names."""
    known: dict[tuple[str, str], str] = {}
    for name, each in sets.items():
        if other := known.get((each.task, each.part)):
            raise ValueError(
                f"data.{split}.{name}: task '{each.task}' and part '{each.part}' are those of {other},"
                " expected a part of its own"
            )
        known[each.task, each.part] = name
