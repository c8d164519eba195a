from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules import shared_array
from data_modules.mixture_sampler import MixtureSampler, seeded
from tests.data_modules.files import Numbers

SIZES = {"a": 10, "b": 23, "c": 4}


def grouped(kind: Any, size: int = 53, batch: int = 8, seed: int = 0) -> MixtureSampler:
    source = Numbers(size, mixed=True)
    return MixtureSampler(
        {"a": size},
        None,
        seed,
        kind,
        lengths=lambda _, index: source.length(index),
        modalities=lambda _, index: source.has_image(index),
        batch=batch,
        run=4,
        images=lambda _, index: index // 3 if source.has_image(index) else None,
    )


def epoch_of(order: MixtureSampler, epoch: int) -> list[tuple[str, int]]:
    """Source and index of every sample of a data epoch."""
    return [order.at(epoch * len(order) + offset)[1:] for offset in range(len(order))]


def test_without_weights_an_epoch_is_the_union() -> None:
    order = MixtureSampler(SIZES, seed=3)
    everything = sorted((name, index) for name, size in SIZES.items() for index in range(size))
    for epoch in range(3):
        assert sorted(epoch_of(order, epoch)) == everything
    assert epoch_of(order, 0) != epoch_of(order, 1)
    assert order.effective_epochs() == {"a": 1.0, "b": 1.0, "c": 1.0}


@pytest.mark.parametrize(
    "group", ["none", "length", "similar_length", "modality_length", "modality_similar_length", "source", "image"]
)
def test_an_epoch_is_a_pure_function_of_seed_and_number(group: str) -> None:
    forwards = [epoch_of(grouped(group), epoch) for epoch in (0, 1, 2)]
    order = grouped(group)
    torch.manual_seed(123)
    assert [epoch_of(order, epoch) for epoch in (2, 0, 1, 2)] == [forwards[k] for k in (2, 0, 1, 2)]
    assert epoch_of(grouped(group, seed=1), 0) != forwards[0]


