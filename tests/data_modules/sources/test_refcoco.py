from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_modules.mixture_sampler import seeded
from data_modules.sources import RefCoco, RefCocoRefs
from tests.data_modules.files import generator, touch, write
from tests.data_modules.sources.held_out import samples, score, turns


def image(id: int, caption: str = "the lady with the blue shirt", **changes: Any) -> dict[str, Any]:
    file = "COCO_train2014_000000581857.jpg"
    known = {"file_name": file, "height": 480, "width": 640, "original_id": 581857, "dataset_name": "refcoco"}
    return {"id": id, "caption": caption, "tokens_negative": [[0, 8]], **known, **changes}


def box(id: int, image: int, **changes: Any) -> dict[str, Any]:
    known = {"category_id": 1, "iscrowd": 0, "area": 300.0, "original_id": 1719310, "tokens_positive": [[0, 8]]}
    return {"id": id, "image_id": image, "bbox": [64.0, 48.0, 320.0, 240.0], **known, **changes}


def mdetr(folder: Path, images: Sequence[Any], annotations: Sequence[Any], **settings: Any) -> RefCoco:
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": []}
    path = write(folder / "finetune_refcoco_val.json", content)
    given: dict[str, Any] = {"dialect": "cogvlm", "prompt": "referring/where", **settings}
    return RefCoco(path, touch(folder / "images", "COCO_train2014_000000581857.jpg"), **given)


def test_an_expression_is_asked_for_its_box(tmp_path: Path) -> None:
    found = samples(mdetr(tmp_path, [image(0), image(1, "woman left")], [box(0, 0), box(1, 1)]))
    assert [each.id for each in found] == ["0", "1"]
    assert turns(found[0]) == ["<image>\nWhere is the lady with the blue shirt?", "[[100,100,600,600]]"]
    assert found[0].references == ("[[100,100,600,600]]",) and found[0].task == "grounding"
    assert found[0].images[0].name.endswith("images/COCO_train2014_000000581857.jpg")
    assert score(found) == 1.0 and score(found, right=False) == 0.0


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"dialect": "ferret"}, "[100, 100, 600, 600]"),
        ({"dialect": "llava"}, "[0.10, 0.10, 0.60, 0.60]"),
        ({"dialect": "llava", "frame": "square"}, "[0.10, 0.20, 0.60, 0.58]"),
    ],
)
def test_dialect_and_frame(tmp_path: Path, settings: dict[str, Any], answer: str) -> None:
    (found,) = samples(mdetr(tmp_path, [image(0)], [box(0, 0)], **settings))
    assert turns(found)[1] == answer


def test_a_box_is_asked_for_its_expression(tmp_path: Path) -> None:
    source = mdetr(tmp_path, [image(0)], [box(0, 0)], ask="expression", prompt=None)
    source.load()
    found = source.sample(0, generator())
    assert turns(found)[1] == "the lady with the blue shirt" and "[[100,100,600,600]]" in turns(found)[0]
    assert found.references == ("the lady with the blue shirt",) and found.task == "caption"


def test_the_wording_is_drawn_anew_in_every_epoch(tmp_path: Path) -> None:
    source = mdetr(tmp_path, [image(0)], [box(0, 0)], prompt=None)
    source.load()
    prompts = [source.sample(0, seeded("epoch", epoch)).turns[0].text for epoch in range(40)]
    assert len(set(prompts)) == 6
    assert prompts == [source.sample(0, seeded("epoch", epoch)).turns[0].text for epoch in range(40)]


