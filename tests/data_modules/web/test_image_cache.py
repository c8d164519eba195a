from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_modules.web.image_cache import ImageCache, most_bytes


def never() -> bytes:
    raise AssertionError("downloaded again")


def held(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (folder / "content").glob("*/*"))


def test_an_address_is_downloaded_once_and_content_is_kept_once(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 1000)
    assert cache.get("u1", lambda: b"one") == b"one" and cache.get("u2", lambda: b"one") == b"one"
    assert ImageCache(tmp_path, 1000).get("u1", never) == cache.get("u2", never) == b"one"
    assert held(tmp_path) == [b"one"] and len(list((tmp_path / "address").glob("*/*"))) == 2


def test_what_is_damaged_is_downloaded_anew(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 1000)
    cache.get("u", lambda: b"one")
    (kept,), (entry,) = (list((tmp_path / name).glob("*/*")) for name in ("content", "address"))
    kept.write_bytes(b"on")
    assert cache.get("u", lambda: b"one") == b"one" and held(tmp_path) == [b"one"]
    entry.write_text("../../etc/passwd")
    assert cache.get("u", lambda: b"two") == b"two"
    kept.unlink()
    assert cache.get("u", never) == b"two"


def test_what_was_read_longest_ago_goes(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 100)
    for k in range(3):
        cache.get(f"u{k}", lambda k=k: bytes([k]) * 40)
        for path in (tmp_path / "content").glob("*/*"):
            if path.read_bytes()[0] == k:
                os.utime(path, (k, k))
        if k == 1:
            cache.get("u0", never)
    assert [each[0] for each in held(tmp_path)] == [0, 2]
    assert cache.get("u1", lambda: b"again") == b"again"


def test_its_size_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_IMAGE_CACHE_GB", "0.5")
    assert most_bytes() == 500_000_000
    for wrong in ("0", "many", "inf"):
        monkeypatch.setenv("MLLM_IMAGE_CACHE_GB", wrong)
        with pytest.raises(ValueError, match="MLLM_IMAGE_CACHE_GB: found"):
            most_bytes()
