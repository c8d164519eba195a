"""The data of a training stage and of its evaluations, as LightningDataModules."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from data_modules.evaluation import EvaluationSamples, EvaluationSet
from data_modules.loader import Collate, ResumableLoader, SampleLoader, TrainingSamples, loading, optimizer_steps
from data_modules.order import Group, Order
from data_modules.sources.source import Source
from lightning_mllm.contracts import Evaluation

IMAGE_WORDS = 128
"""Words that an image counts for where samples are grouped by length (LLaVA, released train.py, `lengths`)."""


class MultimodalDataModule(LightningDataModule):
    """A mixture of sources to train on, and sets to answer.

    The Trainer must take one epoch (`max_epochs=1`): repeating the data is a matter of the order, so that a position in
    it is all there is to resume.

    Args:
        train: sources by name.
        val: sets answered in the course of training.
        test: sets answered by a test, each with its blind twin unless it says otherwise; also those of predict.
        weights: share of each source in a data epoch; None for the union of all.
        group: "length" or "modality_length" bring samples of one kind together in a batch (see Order).
        epochs: passes over the data.
        global_batch: samples of one optimizer step, over all processes and micro-batches.
        micro_batch: samples of one forward pass.
        eval_batch: samples answered at once.
        workers: processes that read samples ahead, for each training process.
        seed: of the order and of all that is random about samples.
        processor: turns samples into batches (`encode`, `collate`); may be set later.
    """

    only_captions: ClassVar[bool] = False
    """Whether training sources of another kind are refused."""

    def __init__(
        self,
        train: dict[str, Source] | None = None,
        val: dict[str, EvaluationSet] | None = None,
        test: dict[str, EvaluationSet] | None = None,
        weights: dict[str, float] | None = None,
        group: Literal["none", "length", "modality_length"] = "none",
        epochs: float = 1.0,
        global_batch: int = 1,
        micro_batch: int = 1,
        eval_batch: int = 32,
        workers: int = 0,
        seed: int = 0,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = dict(train or {}), dict(val or {}), dict(test or {})
        self.weights, self.epochs = weights, epochs
        self.group: Group = group
        self.global_batch, self.micro_batch, self.eval_batch = global_batch, micro_batch, eval_batch
        self.workers, self.seed, self.processor = workers, seed, processor
        self._order: Order | None = None
        for name, sets in (("val", self.val), ("test", self.test)):
            _check_names(name, sets)
        for name, source in self.train.items():
            if self.only_captions and not source.captions:
                raise ValueError(f"data.train.{name}: found {type(source).__name__}, expected a source of captions")

    # ---- training ----------------------------------------------------------------------------------------------

    @property
    def order(self) -> Order:
        """The order of the training samples; loads the sources."""
        if self._order is None:
            for source in self.train.values():
                source.load()
            self._order = Order(
                {name: len(source) for name, source in self.train.items()},
                self.weights,
                self.seed,
                self.group,
                lengths=self._length,
                modalities=lambda name, index: self.train[name].has_image(index),
                batch=self.global_batch,
            )
        return self._order

    def _length(self, name: str, index: int) -> int:
        source = self.train[name]
        return source.length(index) + IMAGE_WORDS * source.has_image(index)

    @property
    def optimizer_steps(self) -> int:
        """Of the whole stage."""
        return optimizer_steps(len(self.order), self.epochs, self.global_batch)

    def effective_epochs(self) -> dict[str, float]:
        """How often the stage shows each source."""
        shown = self.optimizer_steps * self.global_batch / len(self.order)
        return {name: shown * epochs for name, epochs in self.order.effective_epochs().items()}

    def setup(self, stage: str) -> None:
        """Loads what the Trainer's verb needs; before training, prints how often each source is shown."""
        with Console(stderr=True, quiet=rank_zero_only.rank != 0).status("reading the data"):
            sets = {"fit": self.val, "validate": self.val}.get(stage, self.test)
            for each in sets.values():
                each.source.load()
            if stage == "fit":
                _ = self.order
        if stage == "fit":
            self._print_sources()

    @rank_zero_only
    def _print_sources(self) -> None:
        table = Table("source", title=f"training data, {self.optimizer_steps} steps of {self.global_batch}")
        for heading in ("samples", "epochs", "left out"):
            table.add_column(heading, justify="right")
        for name, epochs in self.effective_epochs().items():
            skipped = len(getattr(self.train[name], "skipped", ()))
            table.add_row(name, f"{len(self.train[name]):,}", f"{epochs:.2f}", f"{skipped:,}")
        Console().print(table)

    def train_dataloader(self) -> ResumableLoader:
        rank, world = self._rank_and_world()
        loader = ResumableLoader(
            TrainingSamples(self.train, self._processor(), self.seed),
            self.order,
            collate_fn=Collate(self._processor(), "right"),
            micro_batch=self.micro_batch,
            global_batch=self.global_batch,
            epochs=self.epochs,
            rank=rank,
            world=world,
            workers=self.workers,
        )
        if self.trainer is not None:
            expected = {"max_epochs": 1, "accumulate_grad_batches": loader.accumulation}
            for name, value in expected.items():
                if (found := getattr(self.trainer, name)) != value:
                    raise ValueError(
                        f"trainer.{name}: found {found}, expected {value} for {self.epochs:g} epochs of data and"
                        f" global batches of {self.global_batch} = {loader.accumulation} x {self.micro_batch} x {world}"
                    )
        return loader

    # ---- evaluation --------------------------------------------------------------------------------------------

    def evaluations(self, split: Literal["val", "test"]) -> list[Evaluation]:
        """What each loader of the split is about; only a test has blind twins."""
        sets = self.test if split == "test" else self.val
        return [each for chosen in sets.values() for each in chosen.evaluations(twins=split == "test")]

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(self.val, twins=False)

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(self.test, twins=True)

    def predict_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(self.test, twins=False)

    def _evaluation_loaders(self, sets: dict[str, EvaluationSet], *, twins: bool) -> list[DataLoader]:
        if not sets:
            # Lightning asks whether no loader at all was meant; it was.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        rank, world = self._rank_and_world()
        # Plain arguments only: to predict, Lightning builds each loader anew from its attributes.
        return [
            SampleLoader(
                EvaluationSamples(chosen, self._processor(), blind=each.blind, rank=rank, world=world),
                batch_size=self.eval_batch,
                collate_fn=Collate(self._processor(), "left"),
                **loading(self.workers),
            )
            for chosen in sets.values()
            for each in chosen.evaluations(twins=twins)
        ]

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _processor(self) -> Any:
        if self.processor is None:
            raise ValueError(
                "data.processor: found none, expected the model's (datamodule.processor = model.processor)"
            )
        return self.processor


class CaptionDataModule(MultimodalDataModule):
    """Trains on images with one text each: COCO captions, the Karpathy split, LLaVA's alignment data."""

    only_captions: ClassVar[bool] = True


class InstructionDataModule(MultimodalDataModule):
    """Trains on conversations, questions and captions put as requests, with and without images."""


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