def test_the_order_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    epoch_of(grouped("modality_length"), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_position_has_its_sample_whatever_was_asked_before() -> None:
    order = MixtureSampler(SIZES, seed=3)
    stream = [order.at(position) for position in range(3 * len(order))]
    assert [place.epoch for place in stream] == [epoch for epoch in range(3) for _ in range(len(order))]
    backwards = [MixtureSampler(SIZES, seed=3).at(position) for position in reversed(range(3 * len(order)))]
    assert backwards[::-1] == stream


@pytest.mark.parametrize(
    ("group", "digest"),
    [
        ("none", "7e6dd436382007dd"),
        ("length", "f4914b3842d2f1f1"),
        ("similar_length", "421662c59d8a683d"),
        ("modality_length", "ae1cf372f67e61c5"),
        ("modality_similar_length", "06652666311d58a2"),
        ("source", "85b5c404d99bcee0"),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_seed_gives_the_order_that_it_gave_before(
    group: Any, digest: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published runs name their seed; whether the array lies in a file makes no difference."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shared_array, "SHARED_FROM", 0 if shared else 1 << 20)
    order = MixtureSampler(
        {"a": 53, "b": 31},
        {"a": 1, "b": 2},
        7,
        group,
        lengths=lambda name, index: (index * 37 + len(name)) % 11,
        modalities=lambda _, index: index % 3 > 0,
        batch=8,
        run=4,
    )
    text = repr([place for epoch in (0, 1, 5) for place in epoch_of(order, epoch)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    files = [each.name for each in tmp_path.glob("*/*.npy")]
    assert len(files) == shared, "the array of the current epoch alone"
    del order
    assert not list(tmp_path.glob("*/*.npy"))


def test_an_epoch_takes_four_bytes_a_sample() -> None:
    order = MixtureSampler({"a": 30_000, "b": 20_000}, seed=1)
    order.at(0)
    assert order._epoch(0).nbytes == 4 * len(order) == 200_000


def test_files_of_other_data_of_the_same_size_have_other_names() -> None:
    def key(words: int, kind: Any = "length", seed: int = 0) -> str:
        return MixtureSampler({"a": 9}, None, seed, kind, lengths=lambda _, index: index * words, batch=4)._key

    assert key(1) == key(1)
    assert len({key(1), key(2), key(1, "similar_length"), key(1, seed=1)}) == 4


def test_weights_give_shares_and_every_source_its_permutations() -> None:
    weights = {"a": 0.5, "b": 0.25, "c": 0.25}
    order = MixtureSampler(SIZES, weights, seed=1)
    assert order.counts == {"a": 19, "b": 9, "c": 9}  # 18.5, 9.25, 9.25 of 37: the largest remainder gets the rest
    assert order.effective_epochs() == {"a": 1.9, "b": 9 / 23, "c": 2.25}
    for epoch in range(3):
        assert Counter(name for name, _ in epoch_of(order, epoch)) == order.counts
    seen: Counter[tuple[str, int]] = Counter()
    for epoch in range(23):
        seen.update(epoch_of(order, epoch))
        for name, size in SIZES.items():
            counts = [seen[name, index] for index in range(size)]
            assert max(counts) - min(counts) <= 1, "a permutation of the chain is used up before the next begins"
    assert all(seen["b", index] == 9 for index in range(23))


def test_only_the_proportion_of_weights_matters() -> None:
    small, large = ({name: factor * size for name, size in SIZES.items()} for factor in (0.01, 7))
    assert epoch_of(MixtureSampler(SIZES, small, seed=4), 2) == epoch_of(MixtureSampler(SIZES, large, seed=4), 2)


@pytest.mark.parametrize("kind", ["length", "similar_length", "modality_length", "modality_similar_length"])
@pytest.mark.parametrize(("size", "batch"), [(53, 8), (48, 8), (7, 8), (20, 1), (9, 4)])
def test_grouping_keeps_the_epoch(kind: str, size: int, batch: int) -> None:
    order = grouped(kind, size, batch)
    for epoch in range(4):
        assert sorted(epoch_of(order, epoch)) == [("a", index) for index in range(size)]


def test_global_batches_run_from_long_to_short() -> None:
    order, source = grouped("length"), Numbers(53)
    stream = list(chain.from_iterable(epoch_of(order, epoch) for epoch in range(4)))
    borders = {epoch * 53 // 8 for epoch in range(1, 4)}
    for number in range(len(stream) // 8):
        lengths = [source.length(index) for _, index in stream[number * 8 : number * 8 + 8]]
        assert number in borders or lengths == sorted(lengths, reverse=True)


def test_global_batches_of_similar_length_need_a_tenth_of_the_padding_and_come_in_any_order() -> None:
    size, batch, source = 800, 8, Numbers(800)

    def batches(kind: str) -> list[list[int]]:
        places = epoch_of(grouped(kind, size, batch), 0)
        return [[source.length(index) for _, index in places[k : k + batch]] for k in range(0, size, batch)]

    def padding(kind: str) -> int:
        return sum(max(lengths) * batch - sum(lengths) for lengths in batches(kind))

    assert padding("similar_length") < padding("length") / 10
    longest = [max(lengths) for lengths in batches("similar_length")]
    assert all(lengths == sorted(lengths, reverse=True) for lengths in batches("similar_length"))
    turns = sum(a < b for a, b in pairwise(longest)), sum(a > b for a, b in pairwise(longest))
    assert min(turns) > 30, "neither from long to short nor from short to long"


def test_samples_of_similar_length_meet_others_in_every_epoch() -> None:
    def batches(epoch: int) -> set[frozenset[tuple[str, int]]]:
        places = epoch_of(grouped("similar_length", 80), epoch)
        return {frozenset(places[k : k + 8]) for k in range(0, 80, 8)}

    assert not batches(0) & batches(1)


def test_global_batches_are_of_one_modality_but_for_the_rest() -> None:
    size, batch, source = 53, 8, Numbers(53, mixed=True)
    order = grouped("modality_length")
    stream = list(chain.from_iterable(epoch_of(order, epoch) for epoch in range(6)))
    kinds = [{source.has_image(i) for _, i in stream[k : k + batch]} for k in range(0, len(stream) - batch, batch)]
    borders = {epoch * size // batch for epoch in range(1, 6)}
    mixed = [number for number, kind in enumerate(kinds) if len(kind) == 2 and number not in borders]
    assert len(mixed) <= 6, "at most one an epoch"
    pure = [kind for number, kind in enumerate(kinds) if number not in borders and len(kind) == 1]
    assert {True} in pure and {False} in pure
    assert pure != sorted(pure, key=lambda kind: True in kind), "their order is shuffled"


def accessory_batches(lengths: dict[int, int], image: dict[int, bool], batch: int) -> set[frozenset[int]]:
    """LLaMA2-Accessory: annotations of a type sorted by length and cut into global batches; the rest is left out."""
    kinds = [[index for index in lengths if image[index] is kind] for kind in (True, False)]
    pools = [sorted(kind, key=lambda index: lengths[index]) for kind in kinds]
    return {frozenset(pool[k : k + batch]) for pool in pools for k in range(0, len(pool) // batch * batch, batch)}


def test_batches_of_one_kind_and_of_like_lengths_are_those_of_llama2_accessory() -> None:
    size, batch = 4096, 32
    lengths = {index: (index * 2654435761) % 379 for index in range(size)}
    order = MixtureSampler(
        {"a": size},
        None,
        0,
        "modality_similar_length",
        lengths=lambda _, index: lengths[index] * 4096 + index,  # no two alike
        modalities=lambda _, index: index % 3 != 0,
        batch=batch,
    )
    places = [index for _, index in epoch_of(order, 0)]
    found = [frozenset(places[k : k + batch]) for k in range(0, size, batch)]
    words = {index: lengths[index] * 4096 + index for index in lengths}
    expected = accessory_batches(words, {index: index % 3 != 0 for index in lengths}, batch)
    assert len(expected) == 127 and expected <= set(found)
    ranges = sorted(max(map(lengths.get, each)) - min(map(lengths.get, each)) for each in expected)  # type: ignore
    assert ranges[len(ranges) // 2] <= 8, "words, within a global batch"
    firsts = [min(map(lengths.get, each)) for each in found]  # type: ignore
    assert 40 < sum(a < b for a, b in pairwise(firsts)) < 87, "neither from short to long nor from long to short"


def test_samples_of_an_image_stand_together() -> None:
    """Two with each image, and one beside them without; each epoch in another order of images and of their samples."""
    order = grouped("image")
    epochs = [[index for _, index in epoch_of(order, epoch)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(53))
        runs = [key for key, _ in groupby(index // 3 if index % 3 else -1 - index for index in epoch)]
        assert len(runs) == len(set(runs)) == 18 + 18
    assert len({tuple(key for key in epoch if key % 3 == 1) for epoch in epochs}) == 3
    firsts = {epoch.index(3 * image + 1) < epoch.index(3 * image + 2) for epoch in epochs for image in range(17)}
    assert firsts == {True, False}


def test_global_batches_run_over_the_borders_of_epochs() -> None:
    order = grouped("none", size=53, batch=8)
    rows = [row for some in order.global_batches(20) for row in some.tolist()]
    assert rows == [[order.at(8 * step + k).index for k in range(8)] for step in range(20)]
    assert [len(row) for some in grouped("none", size=5, batch=8).global_batches(3) for row in some] == [8, 8, 8]


def test_runs_of_one_source_are_drawn_by_the_shares() -> None:
    sizes, weights, run = {"a": 100, "b": 230, "c": 41}, {"a": 0.5, "b": 0.25, "c": 0.25}, 8
    order = MixtureSampler(sizes, weights, seed=1, group="source", batch=32, run=run)
    assert len(order) == 371 // 8 * 8
    assert order.counts == {"a": 23 * 8, "b": 12 * 8, "c": 11 * 8}  # 23, 11.5 and 11.5 of 46 runs
    seen: Counter[tuple[str, int]] = Counter()
    following: Counter[tuple[str, str]] = Counter()
    for epoch in range(12):
        places = epoch_of(order, epoch)
        runs = [{name for name, _ in places[k : k + run]} for k in range(0, len(places), run)]
        assert all(len(names) == 1 for names in runs), "one source a run"
        names = [name for each in runs for name in each]
        assert Counter(names) == {"a": 23, "b": 12, "c": 11}
        following.update(pairwise(names))
        seen.update(places)
        for name, size in sizes.items():
            counts = [seen[name, index] for index in range(size)]
            assert max(counts) - min(counts) <= 1, "a permutation of the chain is used up before the next begins"
    assert following["a", "a"] > 80 and following["b", "c"] > 15, "which source comes next is random"


def test_runs_of_one_source_without_weights_go_as_the_sizes() -> None:
    order = MixtureSampler({"a": 80, "b": 160}, seed=1, group="source", batch=16, run=8)
    assert order.counts == {"a": 80, "b": 160}
    assert sorted(epoch_of(order, 0)) == sorted(
        (name, k) for name, size in (("a", 80), ("b", 160)) for k in range(size)
    )
    with pytest.raises(ValueError, match=r"weights.c: .*expected enough for one of the epoch's 4 runs of 8 samples"):
        MixtureSampler(SIZES, {"a": 10, "b": 10, "c": 1}, group="source", run=8)


@pytest.mark.parametrize(
    ("sizes", "weights", "sentence"),
    [
        ({}, None, "train: found no source"),
        ({"a": 0}, None, "train.a: found 0 samples"),
        (
            SIZES,
            {"a": 1, "b": 1, "cc": 1},
            r"weights.cc: found no such source, expected a, b, c \(did you mean 'c'\?\)",
        ),
        (SIZES, {"a": 1, "b": 1}, "weights: found none for 'c'"),
        (SIZES, {"a": 1, "b": 1, "c": 0}, "weights.c: found 0, expected a finite number above 0"),
        (SIZES, {"a": 1, "b": 1, "c": float("nan")}, "weights.c: found nan"),
        (
            SIZES,
            {"a": 1, "b": 1, "c": 1e-9},
            "weights.c: found 1e-09, expected enough for one of the epoch's 37 samples",
        ),
    ],
)
def test_wrong_mixtures(sizes: Any, weights: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MixtureSampler(sizes, weights)


def test_unknown_group() -> None:
    with pytest.raises(ValueError, match="group: found 'size', expected"):
        MixtureSampler(SIZES, group="size")  # type: ignore[arg-type]


def test_keys_have_unrelated_generators() -> None:
    keys = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), ("0", "a", 1), (0, "a1")]
    first = {int(torch.randint(1 << 40, (), generator=seeded(*key))) for key in keys}
    assert len(first) == len(keys)
    assert seeded(1, "x").initial_seed() == seeded(1, "x").initial_seed()
