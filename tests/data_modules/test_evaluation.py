from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.evaluation import EvaluationSamples, EvaluationSet
from data_modules.sources import CocoCaptions, KarpathyCaptions, Source
from lightning_mllm.contracts import Evaluation
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
        found = [samples[k] for k in range(len(samples))]
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
