from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import CocoCaptions, KarpathyCaptions
from lightning_mllm.contracts import Turn
from tests.data_modules.files import SHARED, generator, touch, write


def coco(folder: Path, **changes: Any) -> dict[str, Any]:
    """COCO's captions file with an image of two captions and one of one; and the images."""
    touch(folder / "images", "000000000007.jpg", "000000000009.jpg")
    return {
        "info": {"description": "COCO 2017 Dataset"},
        "licenses": [],
        "images": [
            {"id": 7, "file_name": "000000000007.jpg", "height": 427, "width": 640, "license": 4},
            {"id": 9, "file_name": "000000000009.jpg", "height": 427, "width": 640, "license": 4},
        ],
        "annotations": [
            {"image_id": 9, "id": 1, "caption": "A dog. "},
            {"image_id": 7, "id": 2, "caption": "A kitchen with a tile floor."},
            {"image_id": 9, "id": 3, "caption": "A brown dog runs"},
        ],
        **changes,
    }


def test_coco_one_sample_a_caption(tmp_path: Path) -> None:
    source = CocoCaptions(write(tmp_path / "c.json", coco(tmp_path)), str(tmp_path / "images"), prompt="<image>\nSay.")
    source.load()
    samples = [source.sample(index, generator()) for index in range(len(source))]
    assert [(s.id, s.turns[1].text) for s in samples] == [
        ("1", "A dog."),
        ("3", "A brown dog runs"),
        ("2", "A kitchen with a tile floor."),
    ]
    assert samples[1].references == ("A dog.", "A brown dog runs")
    assert samples[2].images[0].name == str(tmp_path / "images/000000000007.jpg")
    assert samples[0].turns[0] == Turn(role="user", text="<image>\nSay.")
    assert samples[0].task == "caption" and source.has_image(0)
    assert source.length(2) > source.length(0) == source.length(1)
    with pytest.raises(IndexError):
        source.sample(3, generator())


def test_coco_one_sample_an_image_draws_its_caption(tmp_path: Path) -> None:
    source = CocoCaptions(write(tmp_path / "c.json", coco(tmp_path)), str(tmp_path / "images"), per="image")
    source.load()
    assert len(source) == 2
    drawn = Counter(source.sample(0, generator(seed)).turns[1].text for seed in range(200))
    assert set(drawn) == {"A dog.", "A brown dog runs"} and min(drawn.values()) > 60
    assert source.sample(0, generator(5)) == source.sample(0, generator(5))
    assert source.sample(0, generator()).id == "9"
    assert source.sample(0, generator()).references == ("A dog.", "A brown dog runs")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"annotations": [{"image_id": 7, "id": 2, "caption": None}]}, r"annotations\[0\] \(id 2\): 'caption' is null"),
        (
            {"annotations": [{"image_id": 7, "id": 2, "caption": " \n"}]},
            r"annotations\[0\] \(id 2\): 'caption' is empty",
        ),
        (
            {"annotations": [{"image_id": 7, "id": 2, "caption": "a" * 10**6}]},
            "has 1000000 characters, expected at most",
        ),
        ({"annotations": [{"image_id": 8, "id": 2, "caption": "a"}]}, "image_id 8 is not in 'images', expected one of"),
        (
            {"annotations": [{"image_id": 7, "id": 2, "caption": "a"}] * 2},
            r"annotations\[1\] \(id 2\): the id occurs tw",
        ),
        ({"annotations": ["a"]}, r"annotations\[0\]: found a text, expected an object"),
        (
            {"annotations": [{"image_id": True, "id": 2, "caption": "a"}]},
            "'image_id' is true or false, expected a number",
        ),
        ({"annotations": []}, "found no usable record"),
        ({"annotations": None}, "expected the list 'annotations'"),
        ({"images": [{"id": 7}]}, r"images\[0\] \(id 7\): has no 'file_name', expected a text"),
        ({"images": [{"id": 7, "file_name": "x.jpg"}] * 2}, r"images\[1\] \(id 7\): the id occurs twice"),
    ],
)
def test_coco_refuses(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    file = write(tmp_path / "c.json", coco(tmp_path, **change))
    with pytest.raises(ValueError, match=sentence) as error:
        CocoCaptions(file, str(tmp_path / "images")).load()
    assert str(error.value).startswith(file)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("absent.jpg", "absent.jpg not found"), ("../c.json", "a path inside"), ("/etc/passwd", "a path inside")],
)
def test_missing_and_outside_images_are_found_at_load(tmp_path: Path, name: str, rule: str) -> None:
    images = [{"id": 7, "file_name": name}, {"id": 9, "file_name": "000000000009.jpg"}]
    source = CocoCaptions(write(tmp_path / "c.json", coco(tmp_path, images=images)), str(tmp_path / "images"))
    with pytest.raises(ValueError, match=rf"annotations\[1\] \(id 2\): image .*{rule}"):
        source.load()


def test_prompt_and_per_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match=r"prompt: found 'Describe.', expected a family"):
        CocoCaptions("c.json", "images", prompt="Describe.")
    with pytest.raises(ValueError, match="per: found 'word'"):
        CocoCaptions("c.json", "images", per="word")  # type: ignore[arg-type]


