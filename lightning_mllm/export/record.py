"""Where an export comes from, and `export.json`, by which a repeat knows that the folder is already complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lightning_mllm.export.case import Layout, tested
from lightning_mllm.inference import stage_of
from lightning_mllm.inference.loading import settings_of
from lightning_mllm.weights.files import sha256, write_text
from lightning_mllm.weights.lineage import RECORD, WEIGHTS
from lightning_mllm.weights.run_records import read_stage

EXPORT = "export.json"
FORMAT = 1
PICTURES = "card"
"""The folder of the card's pictures, which its owner may change."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run, or the folder, that an export is of."""

    path: Path
    """As it was named."""
    stage: Path | None
    """The folder of its stage; None for a folder of transformers."""

    @classmethod
    def of(cls, run: Path) -> Origin:
        """ValueError as `stage_of`."""
        return cls(path=run, stage=None if (run / "config.json").is_file() else stage_of(run))

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The stage's `stage.json`."""
        return {} if self.stage is None else read_stage(self.stage / WEIGHTS / RECORD)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The stage's whole configuration."""
        return {} if self.stage is None else settings_of(self.stage)

    @property
    def model(self) -> Mapping[str, Any] | None:
        """The architecture and its arguments."""
        return self.settings.get("model")

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Answers of its test, with pictures."""
        return [] if self.stage is None else tested(self.stage)

    def source(self, *, dtype: torch.dtype | None, adapter_only: bool) -> dict[str, object]:
        """What decides the files of an export: digests of the weights and of their ancestors, and how to write."""
        digest = self.record["sha256"] if self.stage is not None else sha256(self.path)
        return {
            "sha256": digest,
            "lineage": [each["sha256"] for each in self.record.get("lineage", [])],
            "config_hash": self.record.get("config_hash"),
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "adapter_only": adapter_only,
        }


def write_record(
    folder: Path,
    origin: Origin,
    layout: Layout,
    figures: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    adapter_only: bool,
) -> None:
    """Writes `export.json`: source, verification, versions, and the digest of every file but the card's."""
    whole = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    compared = [file for file in whole if file.name != "README.md" and file.parent != folder / PICTURES]
    content = {
        "format": FORMAT,
        "layout": type(layout).__name__,
        "source": origin.source(dtype=dtype, adapter_only=adapter_only),
        "verification": figures,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "huggingface_hub")},
        "files": {file.relative_to(folder).as_posix(): sha256(file) for file in compared},
    }
    write_text(folder / EXPORT, json.dumps(content, indent=2) + "\n")


def is_export_of(folder: Path, origin: Origin, *, dtype: torch.dtype | None, adapter_only: bool) -> bool:
    """Whether a folder is the complete export of a run, written as asked; the card may have been edited.

    Raises:
        ValueError: It is, but a file of it is missing or was changed.
    """
    file = folder / EXPORT
    if not file.is_file():
        return False
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("source") != origin.source(dtype=dtype, adapter_only=adapter_only):
        return False
    for name, digest in content["files"].items():
        found = folder / name
        if not found.is_file() or sha256(found) != digest:
            raise ValueError(f"{found}: found {'another content' if found.is_file() else 'no file'} than was exported")
    return True
