"""Settings come back from the journal as they were given, and any source of captions can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from data_modules.synthesis.settings import Settings, load


def settings(folder: Path, **changes: object) -> Settings:
    given = {
        "captions": None,
        "instances": None,
        "images": str(folder),
        "prefix": "",
        "kinds": ("dense",),
        "limit": None,
        "seed": 0,
    }
    return Settings(**{**given, **changes})  # pyright: ignore[reportArgumentType]


def test_they_come_back_from_their_text(tmp_path: Path) -> None:
    given = settings(tmp_path, captions=("coco", "a.json"), instances="b.json", kinds=("detail=3", "dense"), limit=7)
    assert Settings.of(given.text) == given
    assert given.files == {"captions": "a.json", "instances": "b.json"}


def test_pictures_alone_can_be_asked_about(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    planned = load(settings(tmp_path, limit=2, prefix="own/"))
    assert [each.id for each in planned.requests] == ["a/dense", "b/dense"] and planned.plan == {"seed": "0"}
    assert planned.requests[0].messages[-1].images[0].name == str(tmp_path / "a.png")
    assert list(planned.images) == ["own/a.png", "own/b.png"]
    with pytest.raises(ValueError, match=r"found nothing to ask about \(3 detail: no captions\)"):
        load(settings(tmp_path, kinds=("detail",)))


def test_a_source_of_captions_is_read_by_its_class(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "told.json").write_text(json.dumps([{"image": "a.png", "caption": "A dog on the grass."}]))
    found = load(settings(tmp_path, captions=("WebCapFilt", str(tmp_path / "told.json")), kinds=("conversation",)))
    assert found.requests[0].context.captions == ("A dog on the grass.",) and found.requests[0].image == "a.png"
    with pytest.raises(ValueError, match="--captions: ScienceQa is not read from one file and a folder of images"):
        load(settings(tmp_path, captions=("ScienceQa", "x.json")))
