"""Loaders that continue exactly where they stopped, on any number of ranks and with any number of workers.

The whole training is one epoch of a stream of samples (stream.py); a position in it, counted in samples of all ranks,
is the only state.
"""

from __future__ import annotations

import sys
import traceback
import weakref
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data_modules.mixture_sampler import SampleLocation
from data_modules.processor import PackingProcessor, SampleProcessor
from data_modules.sent_batch import SentBatch
from data_modules.stream import SampleOrder, Share, Stream
from data_modules.workers import WorkerSamples, begin, lost, watched
from lightning_mllm.contracts import Batch, Encoded

T = TypeVar("T")

TIMEOUT = 60
"""Seconds to wait for a batch of a worker, where nothing is said."""

TRIES = 100
"""Bad samples of a source in a row, at which something else is wrong."""


@dataclass(frozen=True)
class Refusal:
    """A ValueError on its way out of a worker, where torch would wrap it in a traceback."""

    sentence: str


def contained(make: Callable[[], T], named: Callable[[], str]) -> T | Refusal:
    """`make()`; in a worker its ValueError becomes a Refusal, and other errors one that can be pickled.

    Args:
        named: says in a worker what is made, for whoever asks what it was on.
    """
    if get_worker_info() is None:
        try:
            return make()
        except Exception as error:
            if not isinstance(error, ValueError):
                error.add_note(f"made of {named()}")
            raise
    begin(name := named())
    try:
        return make()
    except ValueError as error:
        return Refusal(str(error))
    except Exception:
        raise RuntimeError(f"{name}: {traceback.format_exc()}") from None


class Collate:
    """The processor's `collate`, letting refusals through.

    Args:
        processor: collates.
        padding: the side of it.
        packed: whether the samples share one row, without any padding.
    """

    def __init__(self, processor: SampleProcessor, padding: Literal["left", "right"], packed: bool = False) -> None:
        self.processor = processor
        self.padding: Literal["left", "right"] = padding
        self.packed = packed

    def __call__(self, rows: Sequence[Encoded | Refusal]) -> Batch | SentBatch | Refusal:
        refusal = next((row for row in rows if isinstance(row, Refusal)), None)
        good = [row for row in rows if not isinstance(row, Refusal)]
        batch = refusal or contained(lambda: self._collated(good), lambda: _together(good))
        return SentBatch.of(batch) if get_worker_info() is not None and isinstance(batch, Batch) else batch

    def _collated(self, rows: Sequence[Encoded]) -> Batch:
        try:
            if not self.packed:
                return self.processor.collate(rows, padding=self.padding)
            return cast(PackingProcessor, self.processor).collate(rows, padding=self.padding, packed=True)
        except ValueError as error:
            raise named(_together(rows), error) from error


def _together(rows: Sequence[object]) -> str:
    return f"the batch of samples {', '.join(str(getattr(row, 'id', row)) for row in rows)}"


def named(where: str, error: ValueError) -> ValueError:
    """The error with file and record in front."""
    return ValueError(f"{where}: {error}" if where else str(error))


class SampleLoader(DataLoader):
    """A DataLoader that says what is wrong with a sample in a sentence, with and without workers."""

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        if isinstance(samples := self.worker_init_fn, WorkerSamples):
            batches = cast(_MultiProcessingDataLoaderIter, batches)
            self._running = weakref.ref(batches)
            batches = watched(batches, samples, self.timeout)
        try:
            for batch in batches:
                if isinstance(batch, Refusal):
                    raise ValueError(batch.sentence)
                yield batch.received() if isinstance(batch, SentBatch) else batch
        finally:
            if isinstance(batches, Generator):
                batches.close()

    def lost_worker(self) -> str:
        """What became of a worker that has died, in a sentence; empty where none has."""
        running = getattr(self, "_running", None)
        batches = None if running is None else running()
        # Those of one that is over were ended.
        return "" if batches is None or batches._shutdown else lost(batches, cast(WorkerSamples, self.worker_init_fn))


