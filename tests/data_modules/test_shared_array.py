from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path

import numpy as np
import pytest

from data_modules import shared_array as module
from data_modules.shared_array import shared_array


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files go; every array is shared."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "SHARED_FROM", 0)
    return tmp_path / f"lightning_mllm-{os.getuid()}"


def counted(count: Path, size: int = 1000) -> Callable[[], np.ndarray]:
    def build() -> np.ndarray:
        with open(count, "a") as file:
            file.write("x")
        time.sleep(0.2)  # so that the others come meanwhile
        return np.arange(size, dtype=np.int32)

    return build


def rank(count: Path, ready: multiprocessing.Queue, done: multiprocessing.Event) -> None:  # pyright: ignore
    array = shared_array(lambda: "order-0", 1000, counted(count))
    ready.put(int(array.sum()))
    done.wait(60)


def test_one_process_of_a_machine_computes_and_the_last_file_goes(folder: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Queue(), fork.Event()
    ranks = [fork.Process(target=rank, args=(tmp_path / "count", ready, done)) for _ in range(4)]
    for each in ranks:
        each.start()
    assert [ready.get(timeout=60) for _ in ranks] == [499_500] * 4
    assert (tmp_path / "count").read_text() == "x"
    mine = shared_array(lambda: "order-0", 1000, counted(tmp_path / "count"))
    assert (tmp_path / "count").read_text() == "x" and not mine.flags.writeable
    done.set()
    for each in ranks:
        each.join()
    del mine
    assert [each.name for each in folder.iterdir()] == ["lock"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_removed_file_stays_readable_where_it_is_mapped(folder: Path) -> None:
    one, other = (shared_array(lambda: "order-0", 5, lambda: np.arange(5)) for _ in range(2))
    del one
    assert not list(folder.glob("*.npy")) and other.tolist() == [0, 1, 2, 3, 4]


def test_a_small_array_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert shared_array(lambda: "order-0", 5, lambda: np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert not list(tmp_path.iterdir())


def test_a_computation_that_fails_leaves_nothing_to_map(folder: Path) -> None:
    def fail() -> np.ndarray:
        raise ValueError("a bad record")

    with pytest.raises(ValueError, match="a bad record"):
        shared_array(lambda: "order-0", 5, fail)
    assert shared_array(lambda: "order-0", 5, lambda: np.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_a_folder_that_others_can_write_to_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="found a folder that others can write to, expected one of this user alone"):
        shared_array(lambda: "order-0", 5, lambda: np.arange(5))


def test_a_folder_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(module, "SHARED_FROM", 0)
    with pytest.raises(ValueError, match=r"none.*: cannot keep an array of 5 elements there .*set TMPDIR to one"):
        shared_array(lambda: "order-0", 5, lambda: np.arange(5))


def test_a_full_disk_leaves_no_piece_of_a_file_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BufferedWriter, array: np.ndarray, **_: bool) -> None:
        file.write(b"a piece")
        raise OSError("1000 requested and 12 written")  # of numpy, without errno

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ValueError, match=r"elements there \(1000 requested and 12 written\), expected a local folder"):
        shared_array(lambda: "order-0", 1000, lambda: np.arange(1000))
    assert [each.name for each in folder.iterdir()] == ["lock"]


def test_what_a_killed_process_left_is_removed_a_day_later(folder: Path) -> None:
    kept = shared_array(lambda: "order-0", 5, lambda: np.arange(5))
    for name, days in {"killed-0.npy": 2, "killed-1.part": 2, "young-0.npy": 0}.items():
        then = time.time() - 86400 * days
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (then, then))
    os.utime(folder / "order-0.npy", (0, 0))
    other = shared_array(lambda: "order-1", 5, lambda: np.arange(5))
    assert sorted(each.name for each in folder.iterdir()) == ["lock", "order-1.npy", "young-0.npy"]
    assert kept.tolist() == other.tolist() == [0, 1, 2, 3, 4]


def test_no_folder_for_temporary_files_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(module, "SHARED_FROM", 0)
    with pytest.raises(ValueError, match=r"\(No usable temporary directory found\), expected .*set TMPDIR to one"):
        shared_array(lambda: "order-0", 5, lambda: np.arange(5))
