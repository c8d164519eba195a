from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mllm.evaluation.run_folder import read_metrics
from lightning_mllm.weights.lineage import InitSource
from lightning_mllm.weights.run_records import read_config, read_record, read_stage, read_test

DAMAGED = {
    "empty": b"",
    "cut": b'{"format": 1, "sha256": "ab',
    "text": b"<html>404</html>",
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"7",
    "binary": bytes(range(256)),
    "half a character": b'"\xe2\x82',
    "deep": b"[" * 100_000,
    "zero bytes": bytes(100),
}


@pytest.mark.parametrize("read", [read_record, read_stage, read_test, read_config])
def test_damage_is_told_and_left(read: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    assert read(file) == {}
    for kind, content in DAMAGED.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.json: found .* expected .*; ") as told:
            read(file)
        assert len(str(told.value).splitlines()) <= 1 and file.read_bytes() == content, kind


@pytest.mark.parametrize("field", ["settings", "lineage", "init_from", "sha256", "steps", "scores"])
def test_a_field_of_another_kind(field: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.json"
    for value in (3.5, None, True, "x", [], {}):
        file.write_text(json.dumps({field: value}))
        try:
            read_record(file)
        except ValueError as error:
            assert f"stage.json: found a {type(value).__name__} as '{field}'" in str(error)
        else:
            assert value == {"lineage": [], "sha256": "x", "steps": True}.get(field, {})


def test_a_stage_to_start_from(tmp_path: Path) -> None:
    record = tmp_path / "align" / "weights" / "stage.json"
    record.parent.mkdir(parents=True)
    for content in (*DAMAGED.values(), b'{"format": 2}', b'{"format": 1, "stage": "align"}'):
        record.write_bytes(content)
        with pytest.raises(ValueError, match=r"align/weights/stage\.json: found "):
            InitSource.find("align", tmp_path)


@pytest.mark.parametrize("content", [b"loss\n1\n", b"step,a\n1,x\n", bytes(range(128, 256)), b"step,a\n1,2,3,4\n"])
def test_curves(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv: found "):
        read_metrics(file)
    file.write_bytes(b"step,a\n1,2.0\n2,3.")
    assert read_metrics(file)["a"][0] == (1.0, 2.0)
