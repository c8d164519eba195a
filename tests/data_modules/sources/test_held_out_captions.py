from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import Flickr30k, NoCaps
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, turns

NAMES = ("0013ea2087020901", "00146ba1e50ed8d8", "003cf67dec1a1ba8")
DOMAINS = ("in-domain", "near-domain", "out-domain")


def nocaps(folder: Path, domain: str = "", image: dict[str, Any] | None = None) -> NoCaps:
    images = [
        {
            "license": 0,
            "coco_url": f"https://s3.amazonaws.com/nocaps/val/{name}.jpg",
            "file_name": f"{name}.jpg",
            "width": 1024,
            "height": 732,
            "id": id,
            "date_captured": "2018-11-06 11:04:33",
            "open_images_id": name,
            "domain": DOMAINS[id],
        }
        for id, name in enumerate(NAMES)
    ]
    images[1] = {**images[1], **(image or {})}
    captions = [
        {"image_id": id, "id": 10 * id + k, "caption": f"Caption {k} of image {id}."}
        for k in range(10)
        for id in range(3)
    ]
    content = {"licenses": [], "info": {"version": "0.1"}, "images": images, "annotations": captions}
    file = write(folder / "nocaps_val_4500_captions.json", content)
    return NoCaps(file, touch(folder / "val", *(f"{name}.jpg" for name in NAMES)), domain)


def test_nocaps_asks_once_an_image_and_has_ten_references(tmp_path: Path) -> None:
    given = samples(nocaps(tmp_path))
    assert [sample.id for sample in given] == ["0", "1", "2"]
    request, caption = turns(given[1])
    assert request == "<image>\nA short image description:" and caption in given[1].references
    assert given[1].references == tuple(f"Caption {k} of image 1." for k in range(10))
    assert given[1].task == "caption" and given[1].images[0].name.endswith("val/00146ba1e50ed8d8.jpg")


@pytest.mark.parametrize("place", range(3))
def test_nocaps_of_one_domain(tmp_path: Path, place: int) -> None:
    assert [sample.id for sample in samples(nocaps(tmp_path, DOMAINS[place]))] == [str(place)]


@pytest.mark.parametrize(
    ("image", "rule"),
    [
        (
            {"domain": "far"},
            r"images\[1\] \(id 1\): 'domain' is 'far', expected in-domain or near-domain or out-",
        ),
        ({"domain": None}, r"images\[1\] \(id 1\): 'domain' is null, expected a text"),
        ({"id": 0}, r"images\[1\] \(id 0\): the id occurs twice"),
        ({"id": 7}, r"annotations\[1\] \(id 10\): image_id 1 is not in 'images'"),
        ({"file_name": "gone.jpg"}, r"annotations\[1\] \(id 10\): image .*gone.jpg not found"),
    ],
)
def test_nocaps_refuses(tmp_path: Path, image: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"nocaps_val_4500_captions.json: {rule}"):
        nocaps(tmp_path, image=image).load()


def test_nocaps_knows_its_domains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="domain: found 'out', expected in-domain or near-domain or out-domain"):
        nocaps(tmp_path, "out")


def karpathy(split: str, name: str, captions: int = 5) -> dict[str, Any]:
    sentences = [{"tokens": ["a", "man"], "raw": f"A man {k}.", "imgid": 0, "sentid": k} for k in range(captions)]
    return {"sentids": list(range(captions)), "imgid": 0, "sentences": sentences, "split": split, "filename": name}


def test_flickr30k_in_the_karpathy_split(tmp_path: Path) -> None:
    records = [karpathy("train", "1000092795.jpg"), karpathy("test", "1007129816.jpg")]
    file = write(tmp_path / "dataset_flickr30k.json", {"images": records, "dataset": "flickr30k"})
    images = touch(tmp_path / "flickr30k-images", "1000092795.jpg", "1007129816.jpg")
    (sample,) = samples(Flickr30k(file, images, "test"))
    assert turns(sample)[0] == "<image>\nA short image description:" and sample.task == "caption"
    assert sample.references == tuple(f"A man {k}." for k in range(5))
    assert sample.images[0].name.endswith("flickr30k-images/1007129816.jpg")
    assert len(samples(Flickr30k(file, images, "train", per="caption"))) == 5
    with pytest.raises(ValueError, match=r"dataset_flickr30k.json: split is 'dev', expected test or train"):
        Flickr30k(file, images, "dev").load()  # type: ignore[arg-type]


def test_flickr30k_as_a_list(tmp_path: Path) -> None:
    records = [{"image": f"flickr30k-images/{k}.jpg", "caption": [f"Text {n} of {k}." for n in range(5)]} for k in "12"]
    images = touch(tmp_path, "flickr30k-images/1.jpg", "flickr30k-images/2.jpg")
    given = samples(Flickr30k(write(tmp_path / "flickr30k_test.json", records), images))
    assert [sample.references for sample in given] == [tuple(f"Text {n} of {k}." for n in range(5)) for k in "12"]
    records[1]["caption"] = []
    with pytest.raises(ValueError, match=r"test.json: record 1 \(image flickr30k-images/2.jpg\): 'caption' is empty"):
        Flickr30k(write(tmp_path / "flickr30k_test.json", records), images).load()


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (karpathy("test", "1.jpg", 0), "'sentences' is empty"),
        (karpathy("test", "2.jpg"), "image .*2.jpg not found"),
        ({"split": "test", "filename": "1.jpg"}, "has no 'sentences', expected a list"),
    ],
)
def test_flickr30k_refuses(tmp_path: Path, record: dict[str, Any], rule: str) -> None:
    file = write(tmp_path / "dataset_flickr30k.json", {"images": [karpathy("test", "1.jpg"), record]})
    with pytest.raises(ValueError, match=rf"dataset_flickr30k.json: images\[1\]: {rule}"):
        Flickr30k(file, touch(tmp_path / "images", "1.jpg"), "test").load()
