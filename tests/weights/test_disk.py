"""Room on a disk, and folders that cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lightning_mllm.weights import disk
from lightning_mllm.weights.disk import NotWritten, check_room, check_writable, free, writing
from lightning_mllm.weights.files import write_bytes
from tests.weights.disks import NOBODY, fill, in_child, small_disk


def test_an_error_of_writing_names_the_file_and_the_bytes(tmp_path: Path) -> None:
    told = pytest.raises(NotWritten, match=r"a\.csv: cannot write 12 bytes, \d+ are free \(No space left on device\)$")
    with told, writing(tmp_path / "a.csv", 12):
        raise OSError(errno.ENOSPC, "whatever")
    told = pytest.raises(NotWritten, match=r"inner: .*No space")
    with told, writing(tmp_path / "outer"), writing(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "whatever")


def test_what_shares_a_disk_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free", lambda path: 100)
    check_room({tmp_path / "a": 60, tmp_path / "b/c": 40}, "two")
    with pytest.raises(ValueError, match=r"/a: found 100 bytes free, expected 101 for two$"):
        check_room({tmp_path / "a": 60, tmp_path / "b/c": 41}, "two")


def test_a_place_that_may_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable([tmp_path, tmp_path / "new/below"], [tmp_path / "file"])
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for place in ("file", "file/below", "pipe"):
        with pytest.raises(ValueError, match=r"(file|pipe): found a file, expected a folder, or nothing"):
            check_writable([tmp_path / place])
    for place in ("nowhere", "nowhere/below", "loop"):
        with pytest.raises(ValueError, match=r"(nowhere|loop): found a link to what is not there, expected a folder"):
            check_writable([tmp_path / place])
    for name in ("pipe", "nowhere", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=rf"{name}: found no regular file, expected one"):
            check_writable([], [tmp_path / name])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_folder_of_another_user(tmp_path: Path) -> None:
    for parent in (*tmp_path.parents, tmp_path):
        parent.chmod(parent.stat().st_mode | 0o055)

    def work() -> None:
        with pytest.raises(ValueError, match=r"runs: cannot be written \(Permission denied\), \d+ bytes are free"):
            check_writable([tmp_path / "runs"])

    assert in_child(work, user=NOBODY) == (0, "")


def test_a_full_disk_and_one_that_is_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "full", 65536) as mounted:
        if not mounted:
            pytest.skip("nothing may be mounted here")
        fill(tmp_path / "full", 0)
        assert free(tmp_path / "full/later") == 0
        with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\), 0 bytes are free"):
            check_writable([tmp_path / "full"])
        with pytest.raises(NotWritten, match=r"x\.json: cannot write 5 bytes, 0 are free \(No space left on device\)"):
            write_bytes(tmp_path / "full/x.json", b"hello")
        assert [each.name for each in (tmp_path / "full").iterdir()] == ["filler"]
    sealed = pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\)")
    with small_disk(tmp_path / "sealed", 65536, "ro"), sealed:
        check_writable([tmp_path / "sealed/run"])
