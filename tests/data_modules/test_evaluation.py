from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_modules.evaluation import EvaluationSamples, EvaluationSet
from data_modules.module import MultimodalDataModule
from data_modules.sources import CocoCaptions, KarpathyCaptions, Source
from lightning_mllm.contracts import Evaluation, ImageFile, Sample, Turn
from tests.data_modules.files import Echo, Numbers, touch, write


def rows(source: Source, *, blind: bool = False, rank: int = 0, world: int = 1, **settings: Any) -> list[Any]:
    chosen = EvaluationSet(source=source, task="vqa", **settings)
    samples = EvaluationSamples(chosen, Echo(), blind=blind, rank=rank, world=world)
    return [samples[k] for k in range(len(samples))]


def test_all_samples_in_order_with_the_task_of_the_set() -> None:
    found = rows(Numbers(9))
    assert [row.id for row in found] == [f"n{k}" for k in range(9)]
    assert {row.task for row in found} == {"vqa"}
    assert found == rows(Numbers(9))


@pytest.mark.parametrize("size", [2, 3, 9, 40])
def test_blind_exchanges_images_for_others(size: int) -> None:
    """Two samples share an image each time, so the neighbour will not always do."""
    seeing, blind = rows(Numbers(size + 1)), rows(Numbers(size + 1), blind=True)
    for own, other in zip(seeing, blind, strict=True):
        assert (own.id, own.turns, own.references) == (other.id, other.turns, other.references)
        assert own.images != other.images and len(own.images) == len(other.images)


def test_blind_leaves_text_alone_and_gives_nobody_its_lack_of_images() -> None:
    seeing, blind = rows(Numbers(12, mixed=True)), rows(Numbers(12, mixed=True), blind=True)
    for own, other in zip(seeing, blind, strict=True):
        assert len(own.images) == len(other.images)
        assert not own.images or own.images != other.images


def test_blind_needs_another_image() -> None:
    with pytest.raises(ValueError, match=r"sample n0: found no other sample .*set blind: false"):
        rows(Numbers(2), blind=True)


def test_limit_is_a_fixed_choice() -> None:
    ids = [row.id for row in rows(Numbers(100), limit=10)]
    assert len(set(ids)) == 10 and ids == [row.id for row in rows(Numbers(100), limit=10)]
    assert ids == sorted(ids, key=lambda id: int(id[1:])) and ids != [f"n{k}" for k in range(10)]
    assert len(rows(Numbers(5), limit=10)) == 5
    assert [row.id for row in rows(Numbers(100), limit=10, blind=True)] == ids
    with pytest.raises(ValueError, match="limit: found 0"):
        EvaluationSet(source=Numbers(3), task="vqa", limit=0)


@pytest.mark.parametrize(("size", "world"), [(9, 2), (8, 4), (3, 4), (1, 2), (10, 3)])
def test_ranks_have_equally_many_and_all_together(size: int, world: int) -> None:
    each = [[row.id for row in rows(Numbers(size), rank=rank, world=world)] for rank in range(world)]
    assert len({len(ids) for ids in each}) == 1
    assert {id for ids in each for id in ids} == {f"n{k}" for k in range(size)}
    assert sum(map(len, each)) < size + world


def test_twins() -> None:
    chosen = EvaluationSet(source=Numbers(3), task="caption", part="novel")
    assert chosen.evaluations(twins=False) == [Evaluation(task="caption", part="novel")]
    assert [each.suffix for each in chosen.evaluations(twins=True)] == ["_novel", "_novel_blind"]
    assert len(EvaluationSet(source=Numbers(3), task="caption", blind=False).evaluations(twins=True)) == 1


def test_retrieval_shows_each_image_once_with_all_its_captions(tmp_path: Path) -> None:
    """Both directions need every caption of every image: five a COCO image."""
    images, names = touch(tmp_path, "1.jpg", "2.jpg", "3.jpg"), ["1.jpg", "2.jpg", "3.jpg"]
    texts = [[f"caption {k} of {name}" for k in range(5)] for name in names]
    coco = {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
        "annotations": [
            {"id": 10 * k + n, "image_id": k, "caption": text}
            for n in range(5)
            for k in range(3)
            for text in [texts[k][n]]
        ],
    }
    listed = [{"image": name, "caption": each} for name, each in zip(names, texts, strict=True)]
    for source in (
        CocoCaptions(write(tmp_path / "c.json", coco), images, per="image"),
        KarpathyCaptions(write(tmp_path / "k.json", listed), images, per="image"),
    ):
        source.load()
        chosen = EvaluationSet(source=source, task="retrieval", blind=False)
        samples = EvaluationSamples(chosen, Echo(), blind=False)
        found: list[Any] = [samples[k] for k in range(len(samples))]
        assert [row.images[0].name for row in found] == [str(tmp_path / name) for name in names]
        assert [list(row.references) for row in found] == texts and {row.task for row in found} == {"retrieval"}
        assert len({row.id for row in found}) == 3 and found == [samples[k] for k in range(len(samples))]


def test_rows_know_their_position_and_their_own_pictures() -> None:
    """A repeated row has the position of the first; a blind twin's row is drawn with its own picture."""
    for blind in (False, True):
        each = [rows(Numbers(9), blind=blind, rank=rank, world=2) for rank in range(2)]
        assert [row.index for row in each[0]] == [0, 2, 4, 6, 8] and [row.index for row in each[1]] == [1, 3, 5, 7, 0]
        for row in each[0] + each[1]:
            assert row.cluster == (f"n{row.index // 2}.png",)
            assert (row.images[0].name == row.cluster[0]) is not blind
    assert [row.cluster for row in rows(Numbers(4, mixed=True))] == [(), ("n0.png",), ("n1.png",), ()]


