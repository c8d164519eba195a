"""What happened to samples on their way into batches, counted: cut, nothing learned, replaced because it was bad.

A note travels with its row (`Encoded.notes`), since workers and ranks would each keep a count of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from data_modules.bad_samples import BadSampleList, replaced_in, told
from lightning_mllm.contracts import Batch

SENTENCES = 5
"""So many of what is behind a note are shown."""


class Tally:
    """Counts of notes by source, over all ranks, and across a resume."""

    def __init__(self) -> None:
        self._before: Counter[tuple[str, str]] = Counter()
        self._own: Counter[tuple[str, str]] = Counter()
        self._sentences: list[str] = []

    def add(self, batch: object) -> None:
        """Counts the notes of a batch; a note is a kind, or a kind, ": " and a sentence."""
        notes: Sequence[tuple[str, ...]] = getattr(batch, "notes", ())
        if not notes:
            return
        sources: Sequence[str] = getattr(batch, "sources", ()) or [""] * len(notes)
        for source, row in zip(sources, notes, strict=True):
            for note in row:
                kind, sentence = told(note)
                self._own[source, kind] += 1
                if sentence and len(self._sentences) < SENTENCES:
                    self._sentences.append(sentence)

    def gathered(self) -> tuple[Counter[tuple[str, str]], list[str]]:
        """(source, kind) -> how many on all ranks, and some sentences; every rank must call this."""
        each: list[Any] = [(self._own, self._sentences)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            each = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(each, (self._own, self._sentences))
        total = Counter(self._before)
        for own, _ in each:
            total.update(own)
        return total, [sentence for _, some in each for sentence in some][:SENTENCES]

    def state_dict(self) -> dict[str, Any]:
        """What all ranks counted so far; every rank must call this."""
        return {"notes": [[*key, count] for key, count in sorted(self.gathered()[0].items())]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before = Counter({(source, kind): count for source, kind, count in state.get("notes", ())})
        self._own, self._sentences = Counter(), []


def table_of(counts: Counter[tuple[str, str]], title: str) -> Table:
    """Source by kind."""
    kinds = sorted({kind for _, kind in counts})
    table = Table("source", title=title)
    for kind in kinds:
        table.add_column(kind, justify="right")
    for source in sorted({source for source, _ in counts}):
        table.add_row(source, *(f"{counts[source, kind]:,}" for kind in kinds))
    return table


class TalliedDataModule(LightningDataModule, ABC):
    """Counts the notes of the batches that it gives, and says them at the end of a verb: printed and logged."""

    def __init__(self) -> None:
        super().__init__()
        self._tallies = {"train": Tally(), "evaluation": Tally()}
        self._validated = -1
        self.bad_samples: BadSampleList | None = None
        """Those that training replaces, where it does."""

    @abstractmethod
    def train_dataloader(self) -> object: ...

    def on_before_batch_transfer(self, batch: object, dataloader_idx: int) -> object:
        """Counts what happened to the samples of a batch, and lists those that training replaced.

        Raises:
            ValueError: they are too many.
        """
        trainer = self.trainer
        if trainer is not None and not trainer.sanity_checking:
            if not trainer.training and self._validated != trainer.fit_loop.total_batch_idx:
                # Each validation of a stage reads the same samples: the last one tells.
                self._validated, self._tallies["evaluation"] = trainer.fit_loop.total_batch_idx, Tally()
            self._tallies["train" if trainer.training else "evaluation"].add(batch)
            if trainer.training and self.bad_samples is not None:
                self.bad_samples.add([line for row in getattr(batch, "notes", ()) for line in replaced_in(row)])
        return batch

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Without waiting for copies from pinned memory, as Lightning moves plain tensors alone."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Says what happened to samples on their way into batches, if anything did."""
        for split, tally in self._tallies.items():
            counts, sentences = tally.gathered()
            if counts:
                self._print_notes(split, counts, sentences)
            self._tallies[split] = Tally()

    @rank_zero_only
    def _print_notes(self, split: str, counts: Counter[tuple[str, str]], sentences: list[str]) -> None:
        Console().print(table_of(counts, f"samples of {split}, as they came into batches"))
        for sentence in sentences:
            Console().print(sentence, markup=False, soft_wrap=True)
        totals = Counter[str]()
        for (_, kind), count in counts.items():
            totals[f"{split}/samples {kind}"] += count
        if self.trainer is not None:
            for logger in self.trainer.loggers:
                logger.log_metrics(dict(totals), step=self.trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return self._tallies["train"].state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tallies["train"].load_state_dict(state_dict)
