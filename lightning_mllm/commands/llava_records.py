"""Answered lines of `mllm predict FOLDER` as LLaVA's records, the form of ShareGPT4V's files (arXiv 2311.12793)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.contracts import IMAGE_MARK
from lightning_mllm.weights.plain_files import check_regular

Json = dict[str, Any]


def write_records(lines: Path, to: Path) -> int:
    """Writes `to` whole or not at all, and beside it the lines without an answer that a record can hold; how many.

    Args:
        lines: a JSON line each: image, prompt, model, decoding and answer or error.
        to: a list of records in a .json, else a line each; its errors go to `to` with `.errors.jsonl` behind it.
    """
    listed = to.suffix == ".json"
    partial, failed = to.with_name(f"{to.name}.records"), to.with_name(f"{to.name}.errors.jsonl")
    errors = []
    with partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("[" if listed else "")
        written = 0
        for row in _rows(lines):
            if error := row.get("error") or _unfit(row["answer"]):
                errors.append({**row, "error": error})
                continue
            before = ("\n" if written == 0 else ",\n") if listed else ""
            file.write(before + json.dumps(record(row), ensure_ascii=False) + ("" if listed else "\n"))
            written += 1
        file.write("\n]\n" if listed else "")
        file.flush()
        os.fsync(file.fileno())
    if errors:
        told = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in errors)
        failed.write_text(told, encoding="utf-8", errors="surrogateescape")
    else:
        failed.unlink(missing_ok=True)  # of an earlier command
    os.replace(partial, to)
    return len(errors)


def _unfit(answer: str) -> str:
    """Why no record can hold an answer; empty where one can."""
    if not answer.strip():
        return "found an empty answer, expected a text"
    return f"found an {IMAGE_MARK} mark in the answer, expected none" if IMAGE_MARK in answer else ""


def record(row: Json) -> Json:
    """One request and one answer about one picture, and how the answer came about."""
    image, prompt = row["image"], row["prompt"]
    request = prompt if IMAGE_MARK in prompt else f"{IMAGE_MARK}\n{prompt}"
    said = [{"from": "human", "value": request}, {"from": "gpt", "value": row["answer"]}]
    provenance = {name: row[name] for name in ("model", "prompt", "decoding")}
    id = str(PurePosixPath(image).with_suffix(""))
    return {"id": id, "image": image, "conversations": said, "provenance": provenance}


def named_in(path: Path) -> frozenset[str]:
    """Names of the pictures in a file of LLaVA's records, a list or lines.

    Raises:
        ConfigError: It is not there, holds something else, or names no picture.
    """
    try:
        check_regular(path, None)
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        listed = text.lstrip().startswith("[")
        rows = json.loads(text) if listed else [json.loads(line) for line in text.split("\n") if line.strip()]
        images = [row.get("image") or () for row in rows]
        known = frozenset(name for each in images for name in ([each] if isinstance(each, str) else each))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"--except: {path}: {error}, expected LLaVA's records as a JSON list or as lines") from None
    if not known:
        raise ConfigError(f"--except: {path}: found no record with an image, expected some")
    return known


def _rows(lines: Path) -> Iterator[Json]:
    with lines.open("rb") as file:
        for line in file:
            yield json.loads(line.decode("utf-8", errors="surrogateescape"))
