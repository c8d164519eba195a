"""Loads an exported folder as a user of transformers would, and compares it with what our net did.

    python -m lightning_mllm.export.verify FOLDER CASE

Exit 0: the same. Exit 1: one sentence on standard output says what differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_mllm.contracts import TokenKind

LOGITS = 1e-5
"""Largest difference, relative to the largest logit (or to 1): float32 through two implementations of the tower."""

PIXELS = 4.0
"""Largest mean difference, in levels of 255: backends resize with other rounding; a wrong fit is off by tens."""


def main(arguments: Sequence[str]) -> int:
    """Gives the exit status."""
    folder, case = map(Path, arguments)
    difference = compare(folder, load_file(case / "case.safetensors"), json.loads((case / "case.json").read_text()))
    if difference:
        print(difference)
    return 1 if difference else 0


@torch.inference_mode()
def compare(folder: Path, ours: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """What differs, or nothing."""
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    model, loading = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            return f"{kind.replace('_', ' ')}: {sorted(map(str, loading[kind]))[:3]}"
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
    shown = [{"type": "image", "image": picture(ours["square"])}, {"type": "text", "text": facts["question"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": shown}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens, image_id = inputs["input_ids"][0], model.config.image_token_id
    kinds = ours["kinds"]
    expected = torch.where(kinds == int(TokenKind.IMAGE), image_id, ours["tokens"])
    if tokens.tolist() != expected.tolist():
        return f"tokens: its processor writes {tokens.tolist()}, expected {expected.tolist()}"

    settings = processor.image_processor
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (settings.image_mean, settings.image_std))
    wide = processor.image_processor(images=picture(ours["wide"]), return_tensors="pt")["pixel_values"][0]
    levels = (wide * std + mean) * 255
    if levels.shape != ours["wide_pixels"].shape:
        return f"pixels: shape {tuple(levels.shape)}, expected {tuple(ours['wide_pixels'].shape)}"
    if (off := float((levels - ours["wide_pixels"]).abs().mean())) > PIXELS:
        return f"pixels: differ by {off:.1f} levels on average, expected at most {PIXELS}"

    logits = model(**inputs).logits[0][:, : ours["logits"].shape[-1]]
    off, scale = float((logits - ours["logits"]).abs().max()), max(1.0, float(ours["logits"].abs().max()))
    if not off <= LOGITS * scale:
        return f"logits: differ by {off:.3g}, expected at most {LOGITS * scale:.3g}"

    written = model.generate(**inputs, do_sample=False, max_new_tokens=facts["new_tokens"])[0][len(tokens) :].tolist()
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    written = written[: next((i for i, token in enumerate(written) if token in ends), len(written))]
    if written != ours["answer"].tolist():
        return f"greedy answer: {written}, expected {ours['answer'].tolist()}"
    return ""


def picture(pixels: Tensor) -> Image.Image:
    """u8[H, W, 3] as an image."""
    return Image.fromarray(pixels.numpy())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
