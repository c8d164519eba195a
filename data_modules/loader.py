"""Loaders that continue exactly where they stopped, on any number of ranks and with any number of workers.

All ranks walk one stream of samples. With W ranks, micro-batches of m samples and global batches of G = A * W * m:

    stream   | rank 0, m | rank 1, m | ... | rank 0, m | rank 1, m | ...
               `---- micro-batch 0 ---'      `---- micro-batch 1 ---'     ... A of them are one optimizer step

Where a step also takes rows of plain text, its text comes first, in micro-batches of its own:

    stream   | text | text | samples | samples | samples | text | text | samples | ...
               `------------- one step -------------'

The whole training is one epoch of this stream; a position in it, counted in samples of all ranks, is the only state.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data_modules.mixture_sampler import SampleLocation
from data_modules.processor import SampleProcessor
from lightning_mllm.contracts import Batch, Encoded, accumulation

T = TypeVar("T")

TIMEOUT = 60
"""Seconds to wait for a batch of a worker: one that cannot send its error would otherwise be waited for without end."""

TRIES = 100
"""Bad samples of a source in a row, at which something else is wrong."""


@dataclass(frozen=True)
class Refusal:
    """A ValueError on its way out of a worker, where torch would wrap it in a traceback."""

    sentence: str


def contained(make: Callable[[], T], name: str) -> T | Refusal:
    """`make()`; in a worker its ValueError becomes a Refusal, and other errors one that can be pickled."""
    if get_worker_info() is None:
        return make()
    try:
        return make()
    except ValueError as error:
        return Refusal(str(error))
    except Exception:
        raise RuntimeError(f"{name}: {traceback.format_exc()}") from None


class Collate:
    """The processor's `collate`, letting refusals through."""

    def __init__(self, processor: SampleProcessor, padding: Literal["left", "right"]) -> None:
        self.processor = processor
        self.padding: Literal["left", "right"] = padding

    def __call__(self, rows: Sequence[Encoded | Refusal]) -> Batch | Refusal:
        refusal = next((row for row in rows if isinstance(row, Refusal)), None)
        good = [row for row in rows if not isinstance(row, Refusal)]
        return refusal or contained(lambda: self.processor.collate(good, padding=self.padding), "collate")


def named(where: str, error: ValueError) -> ValueError:
    """The error with file and record in front."""
    return ValueError(f"{where}: {error}" if where else str(error))


