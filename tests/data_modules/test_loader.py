from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.bad_samples import told
from data_modules.loader import Collate, ResumableLoader, Share, StepsAhead, optimizer_steps
from data_modules.mixture_sampler import MixtureSampler, SampleLocation
from data_modules.training_samples import TrainingSamples
from lightning_mllm.contracts import Batch, Encoded, Sample
from tests.data_modules.files import Echo, Numbers

SOURCES = {"a": Numbers(7, "a"), "b": Numbers(4, "b")}


def make(
    *,
    rank: int = 0,
    world: int = 1,
    micro: int = 2,
    batch: int = 4,
    steps: int = 33 // 4,
    workers: int = 0,
    processor: Any = None,
) -> ResumableLoader:
    order = MixtureSampler({name: len(source) for name, source in SOURCES.items()}, seed=5, batch=batch)
    return ResumableLoader(
        TrainingSamples(SOURCES, processor or Echo(), seed=5),
        [(Share("stage.global_batch", batch, micro), order)],
        collate_fn=Collate(processor or Echo(), "right"),
        steps=steps,
        rank=rank,
        world=world,
        workers=workers,
    )


def test_the_stream_is_the_order() -> None:
    loader = make()
    batches = list(loader)
    assert len(loader) == len(batches) == 8 * 2 and loader.accumulation == 2
    order = MixtureSampler({"a": 7, "b": 4}, seed=5)
    expected = [f"{name}{index}" for _, name, index in (order.at(k) for k in range(32))]
    assert [id for batch in batches for id in batch["ids"]] == expected
    assert {batch["padding"] for batch in batches} == {"right"}
    assert list(loader) == [], "a loader at its end stays there"


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_position(workers: int) -> None:
    """The state is taken while workers have read ahead, and after each batch; borders of epochs are at 11 and 22."""
    whole = list(make())
    running, states = make(workers=workers), []
    for number, batch in enumerate(running):
        assert batch == whole[number]
        states.append(running.state_dict())
    assert states == [{"position": 2 * (number + 1)} for number in range(len(whole))]
    stops = range(len(whole)) if workers == 0 else (0, 4, 5, 10, len(whole) - 1)
    for number in stops:
        torch.manual_seed(number)
        loader = make(workers=workers)
        loader.load_state_dict(states[number])
        assert len(loader) == len(whole), "the length is that of the whole stage"
        assert list(loader) == whole[number + 1 :]


def test_iterating_again_goes_on() -> None:
    whole, loader = list(make()), make(workers=1)
    for batch in loader:
        if loader.state_dict()["position"] == 6:
            assert batch == whole[2]
            break
    assert next(iter(loader)) == whole[3]


@pytest.mark.parametrize(("workers", "micro"), [(0, 4), (2, 4), (2, 2)])
def test_an_epoch_is_drawn_once_though_workers_read_the_next(
    workers: int, micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What workers read ahead reaches over the border of an epoch, and so do the micro-batches of a step."""
    drawn: list[int] = []
    draw = MixtureSampler._drawn

    def count(self: MixtureSampler, name: str, epoch: int) -> np.ndarray:
        drawn.append(epoch)
        return draw(self, name, epoch)

    monkeypatch.setattr(MixtureSampler, "_drawn", count)

    class Batches(Echo):
        def collate(self, rows: Any, *, padding: str = "right") -> Any:
            return replace(small_batch(), ids=[row.id for row in rows])

    shown = list(make(workers=workers, micro=micro, processor=Batches()))
    assert drawn == [0, 0, 1, 1, 2, 2], "each of the three epochs once, of both sources"
    assert all([id[0] for id in batch.ids] == batch.sources for batch in shown)


def test_ranks_share_out_each_global_batch() -> None:
    """Which samples are in optimizer step s does not depend on how the step is cut up."""
    one = make(micro=4, batch=4)
    steps = [sorted(zip(batch["ids"], batch["drawn"], strict=True)) for batch in one]
    for world, micro in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1)):
        ranks = [list(make(rank=rank, world=world, micro=micro)) for rank in range(world)]
        accumulation = 4 // (world * micro)
        for number, expected in enumerate(steps):
            window = slice(number * accumulation, (number + 1) * accumulation)
            rows = [row for rank in ranks for b in rank[window] for row in zip(b["ids"], b["drawn"], strict=True)]
            assert sorted(rows) == expected
        assert all(len(rank) == len(steps) * accumulation for rank in ranks)


def test_the_state_fits_another_number_of_ranks() -> None:
    first = make(world=2, rank=1, micro=2)
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    state = first.state_dict()
    assert state == {"position": 12}
    rest = list(make(micro=4))[3:]
    loader = make(micro=4)
    loader.load_state_dict(state)
    assert list(loader) == rest


def test_loaders_draw_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    list(make())
    list(make(workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_samples_draw_anew_in_each_epoch() -> None:
    drawn: dict[str, set[str]] = {}
    for batch in make():
        for id, text in zip(batch["ids"], batch["drawn"], strict=True):
            drawn.setdefault(id, set()).add(text)
    assert all(len(texts) >= 2 for texts in drawn.values())


class Drawing(Echo):
    """A processor that writes what it draws into the sample's id."""

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None) -> Sample:
        return replace(sample, id=f"{sample.id} {int(torch.randint(1 << 30, (), generator=random))}")


