"""Loaders that continue exactly where they stopped, on any number of ranks and with any number of workers.

All ranks walk one stream of samples. With W ranks, micro-batches of m samples and global batches of G = A * W * m:

    stream   | rank 0, m | rank 1, m | ... | rank 0, m | rank 1, m | ...
               `---- micro-batch 0 ---'      `---- micro-batch 1 ---'     ... A of them are one optimizer step

The whole training is one epoch of this stream; a position in it, counted in samples of all ranks, is the only state.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data_modules.order import Order, Place, seeded
from data_modules.sources.source import Source

TIMEOUT = 60
"""Seconds to wait for a batch of a worker: one that cannot send its error would otherwise be waited for without end."""


@dataclass(frozen=True)
class Refusal:
    """A ValueError on its way out of a worker, where torch would wrap it in a traceback."""

    sentence: str


def contained(make: Callable[[], Any], name: str) -> Any:
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

    def __init__(self, processor: Any, padding: str) -> None:
        self.processor, self.padding = processor, padding

    def __call__(self, rows: Sequence[Any]) -> Any:
        refusal = next((row for row in rows if isinstance(row, Refusal)), None)
        return refusal or contained(lambda: self.processor.collate(list(rows), padding=self.padding), "collate")


class TrainingSamples(Dataset):
    """Encoded samples by place in the order; each draws from a generator of its own, whichever process makes it."""

    def __init__(self, sources: Mapping[str, Source], processor: Any, seed: int) -> None:
        self.sources, self.processor, self.seed = dict(sources), processor, seed

    def __getitem__(self, place: Place) -> Any:
        generator = seeded(self.seed, "sample", place.epoch, place.source, place.index)
        source = self.sources[place.source]
        return contained(
            lambda: self.processor.encode(source.sample(place.index, generator), random=generator), str(place)
        )


class SampleLoader(DataLoader):
    """A DataLoader that says what is wrong with a sample in a sentence, with and without workers."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, Refusal):
                raise ValueError(batch.sentence)
            yield batch


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


class _Stream(Sampler[list[Place]]):
    """The micro-batches of one rank, from number `start` on."""

    def __init__(self, order: Order, micro_batch: int, rank: int, world: int, total: int) -> None:
        self.order, self.micro_batch, self.rank, self.world, self.total = order, micro_batch, rank, world, total
        self.start = 0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[Place]]:
        for number in range(self.start, self.total):
            first = (number * self.world + self.rank) * self.micro_batch
            yield [self.order.at(position) for position in range(first, first + self.micro_batch)]


class ResumableLoader(SampleLoader):
    """Rank `rank`'s micro-batches of a whole training stage.

    Iterating goes on from the current position, which `load_state_dict` sets. The state names the batches that were
    handed out, not those that workers have read ahead; it is the same on all ranks and fits any other cut of the
    stream into ranks and micro-batches that has a border there (every optimizer step is one).

    Args:
        dataset: encoded samples by Place.
        order: the stream.
        collate_fn: rows of the dataset -> batch.
        micro_batch: samples of one rank in one forward pass.
        global_batch: samples of one optimizer step, over all ranks.
        steps: optimizer steps of the stage.
        rank: of this process, below `world`.
        world: number of processes.
        workers: processes that read ahead.

    Raises:
        ValueError: the global batch is not a multiple of what the ranks take at once.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        *,
        collate_fn: Callable[[list[Any]], Any],
        micro_batch: int,
        global_batch: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        assert 0 <= rank < world
        at_once = micro_batch * world
        if micro_batch < 1 or global_batch < 1 or global_batch % at_once:
            raise ValueError(
                f"global_batch: found {global_batch}, expected a multiple of {at_once} = micro_batch {micro_batch}"
                f" x {world} processes"
            )
        self.at_once = at_once
        self.accumulation = global_batch // at_once
        """Micro-batches of one optimizer step."""
        self._handed_out = 0
        self._stream = _Stream(order, micro_batch, rank, world, steps * self.accumulation)
        super().__init__(dataset, batch_sampler=self._stream, collate_fn=collate_fn, **loading(workers))

    def __len__(self) -> int:
        """Micro-batches of the whole stage, those before the current position included."""
        return len(self._stream)

    def __iter__(self) -> Iterator[Any]:
        self._stream.start = self._handed_out
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self._handed_out * self.at_once}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position.

        Raises:
            ValueError: it lies inside a micro-batch of these ranks, or behind the end of the data.
        """
        position, end = state["position"], len(self) * self.at_once
        if position % self.at_once or not 0 <= position <= end:
            raise ValueError(
                f"loader position: found {position}, expected a multiple of {self.at_once} (samples that all processes"
                f" take at once) from 0 to {end}; was the data or the batch size changed since the checkpoint?"
            )
        self._handed_out = position // self.at_once
