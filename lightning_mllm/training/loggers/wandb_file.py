"""What a `.wandb` file holds: the log that W&B writes in the run folder, offline and online alike.

A header of 7 bytes, then blocks of 32 KiB (the log format of LevelDB): each piece has a checksum (u32), a length (u16)
and a kind (u8: whole, first, middle, last), and the pieces of one record add up to a protobuf `Record`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32768
PIECE = struct.Struct("<IHB")
WHOLE, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records (`wandb_internal_pb2.Record`) of a file, up to where it was cut off."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    content, at, payload = path.read_bytes(), HEADER, b""
    while at + PIECE.size <= len(content):
        if (left := BLOCK - at % BLOCK) < PIECE.size:
            at += left
            continue
        _, length, kind = PIECE.unpack_from(content, at)
        at += PIECE.size
        if at + length > len(content) or not kind:
            return
        payload += content[at : at + length]
        at += length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def values(items: Any) -> dict[str, Any]:
    """The values of the items of a history, summary or config record, nested as they were logged."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = found
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return found


def files_of(folder: Path, id: str) -> list[Path]:
    """The files of a run in its `wandb` folder, the oldest first; one for each time that it was begun or went on."""
    # Folders begun in the same second end in -1, -2, ...
    return sorted(folder.glob(f"*run-*-{id}*/run-{id}.wandb"), key=lambda path: path.parent.name.split("run-")[-1])


def history(folder: Path, id: str) -> dict[int, dict[str, Any]]:
    """Step -> what was logged of it, over all files of a run."""
    found: dict[int, dict[str, Any]] = {}
    for path in files_of(folder, id):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                found.setdefault(record.history.step.num, {}).update(values(record.history.item))
    return found