def test_a_processor_draws_from_the_generator_of_the_sample() -> None:
    first, again = ([id for batch in make(processor=Drawing()) for id in batch["ids"]] for _ in range(2))
    assert first == again and len(set(first)) == len(first)


@pytest.mark.parametrize("position", [3, -2, 34])
def test_positions_that_do_not_fit(position: int) -> None:
    with pytest.raises(
        ValueError, match=rf"loader position: found {position}, expected a multiple of 2 .* from 0 to 32"
    ):
        make().load_state_dict({"position": position})


def test_batches_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"stage.global_batch: found 4, expected a multiple of 3 = micro_batch 3 x 1 proc"
    ):
        make(micro=3)
    with pytest.raises(ValueError, match="found 12, expected at most 11 = 11 samples x 1 epochs"):
        optimizer_steps(11, 1, 12)
    assert optimizer_steps(11, 2, 12) == 1
    assert optimizer_steps(30, 0.1, 3) == 1
    assert optimizer_steps(558_128, 1, 256) == 2180


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refused_sample_is_one_sentence(workers: int) -> None:
    whole = list(make())
    refused = whole[5]["ids"][0]
    loader = make(workers=workers, processor=Echo(refused))
    with pytest.raises(ValueError) as error:
        list(loader)
    assert str(error.value) == f"sample {refused}: no good"
    assert loader.state_dict() == {"position": 8}, "still before the step of the refused batch"


def test_an_error_that_cannot_be_pickled_does_not_hang() -> None:
    class Local(Exception):
        pass

    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"sample 2 of data\.train\.b"):
        list(make(workers=1, processor=Echo("b2", Local)))
    assert time.monotonic() - started < 20


class Scanned(Numbers):
    """Every third sample has a truncated image: indices 1, 4, 7, ..."""

    def where(self, index: int) -> str:
        return f"file.json: record {index}"


class Strict(Echo):
    """Refuses them, and gives rows that notes can be written on."""

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None) -> Encoded:
        number = int(sample.turns[-1].text)
        if number % 3 == 1:
            raise ValueError(f"sample {sample.id!r}: cut.jpg: image file is truncated")
        empty = torch.zeros(0)
        rows = empty.long(), empty.long(), empty.byte(), torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        tokens, labels, kinds, images = rows
        drawn = sample.turns[0].text
        return Encoded(id=sample.id, tokens=tokens, labels=labels, kinds=kinds, images=images, prompt=drawn)

    def collate(self, rows: Any, *, padding: str = "right") -> Any:
        notes = [row.notes for row in rows]
        return {"ids": [row.id for row in rows], "notes": notes, "drawn": [row.prompt for row in rows]}


