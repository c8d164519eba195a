"""The samples of an optimizer step, dealt to micro-batches and ranks so that all of them have about equally much to do.

    step     | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | ...        G samples of the order
    packs    the longest first, each to the pack that has least so far (Graham 1969: at most 4/3 of the best)

             rank 0      rank 1                            A x W packs, the longest first
             | 3 0   |   | 6     |    micro-batch 0
             | 5 7   |   | 1 2 4 |    micro-batch 1

Samples that show the same images go to one pack, where a packed row holds the tokens of these images once; but for
those that, moved to the shortest pack of the same micro-batch, leave its ranks less to wait for. Which samples make up
a step is a matter of the order alone; here it is only said which rank takes them, and when. All ranks find the same
from the order and the lengths.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int


class Size(NamedTuple):
    """What a sample adds to a packed row, in tokens, by the length index."""

    own: int
    """All but those of its images."""
    visual: int = 0
    """Of its images; samples with the same images share them."""
    images: int | None = None
    """A number of the images, the same in all samples that show them; None where samples share none."""


class _Unit(NamedTuple):
    """Samples that stay together."""

    tokens: int
    cost: int
    samples: list[int]


@dataclass(frozen=True)
class Dealing:
    """How the samples of a step are dealt.

    Args:
        size: of what stands in the order.
        passes: micro-batches of a step of each rank.
        budget: tokens of a pack at most, but for a sample that alone has more; None for as many as it takes.
        image_cost: what an image costs beside its tokens (the tower's pass), in tokens.
    """

    size: Callable[[Any], Size]
    passes: int
    budget: int | None = None
    image_cost: int = 0

    def packs(self, samples: Sequence[object], world: int) -> list[list[int]]:
        """Of the samples of a step, those of micro-batch a of rank r, by their numbers, in place `a * world + r`."""
        found = deal([self.size(each) for each in samples], self.passes, world, self.budget, self.image_cost)
        assert found is not None, "the number of passes was found for these samples"
        return found


def deal(
    sizes: Sequence[Size], passes: int, world: int, budget: int | None = None, image_cost: int = 0
) -> list[list[int]] | None:
    """The numbers of the samples in each of `passes * world` packs, none of them empty; as `Dealing.packs`.

    None where they do not fit into the budget.

    Raises:
        ValueError: there are fewer samples than packs.
    """
    number = passes * world
    if len(sizes) < number:
        raise ValueError(f"found {len(sizes)} samples, expected one for each of {passes} x {world} micro-batches")
    units = _units(sizes, budget, image_cost)
    while len(units) < number:
        _split(units, sizes, image_cost)
    units.sort(key=lambda unit: (-unit.cost, unit.samples[0]))
    packs: list[list[list[int]]] = [[] for _ in range(number)]
    tokens = [0] * number
    emptiest = [(0, pack) for pack in range(number)]
    for unit in units:
        full = list[tuple[int, int]]()
        while emptiest and budget is not None and tokens[emptiest[0][1]] + min(unit.tokens, budget) > budget:
            full.append(heapq.heappop(emptiest))
        if not emptiest:
            return None
        cost, pack = heapq.heappop(emptiest)
        packs[pack].append(unit.samples)
        tokens[pack] += unit.tokens
        for each in (*full, (cost + unit.cost, pack)):
            heapq.heappush(emptiest, each)
    longest_first = [pack for _, pack in sorted(emptiest, key=lambda each: (-each[0], each[1]))]
    found = list[list[int]]()
    for first in range(0, number, world):
        together = [[k for unit in packs[pack] for k in unit] for pack in longest_first[first : first + world]]
        _even(together, sizes, budget, image_cost)
        # A rank that has the longest pack of one micro-batch has the shortest of the next.
        found += together if first // world % 2 == 0 else together[::-1]
    return [_side_by_side(pack, sizes) for pack in found]


def _even(packs: list[list[int]], sizes: Sequence[Size], budget: int | None, image_cost: int) -> None:
    """Moves samples from the longest to the shortest of packs that are computed at the same time, while that helps."""
    keys = [-1 - number if size.images is None else size.images for number, size in enumerate(sizes)]
    shown = [Counter(keys[k] for k in pack) for pack in packs]
    costs = [sum(_unit(samples, sizes, image_cost).cost for samples in _by_image(pack, sizes)) for pack in packs]
    for _ in range(4 * len(packs)):
        long, short = costs.index(max(costs)), costs.index(min(costs))
        moves = list[tuple[int, int, int, int]]()
        for k in packs[long] if len(packs[long]) > 1 else ():
            image = sizes[k].visual + image_cost * (sizes[k].visual > 0)
            left = costs[long] - sizes[k].own - image * (shown[long][keys[k]] == 1)
            grown = costs[short] + sizes[k].own + image * (not shown[short][keys[k]])
            moves.append((max(left, grown), k, left, grown))
        most, k, left, grown = min(moves, default=(costs[long], 0, 0, 0))
        if most >= costs[long] or (budget is not None and most > budget):
            return
        packs[long].remove(k)
        packs[short].append(k)
        shown[long][keys[k]] -= 1
        shown[short][keys[k]] += 1
        costs[long], costs[short] = left, grown


def _by_image(pack: Sequence[int], sizes: Sequence[Size]) -> Iterable[list[int]]:
    """The samples of the same images together, in the order of the first of each."""
    groups: dict[tuple[bool, int], list[int]] = {}
    for number in sorted(pack):
        images = sizes[number].images
        groups.setdefault((False, number) if images is None else (True, images), []).append(number)
    return groups.values()


def _side_by_side(pack: Sequence[int], sizes: Sequence[Size]) -> list[int]:
    return [number for samples in _by_image(pack, sizes) for number in samples]


def _unit(samples: list[int], sizes: Sequence[Size], image_cost: int) -> _Unit:
    visual = sizes[samples[0]].visual
    tokens = max(1, visual + sum(sizes[each].own for each in samples))
    return _Unit(tokens, tokens + image_cost * (visual > 0), samples)


def _units(sizes: Sequence[Size], budget: int | None, image_cost: int) -> list[_Unit]:
    """The samples of the same images together, in as many parts as the budget asks for."""
    parts = list[list[int]]()
    for group in _by_image(range(len(sizes)), sizes):
        used = 0
        for number in group:
            size = sizes[number]
            if number == group[0] or (budget is not None and used + size.own > budget):
                parts.append([])
                used = size.visual
            parts[-1].append(number)
            used += size.own
    return [_unit(part, sizes, image_cost) for part in parts]


def _split(units: list[_Unit], sizes: Sequence[Size], image_cost: int) -> None:
    """Halves the longest of those that have several samples."""
    place = max((k for k, unit in enumerate(units) if len(unit.samples) > 1), key=lambda k: (units[k].tokens, -k))
    samples = units[place].samples
    half = (len(samples) + 1) // 2
    units[place : place + 1] = [_unit(part, sizes, image_cost) for part in (samples[:half], samples[half:])]


def digest(packs: Iterable[Sequence[int]]) -> int:
    """A number of how a step is dealt."""
    written = repr([list(pack) for pack in packs]).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=6).digest(), "big")


class Sizes(NamedTuple):
    """Of many samples, as `Size`."""

    own: Int[np.ndarray, " N"]
    visual: Int[np.ndarray, " N"]
    images: Int[np.ndarray, " N"]
    """As `Size.images`; negative numbers, each of them once, where samples share none."""

    def of(self, numbers: Int[np.ndarray, " K"]) -> list[Size]:
        arrays = (each[numbers].tolist() for each in self)
        return [Size(own, visual, images if images >= 0 else None) for own, visual, images in zip(*arrays, strict=True)]


def fewest_passes(
    name: str, steps: Iterable[Int[np.ndarray, "_ G"]], sizes: Sizes, budget: int, world: int, image_cost: int = 0
) -> int:
    """The fewest micro-batches of a step with which no pack of any step has more tokens than the budget.

    Args:
        name: of the setting that says the budget, for the error.
        steps: the numbers of the samples of all steps of a stage, a step a row; some steps at a time.
        sizes: of the samples.
        budget: tokens of a pack.
        world: ranks.
        image_cost: as in `Dealing`.

    Raises:
        ValueError: there are too few samples in a step for so small a budget.
    """
    least, hard = 1, list[tuple[int, int, Int[np.ndarray, " G"]]]()
    for some in steps:
        totals, longest = _totals(some, sizes, budget)
        least = max(least, -(-int(totals.max()) // (budget * world)))
        new = np.flatnonzero(_may_fail(totals, longest, least * world, budget)).tolist()
        hard += [(int(totals[k]), int(longest[k]), some[k]) for k in new]
        hard = [each for each in hard if _may_fail(each[0], each[1], least * world, budget)]
    hard.sort(key=lambda each: -each[0])
    for passes in range(least, max((len(each[2]) // world for each in hard), default=least) + 1):
        left = (each[2] for each in hard if _may_fail(each[0], each[1], passes * world, budget))
        if all(deal(sizes.of(numbers), passes, world, budget, image_cost) is not None for numbers in left):
            return passes
    raise ValueError(
        f"{name}: found {budget} tokens for each micro-batch of {world} processes, expected more, or fewer processes:"
        f" the longest step has {hard[0][0]} tokens in {len(hard[0][2])} samples"
    )


def _may_fail(totals: np.ndarray | int, longest: np.ndarray | int, number: int, budget: int) -> np.ndarray | bool:
    """Whether `number` packs might not hold a step: where this is False, whatever is dealt last still finds room."""
    return totals - longest > number * (budget - longest)


def _totals(
    some: Int[np.ndarray, "S G"], sizes: Sizes, budget: int
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Of each step the tokens of all its samples, and of the most that stay together; none counts for more than the
    budget."""
    images = sizes.images[some]
    by = np.argsort(images, axis=1, kind="stable")
    images, some = np.take_along_axis(images, by, axis=1), np.take_along_axis(some, by, axis=1)
    begins = np.ones_like(images, dtype=bool)
    begins[:, 1:] = images[:, 1:] != images[:, :-1]
    tokens = sizes.own[some] + np.where(begins, sizes.visual[some], 0).astype(np.int64)
    units = np.add.reduceat(tokens.ravel(), np.flatnonzero(begins))
    longest = np.maximum.reduceat(units, np.concatenate([[0], np.cumsum(begins.sum(1))[:-1]]))
    return np.minimum(tokens, budget).sum(1), np.minimum(longest, budget)
