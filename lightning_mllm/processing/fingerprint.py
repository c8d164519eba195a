"""What a processor does to samples, as short digests: its tokenizer, its chat template, its images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerBase

from lightning_mllm.contracts import Sample

UNKNOWN = "-"


def processor_digests(processor: object) -> dict[str, str]:
    """Of each part that a processor has, what it is.

    Pixels do not count: those of another release of the image library differ in rounding.
    """
    found: dict[str, object] = {}
    tokenizer = getattr(processor, "tokenizer", None)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        found["tokenizer"] = sorted(tokenizer.get_vocab().items())
        found["chat template"] = tokenizer.chat_template
    parts = {"chat": "chat template", "image": "images", "max_length": "max_length", "masks": "masks"}
    for name, part in parts.items():
        value = getattr(processor, name, None)
        # Objects that say nothing but where they are in memory are known by the samples that they make.
        written = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", _written(value))
        found[part] = f"{found.get(part, '')}{written}"
    return {part: _digest(str(value)) for part, value in found.items()}


def _written(value: object) -> str:
    tokenizer = getattr(value, "tokenizer", None)
    return type(value).__name__ if tokenizer is not None else repr(value)


def encoded_digest(processor: object, samples: Iterable[tuple[Sample, torch.Generator]]) -> str:
    """A digest for each of some samples: of the tokens and labels that it becomes, or `UNKNOWN` where it cannot be
    encoded now (a picture at an address that does not answer)."""
    found = list[str]()
    for sample, generator in samples:
        digest = hashlib.blake2b(digest_size=4)
        try:
            encoded = processor.encode(sample, random=generator)  # pyright: ignore[reportAttributeAccessIssue]
        except Exception:  # told when it is trained on, or replaced
            found.append(UNKNOWN)
            continue
        for tensor in (encoded.tokens, encoded.labels):
            digest.update(tensor.numpy().tobytes())
        found.append(digest.hexdigest())
    return " ".join(found)


def are_encoded_alike(before: str, after: str) -> bool:
    """Whether samples that could be encoded both times became the same."""
    old, new = before.split(), after.split()
    return len(old) == len(new) and all(
        one == other or UNKNOWN in (one, other) for one, other in zip(old, new, strict=True)
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
