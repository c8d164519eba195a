"""What all contenders train: a LLaVA of random weights, rows of stated lengths and random images.

    <s>, V image slots, prompt, answer (learned)

Everything is a function of the workload: whoever asks for sample k gets the same tokens and pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from contest.lengths import LENGTHS

IGNORE, PAD, BEGIN, END = -100, 0, 1, 2
PATCH = 14
STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sizes:
    """Of a LLaVA."""

    tower_layers: int
    tower_width: int
    image_size: int
    layers: int
    width: int
    inner: int
    vocabulary: int
    tower_head: int = 64
    """Width of a head of the tower."""
    head: int = 64
    """Width of a head of the language model."""

    @property
    def slots(self) -> int:
        """V: visual vectors of an image."""
        return (self.image_size // PATCH) ** 2


SIZES = {
    "tiny": Sizes(3, 32, 28, 2, 32, 64, 300, 16, 16),
    "S": Sizes(6, 256, 112, 6, 256, 688, 4096),
    "M": Sizes(6, 256, 112, 8, 512, 1376, 32000),
    # LLaVA-1.5 7B: CLIP ViT-L/14-336 and the Llama of arXiv 2302.13971, table 2.
    "7B": Sizes(24, 1024, 336, 32, 4096, 11008, 32000, 64, 128),
}


@dataclass(frozen=True)
class Sample:
    tokens: Tensor
    """i64[T]"""
    labels: Tensor
    """i64[T], IGNORE where not learned; not shifted."""
    images: Tensor
    """u8[N, 3, H, W]"""
    image_ids: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    net: str
    """A name of SIZES."""
    stage: str
    """instruct: connector and language model train; instruct_lora: connector and adapters of rank 128; align: the
    connector alone."""
    lengths: list[tuple[int, int]]
    """Tokens of prompt and answer of each sample; from the start again behind the last."""
    batch: int = 16
    """Samples of an optimizer step."""
    steps: int = 8
    """That are counted."""
    warmup: int = 2
    """Steps before these."""
    per_image: int = 1
    """Samples of one image, which follow one another."""
    images: int = 1
    """Of each sample, where they are not shared."""
    layers: int | None = None
    """Of the language model, in place of the net's own."""
    ranks: int = 1
    """That share a step; on the CPU."""
    device: str = "cpu"
    """cpu or cuda."""
    random: bool = False
    """Whether each contender draws weights of its own, where they are to be."""
    lr: float = 5e-5

    @property
    def sizes(self) -> Sizes:
        sizes = SIZES[self.net]
        return replace(sizes, layers=self.layers) if self.layers else sizes

    @property
    def all_steps(self) -> int:
        return self.warmup + self.steps

    @property
    def image_token(self) -> int:
        return self.sizes.vocabulary - 1

    def sample(self, number: int) -> Sample:
        """Sample `number`, from 0."""
        sizes, draw = self.sizes, torch.Generator().manual_seed(number)
        prompt, answer = self.lengths[number % len(self.lengths)]
        said = torch.randint(3, self.image_token, (prompt + answer,), generator=draw)
        said[-1] = END
        slots = [self.image_token] * sizes.slots * self.images
        tokens = torch.cat([torch.tensor([BEGIN, *slots]), said])
        labels = tokens.clone()
        labels[: len(tokens) - answer] = IGNORE
        first = number // self.per_image * self.images
        shown = tuple(range(first, first + self.images))
        return Sample(tokens, labels, torch.stack([self.image(each) for each in shown]), shown)

    def image(self, number: int) -> Tensor:
        """u8[3, H, W]"""
        side = self.sizes.image_size
        draw = torch.Generator().manual_seed(1 << 20 | number)
        return torch.randint(0, 256, (3, side, side), generator=draw, dtype=torch.uint8)

    def counts(self) -> dict[str, float]:
        """Of the mean counted step."""
        first, last = self.warmup * self.batch, self.all_steps * self.batch
        fixed = 1 + self.sizes.slots * self.images
        rows = [sum(self.lengths[k % len(self.lengths)]) + fixed for k in range(first, last)]
        longest = [max(rows[k : k + self.batch]) for k in range(0, len(rows), self.batch)]
        learned = sum(self.lengths[k % len(self.lengths)][1] for k in range(first, last))
        totals = {"tokens": sum(rows), "padded_tokens": self.batch * sum(longest), "supervised": learned}
        totals["squares"] = sum(each**2 for each in rows)
        return {"samples": self.batch, **{name: total / self.steps for name, total in totals.items()}}


def read_lengths(stage: str, file: Path | None) -> list[tuple[int, int]]:
    """The built-in lengths of a stage, or those of a file: two numbers a line, tokens of prompt and answer.

    Raises:
        ValueError: A line holds anything else.
    """
    if file is None:
        return LENGTHS["align" if stage == "align" else "instruct"]
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        numbers = line.split()
        if len(numbers) != 2 or not all(each.isdigit() for each in numbers) or int(numbers[1]) < 1:
            raise ValueError(
                f"{file}, line {number}: found {line!r}, expected tokens of prompt and answer such as 12 40"
            )
        found.append((int(numbers[0]), int(numbers[1])))
    if not found:
        raise ValueError(f"{file}: found no line, expected tokens of prompt and answer in each")
    return found
