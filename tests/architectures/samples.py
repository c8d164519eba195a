"""Small conversations about small images, and what a net makes of them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image

from lightning_mllm.contracts import Batch, Encoded, Sample, Turn
from lightning_mllm.training.module import MultimodalModule

SIDE = 16


@dataclass(frozen=True)
class Noise:
    """A square of random pixels."""

    seed: int

    @property
    def name(self) -> str:
        return f"noise {self.seed}"

    def read(self, max_bytes: int) -> bytes:
        generator = torch.Generator().manual_seed(self.seed)
        pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
        stream = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(stream, format="PNG")
        return stream.getvalue()


def sample(question: str, answer: str, *images: int) -> Sample:
    """One question with an image mark in front for each seed of `images`."""
    marks = "<image>\n" * len(images)
    turns = (Turn(role="user", text=marks + question), Turn(role="assistant", text=answer))
    return Sample(id=question, turns=turns, images=tuple(Noise(seed) for seed in images))


ONE = sample("What is it?", "A cube.", 1)
OTHER = sample("Which colour has the sphere on the left?", "It is red, I think.", 2)
TWO = sample("Are the two alike?", "No.", 3, 4)
TEXT = sample("Say something.", "Something.")


def batch_of(module: MultimodalModule, *samples: Sample, generate: bool = False) -> Batch:
    rows = [module.processor.encode(each, generate=generate) for each in samples]
    return module.processor.collate(rows, padding="left" if generate else "right")


def packed(module: MultimodalModule, *samples: Sample) -> Batch:
    """The samples one behind the other in a single row, a segment each."""
    rows: list[Encoded] = [module.processor.encode(each) for each in samples]
    one = Encoded(
        id="packed",
        tokens=torch.cat([row.tokens for row in rows]),
        labels=torch.cat([row.labels for row in rows]),
        kinds=torch.cat([row.kinds for row in rows]),
        segments=torch.cat([torch.full((len(row.tokens),), i + 1) for i, row in enumerate(rows)]),
        images=torch.cat([row.images for row in rows]),
        visual_counts=tuple(count for row in rows for count in row.visual_counts),
    )
    return module.processor.collate([one])


def gradients(module: MultimodalModule, batch: Batch) -> dict[str, torch.Tensor]:
    """Of the mean loss, by parameter."""
    module.zero_grad()
    module(batch).loss.backward()
    return {name: p.grad.clone() for name, p in module.net.named_parameters() if p.grad is not None}
