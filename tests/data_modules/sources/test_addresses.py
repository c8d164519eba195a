from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import CocoCaptions, LlavaConversations
from data_modules.sources.addresses import ImageAddresses, ImageUrl, image_folder
from data_modules.sources.records import ImageFolder, RecordError
from tests.data_modules.files import generator, write
from tests.data_modules.sources.test_conversations import turns
from tests.data_modules.web.servers import BODY, PUBLIC, Names, standing, web_of


def test_a_picture_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    with standing() as server:
        web = web_of(server, Names(public_test=[[PUBLIC]]), [])
        ref = ImageUrl("http://public.test/picture?key=secret", ("http",), web=web)
        assert ref.read(1 << 20) == ref.read(1 << 20) == BODY and server.connections == 1
        gone = ImageUrl("http://public.test/gone.jpg", ("http",), web=web)
        with pytest.raises(ValueError, match=r"^http://public\.test/gone\.jpg: found the answer 404, expected 200$"):
            gone.read(1 << 20)
        with pytest.raises(ValueError, match=r"chunked: found more than 5 bytes"):
            ImageUrl("http://public.test/chunked", ("http",), web=web).read(5)
    assert "secret" not in ref.name and ref.name.startswith("http://public.test/picture?(")


def test_sources_name_pictures_by_address(tmp_path: Path) -> None:
    image = "https://h.test/a%20b.jpg"
    record = {"id": "1", "image": image, "conversations": turns("<image>\nwhat?", "a dog")}
    made = LlavaConversations(write(tmp_path / "a.json", [record]), "https://")
    made.load()
    (ref,) = made.sample(0, generator()).images
    assert isinstance(ref, ImageUrl) and ref.url == image and made.has_image(0)
    images = [{"id": 1, "file_name": "x y.jpg", "width": 3, "height": 2}]
    captions = [{"id": 1, "image_id": 1, "caption": "a dog"}]
    coco = CocoCaptions(write(tmp_path / "c.json", {"images": images, "annotations": captions}), "http://h.test/val/")
    coco.load()
    (ref,) = coco.sample(0, generator()).images
    assert isinstance(ref, ImageUrl) and ref.url == "http://h.test/val/x%20y.jpg" and ref.schemes == ("http", "https")


@pytest.mark.parametrize(
    ("root", "name", "rule"),
    [
        ("https://", "http://h.test/a.jpg", "found an address of 'http', expected https"),
        ("https://", "a.jpg", "found an address of '', expected https"),
        ("http://", "file:///etc/passwd", "found an address of 'file', expected http or https"),
        ("https://", "https://me:secret@h.test/a.jpg", "with a user"),
        ("https://", "https://me:se/secret@h.test/a.jpg", "whose host or port cannot be read"),
        ("https://", "https://[secret/a.jpg", "whose host or port cannot be read"),
    ],
)
def test_names_that_are_no_address_are_bad_records(tmp_path: Path, root: str, name: str, rule: str) -> None:
    record = {"id": "1", "image": name, "conversations": turns("<image>\nwhat?", "a dog")}
    made: Any = LlavaConversations(write(tmp_path / "a.json", [record]), root)
    with pytest.raises(ValueError, match=rf"a\.json: record 0 \(id 1\): image '.*': .*{rule}") as caught:
        made.load()
    assert "secret" not in str(caught.value)


def test_folders_stay_folders(tmp_path: Path) -> None:
    """Nothing is downloaded unless a source asks for it."""
    assert type(image_folder(str(tmp_path))) is ImageFolder and type(image_folder("https")) is ImageFolder
    assert type(image_folder("https://h.test")) is ImageAddresses
    with pytest.raises(RecordError, match="expected a path inside"):
        image_folder(str(tmp_path)).check("/https://h.test/a.jpg")
    with pytest.raises(ValueError, match="found an address"):
        image_folder("https://user@h.test/")