@pytest.mark.parametrize(
    ("images", "annotations", "rule"),
    [
        ([image(0, width=None)], [box(0, 0)], "images[0] (id 0): 'width' is null, expected a number"),
        ([image(0, height=0)], [box(0, 0)], "images[0] (id 0): is 640 x 0 pixels, expected at least 1 x 1"),
        ([image(0), image(0)], [box(0, 0)], "images[1] (id 0): the id occurs twice"),
        ([image(0)], [], "images[0] (id 0): has 0 annotations, expected the one"),
        ([image(0)], [box(0, 0), box(1, 0)], "images[0] (id 0): has 2 annotations, expected the one"),
        ([image(0)], [box(0, 7)], "annotations[0] (id 0): image_id 7 is not in 'images', expected one of its 1 ids"),
        ([image(0)], [box(0, 0, bbox=[1, 2, 3])], "images[0] (id 0): 'bbox' has 3 numbers, expected 4"),
        ([image(0)], [box(0, 0, bbox=[1, 2, 3, "4"])], "images[0] (id 0): 'bbox' holds '4', expected numbers"),
        ([image(0)], [box(0, 0, bbox=[1, 2, 0, 4])], "the box [1, 2, 0, 4] (left, top, width, height) has no area"),
        ([image(0)], [box(0, 0, bbox=[640, 2, 9, 4])], "has no area inside the image of 640 x 480 pixels"),
        ([image(0, caption=" ")], [box(0, 0)], "images[0] (id 0): 'caption' is empty, expected a text"),
        ([image(0, file_name="no.jpg")], [box(0, 0)], "images[0] (id 0): image "),
    ],
)
def test_bad_records(tmp_path: Path, images: list[Any], annotations: list[Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        mdetr(tmp_path, images, annotations).load()
    assert "finetune_refcoco_val.json: " in str(error.value) and rule in str(error.value)


def test_bad_records_may_be_skipped(tmp_path: Path) -> None:
    source = mdetr(tmp_path, [image(0), image(1, width=None)], [box(0, 0), box(1, 1)], bad_records="skip")
    assert len(samples(source)) == 1 and len(source.skipped) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dialect": "cog"}, "dialect: found 'cog', expected one of cogvlm"),
        ({"frame": "padded"}, "frame: found 'padded', expected 'image' or 'square'"),
        ({"ask": "both"}, "ask: found 'both', expected 'box' or 'expression'"),
        ({"prompt": "region"}, r"prompt: found no \{expression\} in"),
        ({"ask": "expression", "prompt": "referring"}, r"prompt: found no \{box\} in"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mdetr(tmp_path, [], [], **settings)


@pytest.mark.parametrize("kind", [RefCoco, RefCocoRefs])
def test_the_pickle_is_refused_unread(kind: Any) -> None:
    more: dict[str, Any] = {"instances": "instances.json", "split": "val"} if kind is RefCocoRefs else {}
    with pytest.raises(ValueError, match=r"refs\(unc\).p: found a pickle, .*: take MDETR's finetune_refcoco"):
        kind("refs(unc).p", images="images", dialect="cogvlm", **more).load()


def ref(id: int, sents: Sequence[str], **changes: Any) -> dict[str, Any]:
    sentences = [
        {"tokens": sent.split(), "raw": sent.title(), "sent_id": 10 * id + k, "sent": sent}
        for k, sent in enumerate(sents)
    ]
    known = {"file_name": "COCO_train2014_000000581857_16.jpg", "category_id": 1, "split": "val"}
    ids = {"ref_id": id, "ann_id": 5, "image_id": 581857, "sent_ids": [each["sent_id"] for each in sentences]}
    return {**ids, "sentences": sentences, **known, **changes}


def pair(folder: Path, refs: Any, **settings: Any) -> RefCocoRefs:
    file = "COCO_train2014_000000581857.jpg"
    images = [{"id": 581857, "file_name": file, "width": 640, "height": 480}]
    instances = {"images": images, "annotations": [box(5, 581857)], "categories": []}
    paths = write(folder / "refs.json", refs), write(folder / "instances.json", instances)
    given: dict[str, Any] = {"split": "val", "dialect": "cogvlm", "prompt": "referring/where", **settings}
    return RefCocoRefs(*paths, images=touch(folder / "images", file), **given)


def test_each_sentence_of_a_ref_is_a_sample(tmp_path: Path) -> None:
    refs = [ref(1, ["lady", "woman in blue"]), ref(2, ["a cat"], split="train"), ref(3, ["her"])]
    found = samples(pair(tmp_path, refs))
    assert [each.id for each in found] == ["10", "11", "30"]
    assert turns(found[1]) == ["<image>\nWhere is woman in blue?", "[[100,100,600,600]]"]


def test_all_sentences_of_a_thing_are_references(tmp_path: Path) -> None:
    found = samples(pair(tmp_path, [ref(1, ["lady", "woman in blue"])], ask="expression", prompt="region/what"))
    assert [turns(each)[1] for each in found] == ["lady", "woman in blue"]
    assert [set(each.references) for each in found] == [{"lady", "woman in blue"}] * 2


@pytest.mark.parametrize(
    ("refs", "settings", "rule"),
    [
        ([ref(1, ["x"], ann_id=6)], {}, "refs.json: record 0 (ref_id 1): ann_id 6 is not in "),
        ([ref(1, ["x"], image_id=6)], {}, "record 0 (ref_id 1): image_id is 6, expected 581857 as of annotation 5 in "),
        ([ref(1, [])], {}, "record 0 (ref_id 1): 'sentences' is empty, expected at least one"),
        ([ref(1, [" "])], {}, "record 0 (ref_id 1): 'sent' is empty, expected a text"),
        ([ref(1, ["x"]), ref(1, ["x"])], {}, "record 1 (ref_id 1): the id 10 occurs twice"),
        ([ref(1, ["x"])], {"split": "testA"}, "refs.json: split is 'testA', expected val"),
        ({"refs": []}, {}, "refs.json: found no list, expected the list of refs"),
    ],
)
def test_bad_refs(tmp_path: Path, refs: Any, settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        pair(tmp_path, refs, **settings).load()
    assert rule in str(error.value)
