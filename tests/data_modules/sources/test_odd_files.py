"""Annotations, tables and texts that are no regular files: refused at once, never opened."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_modules.containers import open_records
from data_modules.sources.records import lines, read_json
from data_modules.sources.text_files import TextFiles, TextLines
from data_modules.sources.text_table import TextTable
from data_modules.sources.tsv import tsv_rows


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 41)


ODD: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a folder": Path.mkdir,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "secrets of the process": lambda path: path.symlink_to("/proc/self/environ"),
    "what waits for the kernel": lambda path: path.symlink_to("/proc/kmsg"),
    "a setting of the kernel": lambda path: path.symlink_to("/sys/kernel/mm/transparent_hugepage/enabled"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "x.json": read_json,
    "x.jsonl": lambda path: list(lines(path)),
    "x.tsv": lambda path: list(tsv_rows(path)),
    "x.txt": lambda path: TextFiles(str(path)).load(),
    "t.jsonl": lambda path: TextLines(str(path)).load(),
    "t.parquet": lambda path: TextTable(str(path)).load(),
    **{f"r{each}": open_records for each in (".json", ".jsonl", ".parquet", ".arrow", ".tar")},
}


@pytest.mark.fault
def test_no_reader_opens_what_is_no_file(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    count = 0
    for make in ODD.values():
        for name, read in READERS.items():
            make(path := tmp_path / name)
            began = time.monotonic()
            with pytest.raises(ValueError, match=name) as caught:
                read(path)
            assert time.monotonic() - began < 5 and "\n" not in str(caught.value)
            count += 1
            path.rmdir() if path.is_dir() else path.unlink()
    fault_row("T21", f"{count} of {count}", "pipes, sockets, devices, kernel files as data: refused in one sentence")


@pytest.mark.parametrize("name", ["x.json", "x.tsv", "x.txt", "t.jsonl", "r.tar", "r.parquet"])
def test_a_file_of_two_terabytes_of_nothing(name: str, tmp_path: Path) -> None:
    _sparse(path := tmp_path / name)
    with pytest.raises(ValueError, match=name):
        READERS[name](path)
