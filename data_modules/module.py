"""The data of a training stage and of its evaluations, as LightningDataModules."""

from __future__ import annotations

import difflib
import math
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from data_modules.bad_samples import BadLimits, BadSampleList
from data_modules.evaluated import EvaluatedDataModule
from data_modules.evaluation import EvaluationSet
from data_modules.geometry import check_frames
from data_modules.lengths import LengthIndex
from data_modules.loader import TIMEOUT, Collate, ResumableLoader, optimizer_steps
from data_modules.mixture_sampler import Group, MixtureSampler, seeded
from data_modules.packed_shares import packing_of
from data_modules.sources.plain_text import TextSource
from data_modules.sources.source import Source
from data_modules.sources_table import sources_table
from data_modules.stream import SampleOrder, Share
from data_modules.text import TextRows, TextShare
from data_modules.training_samples import Overlong, TrainingSamples
from lightning_mllm.contracts import Sample

IMAGE_WORDS = 128
"""Words that an image counts for where samples are grouped by length (LLaVA, released train.py, `lengths`)."""


class MultimodalDataModule(EvaluatedDataModule):
    """A mixture of sources to train on, and sets to answer.

    The Trainer must take one epoch (`max_epochs=1`): repeating the data is a matter of the order, so that a position in
    it is all there is to resume.

    Args:
        train: sources by name.
        val: sets answered in the course of training, every `stage.validate_every` steps or at its end; those of the
            task "loss" give `val/loss`.
        test: sets answered by a test, each with its blind twin unless it says otherwise; also those of predict.
        weights: share of each source in a data epoch; None for the union of all.
        text: plain text that every optimizer step takes beside the global batch.
        group: "length", "similar_length", "modality_length", "modality_similar_length", "source", "shard" or "image"
            bring samples of one kind together (see MixtureSampler).
        epochs: passes over the data, where no steps are given.
        steps: optimizer steps, in place of epochs: as many passes over the data as they take.
        global_batch: samples of one optimizer step, over all processes and micro-batches.
        micro_batch: samples of one forward pass.
        overlong: what becomes of samples with more tokens than a row: "mask", "drop" or "stop" (`Overlong`).
        bad_limits: how many bad samples of sources with `bad_records: skip` are replaced before training stops.
        per_device_batch: samples that `group: source` takes from one source, a number of the recipe.
        text_micro_batch: rows of plain text of one forward pass.
        pack: whether the samples of a forward pass share one row without padding; those of a step are then dealt to
            forward passes and processes so that all rows are about equally long (see dealing.py).
        token_budget: tokens of such a row, in place of a micro-batch; each step takes the fewest rows that hold it.
        image_cost: what an image costs the net beside its tokens, in tokens.
        eval_batch: samples answered at once.
        workers, worker_timeout: processes that read samples ahead for each training process; seconds to wait for one.
        seed: of the order and of all that is random about samples.
        processor: turns samples into batches (`encode`, `collate`); may be set later.
    """

    only_captions: ClassVar[bool] = False
    """Whether training sources of another kind are refused."""
    bounds: ClassVar[tuple[str, ...]] = ("bad_limits",)
    """Arguments that stop a training and change no other: a stopped stage goes on under others."""

    def __init__(
        self,
        train: dict[str, Source] | None = None,
        val: dict[str, EvaluationSet] | None = None,
        test: dict[str, EvaluationSet] | None = None,
        weights: dict[str, float] | None = None,
        text: TextShare | None = None,
        group: Group = "none",
        epochs: float = 1.0,
        steps: int | None = None,
        global_batch: int = 1,
        micro_batch: int = 1,
        per_device_batch: int | None = None,
        text_micro_batch: int = 1,
        pack: bool = False,
        token_budget: int | None = None,
        image_cost: int = 0,
        eval_batch: int = 32,
        workers: int = 0,
        worker_timeout: int = TIMEOUT,
        seed: int = 0,
        overlong: Overlong = "mask",
        bad_limits: BadLimits = BadLimits(),
        processor: Any = None,
    ) -> None:
        super().__init__(val, test, eval_batch, workers, processor, worker_timeout)
        self.overlong: Overlong = overlong
        self.bad_limits = bad_limits
        self.train = dict(train or {})
        self.weights, self.text, self.epochs, self.steps = weights, text, epochs, steps
        self.group: Group = group
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.text_micro_batch, self.seed, self.per_device_batch = text_micro_batch, seed, per_device_batch
        self.packing = packing_of(pack, token_budget, image_cost)
        if group == "source" and per_device_batch is None:
            raise ValueError(
                "data.group: found 'source', expected stage.per_device_batch to say how many samples share one"
            )
        self._order: MixtureSampler | None = None
        self._rows: TextRows | None = None
        self._shares_of: dict[int, list[Share]] = {}
        for name, source in self.train.items():
            if self.only_captions and not source.captions:
                raise ValueError(f"data.train.{name}: found {type(source).__name__}, expected a source of captions")

    # ---- training ----------------------------------------------------------------------------------------------

    def load_training(self) -> None:
        """Reads the annotations of what is trained on; no image is opened.

        Raises:
            ValueError: a file cannot be read.
        """
        for name, source in self._training_sources().items():
            try:
                source.load()
            except ValueError as error:
                raise ValueError(f"data.{name}: {error}") from error

    def _training_sources(self) -> dict[str, Source]:
        """What is trained on, by its key in `data`."""
        text = {} if self.text is None else {"text.source": self.text.source}
        return {**{f"train.{name}": source for name, source in self.train.items()}, **text}

    def training_sample(self, name: str, index: int) -> tuple[Sample, torch.Generator]:
        """Sample `index` of a source, which is loaded, as the first epoch shows it; and what its picture draws from."""
        generator = seeded(self.seed, "sample", 0, name, index)
        return self.train[name].sample(index, generator), generator

    @property
    def order(self) -> MixtureSampler:
        """The order of the training samples; loads the sources."""
        if self._order is None:
            for source in self.train.values():
                source.load()
            sizes = {name: len(source) for name, source in self.train.items()}
            self._order = MixtureSampler(
                sizes,
                self._shares(sizes),
                self.seed,
                self.group,
                lengths=self._length,
                modalities=lambda name, index: self.train[name].has_image(index),
                batch=self.global_batch,
                run=self.per_device_batch or 1,
                runs=lambda name: self.train[name].runs(),
                images=lambda name, index: self.train[name].image_key(index),
            )
        return self._order

    def _shares(self, sizes: dict[str, int]) -> dict[str, float] | None:
        """The share of each source in a data epoch, up to a common factor; None for the union."""
        return self.weights

    def _length(self, name: str, index: int) -> int:
        source = self.train[name]
        return source.length(index) + IMAGE_WORDS * source.has_image(index)

    @property
    def rows(self) -> TextRows | None:
        """The rows of plain text, if there are any; loads their source."""
        if self._rows is None and self.text is not None:
            self._rows = TextRows(self.text.source, self.text.length, self.seed, self._processor())
        return self._rows

    def shares(self) -> list[Share]:
        """What one optimizer step takes; of that with images last, which all ranks then wait for together."""
        text = (
            []
            if self.text is None
            else [Share("data.text.tokens", self.text.rows, self.text_micro_batch, self.text.weight)]
        )
        return [*text, Share("stage.global_batch", self.global_batch, self.micro_batch)]

    def orders(self) -> list[SampleOrder]:
        """Of each of the shares; loads the sources."""
        return [self.order] if self.rows is None else [self.rows, self.order]

    def accumulation(self, world: int) -> int:
        """Micro-batches of one optimizer step of each of `world` ranks.

        Raises:
            ValueError: what a step takes is no multiple of what the ranks take at once, or the budget is too small.
        """
        return sum(share.micro_batches(world) for share in self.shares_of(world))

    def shares_of(self, world: int) -> list[Share]:
        """The same; where samples are packed, with how they are dealt to `world` ranks."""
        if self.packing is None:
            return self.shares()
        if world not in self._shares_of:
            orders = list(zip(self.shares(), self.orders(), strict=True))
            lengths = LengthIndex(self.train, self._processor(), self.seed)
            self._shares_of[world] = self.packing.shares(orders, lengths, self.optimizer_steps, world)
        return self._shares_of[world]

    @property
    def optimizer_steps(self) -> int:
        """Of the whole stage."""
        return self.steps or optimizer_steps(len(self.order), self.epochs, self.global_batch)

    def effective_epochs(self) -> dict[str, float]:
        """How often the stage shows each source."""
        shown = self.optimizer_steps * self.global_batch / len(self.order)
        return {name: shown * epochs for name, epochs in self.order.effective_epochs().items()}

    def setup(self, stage: str) -> None:
        """Loads what the Trainer's verb needs; before training, prints how often each source is shown."""
        if self.processor is not None:
            check_frames(self.processor, self.train if stage == "fit" else {}, {"val": self.val, "test": self.test})
        with Console(stderr=True, quiet=rank_zero_only.rank != 0).status("reading the data"):
            sets = {"fit": self.val, "validate": self.val}.get(stage, self.test)
            for each in sets.values():
                each.source.load()
            if stage == "fit":
                self.orders()
        if stage == "fit":
            self._print_sources()

    @rank_zero_only
    def _print_sources(self) -> None:
        Console().print(sources_table(self.train, self.order, self.optimizer_steps, self.effective_epochs()))
        if self.rows is not None:
            Console().print(self.rows.table(self.optimizer_steps, self.shares()[0].batch))

    def train_dataloader(self) -> ResumableLoader:
        rank, world = self._rank_and_world()
        shares, orders = self.shares_of(world), self.orders()
        shown = self.order.effective_epochs() if self.train else {}
        self.bad_samples = BadSampleList.of(self.trainer, self.bad_limits, len(orders[-1]), shown)
        loader = ResumableLoader(
            TrainingSamples(
                self.train, self._processor(), self.seed, self.rows, limits=self.bad_limits, overlong=self.overlong
            ),
            list(zip(shares, orders, strict=True)),
            collate_fn=Collate(self._processor(), "right", packed=self.packing is not None),
            steps=self.optimizer_steps,
            rank=rank,
            world=world,
            workers=self.workers,
            timeout=self.worker_timeout,
        )
        if self.trainer is not None:
            expected = {"max_epochs": 1, "accumulate_grad_batches": loader.accumulation}
            batches = " and ".join(share.told(world) for share in shares)
            for name, value in expected.items():
                if (found := getattr(self.trainer, name)) != value:
                    raise ValueError(
                        f"trainer.{name}: found {found}, expected {value} for {self.optimizer_steps} steps and batches"
                        f" of {batches}"
                    )
        return loader


