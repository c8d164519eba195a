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
from transformers import AutoModelForCausalLM, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

from lightning_mllm.contracts import TokenKind

LOGITS = 1e-5
"""Largest difference, relative to the largest logit (or to 1): float32 through two implementations of the tower."""

ROUNDINGS = 16
"""How many roundings of 16-bit numbers logits may differ by, relative to the largest: each of some six results a block
is rounded once, independently, and the errors of the 240 of 40 blocks add up as their root."""

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
    if difference := _code(folder, [Path(file) for file in facts["code"]]):
        return difference
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known: Any = AutoModelForCausalLM if facts["code"] else getattr(transformers, settings["architectures"][0])
    loaded_as = {"local_files_only": True, "trust_remote_code": bool(facts["code"])}
    model, loading = known.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **loaded_as)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            return f"{kind.replace('_', ' ')}: {sorted(map(str, loading[kind]))[:3]}"
    processor: Any = AutoProcessor.from_pretrained(folder, **loaded_as)
    rows, texts = [_row(ours, i) for i in range(len(facts["texts"]))], facts["texts"]
    images = [picture(row["square"]) for row in rows]
    alone, batch = _inputs(processor, images[:1], texts[:1]), _inputs(processor, images, texts)
    if difference := _at_once(model, processor, images[0], texts[0], rows[0]) or _pixels(processor, ours):
        return difference
    difference = _tokens(model, alone, rows[:1]) or _says(model, alone, rows[:1], facts, LOGITS)
    if difference := difference or _writes(model, processor, alone, rows[:1], facts):
        return difference
    difference = _tokens(model, batch, rows) or _says_at_once(model, processor, batch, rows, facts, LOGITS)
    if difference := difference or _writes(model, processor, batch, rows, facts):
        return f"a batch of {len(rows)}: {difference}"
    # In the numbers of the files, as users have it, beside our net in float32 with its adapters apart.
    rounded = settings.get("dtype") not in (None, "float32")
    if not rounded and not facts["adapted"]:
        return ""  # the same once more
    if rounded:
        del model  # one net at a time is in memory
        model = known.from_pretrained(folder, dtype="auto", **loaded_as)
    exact = [{**row, "logits": row["unmerged"]} for row in rows]
    tolerance = LOGITS if model.dtype == torch.float32 else ROUNDINGS * torch.finfo(model.dtype).eps / 2
    alone, batch = alone.to(model.dtype), batch.to(model.dtype)
    difference = _says(model, alone, exact[:1], facts, tolerance)
    difference = difference or _says_at_once(model, processor, batch, exact, facts, tolerance)
    return f"in {str(model.dtype).removeprefix('torch.')}: {difference}" if difference else ""


def _row(ours: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name.removeprefix(f"{i}."): tensor for name, tensor in ours.items() if name.startswith(f"{i}.")}


def _code(folder: Path, own: Sequence[Path]) -> str:
    """What of the folder's code is not, byte for byte, the package's own; only then may it be run."""
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py"))
    if found != (names := sorted(file.name for file in own)):
        return f"code: found {found}, expected {names}"
    for file in own:
        if (folder / file.name).read_bytes() != file.read_bytes():
            return f"code: {file.name} differs from the package's"
    for file in sorted(folder.glob("*config.json")) if own else ():
        for place in json.loads(file.read_text(encoding="utf-8")).get("auto_map", {}).values():
            # `owner/name--module.Class` is code of another place.
            if f"{str(place).partition('.')[0]}.py" not in found:
                return f"code: {file.name} names {place!r}, expected one of {found}"
    return ""


def _inputs(processor: ProcessorMixin, images: Sequence[Image.Image], texts: Sequence[str]) -> BatchFeature:
    """A batch as people make one: texts of the chat template, then the processor.

    But for one thing: what InstructBLIP's Q-Former reads is padded by its own tokenizer, on the right, since a Q-Former
    counts from the left. Its processor (transformers 5.23) pads on the side of the other tokenizer, which is the left
    for a decoder; `HfFolder.advice` says so to users.
    """
    if processor.chat_template:
        texts = [
            processor.apply_chat_template(_conversation(image, text), add_generation_prompt=True)
            for image, text in zip(images, texts, strict=True)
        ]
    process: Any = processor
    inputs = process(images=list(images), text=list(texts), padding=True, return_tensors="pt")
    if "qformer_input_ids" in inputs:
        read = process.qformer_tokenizer(list(texts), padding=True, return_tensors="pt")
        inputs.update({f"qformer_{name}": read[name] for name in ("input_ids", "attention_mask")})
    return inputs