def shown_ahead(step: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of an optimizer step; the first knows all of them without their images (`Batch.step`)."""
    known = tuple(each.noted(images=each.images[:0].clone()) for each in step)
    return [step[0].noted(step=known), *step[1:]]


class StepsAhead:
    """The micro-batches of a loader of one's own, as training reads them: those of an optimizer step all at once.

    Args:
        loader: gives batches, anew each time it is iterated.
        accumulation: micro-batches of an optimizer step (`trainer.accumulate_grad_batches`).
    """

    def __init__(self, loader: Collection[Batch], accumulation: int) -> None:
        self.loader, self.accumulation = loader, accumulation

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while step := list(islice(batches, self.accumulation)):
            yield from shown_ahead(step)


def loading(workers: int, timeout: float = TIMEOUT) -> dict[str, Any]:
    """The DataLoader arguments that all loaders share.

    Args:
        workers: processes that read ahead.
        timeout: seconds to wait for a batch of one of them; 0 waits without end.
    """
    # Forked workers share the sources' memory; elsewhere than on Linux forking is not safe.
    fork = "fork" if workers and sys.platform == "linux" else None
    return {
        "num_workers": workers,
        "timeout": timeout if workers else 0,
        "worker_init_fn": WorkerSamples(workers) if workers else None,
        "multiprocessing_context": fork,
        "pin_memory": torch.cuda.is_available(),
        # Without a generator each new iterator draws from the global one, and dropout differs after a resume.
        "generator": torch.Generator(),
    }


def optimizer_steps(samples: int, epochs: float, global_batch: int) -> int:
    """Whole global batches in `epochs` passes over `samples`, the rest being left out; ValueError if there is none."""
    total = int(samples * epochs + 1e-6)  # 0.1 * 30 is a little below 3
    if total < global_batch:
        raise ValueError(
            f"global_batch: found {global_batch}, expected at most {total} = {samples} samples x {epochs:g} epochs"
        )
    return total // global_batch


class ResumableLoader(SampleLoader):
    """Rank `rank`'s micro-batches of a whole training stage.

    Iterating goes on from the current position, which `load_state_dict` sets. All micro-batches of a step are read
    before the first is handed out, which knows them (`Batch.step`). The state names the batches that were
    handed out, not those that workers have read ahead; it is the same on all ranks and fits any other cut of the
    stream into ranks and micro-batches that has a border there (every optimizer step is one). Inside a step that is
    dealt it fits the same cut alone.

    Args:
        dataset: encoded samples by what stands in the orders.
        orders: what one optimizer step takes, of which order; first comes first, and a micro-batch is of one order.
        collate_fn: rows of the dataset -> batch.
        steps: optimizer steps of the stage.
        rank: of this process, below `world`.
        world: number of processes.
        workers: processes that read ahead.
        timeout: as in `loading`.

    Raises:
        ValueError: a batch is not a multiple of what the ranks take at once.
    """

    def __init__(
        self,
        dataset: Dataset,
        orders: Sequence[tuple[Share, SampleOrder]],
        *,
        collate_fn: Callable[[list[Any]], Any],
        steps: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        timeout: float = TIMEOUT,
    ) -> None:
        assert 0 <= rank < world
        self._handed_out = self.reading = 0
        """Micro-batches that were handed out; and the one that is being read, or would be next."""
        self._stream = Stream(orders, steps, rank, world)
        self.accumulation = self._stream.accumulation
        """Micro-batches of one optimizer step."""
        super().__init__(dataset, batch_sampler=self._stream, collate_fn=collate_fn, **loading(workers, timeout))

    def __len__(self) -> int:
        """Micro-batches of the whole stage, those before the current position included."""
        return len(self._stream)

    def __iter__(self) -> Iterator[Any]:
        self._stream.start = self._handed_out
        batches = super().__iter__()
        while self._handed_out < len(self):
            self._stream.forget(self._handed_out // self.accumulation)
            left = self.accumulation - self._handed_out % self.accumulation
            step, self.reading = list[Any](), self._handed_out
            for batch in islice(batches, left):
                step.append(self._known(batch))
                self.reading += 1
            step = shown_ahead(step) if isinstance(step[0], Batch) else step
            while step:
                self._handed_out += 1
                yield step.pop(0)

    def _known(self, batch: Any) -> Any:
        """The next batch with what the order knows of it."""
        share, samples, numbers, together = self._stream.ahead.popleft()
        if not isinstance(batch, Batch):
            return batch
        sources = [each.source if isinstance(each, SampleLocation) else share.name for each in samples]
        dealt = {"numbers": numbers, "together": together} if numbers else {}
        return batch.noted(sources=sources, own_mean=share.own_mean, **dealt)

    def named(self, number: int) -> list[dict[str, Any]]:
        """Source, index, and file and record of each sample of this rank's micro-batch `number`, from 0."""
        step, within = divmod(number, self.accumulation)
        place = getattr(self.dataset, "place", lambda sample: {"where": str(sample)})
        return [place(each) for each in self._stream.cut(step).own[within].samples]

    def state_dict(self) -> dict[str, int]:
        return self._stream.state(self._handed_out)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position.

        Raises:
            ValueError: it lies inside a micro-batch of these ranks, inside a step that is dealt otherwise, or behind
                the end of the data.
        """
        self._handed_out = self._stream.number(state)
