"""Packed samples, dealt: in any order, by any number of workers, on any number of ranks, and after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.dealing import Dealing, Size
from data_modules.lengths import LengthIndex
from data_modules.loader import Collate, ResumableLoader
from data_modules.mixture_sampler import MixtureSampler
from data_modules.packed_shares import Packing
from data_modules.sources import TextLines
from data_modules.sources.source import key_of_images
from data_modules.stream import Share, Stream
from data_modules.text import TextRows
from data_modules.training_samples import TrainingSamples
from lightning_mllm.contracts import Batch, Encoded, Sample
from tests.data_modules.files import Numbers, write
from tests.data_modules.test_loader import small_batch

BATCH, STEPS = 12, 6
VECTORS = 6


class Shown(Numbers):
    """Two samples an image, some without any, in shards of five; every eleventh is bad and is replaced."""

    bad_records = "skip"

    def image_key(self, index: int) -> int | None:
        return key_of_images("", [f"{self.name}{index // 2}.png"]) if self.has_image(index) else None

    def runs(self) -> np.ndarray:
        return np.array([min(5, self.size - first) for first in range(0, self.size, 5)])


class Packed:
    """A processor that gives two tokens a word and packs; the samples that it shows are known by their numbers."""

    image: Any = None

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None) -> Encoded:
        if sample.documents is not None:
            length = sample.documents.length or sum(len(text) for text in sample.documents.texts) // 3 + 1
            words, drawn = length // 2, "text"
        else:
            number = int(sample.turns[-1].text)
            if number % 11 == 10:
                raise ValueError(f"sample {sample.id}: its image is truncated")
            words, drawn = Numbers(99).length(number), sample.turns[0].text
        count = VECTORS * len(sample.images)
        row = torch.ones(count + 2 * words, dtype=torch.long)
        images = torch.zeros(len(sample.images), 3, 2, 2, dtype=torch.uint8)
        return Encoded(
            id=sample.id,
            tokens=row,
            labels=row,
            kinds=row.byte(),
            images=images,
            visual_counts=(VECTORS,) * len(sample.images),
            prompt=drawn,
        )

    def collate(self, rows: Sequence[Encoded], *, padding: str = "right", packed: bool = False) -> Batch:
        assert padding == "right"
        notes = [("packed" if packed else "padded", str(len(row.tokens)), *row.notes) for row in rows]
        return replace(small_batch(), ids=[row.id for row in rows], prompts=[row.prompt for row in rows], notes=notes)


def order_of(group: Any) -> MixtureSampler:
    sources = sources_of()
    return MixtureSampler(
        {name: len(each) for name, each in sources.items()},
        seed=5,
        group=group,
        batch=BATCH,
        lengths=lambda name, index: sources[name].length(index),
        runs=lambda name: sources[name].runs(),
        images=lambda name, index: sources[name].image_key(index),
    )


def sources_of() -> dict[str, Any]:
    return {"a": Shown(29, "a", mixed=True), "b": Shown(18, "b")}


def make(
    group: str = "none",
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    budget: int | None = 60,
    micro: int = 2,
    text: TextRows | None = None,
    own_mean: float | None = None,
    pack: bool = True,
) -> ResumableLoader:
    sources, processor = sources_of(), Packed()
    orders: list[Any] = [(Share("stage.global_batch", BATCH, micro), order_of(group))]
    if text is not None:
        orders.insert(0, (Share("data.text.tokens", 4, 1, own_mean), text))
    if pack:
        shares = Packing(budget).shares(orders, LengthIndex(sources, processor, 5), STEPS, world)
        orders = [(share, order) for share, (_, order) in zip(shares, orders, strict=True)]
    return ResumableLoader(
        TrainingSamples(sources, processor, 5, text),
        orders,
        collate_fn=Collate(processor, "right", packed=pack),
        steps=STEPS,
        rank=rank,
        world=world,
        workers=workers,
    )


def seen(loader: ResumableLoader) -> list[Any]:
    """All that is random, or dealt, about each micro-batch."""
    return [(b.ids, b.prompts, b.notes, b.sources, b.numbers, b.together, b.own_mean) for b in loader]


def steps_of(ranks: Sequence[Sequence[Any]], accumulation: int) -> list[list[Any]]:
    """Of each optimizer step the samples of all ranks, in the order of the data."""
    found = []
    for first in range(0, len(ranks[0]), accumulation):
        some = [each for rank in ranks for each in rank[first : first + accumulation]]
        rows = [
            (number, id, drawn)
            for ids, prompts, _, _, numbers, *_ in some
            for id, drawn, number in zip(ids, prompts, numbers, strict=True)
        ]
        found.append([(id, drawn) for _, id, drawn in sorted(rows)])
    return found


@pytest.fixture(scope="module", params=["none", "length", "shard", "image"])
def group(request: pytest.FixtureRequest) -> str:
    return request.param


def in_order(group: str) -> list[list[tuple[str, str]]]:
    """The samples of each step as they come without packing."""
    rows = [pair for b in make(group, pack=False, micro=BATCH) for pair in zip(b.ids, b.prompts, strict=True)]
    return [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("budget", [60, None])
def test_steps_are_those_of_the_order(group: str, world: int, budget: int | None) -> None:
    """No sample twice and none lost, in whichever order, on whichever ranks; and replaced ones by the same."""
    loaders = [make(group, rank=rank, world=world, budget=budget) for rank in range(world)]
    accumulation = loaders[0].accumulation
    ranks = [seen(loader) for loader in loaders]
    assert steps_of(ranks, accumulation) == in_order(group)
    assert {note[0] for rank in ranks for _, _, notes, *_ in rank for note in notes} == {"packed"}
    assert all(each[5] == BATCH for rank in ranks for each in rank)
    counts = [len(each[0]) for rank in ranks for each in rank]
    assert len(set(counts)) > 1, "dealt by length, not by number"


def test_resume_at_every_step(group: str) -> None:
    """The second of two ranks; inside a step it goes on too, on the same ranks and with the same budget."""
    how: dict[str, Any] = {"rank": 1, "world": 2, "budget": 40}
    whole, running, states = seen(make(group, **how)), make(group, **how), []
    for _ in running:
        states.append(running.state_dict())
    accumulation = running.accumulation
    assert accumulation > 1
    borders = range(accumulation - 1, len(whole), accumulation)
    assert [states[number] for number in borders] == [{"position": BATCH * (k + 1)} for k in range(STEPS)]
    for number in (*borders, 0, accumulation * 3):
        assert ("dealt" in states[number]) is (number not in borders)
        loader = make(group, **how)
        loader.load_state_dict(states[number])
        assert seen(loader) == whole[number + 1 :]


def test_workers_give_the_same_and_resume_the_same() -> None:
    whole = seen(make("shard", rank=1, world=2))
    running = make("shard", rank=1, world=2, workers=2)
    states = []
    first = []
    for batch in running:
        first.append(batch.ids)
        states.append(running.state_dict())
    assert first == [each[0] for each in whole]
    single = make("shard", rank=1, world=2)
    assert states == [single.state_dict() for _ in single]
    for number in (running.accumulation - 1, running.accumulation):
        loader = make("shard", rank=1, world=2, workers=2)
        loader.load_state_dict(states[number])
        assert seen(loader) == whole[number + 1 :]


def test_a_position_between_steps_fits_any_other_cut() -> None:
    """From two ranks and a budget to one rank, to another budget, to micro-batches that are padded; and back."""
    position = {"position": 3 * BATCH}
    rest = in_order("image")[3:]
    for how in ({"budget": None}, {"budget": 200}, {"world": 2, "budget": 90}, {"world": 3}, {"micro": 3}):
        loaders = [make("image", rank=rank, **how) for rank in range(how.get("world", 1))]  # pyright: ignore
        for loader in loaders:
            loader.load_state_dict(position)
        assert steps_of([seen(loader) for loader in loaders], loaders[0].accumulation) == rest
    padded = make("image", pack=False, micro=4)
    padded.load_state_dict(position)
    assert [id for batch in padded for id in batch.ids] == [id for step in rest for id, _ in step]


def test_a_position_inside_a_step_fits_the_same_cut_alone() -> None:
    running = make()
    next(iter(running))
    state = running.state_dict()
    words = r"loader position: found \d+, inside an optimizer step that was dealt otherwise, expected a multiple of 12"
    for other in (make(budget=110), make(pack=False, micro=1), make("length")):
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(state)
    padded = make(pack=False, micro=state["position"])
    with pytest.raises(ValueError, match=words):
        padded.load_state_dict(state)
    with pytest.raises(ValueError, match=words):
        make().load_state_dict({"position": state["position"]})
    with pytest.raises(ValueError, match=words):
        make().load_state_dict({"position": BATCH * (STEPS + 1)})
    make().load_state_dict(state)


@pytest.mark.parametrize("own_mean", [None, 0.5])
def test_rows_of_text_are_packed_beside_samples(own_mean: float | None, tmp_path: Path) -> None:
    """Rows of 20 tokens, two to a pass of 50: numbered before the samples where both share a mean."""
    lines = [{"text": "Some words and more words of it."}] * 60
    source = TextLines(write(tmp_path / "a.jsonl", lines))

    def loaders(world: int) -> list[ResumableLoader]:
        rows = TextRows(source, 20, 0, Packed())
        return [make(rank=rank, world=world, budget=50, text=rows, own_mean=own_mean) for rank in range(world)]

    (one,), two = loaders(1), loaders(2)
    whole, ranks = seen(one), [seen(each) for each in two]
    assert [len(each[0]) for each in whole[:2]] == [2, 2] and [len(each[0][0]) for each in ranks] == [2, 2]
    assert all(each[3] == ["data.text.tokens"] * 2 and each[6] == own_mean for each in whole[:2])
    together = {each[6]: each[5] for each in whole}
    assert together == ({None: 16} if own_mean is None else {0.5: 4, None: 12})
    numbers = sorted((each[6] is None, number) for each in whole[: one.accumulation] for number in each[4])
    if own_mean is None:
        assert numbers == [(True, number) for number in range(16)]
    else:
        assert numbers == [(False, number) for number in range(4)] + [(True, number) for number in range(12)]
    text = [each[0] for each in whole if each[3][0] == "data.text.tokens"]
    assert sorted(id for ids in text for id in ids) == sorted(
        id for rank in ranks for each in rank if each[3][0] == "data.text.tokens" for id in each[0]
    )
    (again,) = loaders(1)
    again.load_state_dict({"position": 16 * 3})
    assert seen(again) == whole[3 * one.accumulation :]


def test_an_order_is_asked_once_for_a_step_that_is_dealt() -> None:
    asked = list[int]()

    class Counted:
        def __len__(self) -> int:
            return 100

        def at(self, position: int) -> Any:
            asked.append(position)
            return position

    dealing = Dealing(lambda position: Size(position % 5 + 1), 2)
    stream = Stream([(Share("b", 4, 1, dealing=dealing), Counted())], 3, 0, 2)
    list(stream)
    assert max(asked) == 11
    assert stream.state(3) == {"position": 4 + stream.cut(1).before[1], "dealt": stream.cut(1).digest}
    stream.forget(1)
    asked.clear()
    stream.state(3)
    assert not asked, "what is not done with is not asked for again"
