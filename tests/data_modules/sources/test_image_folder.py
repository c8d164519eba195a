from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from data_modules.sources.image_folder import BESIDES, ImageFolder
from data_modules.sources.records import RecordError

ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a named pipe": (os.mkfifo, "found a named pipe, expected a regular file"),
    "a socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "found a socket"),
    "a folder": (Path.mkdir, "found a folder, expected a regular file"),
    "an endless device": (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    "a device that waits": (lambda path: path.symlink_to("/dev/tty"), "found a device|cannot read"),
    "a file of the kernel": (lambda path: path.symlink_to("/proc/self/environ"), "found a file of the kernel"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot read the file"),
    "a link to nothing": (lambda path: path.symlink_to(path.with_name("gone")), "not found"),
    "a link that leads out": (lambda path: path.symlink_to(__file__), "found a link to .*, expected one inside"),
    "a relative link that leads out": (lambda path: path.symlink_to("../out.png"), "found a link to .*out.png"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out.png").write_bytes(b"out")
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "images/a.png").write_bytes(b"a")
    return tmp_path / "images"


@pytest.mark.parametrize("name", ODD)
def test_what_only_seems_to_be_an_image(name: str, folder: Path) -> None:
    make, rule = ODD[name]
    for place in ("x.png", "sub/x.png"):
        if "relative" in name and place != "x.png":
            continue
        make(folder / place)
        with pytest.raises(RecordError, match=rf"^image {folder / place}( not found|: .*{rule})"):
            ImageFolder(str(folder)).check(place)


def test_links_inside_the_folder_are_followed_and_others_where_they_are_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub/b.png").symlink_to("../a.png")
    (folder / "there").symlink_to(folder / "sub")
    (folder / "away").symlink_to(folder.parent)
    (folder.parent / "root").symlink_to(folder)
    for root in (folder, folder.parent / "root"):
        for name in ("a.png", "sub/b.png", "there/b.png"):
            assert ImageFolder(str(root)).check(name) == name
    with pytest.raises(RecordError, match=f"away/out.png: found a link to {folder.parent}, expected one inside"):
        ImageFolder(str(folder)).check("away/out.png")
    monkeypatch.setenv(BESIDES, f"/nowhere{os.pathsep}{folder.parent}")
    assert ImageFolder(str(folder)).check("away/out.png") == "away/out.png"
    (folder / "c.png").symlink_to(__file__)
    with pytest.raises(RecordError, match="found a link to"):
        ImageFolder(str(folder)).check("c.png")
    monkeypatch.setenv(BESIDES, "/")
    assert ImageFolder(str(folder)).check("c.png") == "c.png"


@pytest.mark.parametrize("name", ["/etc/hostname", "../out.png", "sub/../../out.png", "a\0.png", "", ".", "x" * 5000])
def test_names_that_lead_out(name: str, folder: Path) -> None:
    with pytest.raises(RecordError, match=r"expected a path inside|not found"):
        ImageFolder(str(folder)).check(name)


def test_a_folder_that_is_a_link_to_itself(folder: Path) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(RecordError, match=r"loop.*(cannot be read|not found)"):
        ImageFolder(str(folder)).check("loop/a.png")