def scanned(workers: int, bad_records: Any, size: int = 9) -> ResumableLoader:
    source = Scanned(size, "s", mixed=True)
    source.bad_records = bad_records
    return ResumableLoader(
        TrainingSamples({"s": source}, Strict(), seed=5),
        [(Share("stage.global_batch", 3, 3), MixtureSampler({"s": size}, seed=5, batch=3))],
        collate_fn=Collate(Strict(), "right"),
        steps=6,
        workers=workers,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_named_by_their_record(workers: int) -> None:
    with pytest.raises(
        ValueError, match=r"^file\.json: record [147]: sample 's[147]': cut\.jpg: image file is truncated$"
    ):
        list(scanned(workers, "refuse"))


def test_bad_samples_are_replaced_by_the_next_of_their_kind() -> None:
    """Those with an image, 1, 4 and 7, by 2, 5 and 8; whichever process makes them, and after a resume."""
    loader = scanned(0, "skip")
    whole = list(loader)
    order = MixtureSampler({"s": 9}, seed=5, batch=3)
    expected = [order.at(position).index for position in range(18)]
    shown = [int(id[1:]) for batch in whole for id in batch["ids"]]
    assert shown == [index + 1 if index % 3 == 1 else index for index in expected]
    notes = [note for batch in whole for note in batch["notes"]]
    replaced = [len(each) for each in notes]
    assert replaced == [index % 3 == 1 for index in expected] and sum(replaced) == 6
    assert {told(note) for each in notes for note in each} == {
        ("replaced", f"file.json: record {k}: sample 's{k}': cut.jpg: image file is truncated") for k in (1, 4, 7)
    }
    assert list(scanned(2, "skip")) == whole
    resumed = scanned(1, "skip")
    resumed.load_state_dict({"position": 6})
    assert list(resumed) == whole[2:]


def test_a_source_of_bad_samples_is_an_error() -> None:
    source = Scanned(2, "s")
    source.bad_records = "skip"
    samples = TrainingSamples({"s": source}, Strict(), seed=5)
    samples.sources["s"].sample = lambda index, generator: replace(Numbers(9).sample(1, generator))  # pyright: ignore
    with pytest.raises(
        ValueError,
        match=r"data\.train\.s: found 2 samples in a row .* the first: file\.json: record 0",
    ):
        samples[SampleLocation(0, "s", 0)]


def test_a_micro_batch_of_the_published_size_is_of_one_source_on_any_number_of_ranks() -> None:
    def loaders(world: int, micro: int) -> list[ResumableLoader]:
        order = MixtureSampler(
            {name: len(source) for name, source in SOURCES.items()}, seed=5, group="source", batch=4, run=2
        )
        given: dict[str, Any] = {"collate_fn": Collate(Echo(), "right"), "steps": 6, "world": world}
        shares = [(Share("stage.global_batch", 4, micro), order)]
        return [ResumableLoader(TrainingSamples(SOURCES, Echo(), 5), shares, rank=r, **given) for r in range(world)]

    (alone,), two = loaders(1, 4), loaders(2, 2)
    whole, ranks = list(alone), [list(each) for each in two]
    named = [{id[0] for id in batch["ids"]} for rank in ranks for batch in rank]
    assert all(len(names) == 1 for names in named) and {"a"} in named and {"b"} in named
    assert any(one["ids"][0][0] != other["ids"][0][0] for one, other in zip(*ranks, strict=True)), "ranks draw apart"
    for step, batch in enumerate(whole):
        assert batch["ids"] == ranks[0][step]["ids"] + ranks[1][step]["ids"]
    (again,) = loaders(1, 4)
    again.load_state_dict({"position": 12})
    assert list(again) == whole[3:]


def test_any_loader_shows_the_micro_batches_of_a_step_ahead() -> None:
    """The last step of a loader may have fewer; what is shown ahead has no images."""
    rows = [replace(small_batch(), ids=[str(number)]) for number in range(5)]
    loader = StepsAhead(rows, accumulation=2)
    for _ in range(2):
        shown = [[each.ids[0] for each in batch.step] for batch in loader]
        assert shown == [["0", "1"], [], ["2", "3"], [], ["4"]] and len(loader) == 5
    assert all(len(each.images) == 0 for batch in loader for each in batch.step)
    assert [batch.ids for batch in loader] == [row.ids for row in rows]
    assert all(len(batch.images) == 1 for batch in loader)


def small_batch() -> Batch:
    row = torch.ones(1, 2, dtype=torch.long)
    return Batch(
        ids=["0"],
        tokens=row,
        labels=row,
        kinds=row.to(torch.uint8),
        segments=row.int(),
        positions=row,
        images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        num_images=0,
    )
