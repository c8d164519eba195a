from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mllm.weights import plain_files
from lightning_mllm.weights.plain_files import check_folder, lines, parse, read_object, weight_map

DEEP = "[" * 100_000 + "]" * 100_000
WRONG = {
    "nothing": (b"", "found no JSON"),
    "blanks": (b" \n", "found no JSON"),
    "half": (b'{"a": ', "found no JSON"),
    "a list": (b"[]", "found a list"),
    "null": (b"null", "found a NoneType"),
    "lists in lists": (DEEP.encode(), "too deep"),
    "objects in objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deep"),
    "many digits": (b'{"a": ' + b"9" * 5000 + b"}", "found no JSON"),
    "a key twice": (b'{"b": {"a": 1, "a": 2}}', r"the key 'a' twice"),
    "half a character as a key twice": (rb'{"\ud800": 1, "\ud800": 2}', r"the key '\\ud800' twice"),
    "zero bytes": (b"\0" * 99, "found no JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 at offset 0"),
    "Latin-1": (b'{"a": "\xe9"}', "not UTF-8 at offset 7"),
    "a control character": (b'{"a": "\x07"}', "found no JSON"),
    "HTML": (b"<html></html>", "found no JSON"),
    "two objects": (b"{} {}", "found no JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_object(name: str, tmp_path: Path) -> None:
    content, reason = WRONG[name]
    (path := tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: {reason}|^{path}: found .*{reason}") as caught:
        read_object(path, "settings")
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_a_mark_of_the_byte_order_and_numbers_that_are_none_are_read(tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"loss": NaN, "far": 1e999}')
    assert read_object(path, "settings")["far"] == float("inf")
    path.write_text('\ufeff{"a": 1}\n{"a": 2}\n\n', encoding="utf-8")
    assert [(n, parse(line, n, "") if line else None) for n, line in lines(path)] == [
        (1, {"a": 1}),
        (2, {"a": 2}),
        (3, None),
    ]


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
        lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    ],
)
def test_what_is_no_regular_file(make: Callable[[Path], object], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        make(path := tmp_path / name)
        if name.endswith("json"):
            with pytest.raises(ValueError, match=f"^{path}: "):
                read_object(path, "settings")
        if path.is_symlink() or not path.is_file() or name != "model.safetensors":
            with pytest.raises(ValueError, match=f"^{path}: "):
                check_folder(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_files, "LONGEST", 10)
    (path := tmp_path / "a.jsonl").write_text("{}\n" + "x" * 100)
    with pytest.raises(ValueError, match=r"a\.jsonl:2: found a line of 10 bytes or more"):
        list(lines(path))
    path.write_bytes(b"{}\n{}\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:3: found a byte that is not UTF-8"):
        list(lines(path))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".", "..", "", "a/b", "a\0b"])
def test_an_index_names_files_beside_it(name: str, tmp_path: Path) -> None:
    import json

    (path := tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="a file outside the folder"):
        weight_map(path)