class CaptionDataModule(MultimodalDataModule):
    """Trains on images with one text each: COCO captions, the Karpathy split, LLaVA's alignment data."""

    only_captions: ClassVar[bool] = True


class InstructionDataModule(MultimodalDataModule):
    """Trains on conversations, questions and captions put as requests, with and without images."""


class TextDataModule(MultimodalDataModule):
    """Trains on plain text alone, in rows of so many tokens; a sample of the global batch is a row.

    Args:
        source: the documents.
        length: tokens of a row.
        settings: as in MultimodalDataModule; one pass over the data is as many rows as the text fills.
    """

    def __init__(self, source: TextSource, length: int = 2048, **settings: Any) -> None:
        super().__init__(train=None, weights=None, text=None, group="none", text_micro_batch=1, **settings)
        if length < 2:
            raise ValueError(f"data.length: found {length}, expected at least 2")
        self.source, self.length = source, length

    def _training_sources(self) -> dict[str, Source]:
        return {"source": self.source}

    @property
    def rows(self) -> TextRows:
        if self._rows is None:
            self._rows = TextRows(self.source, self.length, self.seed, self._processor())
        return self._rows

    def orders(self) -> list[SampleOrder]:
        return [self.rows]

    @property
    def optimizer_steps(self) -> int:
        return self.steps or optimizer_steps(len(self.rows), self.epochs, self.global_batch)

    @rank_zero_only
    def _print_sources(self) -> None:
        Console().print(self.rows.table(self.optimizer_steps, self.global_batch))


