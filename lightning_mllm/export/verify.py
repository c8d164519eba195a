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
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor

from lightning_mllm.contracts import TokenKind

LOGITS = 1e-5
"""Largest difference, relative to the largest logit (or to 1): float32 through two implementations of the tower."""

REMOTE = Path(__file__).resolve().parents[1] / "weights" / "remote"
"""The code that travels inside folders; no other is ever run."""

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
    if difference := _code(folder, facts["code"]):
        return difference
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    known: Any = AutoModelForCausalLM if facts["code"] else getattr(transformers, names[0])
    loaded_as = {"local_files_only": True, "trust_remote_code": bool(facts["code"])}
    model, loading = known.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **loaded_as)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            return f"{kind.replace('_', ' ')}: {sorted(map(str, loading[kind]))[:3]}"
    processor: Any = AutoProcessor.from_pretrained(folder, **loaded_as)
    inputs = _inputs(processor, picture(ours["square"]), facts["text"])
    if difference := _tokens(model, inputs, ours) or _pixels(processor, ours):
        return difference
    if facts["compared"] == "pairs":
        return _pair(model, inputs, ours)
    return _answer(model, inputs, ours, facts["new_tokens"])


def _code(folder: Path, names: Sequence[str]) -> str:
    """What of the folder's code is not, byte for byte, the package's own; only then may it be run."""
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py"))
    if found != sorted(names):
        return f"code: found {found}, expected {sorted(names)}"
    for name in found:
        if (folder / name).read_bytes() != (REMOTE / name).read_bytes():
            return f"code: {name} differs from the package's"
    for file in sorted(folder.glob("*config.json")) if names else ():
        for place in json.loads(file.read_text(encoding="utf-8")).get("auto_map", {}).values():
            # `owner/name--module.Class` is code of another place.
            if f"{str(place).partition('.')[0]}.py" not in found:
                return f"code: {file.name} names {place!r}, expected one of {found}"
    return ""


def _inputs(processor: Any, image: Image.Image, text: str) -> Any:
    if not processor.chat_template:
        return processor(images=image, text=text, return_tensors="pt")
    shown = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": shown}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _tokens(model: Any, inputs: Any, ours: dict[str, Tensor]) -> str:
    expected = ours["tokens"]
    if (slots := ours["kinds"] == int(TokenKind.IMAGE)).any():
        expected = torch.where(slots, model.config.image_token_id, expected)
    pairs = {"tokens": (inputs["input_ids"][0], expected)}
    if "query_text" in ours:
        pairs["the Q-Former's tokens"] = (inputs["qformer_input_ids"][0], ours["query_text"])
    for what, (found, wanted) in pairs.items():
        if found.tolist() != wanted.tolist():
            return f"{what}: its processor writes {found.tolist()}, expected {wanted.tolist()}"
    return ""


def _pixels(processor: Any, ours: dict[str, Tensor]) -> str:
    settings = processor.image_processor
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (settings.image_mean, settings.image_std))
    wide = settings(images=picture(ours["wide"]), return_tensors="pt")["pixel_values"][0]
    levels = (wide * std + mean) * 255
    if levels.shape != ours["wide_pixels"].shape:
        return f"pixels: shape {tuple(levels.shape)}, expected {tuple(ours['wide_pixels'].shape)}"
    if (off := float((levels - ours["wide_pixels"]).abs().mean())) > PIXELS:
        return f"pixels: differ by {off:.1f} levels on average, expected at most {PIXELS}"
    return ""


def _logits(found: Tensor, ours: Tensor) -> str:
    off, scale = float((found - ours).abs().max()), max(1.0, float(ours.abs().max()))
    if not off <= LOGITS * scale:
        return f"logits: differ by {off:.3g}, expected at most {LOGITS * scale:.3g}"
    return ""


def _pair(model: Any, inputs: Any, ours: dict[str, Tensor]) -> str:
    """Of an image and a text the similarity, and the logits of being apart and of belonging together."""
    similarity, match = (
        model(**inputs, use_image_text_matching_head=matched).logits_per_image[0] for matched in (False, True)
    )
    return _logits(torch.cat([similarity, match]), ours["logits"])


def _answer(model: Any, inputs: Any, ours: dict[str, Tensor], new_tokens: int) -> str:
    """The logits of what is read (of an encoder-decoder, of what is written), and a greedy answer."""
    learned = {"labels": ours["targets"][None]} if "targets" in ours else {}
    logits = model(**inputs, **learned).logits[0][:, : ours["logits"].shape[-1]]
    if difference := _logits(logits, ours["logits"]):
        return difference
    # A decoder's answer comes behind what it has read, an encoder-decoder's behind its first token.
    skipped = 1 if learned else len(inputs["input_ids"][0])
    written = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)[0][skipped:].tolist()
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