ORIGINAL = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "sentids": [770337, 771687],
            "filename": "COCO_val2014_000000391895.jpg",
            "imgid": 0,
            "split": "test",
            "cocoid": 391895,
            "sentences": [
                {"tokens": ["a", "man"], "raw": "A man with a red helmet.", "imgid": 0, "sentid": 770337},
                {"tokens": ["man", "riding"], "raw": "Man riding a motor bike", "imgid": 0, "sentid": 771687},
            ],
        },
        {
            "filepath": "val2014",
            "sentids": [681330],
            "filename": "COCO_val2014_000000522418.jpg",
            "imgid": 1,
            "split": "restval",
            "cocoid": 522418,
            "sentences": [{"tokens": ["a", "woman"], "raw": "A woman wearing a net", "imgid": 1, "sentid": 681330}],
        },
        {
            "filepath": "train2014",
            "sentids": [1],
            "filename": "COCO_train2014_000000000009.jpg",
            "imgid": 2,
            "split": "train",
            "cocoid": 9,
            "sentences": [{"tokens": ["a", "meal"], "raw": "A meal", "imgid": 2, "sentid": 1}],
        },
    ],
}
KARPATHY_IMAGES = ("val2014/COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000522418.jpg")


def test_karpathy_original(tmp_path: Path) -> None:
    file = write(tmp_path / "dataset_coco.json", ORIGINAL)
    images = touch(tmp_path / "coco", *KARPATHY_IMAGES, "train2014/COCO_train2014_000000000009.jpg")
    test = KarpathyCaptions(file, images, split="test", per="image")
    test.load()
    assert len(test) == 1
    assert test.sample(0, generator()).references == ("A man with a red helmet.", "Man riding a motor bike")
    assert test.sample(0, generator()).images[0].name == f"{images}/{KARPATHY_IMAGES[0]}"
    train = KarpathyCaptions(file, images, split="train+restval")
    train.load()
    assert [train.sample(k, generator()).turns[1].text for k in range(len(train))] == [
        "A woman wearing a net",
        "A meal",
    ]
    with pytest.raises(ValueError, match="split is 'vla', expected restval or test or train"):
        KarpathyCaptions(file, images, split="vla").load()


def test_karpathy_lists(tmp_path: Path) -> None:
    images = touch(tmp_path / "coco", *KARPATHY_IMAGES)
    listed = [
        {"caption": "A man with a red helmet", "image": KARPATHY_IMAGES[0], "image_id": "coco_391895"},
        {"caption": "A woman wearing a net", "image": KARPATHY_IMAGES[1], "image_id": "coco_522418"},
        {"caption": "A man on a motor bike", "image": KARPATHY_IMAGES[0], "image_id": "coco_391895"},
    ]
    train = KarpathyCaptions(write(tmp_path / "train.json", listed), images)
    train.load()
    assert len(train) == 3 and len({train.sample(k, generator()).id for k in range(3)}) == 3
    assert train.sample(1, generator()).references == ("A man with a red helmet", "A man on a motor bike")
    test = [{"image": KARPATHY_IMAGES[0], "caption": ["one", "two", "three", "four", "five"]}]
    source = KarpathyCaptions(write(tmp_path / "test.json", test), images, per="image")
    source.load()
    assert source.sample(0, generator()).references == ("one", "two", "three", "four", "five")
    with pytest.raises(ValueError, match="split is 'test', expected none"):
        KarpathyCaptions(str(tmp_path / "test.json"), images, split="test").load()
    bad = write(tmp_path / "bad.json", [*test, {"image": KARPATHY_IMAGES[1], "caption": []}])
    with pytest.raises(ValueError, match=r"record 1 \(image val2014/.*'caption' is empty"):
        KarpathyCaptions(bad, images).load()


@pytest.mark.skipif(not (SHARED / "coco_mini").is_dir(), reason="real COCO images are not here")
def test_real_coco() -> None:
    root = SHARED / "coco_mini"
    for part in ("train2017", "val2017"):
        file = root / f"annotations/captions_{part}.json"
        content = json.loads(file.read_text())
        source = CocoCaptions(str(file), str(root / part))
        source.load()
        assert len(source) == len(content["annotations"])
        texts = Counter(source.sample(k, generator()).turns[1].text for k in range(len(source)))
        assert texts == Counter(record["caption"].strip() for record in content["annotations"])
        assert all(len(s.references) >= 5 for s in (source.sample(k, generator()) for k in range(len(source))))
        assert source.sample(0, generator()).images[0].read(1 << 22)[:2] == b"\xff\xd8"


def test_captions_of_an_image_have_its_key(tmp_path: Path) -> None:
    annotations, images = write(tmp_path / "c.json", coco(tmp_path)), str(tmp_path / "images")
    keys: dict[str, list[int | None]] = {}
    for per in ("caption", "image"):
        source = CocoCaptions(annotations, images, per=per)
        source.load()
        keys[per] = [source.image_key(index) for index in range(len(source))]
    dog, kitchen = keys["image"]
    assert keys["caption"] == [dog, dog, kitchen] and None not in (dog, kitchen) and dog != kitchen
