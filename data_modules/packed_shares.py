"""How the samples of a step are dealt where they are packed: into so many micro-batches, with such lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_modules.dealing import Dealing, Size, fewest_passes
from data_modules.lengths import LengthIndex
from data_modules.mixture_sampler import MixtureSampler
from data_modules.stream import SampleOrder, Share
from data_modules.text import TextRows

BUDGET = "hardware.token_budget"


@dataclass(frozen=True)
class Packing:
    """What is known of packed rows before a stage.

    Args:
        budget: tokens of a row at most (`hardware.token_budget`), but for a sample that alone has more; None for as
            many as the samples of a micro-batch have.
        image_cost: as in `Dealing`.

    Raises:
        ValueError: a number is out of range.
    """

    budget: int | None = None
    image_cost: int = 0

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"{BUDGET}: found {self.budget}, expected at least 1")
        if self.image_cost < 0:
            raise ValueError(f"hardware.image_cost: found {self.image_cost}, expected at least 0")

    def shares(
        self, orders: Sequence[tuple[Share, SampleOrder]], lengths: LengthIndex, steps: int, world: int
    ) -> list[Share]:
        """The shares with how they are dealt to `world` ranks.

        Without a budget each has as many micro-batches as it would have unpacked; with one the fewest that hold all
        `steps` of the stage, for which its whole order is looked through.

        Raises:
            ValueError: a batch is not a multiple of what the ranks take at once, or the budget is too small.
        """
        return [self._dealt(share, order, lengths, steps, world) for share, order in orders]

    def _dealt(self, share: Share, order: SampleOrder, lengths: LengthIndex, steps: int, world: int) -> Share:
        if isinstance(order, TextRows):
            row = Size(order.length)
            passes = 1 if self.budget is None else -(-share.batch // (max(1, self.budget // order.length) * world))
            dealing = Dealing(lambda _: row, passes, self.budget)
        else:
            passes = 1
            if self.budget is not None:
                assert isinstance(order, MixtureSampler), "whose global batches are known"
                batches, sizes = order.global_batches(steps), lengths.sizes()
                passes = fewest_passes(BUDGET, batches, sizes, self.budget, world, self.image_cost)
            dealing = Dealing(lengths.size, passes, self.budget, self.image_cost)
        if self.budget is None:
            dealing = replace(dealing, passes=share.micro_batches(world))
        return replace(share, dealing=dealing)


def packing_of(pack: bool, budget: int | None, image_cost: int) -> Packing | None:
    """What a data module's settings say; None where samples are padded.

    Raises:
        ValueError: as `Packing`; or a setting of packed rows without them.
    """
    if pack:
        return Packing(budget, image_cost)
    if budget is not None or image_cost:
        raise ValueError(
            f"{BUDGET}: found {budget} (hardware.image_cost {image_cost}) with samples that are padded, expected none,"
            " or hardware.pack: true"
        )
    return None
