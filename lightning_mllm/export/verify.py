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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
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


@dataclass
class Check:
    """Compares logits, and keeps how far they are apart, relative to the largest logit (or to 1)."""

    tolerance: float
    differences: list[float] = field(default_factory=list)
    """The largest of each comparison."""
    means: list[float] = field(default_factory=list)

    def __call__(self, found: Tensor, ours: Tensor) -> str:
        """What differs, or nothing."""
        apart, scale = (found.float() - ours).abs(), max(1.0, float(ours.abs().max()))
        off = float(apart.max())
        self.differences.append(off / scale)
        self.means.append(float(apart.mean()) / scale)
        if not off <= self.tolerance * scale:
            return f"logits: differ by {off:.3g}, expected at most {self.tolerance * scale:.3g}"
        return ""

    @property
    def figures(self) -> dict[str, float]:
        return {
            "tolerance": self.tolerance,
            "largest": max(self.differences, default=0.0),
            "mean": sum(self.means) / max(1, len(self.means)),
        }


def tolerance_of(dtype: torch.dtype) -> float:
    """Relative to the largest logit, of a net whose numbers are these."""
    return LOGITS if dtype == torch.float32 else ROUNDINGS * torch.finfo(dtype).eps / 2


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
    if difference := _code(folder, [Path(file) for file in facts["code"]]):
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
    alone, batch = _inputs(processor, images[:1], texts[:1]), _inputs(processor, images, texts)
    if difference := _at_once(model, processor, images[0], texts[0], rows[0]) or _pixels(processor, ours):
        return difference
    exactly, answered = Check(LOGITS), facts["compared"] == "answers"
    difference = _tokens(model, alone, rows[:1]) or _says(model, alone, rows[:1], facts, exactly)
    if difference := difference or (
        _writes(_generated(model, processor, alone, rows, facts), rows[:1]) if answered else ""
    ):
        return difference
    difference = _tokens(model, batch, rows) or _says_at_once(model, processor, batch, rows, facts, exactly)
    written = _generated(model, processor, batch, rows, facts) if answered else None
    if difference := difference or (_writes(written, rows) if written else ""):
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
    roughly = Check(tolerance_of(model.dtype))
    alone, batch = alone.to(model.dtype), batch.to(model.dtype)
    difference = _says(model, alone, exact[:1], facts, roughly)
    difference = difference or _says_at_once(model, processor, batch, exact, facts, roughly)
    equal = figures["answers"]
    if written and rounded and not difference:
        equal, difference = _near(
            written, _generated(model, processor, batch, rows, facts), rows, 2 * roughly.tolerance
        )
    name = str(model.dtype).removeprefix("torch.")
    figures["adapters" if name == "float32" else name] = {**roughly.figures, "equal": equal}
    return f"in {name}: {difference}" if difference else ""


def row(ours: dict[str, Tensor], i: int) -> dict[str, Tensor]:
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


def _says(
    model: PreTrainedModel,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
    check: Check,
) -> str:
    """The logits of all that one row reads; of an encoder-decoder, of all that it is to write."""
    if facts["compared"] == "pairs":
        return _pairs(model, inputs, rows, check)
    (ours,) = rows
    learned = {"labels": ours["targets"][None]} if "targets" in ours else {}
    logits = model(**inputs, **learned).logits[0]
    return check(logits[:, : ours["logits"].shape[-1]], ours["logits"])


def _says_at_once(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
    check: Check,
) -> str:
    """The logits by which each row of a batch begins its answer: only `generate` knows the positions of padded rows."""
    if facts["compared"] == "pairs":
        return _pairs(model, inputs, rows, check)
    how = {"return_dict_in_generate": True, "output_logits": True, "tokenizer": processor.tokenizer}
    generate: Any = model.generate
    logits = generate(**inputs, **how, do_sample=False, max_new_tokens=1).logits[0]
    for found, ours in zip(logits, rows, strict=True):
        expected = ours["logits"][0 if "targets" in ours else -1]
        if difference := check(found[: len(expected)], expected):
            return difference
    return ""


def _pairs(model: PreTrainedModel, inputs: BatchFeature, rows: Sequence[dict[str, Tensor]], check: Check) -> str:
    """Of images and texts the similarity, and the logits of being apart and of belonging together."""
    similarity, match = (
        model(**inputs, use_image_text_matching_head=matched).logits_per_image for matched in (False, True)
    )
    for i, ours in enumerate(rows):
        # Every image is compared with every text, and matched with its own.
        found = torch.cat([similarity[i, i : i + 1], match[i]])
        if difference := check(found, ours["logits"]):
            return difference
    return ""


@dataclass(frozen=True)
class Written:
    """Greedy answers of a batch."""

    answers: list[list[int]]
    """Behind what was read."""
    logits: Sequence[Tensor]
    """Of each new token, [B, W]."""
    ends: Collection[int]
    pad: int | None

    def ended(self, i: int) -> list[int]:
        """An answer without what stands behind its end."""
        tokens = self.answers[i]
        return tokens[: next((k for k, token in enumerate(tokens) if token in self.ends), len(tokens))]


def _generated(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
) -> Written:
    # A decoder's answer comes behind what it has read, an encoder-decoder's behind its first token.
    skipped = 1 if "targets" in rows[0] else inputs["input_ids"].shape[1]
    settings = {"do_sample": False, "max_new_tokens": facts["new_tokens"], "tokenizer": processor.tokenizer}
    generate: Any = model.generate
    found = generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    how = model.generation_config
    ends = {how.eos_token_id} if isinstance(how.eos_token_id, int) else set(how.eos_token_id or ())
    return Written(found.sequences[:, skipped:].tolist(), found.logits, ends, how.pad_token_id)


def _writes(written: Written, rows: Sequence[dict[str, Tensor]]) -> str:
    """Each answer ends where ours does, and nothing but padding follows."""
    for answer, ours in zip(written.answers, rows, strict=True):
        expected = ours["answer"].tolist()
        behind = answer[len(expected) :]
        ended = not behind or behind[0] in written.ends or set(behind) == {written.pad}
        if answer[: len(expected)] != expected or not ended:
            return f"greedy answer: {answer}, expected {expected} and its end"
    return ""


def _near(exact: Written, rounded: Written, rows: Sequence[dict[str, Tensor]], tolerance: float) -> tuple[int, str]:
    """How many answers are equal; and of the others, one that parts where the float32 net is not undecided.

    Args:
        exact: In float32.
        rounded: In the numbers of the files.
        rows: What was asked.
        tolerance: By how much, relative to the largest logit, two logits may change places: twice that of one.
    """
    equal = 0
    for i in range(len(rows)):
        one, other = exact.ended(i), rounded.ended(i)
        if one == other:
            equal += 1
            continue
        k = next((k for k, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        k = min(len(one), len(other)) if k is None else k
        logits = exact.logits[k][i].float()
        gap = float(logits[exact.answers[i][k]] - logits[rounded.answers[i][k]])
        if gap > (allowed := tolerance * max(1.0, float(logits.abs().max()))):
            return (
                equal,
                f"greedy answer: {other}, expected {one}, whose token {k} leads by {gap:.3g} (> {allowed:.3g})",
            )
    return equal, ""


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


def picture(pixels: Tensor) -> Image.Image:
    """u8[H, W, 3] as an image."""
    return Image.fromarray(pixels.numpy())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
