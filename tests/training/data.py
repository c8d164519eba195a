"""Drawn squares of one colour, asked for by name."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from data_modules.evaluation import EvaluationSet
from data_modules.mixture_sampler import MixtureSampler, SampleLocation
from data_modules.module import MultimodalDataModule
from data_modules.sources.source import Source
from data_modules.text import TextShare
from lightning_mllm.contracts import Sample, Turn
from tests.toy import ToyProcessor

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 230), "grey": (128, 128, 128)}


@dataclass(frozen=True)
class Drawn:
    """An image that is drawn when read."""

    name: str
    colour: tuple[int, int, int]

    def read(self, max_bytes: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), self.colour).save(file, "PNG")
        return file.getvalue()


class Squares(Source):
    """`samples` squares, or as many questions that name the colour themselves."""

    def __init__(self, samples: int = 12, text_only: bool = False) -> None:
        self.samples, self.text_only = samples, text_only

    def load(self) -> None: ...

    def __len__(self) -> int:
        return self.samples

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        name = list(COLOURS)[index % len(COLOURS)]
        red, green, blue = COLOURS[name]
        shade = int(torch.randint(0, 10, (), generator=generator))
        question = f"say {name}" if self.text_only else "<image>colour"
        return Sample(
            id=f"s{index}",
            turns=(Turn(role="user", text=question), Turn(role="assistant", text=name)),
            images=() if self.text_only else (Drawn(f"s{index}", (red + shade, green + shade, blue + shade)),),
            references=(name,),
            task="exact",
        )

    def length(self, index: int) -> int:
        return 2

    def has_image(self, index: int) -> bool:
        return not self.text_only


class HalfText:
    """The order of squares, but the second half of each global batch comes from the questions without images."""

    def __init__(self, squares: MixtureSampler, global_batch: int) -> None:
        self.squares, self.global_batch = squares, global_batch
        self.batch = global_batch

    def __len__(self) -> int:
        return len(self.squares)

    def at(self, position: int) -> SampleLocation:
        place = self.squares.at(position)
        second = position % self.global_batch >= self.global_batch // 2
        return place._replace(source="texts") if second else place

    def effective_epochs(self) -> dict[str, float]:
        return {}


class ToyData(MultimodalDataModule):
    """Squares for `steps` global batches; the last ranks may see text only."""

    def __init__(
        self,
        samples: int = 12,
        steps: int = 8,
        global_batch: int = 4,
        micro_batch: int = 4,
        workers: int = 0,
        half_text: bool = False,
        text: TextShare | None = None,
        text_micro_batch: int = 1,
        processor: Any = None,
    ) -> None:
        answered = {"squares": EvaluationSet(source=Squares(10), task="exact")}
        super().__init__(
            train={"squares": Squares(samples)},
            val=answered,
            test=answered,
            epochs=steps * global_batch / samples,
            global_batch=global_batch,
            micro_batch=micro_batch,
            text=text,
            text_micro_batch=text_micro_batch,
            eval_batch=3,
            workers=workers,
            processor=processor or ToyProcessor(),
        )
        self.half_text = half_text

    @property
    def order(self) -> Any:
        squares = super().order
        if not self.half_text:
            return squares
        self.train["texts"] = Squares(len(squares), text_only=True)
        return HalfText(squares, self.global_batch)

    def effective_epochs(self) -> dict[str, float]:
        return {}
