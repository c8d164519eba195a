"""Rows of features: found by bytes and by unchanged files, whole after a kill, written by one process at a time."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_mllm.contracts import ImageFile
from lightning_mllm.weights import feature_writer
from lightning_mllm.weights.feature_store import FILE, IMAGE, FeatureStore, Records, times_of, words
from lightning_mllm.weights.feature_writer import writing

FACTS: dict[str, Any] = {"format": 1, "dtype": "float32", "views": 2, "groups": [[3, 2], [1, 4]]}
BLANK = torch.full((2, 10), 7.0)
ROW = 2 * 10 * 4


@dataclass(frozen=True)
class Member:
    """An image that is in no file of its own."""

    name: str
    content: bytes

    def read(self, max_bytes: int) -> bytes:
        return self.content


@pytest.fixture(autouse=True)
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_writer, "RECENT", 0)


def features(*seeds: int) -> Tensor:
    return torch.stack([torch.randn(2, 10, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def write(folder: Path, *contents: bytes, facts: dict[str, Any] = FACTS) -> FeatureStore:
    with writing(folder, facts, BLANK) as writer:
        new = [each for each in contents if writer.row_of(words(each)) is None]
        if new:
            writer.append([words(each) for each in new], [(len(each), 1) for each in new], features(*map(len, new)))
    return FeatureStore(folder)


def test_an_image_is_known_by_its_bytes(tmp_path: Path) -> None:
    store = write(tmp_path / "s", b"a", b"bb")
    assert (store.rows, store.width, store.groups) == (3, 10, [(3, 2), (1, 4)])
    assert store.find(Member("x", b"bb"), 9) == store.find(Member("y", b"bb"), 9) == 2
    assert store.find(Member("x", b"c"), 9) is None
    assert torch.equal(store[2], features(2)[0]) and torch.equal(store.blank, BLANK[:1]) and store.size(2) == (2, 1)
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again[1], features(1)[0]) and len(pickle.dumps(store)) < 300
    store[1][:] = 0
    assert torch.equal(store[1], features(1)[0]), "what is given is a copy"


def test_a_noted_file_is_not_read_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"bb")
    ref = ImageFile(file)
    with writing(tmp_path / "s", FACTS, BLANK) as writer:
        writer.append([words(b"bb"), words(b"cc")], [(2, 1)] * 2, features(2, 3))
        writer.note(ref, times_of(ref), 1)
    store = FeatureStore(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ImageFile, "read", lambda *_: pytest.fail("the file was read"))
        assert store.find(ref, 9) == store.find(ImageFile(Path("a.png")), 9) == 1
    times = os.stat(file)
    file.write_bytes(b"cc")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.row_of_file(ref) is None, "as many bytes and the same time of writing, but other bytes"
    assert store.find(ref, 9) == 2
    file.write_bytes(b"ddd")
    assert store.find(ref, 9) is None
    with writing(tmp_path / "s", FACTS, BLANK) as writer:
        writer.append([words(b"ddd")], [(3, 1)], features(4))
        writer.note(ref, times_of(ref), 3)
    assert FeatureStore(tmp_path / "s").row_of_file(ref) == 3, "what was noted last holds"
    file.unlink()
    with pytest.raises(ValueError, match="cannot read the image"):
        store.find(ref, 9)


def test_a_file_that_has_just_changed_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_writer, "RECENT", 60 * 10**9)
    file = tmp_path / "a.png"
    file.write_bytes(b"bb")
    ref = ImageFile(file)
    with writing(tmp_path / "s", FACTS, BLANK) as writer:
        writer.append([words(b"bb")], [(2, 1)], features(2))
        writer.note(ref, times_of(ref), 1)
    store = FeatureStore(tmp_path / "s")
    assert store.row_of_file(ref) is None and store.find(ref, 9) == 1


@pytest.mark.parametrize("left", ["half a row", "a row without a name", "half a name", "names without rows"])
def test_a_killed_writer_leaves_whole_rows(left: str, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"eeeee")
    folder, ref = tmp_path / "s", ImageFile(file)
    write(folder, b"a", b"bb")
    rows = {"half a row": ROW // 2, "a row without a name": ROW, "half a name": ROW, "names without rows": 0}[left]
    names = {"half a name": IMAGE.itemsize // 2, "names without rows": IMAGE.itemsize}.get(left, 0)
    for name, count in (("features.bin", rows), ("images.bin", names)):
        with (folder / name).open("ab") as stream:
            stream.write(b"\xee" * count)
    with (folder / "files.bin").open("ab") as stream:
        stream.write(np.array([(words(str(file).encode()), *times_of(ref), 3)], FILE).tobytes() + b"\xee" * 5)
    killed = FeatureStore(folder)
    assert killed.rows == 3 and torch.equal(killed[2], features(2)[0]) and killed.row_of_file(ref) is None
    store = write(folder, b"a", b"bb", b"ccc")
    assert store.rows == 4 and (folder / "features.bin").stat().st_size == 4 * ROW
    assert torch.equal(store[3], features(3)[0]) and store.find(Member("x", b"ccc"), 9) == 3
    assert store.row_of_file(ref) is None, "the row was lost, and its number is that of another image now"


def test_rows_that_were_appended_before_an_error_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "s", FACTS, BLANK) as writer:
        writer.append([words(b"a")], [(1, 1)], features(1))
        raise KeyboardInterrupt
    assert FeatureStore(tmp_path / "s").find(Member("x", b"a"), 9) == 1


def test_one_process_writes(tmp_path: Path) -> None:
    held = writing(tmp_path / "s", FACTS, BLANK)
    with held, pytest.raises(ValueError, match="is being written by another process"):
        write(tmp_path / "s", b"a")
    assert write(tmp_path / "s", b"a").rows == 2


def test_other_features_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", b"a")
    with pytest.raises(ValueError, match="found features in float32, expected bfloat16"):
        write(tmp_path / "s", b"a", facts={**FACTS, "dtype": "bfloat16"})
    other = writing(tmp_path / "s", FACTS, BLANK * 7 / 8)
    with pytest.raises(ValueError, match=r"14\.3% off those of the tower as it computes now"), other:
        pass
    (tmp_path / "s" / "store.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="found format 2, expected 1; mllm cache writes it to another folder"):
        FeatureStore(tmp_path / "s")
    with pytest.raises(ValueError, match=r"found no store\.json, expected features that mllm cache has written"):
        FeatureStore(tmp_path)


def test_records_of_equal_first_words(tmp_path: Path) -> None:
    keys = [(5, 1), (2**64 - 1, 3), (5, 2), (5, 1), (0, 0)]
    np.array([(key, (n, n)) for n, key in enumerate(keys)], IMAGE).tofile(tmp_path / "images.bin")
    records = Records(tmp_path / "images.bin", IMAGE, "digest")
    assert [records.find(key) for key in [*keys, (5, 3), (6, 1)]] == [3, 1, 2, 3, 4, None, None]
