from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from data_modules.containers.offset_index import Arrays, built, cache_folder, fingerprint, texts, texts_in


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_finished_pieces_are_kept_when_another_one_fails(tmp_path: Path, cache: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()

    def run(job: int) -> Arrays:
        if job == 3 and broken.exists():
            while len(list((cache / "index/k.part").glob("*.npz"))) < 2:
                time.sleep(0.01)
            raise ValueError("record 3 is bad")
        with open(tmp_path / "done", "a") as file:
            file.write(f"{job} ")
        return {"n": np.arange(job), "at": np.array([0, 1]), "said": texts([f"é{job}"])}

    for _ in range(2):
        with pytest.raises(ValueError, match=r"^record 3 is bad$"):
            built("k", range(1, 4), run, {"at": "n"})
    broken.unlink()
    for _ in range(2):
        found = built("k", range(1, 4), run, {"at": "n"})
        assert found["n"].tolist() == [0, 0, 1, 0, 1, 2] and not found["n"].flags.writeable
        assert found["at"].tolist() == [0, 1, 1, 2, 3, 4]
        assert texts_in(found["said"]) == ["é1", "é2", "é3"]
    assert sorted((tmp_path / "done").read_text().split()) == ["1", "2", "3"]
    assert [each.name for each in (cache / "index").iterdir() if each.is_dir()] == ["k"]


def test_what_is_no_longer_valid_is_built_anew(tmp_path: Path) -> None:
    def found(value: int) -> int:
        return int(built("k", [value], lambda job: {"n": np.array([job])}, valid=lambda old: old["n"][0] != 1)["n"][0])

    assert [found(1), found(2), found(3)] == [1, 2, 2]


def test_a_folder_that_others_can_write_to_is_refused(cache: Path) -> None:
    cache_folder("index")
    assert (cache / "index").stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    with pytest.raises(ValueError, match="found a folder that others can write to"):
        cache_folder("index")


def test_the_folder_is_ours_alone_whatever_the_umask_and_may_be_a_link(cache: Path) -> None:
    cache.symlink_to(cache.with_name("disk"))
    before = os.umask(0o002)
    try:
        assert cache_folder("index") == cache.resolve() / "index"
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", [0, 50, 1000])
def test_what_lost_its_end_is_built_anew(size: int, cache: Path) -> None:
    def found() -> int:
        return len(built("k", [1000], lambda job: {"n": np.arange(job)})["n"])

    found()
    os.truncate(cache / "index/k/n.npy", size)
    assert found() == 1000


def test_texts_with_zero_bytes_stay_one_each() -> None:
    assert texts_in(texts(["a\0b", "c"])) == ["a\\0b", "c"]


def test_a_fingerprint_tells_content_size_and_time(tmp_path: Path) -> None:
    path, seen = tmp_path / "a", set[str]()
    for content, at in ((b"x" * 100, 1), (b"y" * 100, 1), (b"x" * 101, 1), (b"x" * 100, 2), (b"x" * (3 << 20), 1)):
        path.write_bytes(content)
        os.utime(path, (at, at))
        seen.add(fingerprint(path))
    path.write_bytes(b"x" * ((3 << 20) - 1) + b"y")
    os.utime(path, (1, 1))
    assert fingerprint(path) not in seen and len(seen) == 5
