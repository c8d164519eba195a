"""What data modules need of a processor; the command line links the model's to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from lightning_mllm.boxes import Frame
from lightning_mllm.contracts import Batch, Encoded, Sample


class Shown(Protocol):
    """How a processor fits images, as far as coordinates in texts depend on it."""

    @property
    def fit(self) -> str: ...

    @property
    def frame(self) -> Frame | None:
        """What coordinates are shares of; None where a part of the image is shown."""
        ...

    @property
    def random(self) -> bool:
        """Whether training shows random parts or mirror images."""
        ...


class SampleProcessor(Protocol):
    """Turns samples into tokens and pixels, and those into batches."""

    @property
    def image(self) -> Shown: ...

    def encode(self, sample: Sample, *, generate: bool = False, random: torch.Generator | None = None) -> Encoded: ...

    def collate(self, rows: Sequence[Encoded], *, padding: Literal["left", "right"] = "right") -> Batch: ...


class PackingProcessor(SampleProcessor, Protocol):
    """One that can also put all samples of a batch into one row, where `pack` asks for it."""

    def collate(
        self, rows: Sequence[Encoded], *, padding: Literal["left", "right"] = "right", packed: bool = False
    ) -> Batch: ...
