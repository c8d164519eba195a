"""Which samples make up each micro-batch of a rank: a function of the orders and the position.

All ranks walk one stream of samples. With W ranks, micro-batches of m samples and global batches of G = A * W * m:

    stream   | rank 0, m | rank 1, m | ... | rank 0, m | rank 1, m | ...
               `---- micro-batch 0 ---'      `---- micro-batch 1 ---'     ... A of them are one optimizer step

Where samples are packed, those of a step are dealt to its micro-batches instead (`dealing.py`):

    stream   | 0 of rank 1 | 0 of rank 0 | 1 of rank 0 | 0 of rank 1 | ...

Where a step also takes rows of plain text, its text comes first, in micro-batches of its own:

    stream   | text | text | samples | samples | samples | text | text | samples | ...
               `------------- one step -------------'
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Sampler

from data_modules.dealing import Dealing, digest
from lightning_mllm.contracts import accumulation


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
    """Those of one rank in one forward pass, where they are not dealt."""
    own_mean: float | None = None
    """As in `Batch`."""
    dealing: Dealing | None = None
    """How they are dealt; None for `micro_batch` after one another."""

    def micro_batches(self, world: int) -> int:
        """Of one of `world` ranks.

        Raises:
            ValueError: the batch is not a multiple of what the ranks take at once, or too small to be dealt.
        """
        if self.dealing is None:
            return accumulation(self.name, self.batch, self.micro_batch, world)
        if self.batch < (least := self.dealing.passes * world):
            raise ValueError(
                f"{self.name}: found {self.batch}, expected at least {least} = {self.dealing.passes} micro-batches of"
                f" {world} processes"
            )
        return self.dealing.passes

    def told(self, world: int) -> str:
        """How a step is cut, in words."""
        count = self.micro_batches(world)
        if self.dealing is None:
            return f"{self.batch} = {count} x {self.micro_batch} x {world}"
        return f"{self.batch} dealt to {count} x {world}"


class MicroBatch(NamedTuple):
    """What a rank takes at once."""

    share: Share
    samples: list[Any]
    """What stands in the order."""
    numbers: tuple[int, ...]
    """Where samples are dealt: theirs among all samples of the step of which one mean is taken (`Batch.numbers`)."""
    together: int
    """How many those are."""


class Cut(NamedTuple):
    """An optimizer step, cut into micro-batches."""

    own: list[MicroBatch]
    """Of this rank."""
    before: list[int]
    """Samples of all ranks before each micro-batch, and at the end."""
    digest: int | None
    """Of how they are dealt, if they are."""


class Stream(Sampler[list[Any]]):
    """The micro-batches of one rank, from number `start` on.

    Args:
        orders: what one optimizer step takes, of which order; first comes first, and a micro-batch is of one order.
        steps: optimizer steps of the stage.
        rank: of this process, below `world`.
        world: number of processes.
    """

    def __init__(self, orders: Sequence[tuple[Share, SampleOrder]], steps: int, rank: int, world: int) -> None:
        self.orders, self.steps, self.rank, self.world = list(orders), steps, rank, world
        self.shares = [share for share, _ in orders]
        self.batch = sum(share.batch for share in self.shares)
        """Samples of all ranks in one optimizer step."""
        self.accumulation = sum(share.micro_batches(world) for share in self.shares)
        """Micro-batches of one optimizer step."""
        self.start = 0
        self.ahead: deque[MicroBatch] = deque()
        """Given to the workers and not handed out; to ask an order again would draw an old epoch anew."""
        self._cuts: dict[int, Cut] = {}
        """The steps that these are of."""

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[Any]]:
        self.ahead = ahead = deque()
        for number in range(self.start, len(self)):
            step, within = divmod(number, self.accumulation)
            ahead.append(self.cut(step).own[within])
            yield ahead[-1].samples

    def forget(self, step: int) -> None:
        """The steps before this one are done with."""
        self._cuts = {number: cut for number, cut in self._cuts.items() if number >= step}

    def cut(self, step: int) -> Cut:
        """How a step is cut."""
        if step not in self._cuts:
            self._cuts[step] = self._cut(step)
        return self._cuts[step]

    def _cut(self, step: int) -> Cut:
        own, lengths, dealt = list[MicroBatch](), list[int](), list[list[int]]()
        for place, (share, order) in enumerate(self.orders):
            first = step * share.batch
            if share.dealing is None:
                starts = range(0, share.batch, share.micro_batch)
                packs = [list(range(start, start + share.micro_batch)) for start in starts]
            else:
                packs = share.dealing.packs([order.at(first + number) for number in range(share.batch)], self.world)
                dealt += packs
            alike = [each.batch for each in self.shares if each.own_mean == share.own_mean]
            before = sum(each.batch for each in self.shares[:place] if each.own_mean == share.own_mean)
            for pack in packs[self.rank :: self.world]:
                numbers = () if share.dealing is None else tuple(before + number for number in pack)
                own.append(MicroBatch(share, [order.at(first + number) for number in pack], numbers, sum(alike)))
            counts = list(map(len, packs))
            lengths += [sum(counts[k : k + self.world]) for k in range(0, len(counts), self.world)]
        return Cut(own, [0, *accumulate(lengths)], digest(dealt) if dealt else None)

    def state(self, number: int) -> dict[str, int]:
        """Of a loader before micro-batch `number`: samples of all ranks before it; inside a step that is dealt also how
        it is dealt."""
        step, within = divmod(number, self.accumulation)
        if not within:
            return {"position": step * self.batch}
        cut = self.cut(step)
        return {"position": step * self.batch + cut.before[within]} | (
            {} if cut.digest is None else {"dealt": cut.digest}
        )

    def number(self, state: dict[str, int]) -> int:
        """The micro-batch that a loader of this state comes to next.

        Raises:
            ValueError: none begins there.
        """
        position, most = state["position"], self.steps * self.batch
        step, within = divmod(position, self.batch)
        if 0 <= position <= most and within == 0:
            return step * self.accumulation
        if 0 <= position <= most and within in (cut := self.cut(step)).before and cut.digest == state.get("dealt"):
            return step * self.accumulation + cut.before.index(within)
        if "dealt" in state or any(share.dealing for share in self.shares):
            raise ValueError(
                f"loader position: found {position}, inside an optimizer step that was dealt otherwise, expected a"
                f" multiple of {self.batch} (the samples of a step) from 0 to {most}; go on with the packing, the"
                " processes and the micro-batches of the checkpoint"
            )
        at_once = " or ".join(str(share.micro_batch * self.world) for share in self.shares)
        raise ValueError(
            f"loader position: found {position}, expected a multiple of {at_once} (samples that all processes take"
            f" at once) from 0 to {most}; was the data or the batch size changed since the checkpoint?"
        )
