"""What all contenders train: a LLaVA of random weights, rows of stated lengths and random images.

    <s>, V image slots, prompt, answer (learned)

Everything is a function of the workload: whoever asks for sample k gets the same tokens and pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contest.lengths import LENGTHS

IGNORE, PAD, BEGIN, END = -100, 0, 1, 2
PATCH = 14
STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sizes:
    """Of a LLaVA; the heads of both parts are 64 wide (32 in the tiny one)."""

    tower_layers: int
    tower_width: int
    image_size: int
    layers: int
    width: int
    inner: int
    vocabulary: int
    head_width: int = 64

    @property
    def slots(self) -> int:
        """V: visual vectors of an image."""
        return (self.image_size // PATCH) ** 2


SIZES = {
    "tiny": Sizes(3, 32, 28, 2, 32, 64, 300, head_width=16),
    "S": Sizes(6, 256, 112, 6, 256, 688, 4096),
    "M": Sizes(6, 256, 112, 8, 512, 1376, 32000),
}


@dataclass(frozen=True)
class Sample:
    tokens: Tensor
    """i64[T]"""
    labels: Tensor
    """i64[T], IGNORE where not learned; not shifted."""
    image: Tensor
    """u8[3, H, W]"""
    image_id: int


@dataclass(frozen=True)
class Workload:
    net: str
    """A name of SIZES."""
    stage: str
    """instruct: connector and language model train; align: the connector alone."""
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
    lr: float = 5e-5

    @property
    def sizes(self) -> Sizes:
        return SIZES[self.net]

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
        image_id = number // self.per_image
        said = torch.randint(3, self.image_token, (prompt + answer,), generator=draw)
        said[-1] = END
        tokens = torch.cat([torch.tensor([BEGIN] + [self.image_token] * sizes.slots), said])
        labels = tokens.clone()
        labels[: len(tokens) - answer] = IGNORE
        pixels = torch.Generator().manual_seed(1 << 20 | image_id)
        image = torch.randint(0, 256, (3, sizes.image_size, sizes.image_size), generator=pixels, dtype=torch.uint8)
        return Sample(tokens, labels, image, image_id)

    def counts(self) -> dict[str, float]:
        """Of the mean counted step."""
        first, last = self.warmup * self.batch, self.all_steps * self.batch
        rows = [sum(self.lengths[k % len(self.lengths)]) + 1 + self.sizes.slots for k in range(first, last)]
        longest = [max(rows[k : k + self.batch]) for k in range(0, len(rows), self.batch)]
        learned = sum(self.lengths[k % len(self.lengths)][1] for k in range(first, last))
        totals = {"tokens": sum(rows), "padded_tokens": self.batch * sum(longest), "supervised": learned}
        return {"samples": self.batch, **{name: total / self.steps for name, total in totals.items()}}


def read_lengths(stage: str, file: Path | None) -> list[tuple[int, int]]:
    """The built-in lengths of a stage, or those of a file: two numbers a line, tokens of prompt and answer.

    Raises:
        ValueError: A line holds anything else.
    """
    if file is None:
        return LENGTHS[stage]
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