class SampleLoader(DataLoader):
    """A DataLoader that says what is wrong with a sample in a sentence, with and without workers."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, Refusal):
                raise ValueError(batch.sentence)
            yield batch


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


def loading(workers: int) -> dict[str, Any]:
    """The DataLoader arguments that all loaders share."""
    # Forked workers share the sources' memory; elsewhere than on Linux forking is not safe.
    fork = "fork" if workers and sys.platform == "linux" else None
    return {
        "num_workers": workers,
        "timeout": TIMEOUT if workers else 0,
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


class SampleOrder(Protocol):
    """An order without end."""

    def at(self, position: int) -> Any:
        """What stands at a position."""
        ...

    def __len__(self) -> int:
        """Of a data epoch."""
        ...


@dataclass(frozen=True)
class Share:
    """What one optimizer step takes of one order, over all ranks."""

    name: str
    """The setting that says so."""
    batch: int
    """Samples, or rows of text."""
    micro_batch: int
    """Those of one rank in one forward pass."""
    own_mean: float | None = None
    """As in `Batch`."""

    def micro_batches(self, world: int) -> int:
        """Of one of `world` ranks.

        Raises:
            ValueError: the batch is not a multiple of what the ranks take at once.
        """
        return accumulation(self.name, self.batch, self.micro_batch, world)


class _Stream(Sampler[list[Any]]):
    """The micro-batches of one rank, from number `start` on."""

    def __init__(self, orders: Sequence[tuple[Share, SampleOrder]], steps: int, rank: int, world: int) -> None:
        self.shares, self.orders = [share for share, _ in orders], [order for _, order in orders]
        self.rank, self.world = rank, world
        self.numbers = [share.micro_batches(world) for share in self.shares]
        """Micro-batches of each share in one optimizer step."""
        self.accumulation = sum(self.numbers)
        self.total = steps * self.accumulation
        self.start = 0
        self.ahead: deque[tuple[Share, list[Any]]] = deque()
        """Given to the workers and not handed out; to ask an order again would draw an old epoch anew."""

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[Any]]:
        self.ahead = ahead = deque()
        for number in range(self.start, self.total):
            ahead.append(self.micro_batch(number))
            yield ahead[-1][1]

    def micro_batch(self, number: int) -> tuple[Share, list[Any]]:
        """The share that micro-batch `number` is taken from, and what stands there in its order."""
        step, within = divmod(number, self.accumulation)
        for share, order, count in zip(self.shares, self.orders, self.numbers, strict=True):
            if within < count:
                first = step * share.batch + (within * self.world + self.rank) * share.micro_batch
                return share, [order.at(position) for position in range(first, first + share.micro_batch)]
            within -= count
        raise AssertionError("a step is the sum of its shares")

    def position(self, number: int) -> int:
        """Samples of all ranks before micro-batch `number`."""
        step, within = divmod(number, self.accumulation)
        position = step * sum(share.batch for share in self.shares)
        for share, count in zip(self.shares, self.numbers, strict=True):
            position += min(within, count) * share.micro_batch * self.world
            within -= min(within, count)
        return position

    def number(self, position: int) -> int | None:
        """The micro-batch that begins at a position; None if none does."""
        step, within = divmod(position, sum(share.batch for share in self.shares))
        number = step * self.accumulation
        for share, count in zip(self.shares, self.numbers, strict=True):
            if within < share.batch:
                whole, rest = divmod(within, share.micro_batch * self.world)
                return None if rest or not 0 <= number + whole <= self.total else number + whole
            number, within = number + count, within - share.batch
        raise AssertionError("a step is the sum of its shares")


class ResumableLoader(SampleLoader):
    """Rank `rank`'s micro-batches of a whole training stage.

    Iterating goes on from the current position, which `load_state_dict` sets. All micro-batches of a step are read
    before the first is handed out, which knows them (`Batch.step`). The state names the batches that were
    handed out, not those that workers have read ahead; it is the same on all ranks and fits any other cut of the
    stream into ranks and micro-batches that has a border there (every optimizer step is one).

    Args:
        dataset: encoded samples by what stands in the orders.
        orders: what one optimizer step takes, of which order; first comes first, and a micro-batch is of one order.
        collate_fn: rows of the dataset -> batch.
        steps: optimizer steps of the stage.
        rank: of this process, below `world`.
        world: number of processes.
        workers: processes that read ahead.

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
    ) -> None:
        assert 0 <= rank < world
        self._handed_out = 0
        self._stream = _Stream(orders, steps, rank, world)
        self.accumulation = self._stream.accumulation
        """Micro-batches of one optimizer step."""
        super().__init__(dataset, batch_sampler=self._stream, collate_fn=collate_fn, **loading(workers))

    def __len__(self) -> int:
        """Micro-batches of the whole stage, those before the current position included."""
        return len(self._stream)

    def __iter__(self) -> Iterator[Any]:
        self._stream.start = self._handed_out
        batches = super().__iter__()
        while self._handed_out < len(self):
            left = self.accumulation - self._handed_out % self.accumulation
            step = [self._known(batch) for batch in islice(batches, left)]
            step = shown_ahead(step) if isinstance(step[0], Batch) else step
            while step:
                self._handed_out += 1
                yield step.pop(0)

    def _known(self, batch: Any) -> Any:
        """The next batch with what the order knows of it."""
        share, locations = self._stream.ahead.popleft()
        sources = [location.source if isinstance(location, SampleLocation) else share.name for location in locations]
        return batch.noted(sources=sources, own_mean=share.own_mean) if isinstance(batch, Batch) else batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self._stream.position(self._handed_out)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position.

        Raises:
            ValueError: it lies inside a micro-batch of these ranks, or behind the end of the data.
        """
        position = state["position"]
        number = self._stream.number(position)
        if number is None:
            at_once = " or ".join(str(share.micro_batch * self._stream.world) for share in self._stream.shares)
            raise ValueError(
                f"loader position: found {position}, expected a multiple of {at_once} (samples that all processes take"
                f" at once) from 0 to {self._stream.position(len(self))}; was the data or the batch size changed since"
                " the checkpoint?"
            )
        self._handed_out = number
