"""What `verify` compares of a folder of transformers: tokens, pixels, logits and greedy answers.

Each check gives what differs as one sentence, or "".
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from lightning_mllm.contracts import TokenKind

LOGITS = 1e-5
"""Largest difference, relative to the largest logit (or to 1): float32 through two implementations of the tower."""

ROUNDINGS = 16
"""How many roundings of 16-bit numbers logits may differ by, relative to the largest: each of some six results a block
is rounded once, independently, and the errors of the 240 of 40 blocks add up as their root."""

PIXELS = 4.0
"""Largest mean difference, in levels of 255: backends resize with other rounding; a wrong fit is off by tens."""


@dataclass
class LogitCheck:
    """Compares logits, and keeps how far they are apart, relative to the largest logit (or to 1)."""

    tolerance: float
    differences: list[float] = field(default_factory=list)
    """The largest of each comparison."""
    means: list[float] = field(default_factory=list)

    def __call__(self, found: Tensor, ours: Tensor) -> str:
        """The difference as a sentence where it is larger than the tolerance, or if a logit is NaN."""
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


def row(ours: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """The tensors of row `i` of a case, without its number."""
    return {name.removeprefix(f"{i}."): tensor for name, tensor in ours.items() if name.startswith(f"{i}.")}


def picture(pixels: Tensor) -> Image.Image:
    """u8[H, W, 3] as an image."""
    return Image.fromarray(pixels.numpy())


def code_difference(folder: Path, own: Sequence[Path]) -> str:
    """Code in the folder that is not, byte for byte, the package's own: it must not be run."""
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py"))
    if found != (names := sorted(file.name for file in own)):
        return f"code: found {found}, expected {names}"
    for file in own:
        if (folder / file.name).read_bytes() != file.read_bytes():
            return f"code: {file.name} differs from the package's"
    for file in sorted(folder.glob("*config.json")) if own else ():
        for source in json.loads(file.read_text(encoding="utf-8")).get("auto_map", {}).values():
            # `owner/name--module.Class` is code of another repository.
            if f"{str(source).partition('.')[0]}.py" not in found:
                return f"code: {file.name} names {source!r}, expected one of {found}"
    return ""


def processor_inputs(processor: ProcessorMixin, images: Sequence[Image.Image], texts: Sequence[str]) -> BatchFeature:
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


def template_tokens_difference(
    model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, text: str, row: dict[str, Tensor]
) -> str:
    """What a template that tokenises too writes."""
    if not processor.chat_template:
        return ""
    inputs: Any = processor.apply_chat_template(
        _conversation(image, text), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return tokens_difference(model, inputs, [row])


def tokens_difference(model: PreTrainedModel, inputs: BatchFeature, rows: Sequence[dict[str, Tensor]]) -> str:
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


def pixels_difference(processor: ProcessorMixin, ours: dict[str, Tensor]) -> str:
    settings = processor.image_processor
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (settings.image_mean, settings.image_std))
    wide = settings(images=picture(ours["wide"]), return_tensors="pt")["pixel_values"][0]
    levels = (wide * std + mean) * 255
    if levels.shape != ours["wide_pixels"].shape:
        return f"pixels: shape {tuple(levels.shape)}, expected {tuple(ours['wide_pixels'].shape)}"
    if (off := float((levels - ours["wide_pixels"]).abs().mean())) > PIXELS:
        return f"pixels: differ by {off:.1f} levels on average, expected at most {PIXELS}"
    return ""


def logits_difference(
    model: PreTrainedModel,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
    check: LogitCheck,
) -> str:
    """The logits of all that one row reads; of an encoder-decoder, of all that it is to write."""
    if facts["compared"] == "pairs":
        return pairs_difference(model, inputs, rows, check)
    (ours,) = rows
    learned = {"labels": ours["targets"][None]} if "targets" in ours else {}
    logits = model(**inputs, **learned).logits[0]
    return check(logits[:, : ours["logits"].shape[-1]], ours["logits"])


def batch_logits_difference(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
    check: LogitCheck,
) -> str:
    """The logits by which each row of a batch begins its answer: only `generate` knows the positions of padded rows."""
    if facts["compared"] == "pairs":
        return pairs_difference(model, inputs, rows, check)
    how = {"return_dict_in_generate": True, "output_logits": True, "tokenizer": processor.tokenizer}
    generate: Any = model.generate
    logits = generate(**inputs, **how, do_sample=False, max_new_tokens=1).logits[0]
    for found, ours in zip(logits, rows, strict=True):
        expected = ours["logits"][0 if "targets" in ours else -1]
        if difference := check(found[: len(expected)], expected):
            return difference
    return ""


def pairs_difference(
    model: PreTrainedModel, inputs: BatchFeature, rows: Sequence[dict[str, Tensor]], check: LogitCheck
) -> str:
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
class GreedyAnswers:
    """Greedy answers of a batch."""

    answers: list[list[int]]
    """Behind what was read."""
    logits: Sequence[Tensor]
    """Of each new token, [B, W]."""
    ends: Collection[int]
    pad: int | None

    def ended(self, i: int) -> list[int]:
        """An answer without its end token and without padding, which also follows a text that ends it."""
        tokens = self.answers[i]
        last = next((k for k, token in enumerate(tokens) if token in self.ends), len(tokens))
        while last and tokens[last - 1] == self.pad:
            last -= 1
        return tokens[:last]


def generate_greedily(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    rows: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
) -> GreedyAnswers:
    # A decoder's answer comes behind what it has read, an encoder-decoder's behind its first token.
    skipped = 1 if "targets" in rows[0] else inputs["input_ids"].shape[1]
    settings = {"do_sample": False, "max_new_tokens": facts["new_tokens"], "tokenizer": processor.tokenizer}
    generate: Any = model.generate
    found = generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    how = model.generation_config
    ends = {how.eos_token_id} if isinstance(how.eos_token_id, int) else set(how.eos_token_id or ())
    return GreedyAnswers(found.sequences[:, skipped:].tolist(), found.logits, ends, how.pad_token_id)


def greedy_difference(written: GreedyAnswers, rows: Sequence[dict[str, Tensor]]) -> str:
    """Each answer ends where ours does, and nothing but padding follows."""
    for answer, ours in zip(written.answers, rows, strict=True):
        expected = ours["answer"].tolist()
        behind = answer[len(expected) :]
        ended = not behind or behind[0] in written.ends or set(behind) == {written.pad}
        if answer[: len(expected)] != expected or not ended:
            return f"greedy answer: {answer}, expected {expected} and its end"
    return ""


def rounded_answers(
    exact: GreedyAnswers, rounded: GreedyAnswers, rows: Sequence[dict[str, Tensor]], tolerance: float
) -> tuple[int, str]:
    """How many answers are equal; and of the others, one that parts where the float32 net is not undecided.

    Args:
        exact: In float32.
        rounded: In the numbers of the files.
        rows: What was asked.
        tolerance: By how much, relative to the largest logit, two logits may change their order: twice that of one.
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