class Talks(Numbers):
    """Sample k is a conversation of k % 3 + 1 questions; the second question shows a picture of its own."""

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        turns, images = [Turn(role="system", text="Be kind.")], []
        for n in range(index % 3 + 1):
            mark = "<image>" if n < 2 and self.has_image(index) else ""
            images += [ImageFile(Path(f"{index}-{n}.png"))] if mark else []
            turns += [Turn(role="user", text=f"{mark}question {n}"), Turn(role="assistant", text=f"{index}.{n}")]
        references = (turns[-1].text, "or so")
        return Sample(id=f"t{index}", turns=tuple(turns), images=tuple(images), references=references)


def test_a_conversation_of_several_questions_is_refused_unless_it_is_said_which_are_scored() -> None:
    with pytest.raises(
        ValueError,
        match="sample t1: found a conversation of 2 questions, expected one for the task 'vqa'; set turns: each",
    ):
        rows(Talks(4))
    assert [row.id for row in rows(Talks(1))] == ["t0"]
    last = rows(Talks(3), turns="last")
    assert [(row.id, len(row.turns), row.references) for row in last] == [
        (f"t{k}", 3 + 2 * k, (f"{k}.{k}", "or so")) for k in range(3)
    ]
    with pytest.raises(ValueError, match="turns: found 'all', expected one, last, each"):
        rows(Talks(3), turns="all")


def test_each_question_of_a_conversation_is_asked_behind_the_answers_before_it() -> None:
    found = rows(Talks(6, mixed=True), turns="each")
    assert [row.id for row in found[:6]] == [
        "t0 question 1",
        *(f"t1 question {k}" for k in (1, 2)),
        *(f"t2 question {k}" for k in (1, 2, 3)),
    ]
    assert [row.index for row in found] == list(range(12)) and {row.task for row in found} == {"vqa"}
    assert [row.references for row in found[3:6]] == [("2.0",), ("2.1",), ("2.2",)]
    assert [row.turns[-1].text for row in found[3:6]] == ["2.0", "2.1", "2.2"]
    assert [len(row.images) for row in found[:6]] == [0, 1, 2, 1, 2, 2], "only what has been shown"
    clusters = [row.cluster for row in found]
    assert clusters[3] == clusters[4] == clusters[5] != clusters[1] and "2-1.png" in clusters[3]
    assert clusters[6] == ("conversation t3",), "of text alone, the conversation"
    assert len({row.id for row in found}) == 12


def test_a_limit_is_of_conversations() -> None:
    ids = [row.id for row in rows(Talks(30), turns="each", limit=5)]
    assert len({id.split()[0] for id in ids}) == 5 and len(ids) > 5


class Shown(Numbers):
    """Three samples an image, of a few lengths."""

    def image_key(self, index: int) -> int | None:
        return index // 3

    def length(self, index: int) -> int:
        return index * 5 % 7


def test_samples_of_one_image_and_then_of_one_length_are_answered_together() -> None:
    samples = EvaluationSamples(EvaluationSet(source=Shown(12), task="vqa"), Echo(), blind=False)
    order = samples.order(4)
    assert sorted(order) == list(range(12))
    images = [row // 3 for row in order]
    assert all(
        images.count(image) == 3 and images[3 * k : 3 * k + 3] == [image] * 3 for k, image in enumerate(images[::3])
    )
    lengths = [Shown(12).length(row) for row in order]
    assert all(lengths[k : k + 3] == sorted(lengths[k : k + 3], reverse=True) for k in range(0, 12, 3))
    assert lengths[::3] == sorted(lengths[::3], reverse=True)


def test_samples_are_answered_near_their_place_in_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are read one after another."""
    monkeypatch.setattr("data_modules.evaluation.STRETCH", 2)
    samples = EvaluationSamples(EvaluationSet(source=Numbers(23), task="vqa"), Echo(), blind=False)
    order = samples.order(3)
    assert [sorted(order[k : k + 6]) for k in range(0, 23, 6)] == [
        list(range(k, min(k + 6, 23))) for k in range(0, 23, 6)
    ]
    lengths = [Numbers(23).length(row) for row in order]
    assert all(lengths[k : k + 6] == sorted(lengths[k : k + 6], reverse=True) for k in range(0, 23, 6))


def test_a_blind_twin_is_answered_by_the_images_that_it_shows() -> None:
    samples = EvaluationSamples(EvaluationSet(source=Shown(12), task="vqa"), Echo(), blind=True)
    order = samples.order(4)
    shown = [(row + 6) % 12 // 3 for row in order]
    assert sorted(order) == list(range(12)) and len({*zip(shown[::3], shown[1::3], shown[2::3], strict=True)}) == 4
    assert all(len({*shown[k : k + 3]}) == 1 for k in range(0, 12, 3))


@pytest.mark.parametrize(("limit", "whole"), [(1.0, True), (1, False), (2, False), (0.5, False)])
def test_where_batches_are_limited_they_are_the_first_of_the_set(limit: float, whole: bool) -> None:
    chosen = EvaluationSet(source=Shown(12), task="vqa")
    data = MultimodalDataModule(val={"shown": chosen}, eval_batch=4, processor=Echo())
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, limit_val_batches=limit)  # pyright: ignore
    (loader,) = data.val_dataloader()
    order = EvaluationSamples(chosen, Echo(), blind=False).order(4)
    assert order != list(range(12)) and list(loader.sampler) == (order if whole else list(range(12)))