class VQADataModule(MultimodalDataModule):
    """Trains on questions put by templates: the mixture of InstructBLIP (arXiv 2305.06500, sec. 2.1 and 2.4).

    Args:
        weights: "sqrt" for shares that go as the square root of a source's size, which the paper balances its sets
            with; or a share of each source; or None for the union of all.
        factors: what a source's weight is multiplied with by hand; the paper lowers A-OKVQA and raises OK-VQA by
            factors that it does not give.
        settings: as in MultimodalDataModule.

    Raises:
        ValueError: a factor of a source that there is not, or one that is not above 0.
    """

    def __init__(
        self,
        weights: Literal["sqrt"] | dict[str, float] | None = "sqrt",
        factors: dict[str, float] | None = None,
        **settings: Any,
    ) -> None:
        given = None if weights == "sqrt" else weights
        if isinstance(given, str):
            raise ValueError(f"data.weights: found '{given}', expected 'sqrt', a share of each source, or none")
        super().__init__(weights=given, **settings)
        self.balanced, self.factors = weights == "sqrt", dict(factors or {})
        for name, factor in self.factors.items():
            if name not in self.train:
                near = difflib.get_close_matches(name, self.train, n=1)
                hint = f" (did you mean '{near[0]}'?)" if near else ""
                raise ValueError(f"data.factors.{name}: found no such source, expected {', '.join(self.train)}{hint}")
            if not (math.isfinite(factor) and factor > 0):
                raise ValueError(f"data.factors.{name}: found {factor}, expected a finite number above 0")

    def _shares(self, sizes: dict[str, int]) -> dict[str, float] | None:
        if self.balanced:
            return {name: math.sqrt(size) * self.factors.get(name, 1.0) for name, size in sizes.items()}
        if self.weights is None and not self.factors:
            return None
        return {name: share * self.factors.get(name, 1.0) for name, share in (self.weights or sizes).items()}
