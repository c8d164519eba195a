"""What is found out about records once on a machine is what each process would find out for itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import CocoCaptions, LlavaConversations, Source, files, record_source
from tests.data_modules.files import generator, touch, write

TALK = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello."}]


def conversations(folder: Path) -> Source:
    records: list[Any] = [{"id": k // 2, "image": f"{k % 3}.jpg", "conversations": TALK} for k in range(9)]
    return LlavaConversations(write(folder / "a.json", [*records, {"id": 9}]), str(folder), bad_records="skip")


def captions(folder: Path) -> Source:
    images = [{"id": k, "file_name": f"{k % 3}.jpg"} for k in range(9)]
    told = [{"id": k, "image_id": k, "caption": f"Photo {k}." if k else ""} for k in range(9)]
    return CocoCaptions(
        write(folder / "b.json", {"images": images, "annotations": told}), str(folder), bad_records="skip"
    )


def all_of(source: Source) -> Any:
    source.load()
    samples = [source.sample(k, generator()) for k in range(len(source))]
    numbers = [(source.length(k), source.has_image(k), source.where(k)) for k in range(len(source))]
    return samples, numbers, list(getattr(source, "skipped", ())), dict(source.changed)


@pytest.mark.parametrize("make", [conversations, captions], ids=lambda each: each.__name__)
def test_an_index_is_shared_until_files_or_images_change(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    expected = all_of(make(tmp_path))
    assert len(expected[2]) == 1
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache" / "own"))
    monkeypatch.setattr(files, "CACHED_FROM", 0)
    monkeypatch.setattr(record_source, "CACHED_FROM", 0)
    monkeypatch.setattr(record_source, "CHUNK", 4)
    (tmp_path / "cache").mkdir()
    source = make(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert all_of(source) == expected and source.length(0) == expected[1][0][0]

    def built() -> set[str]:
        return {
            f"{each.name} {each.stat().st_ino}" for each in (tmp_path / "cache/own/index").iterdir() if each.is_dir()
        }

    first = built()
    for path, time in times.items():
        os.utime(path, ns=(time, time))
    other = type(source)(*source._given[0], **source._given[1])  # pyright: ignore
    assert all_of(other) == expected and built() == first
    (tmp_path / "1.jpg").unlink()
    changed = all_of(type(source)(*source._given[0], **source._given[1]))  # pyright: ignore
    assert len(changed[0]) < len(expected[0]) and any("1.jpg not found" in each for each in changed[2])
    for each in (files, record_source):
        monkeypatch.setattr(each, "CACHED_FROM", 1 << 30)
    monkeypatch.setattr(record_source, "CHUNK", 100)
    assert all_of(type(source)(*source._given[0], **source._given[1])) == changed  # pyright: ignore