def _conversation(image: Image.Image, text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def _at_once(
    model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, text: str, row: dict[str, Tensor]
) -> str:
    """What a template that tokenises too writes."""
    if not processor.chat_template:
        return ""
    inputs: Any = processor.apply_chat_template(
        _conversation(image, text), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return _tokens(model, inputs, [row])


def _tokens(model: PreTrainedModel, inputs: BatchFeature, rows: Sequence[dict[str, Tensor]]) -> str:
    for i, ours in enumerate(rows):
        expected = ours["tokens"]
        if (slots := ours["kinds"] == int(TokenKind.IMAGE)).any():
            expected = torch.where(slots, model.config.image_token_id, expected)
        pairs = {"tokens": (inputs["input_ids"][i][_real(inputs, i)], expected)}
        if "query_text" in ours:
            real = inputs["qformer_attention_mask"][i].bool()
            pairs["the Q-Former's tokens"] = (inputs["qformer_input_ids"][i][real], ours["query_text"])
        for what, (found, wanted) in pairs.items():
            if found.tolist() != wanted.tolist():
                return f"{what}: its processor writes {found.tolist()}, expected {wanted.tolist()}"
    return ""


def _real(inputs: BatchFeature, i: int) -> Tensor:
    """Of a row's tokens, those that are no padding."""
    return inputs["attention_mask"][i].bool()


def _pixels(processor: ProcessorMixin, ours: dict[str, Tensor]) -> str:
    settings = processor.image_processor
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (settings.image_mean, settings.image_std))
    wide = settings(images=picture(ours["wide"]), return_tensors="pt")["pixel_values"][0]
    levels = (wide * std + mean) * 255
    if levels.shape != ours["wide_pixels"].shape:
        return f"pixels: shape {tuple(levels.shape)}, expected {tuple(ours['wide_pixels'].shape)}"
    if (off := float((levels - ours["wide_pixels"]).abs().mean())) > PIXELS:
        return f"pixels: differ by {off:.1f} levels on average, expected at most {PIXELS}"
    return ""


def _logits(found: Tensor, ours: Tensor, tolerance: float) -> str:
    off, scale = float((found.float() - ours).abs().max()), max(1.0, float(ours.abs().max()))
    if not off <= tolerance * scale:
        return f"logits: differ by {off:.3g}, expected at most {tolerance * scale:.3g}"
    return ""


def _says(
    model: PreTrainedModel,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
    tolerance: float,
) -> str:
    """The logits of all that one row reads; of an encoder-decoder, of all that it is to write."""
    if facts["compared"] == "pairs":
        return _pairs(model, inputs, rows, tolerance)
    (ours,) = rows
    learned = {"labels": ours["targets"][None]} if "targets" in ours else {}
    logits = model(**inputs, **learned).logits[0]
    return _logits(logits[:, : ours["logits"].shape[-1]], ours["logits"], tolerance)


def _says_at_once(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
    tolerance: float,
) -> str:
    """The logits by which each row of a batch begins its answer: only `generate` knows the positions of padded rows."""
    if facts["compared"] == "pairs":
        return _pairs(model, inputs, rows, tolerance)
    how = {"return_dict_in_generate": True, "output_logits": True, "tokenizer": processor.tokenizer}
    generate: Any = model.generate
    logits = generate(**inputs, **how, do_sample=False, max_new_tokens=1).logits[0]
    for found, ours in zip(logits, rows, strict=True):
        expected = ours["logits"][0 if "targets" in ours else -1]
        if difference := _logits(found[: len(expected)], expected, tolerance):
            return difference
    return ""


def _pairs(model: PreTrainedModel, inputs: BatchFeature, rows: Sequence[dict[str, Tensor]], tolerance: float) -> str:
    """Of images and texts the similarity, and the logits of being apart and of belonging together."""
    similarity, match = (
        model(**inputs, use_image_text_matching_head=matched).logits_per_image for matched in (False, True)
    )
    for i, ours in enumerate(rows):
        # Every image is compared with every text, and matched with its own.
        found = torch.cat([similarity[i, i : i + 1], match[i]])
        if difference := _logits(found, ours["logits"], tolerance):
            return difference
    return ""


def _writes(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
) -> str:
    """Greedy answers: each ends where ours does, and nothing but padding follows."""
    if facts["compared"] == "pairs":
        return ""
    # A decoder's answer comes behind what it has read, an encoder-decoder's behind its first token.
    skipped = 1 if "targets" in rows[0] else inputs["input_ids"].shape[1]
    settings = {"do_sample": False, "max_new_tokens": facts["new_tokens"], "tokenizer": processor.tokenizer}
    generate: Any = model.generate
    written = generate(**inputs, **settings)[:, skipped:].tolist()
    how = model.generation_config
    ends = {how.eos_token_id} if isinstance(how.eos_token_id, int) else set(how.eos_token_id or ())
    for answer, ours in zip(written, rows, strict=True):
        expected = ours["answer"].tolist()
        behind = answer[len(expected) :]
        ended = not behind or behind[0] in ends or set(behind) == {how.pad_token_id}
        if answer[: len(expected)] != expected or not ended:
            return f"greedy answer: {answer}, expected {expected} and its end"
    return ""


def picture(pixels: Tensor) -> Image.Image:
    """u8[H, W, 3] as an image."""
    return Image.fromarray(pixels.numpy())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
