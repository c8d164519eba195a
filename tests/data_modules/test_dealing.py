"""A step dealt to ranks and micro-batches: every sample once, images together, evenly, within a budget."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from data_modules.dealing import Dealing, Size, Sizes, deal, digest, fewest_passes


def drawn(count: int, seed: int = 0, shared: bool = True) -> list[Size]:
    """Lengths as of instructions: many short ones, a few long; four in five with an image that others may show too."""
    source = random.Random(seed)
    sizes = list[Size]()
    for _ in range(count):
        own, visual = int(source.lognormvariate(4.5, 0.7)) + 40, 144 if source.random() < 0.8 else 0
        sizes.append(Size(own, visual, source.randrange(count // 2) if visual and shared else None))
    return sizes


def tokens(pack: Sequence[int], sizes: Sequence[Size]) -> int:
    """Of a packed row: those of an image once."""
    shown = {(sizes[k].images if sizes[k].images is not None else -1 - k): sizes[k].visual for k in pack}
    return sum(sizes[k].own for k in pack) + sum(shown.values())


@pytest.mark.parametrize(("passes", "world"), [(1, 1), (1, 2), (4, 1), (4, 2), (3, 8), (16, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_sample_is_dealt_once_and_samples_of_an_image_together(seed: int, passes: int, world: int) -> None:
    sizes = drawn(64, seed)
    packs = deal(sizes, passes, world)
    assert packs is not None and len(packs) == passes * world and all(packs)
    assert sorted(itertools.chain(*packs)) == list(range(64))
    assert packs == deal(list(sizes), passes, world), "a pure function"
    where = {number: pack for pack, numbers in enumerate(packs) for number in numbers}
    by_image: dict[int, set[int]] = {}
    for number, size in enumerate(sizes):
        if size.images is not None:
            by_image.setdefault(size.images, set()).add(where[number])
    apart = sum(len(each) > 1 for each in by_image.values())
    if passes * world < 64:
        assert apart == 0 if world == 1 else apart <= 3, "only where ranks would wait for one another"
    for pack in packs:
        shown = [sizes[number].images for number in pack]
        runs = [key for key, _ in itertools.groupby(shown) if key is not None]
        assert len(runs) == len(set(runs)), "those of an image stand side by side"


def test_packs_are_even_where_consecutive_ones_are_not() -> None:
    """Eight ranks of a step of 256: the longest has 2 % more than the mean, where consecutive samples have 10 %."""
    sizes = drawn(256, shared=False)
    dealt = [tokens(pack, sizes) for pack in deal(sizes, 1, 8) or ()]
    as_they_come = [tokens(range(first, first + 32), sizes) for first in range(0, 256, 32)]
    mean = sum(dealt) / 8
    assert max(dealt) / mean < 1.02 and max(as_they_come) / mean > 1.1
    assert sum(dealt) == sum(as_they_come)


def test_samples_of_an_image_are_apart_where_ranks_would_wait() -> None:
    """Nine on one image beside three others: two of them move, and their rank computes the image too."""
    sizes = [Size(20, 10, 1)] * 9 + [Size(20), Size(20), Size(20)]
    packs = deal(sizes, 1, 2)
    assert packs is not None and sorted(tokens(pack, sizes) for pack in packs) == [130, 130]
    assert sorted(tokens(pack, sizes) for pack in deal(sizes, 2, 1) or ()) == [60, 190], "one rank waits for nobody"


def test_ranks_take_turns_with_the_longest() -> None:
    sizes = [Size(own) for own in (8, 7, 6, 5, 4, 3, 2, 1)]
    assert deal(sizes, 4, 2) == [[0], [1], [3], [2], [4], [5], [7], [6]]


def test_an_image_costs_more_than_its_tokens() -> None:
    """Two samples with images of 10 tokens and two of text alone: by tokens the images may meet, by cost not."""
    sizes = [Size(10, 10, 0), Size(5, 10, 1), Size(24), Size(19)]
    by_tokens, by_cost = deal(sizes, 1, 2), deal(sizes, 1, 2, image_cost=100)
    assert by_tokens is not None and sorted(map(sorted, by_tokens)) == [[0, 3], [1, 2]]
    assert by_cost is not None and all(sum(k < 2 for k in pack) == 1 for pack in by_cost)
    sizes = [Size(1, 30, 0), Size(1, 30, 1), Size(90)]
    assert sorted(map(sorted, deal(sizes, 1, 2) or ())) == [[0, 1], [2]]
    assert sorted(map(sorted, deal(sizes, 1, 2, image_cost=100) or ())) == [[0, 2], [1]]


def test_a_budget_holds_and_a_longer_sample_stands_alone() -> None:
    sizes = [*drawn(40), Size(5000)]
    for passes in range(1, 41):
        if (packs := deal(sizes, passes, 1, 1000)) is not None:
            break
    else:
        raise AssertionError
    alone = [pack for pack in packs if 40 in pack]
    assert alone == [[40]]
    assert all(tokens(pack, sizes) <= 1000 for pack in packs if pack != [40])


def test_samples_of_an_image_are_split_where_they_must_be() -> None:
    sizes = [Size(30, 50, 7)] * 6
    assert deal(sizes, 3, 1, 120) == [[0, 1], [2, 3], [4, 5]]
    assert deal(sizes, 2, 1, 120) is None, "each part has the image's 50 tokens anew"
    assert sorted(map(len, deal(sizes, 1, 4) or ())) == [1, 1, 2, 2], "one of them for each rank at least"
    with pytest.raises(ValueError, match=r"found 6 samples, expected one for each of 7 x 1 micro-batches"):
        deal(sizes, 7, 1)


def arrays(sizes: Sequence[Size]) -> Sizes:
    images = [-1 - k if size.images is None else size.images for k, size in enumerate(sizes)]
    return Sizes(*(np.array(each) for each in ([s.own for s in sizes], [s.visual for s in sizes], images)))


@pytest.mark.parametrize(("world", "budget"), [(1, 700), (1, 2000), (2, 900), (8, 1500)])
def test_the_fewest_passes_hold_every_step(world: int, budget: int) -> None:
    """As found by dealing every step; with one fewer some step does not fit."""
    sizes = drawn(600, seed=4)
    steps = np.random.default_rng(0).permutation(600).reshape(-1, 40)
    found = fewest_passes("b", [steps[:7], steps[7:]], arrays(sizes), budget, world)

    def fits(passes: int) -> bool:
        given = [deal([sizes[k] for k in step], passes, world, budget) for step in steps.tolist()]
        return all(each is not None for each in given)

    assert fits(found) and (found == 1 or not fits(found - 1))
    assert arrays(sizes).of(steps[0]) == [sizes[k] for k in steps[0].tolist()]


def test_a_budget_that_is_too_small() -> None:
    sizes = [Size(60)] * 12
    with pytest.raises(
        ValueError,
        match=r"^hardware.token_budget: found 100 tokens for each micro-batch of 5 processes, expected more, or fewer"
        r" processes: the longest step has 720 tokens in 12 samples",
    ):
        fewest_passes("hardware.token_budget", [np.arange(12)[None]], arrays(sizes), 100, 5)
    assert fewest_passes("b", [np.arange(12)[None]], arrays(sizes), 100, 4) == 3
    assert fewest_passes("b", [np.arange(12)[None]], arrays([Size(1000)] * 12), 100, 4) == 3


def test_a_step_is_known_by_how_it_is_dealt() -> None:
    dealing = Dealing(lambda size: size, passes=2)
    one, other = dealing.packs(drawn(16, 1), 2), dealing.packs(drawn(16, 2), 2)
    assert digest(one) == digest(dealing.packs(drawn(16, 1), 2)) != digest(other)
    assert Counter(itertools.chain(*one)) == Counter(range(16))
