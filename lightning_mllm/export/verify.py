"""Loads an exported folder as a user of transformers would, and compares it with what our net did.

    python -m lightning_mllm.export.verify FOLDER CASE

Exit 0: the same; `figures.json` beside the case says how close. Exit 1: one sentence on standard output says what
differs.

In float32 logits and greedy answers must be equal but for the order of sums. In the numbers of the files, where these
are of 16 bits, logits may differ by their roundings, and an answer only where the better of two tokens leads by less.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor

from lightning_mllm.export.checks import (
    LOGITS,
    LogitCheck,
    batch_logits_difference,
    code_difference,
    generate_greedily,
    greedy_difference,
    logits_difference,
    picture,
    pixels_difference,
    processor_inputs,
    rounded_answers,
    row,
    template_tokens_difference,
    tokens_difference,
    tolerance_of,
)


def main(arguments: Sequence[str]) -> int:
    """Gives the exit status."""
    folder, case = Path(arguments[0]), Path(arguments[1])
    base = Path(arguments[2]) if len(arguments) > 2 else None
    facts, figures = json.loads((case / "case.json").read_text(encoding="utf-8")), {}
    difference = compare(folder, load_file(case / "case.safetensors"), facts, figures, base)
    if not difference and (snippet := case / "snippet.py").is_file():
        figures["printed"] = printed(snippet.read_text(encoding="utf-8"), folder)
    (case / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    if difference:
        print(difference)
    return 1 if difference else 0


@torch.inference_mode()
def compare(
    folder: Path,
    ours: dict[str, Tensor],
    facts: dict[str, Any],
    figures: dict[str, Any] | None = None,
    base: Path | None = None,
) -> str:
    """What differs, or nothing.

    Args:
        folder: The export.
        ours: The case's tensors.
        facts: The case's `case.json`.
        figures: Is told how close they are.
        base: Of an export of adapters, the folder of the net that they adapt.
    """
    figures = {} if figures is None else figures
    adapter, folder = folder, folder if base is None else base
    if difference := code_difference(folder, [Path(file) for file in facts["code"]]):
        return difference
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known: Any = AutoModelForCausalLM if facts["code"] else getattr(transformers, settings["architectures"][0])
    loaded_as = {"local_files_only": True, "trust_remote_code": bool(facts["code"])}
    model, loading = known.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **loaded_as)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            return f"{kind.replace('_', ' ')}: {sorted(map(str, loading[kind]))[:3]}"
    if base is not None:
        adapted: Any = PeftModel.from_pretrained(model, adapter)
        model = adapted.get_base_model()
    processor: Any = AutoProcessor.from_pretrained(folder, **loaded_as)
    rows, texts = [row(ours, i) for i in range(len(facts["texts"]))], facts["texts"]
    images = [picture(row["square"]) for row in rows]
    alone, batch = processor_inputs(processor, images[:1], texts[:1]), processor_inputs(processor, images, texts)
    if difference := template_tokens_difference(model, processor, images[0], texts[0], rows[0]) or pixels_difference(
        processor, ours
    ):
        return difference
    exactly, answered = LogitCheck(LOGITS), facts["compared"] == "answers"
    difference = tokens_difference(model, alone, rows[:1]) or logits_difference(model, alone, rows[:1], facts, exactly)
    if difference := difference or (
        greedy_difference(generate_greedily(model, processor, alone, rows, facts), rows[:1]) if answered else ""
    ):
        return difference
    difference = tokens_difference(model, batch, rows) or batch_logits_difference(
        model, processor, batch, rows, facts, exactly
    )
    written = generate_greedily(model, processor, batch, rows, facts) if answered else None
    if difference := difference or (greedy_difference(written, rows) if written else ""):
        return f"a batch of {len(rows)}: {difference}"
    figures["rows"], figures["answers"] = len(rows), len(rows) if answered else 0
    figures["float32"] = {**exactly.figures, "equal": figures["answers"]}
    # In the numbers of the files, as users have it, beside our net in float32 with its adapters apart.
    rounded = base is None and settings.get("dtype") not in (None, "float32")
    if not rounded and not facts["adapted"]:
        return ""  # the same once more
    if rounded:
        del model  # one net at a time is in memory
        model = known.from_pretrained(folder, dtype="auto", **loaded_as)
    exact = [{**row, "logits": row["unmerged"]} for row in rows]
    roughly = LogitCheck(tolerance_of(model.dtype))
    alone, batch = alone.to(model.dtype), batch.to(model.dtype)
    difference = logits_difference(model, alone, exact[:1], facts, roughly)
    difference = difference or batch_logits_difference(model, processor, batch, exact, facts, roughly)
    equal = figures["answers"]
    if written and rounded and not difference:
        equal, difference = rounded_answers(
            written, generate_greedily(model, processor, batch, rows, facts), rows, 2 * roughly.tolerance
        )
    name = str(model.dtype).removeprefix("torch.")
    figures["adapters" if name == "float32" else name] = {**roughly.figures, "equal": equal}
    return f"in {name}: {difference}" if difference else ""


def printed(snippet: str, folder: Path) -> str:
    """What code of the card prints where the folder is the working directory."""
    told = io.StringIO()
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(told):
            exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    finally:
        os.chdir(before)
    return told.getvalue().strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
