"""Small files in the published formats, and parts that stand in for a processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from data_modules.sources import Source
from lightning_mllm.contracts import ImageFile, Sample, Turn

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


def write(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in value) if lines else json.dumps(value))
    return str(path)


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return str(folder)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Numbers(Source):
    """Samples that are their index; every third one is text alone where `mixed`."""

    def __init__(self, size: int, name: str = "n", mixed: bool = False) -> None:
        self.size, self.name, self.mixed = size, name, mixed
        self.loads = 0

    def load(self) -> None:
        self.loads += 1

    def __len__(self) -> int:
        return self.size

    def has_image(self, index: int) -> bool:
        return not self.mixed or index % 3 != 0

    def length(self, index: int) -> int:
        return index * 7 % 11 + 1

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        if index == -1:
            raise ValueError("never asked")
        drawn = int(torch.randint(1 << 30, (), generator=generator))
        images = (ImageFile(Path(f"{self.name}{index // 2}.png")),) if self.has_image(index) else ()
        return Sample(
            id=f"{self.name}{index}",
            turns=(Turn(role="user", text=f"drawn {drawn}"), Turn(role="assistant", text=str(index))),
            images=images,
            references=(str(index),),
        )


class Echo:
    """A processor that leaves samples as they are; the named one is refused."""

    image: Any = None

    def __init__(self, refuses: str = "", error: type[Exception] = ValueError) -> None:
        self.refuses, self.error = refuses, error

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None) -> Any:
        if sample.id == self.refuses:
            raise self.error(f"sample {sample.id}: no good")
        return sample

    def collate(self, rows: Any, *, padding: str = "right", packed: bool = False) -> Any:
        return {
            "ids": [row.id for row in rows],
            "drawn": [row.turns[0].text for row in rows],
            "images": [[image.name for image in row.images] for row in rows],
            "tasks": [row.task for row in rows],
            "padding": padding,
        }
