"""Loads a folder of our own layout in a fresh process, and compares it with what the net did that it was written from.

    python -m lightning_mllm.export.verify_own_layout FOLDER CASE

As `verify`, for folders that `load` reads: nothing but the folder may be needed, so nothing is fetched. In 16 bits
logits are compared; answers that differ are counted, not refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_mllm.export.case import question, said
from lightning_mllm.export.checks import LOGITS, LogitCheck, picture, row, tolerance_of
from lightning_mllm.export.verify import printed
from lightning_mllm.inference import Model, load
from lightning_mllm.weights.files import TensorFiles


def main(arguments: Sequence[str]) -> int:
    """Gives the exit status."""
    folder, case = map(Path, arguments)
    facts, figures = json.loads((case / "case.json").read_text(encoding="utf-8")), {}
    difference = compare(folder, load_file(case / "case.safetensors"), facts, figures)
    if not difference and (snippet := case / "snippet.py").is_file():
        figures["printed"] = printed(snippet.read_text(encoding="utf-8"), folder)
    (case / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    if difference:
        print(difference)
    return 1 if difference else 0


def compare(folder: Path, ours: dict[str, Tensor], facts: dict[str, Any], figures: dict[str, Any]) -> str:
    """What differs, or nothing; `figures` is told how close they are."""
    rows = [row(ours, i) for i in range(len(facts["texts"]))]
    exactly, equal = LogitCheck(LOGITS), 0
    model = load(folder)
    for i, each in enumerate(rows):
        found, difference = _one(model, facts["texts"][i], each, each["logits"], exactly)
        if difference or not found:
            return difference or f"greedy answer of row {i}: another one, expected {each['answer'].tolist()}"
        equal += found
    figures.update({"rows": len(rows), "answers": len(rows), "float32": {**exactly.figures, "equal": equal}})
    files = TensorFiles(folder)
    dtypes = {files[name].dtype for name in files if files[name].is_floating_point()}
    (dtype,) = dtypes if len(dtypes) == 1 else (torch.float32,)
    if dtype == torch.float32 and not facts["adapted"]:
        return ""
    del model  # one net at a time is in memory
    model, roughly, equal = load(folder, dtype=dtype), LogitCheck(tolerance_of(dtype)), 0
    for i, each in enumerate(rows):
        found, difference = _one(model, facts["texts"][i], each, each["unmerged"], roughly)
        if difference:
            return f"in {str(dtype).removeprefix('torch.')}: {difference}"
        equal += found
    name = "adapters" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    figures[name] = {**roughly.figures, "equal": equal}
    return ""


def _one(model: Model, text: str, ours: dict[str, Tensor], logits: Tensor, check: LogitCheck) -> tuple[bool, str]:
    """Whether an answer is equal, and what else differs."""
    found = said(model.module, "answers", question(picture(ours["square"]), text))
    for name in ("tokens", "kinds"):
        if found[name].tolist() != ours[name].tolist():
            return False, f"{name}: its processor writes {found[name].tolist()}, expected {ours[name].tolist()}"
    return found["answer"].tolist() == ours["answer"].tolist(), check(found["logits"], logits)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
