"""Pieces of files that stay open."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_modules.containers.reading import OpenFiles


def test_a_path_is_the_file_that_it_leads_to_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file was put in its place, or the working folder is another one."""
    files = OpenFiles()
    for folder, text in (("a", b"one"), ("b", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "talks.json").write_bytes(text)
    monkeypatch.chdir(tmp_path / "a")
    assert files.read("talks.json", 0, 3) == b"one"
    monkeypatch.chdir(tmp_path / "b")
    assert files.read("talks.json", 0, 3) == b"two"
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").replace("talks.json")
    assert files.read("talks.json", 0, 3) == b"new"
    Path("talks.json").unlink()
    with pytest.raises(ValueError, match=r"talks\.json not found"):
        files.read("talks.json", 0, 3)
