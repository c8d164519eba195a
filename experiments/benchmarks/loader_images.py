"""Images a second of real JPEGs: this project's loader and processor beside torchvision and a plain DataLoader.

    mllm bench loader_images FOLDER [--size 336 --batch 16 --workers 1 --rounds 9]

Both read the .jpg files of FOLDER, each some times over, in a random order, and bring them to squares of one size: the
shortest edge resized with bicubic filtering, then the centre. They take turns, so that what else the machine does meets
both alike, and are compared by the median over the rounds of the ratio within a round.

    ours     records in a .jsonl, LlavaConversations, MixtureSampler, the processor of LLaVA (chat template, tokens and
             labels too; pixels are normalised on the device), ResumableLoader, batches with all their fields
    plain    torchvision's transforms on Pillow images (Resize, CenterCrop, ToTensor, Normalize), torch's DataLoader
    as u8    as plain, but for pixels that are normalised on the device (PILToTensor)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data_modules.loader import Collate, ResumableLoader, Share
from data_modules.mixture_sampler import MixtureSampler
from data_modules.sources import LlavaConversations
from data_modules.training_samples import TrainingSamples
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.processing.images import ImagePolicy

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Plain(Dataset[Any]):
    """What many scripts do."""

    def __init__(self, paths: Sequence[Path], size: int, last: Sequence[Any]) -> None:
        self.paths = paths
        bicubic = transforms.InterpolationMode.BICUBIC
        steps = [transforms.Resize(size, bicubic), transforms.CenterCrop(size), *last]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def ours(paths: Sequence[Path], folder: Path, size: int, batch: int, workers: int) -> Callable[[int], int]:
    """Reads some batches; the images in them."""
    said = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A photo."}]
    records = [{"id": k, "image": path.name, "conversations": said} for k, path in enumerate(paths)]
    (folder / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    source = LlavaConversations(str(folder / "data.jsonl"), str(paths[0].parent))
    source.load()
    processor = LLaVA.tiny().processor
    processor.image = ImagePolicy(size=size, fit="crop")
    order = MixtureSampler({"a": len(source)}, seed=1)

    def read(batches: int) -> int:
        loader = ResumableLoader(
            TrainingSamples({"a": source}, processor, seed=1),
            [(Share("batch", batch, batch), order)],
            collate_fn=Collate(processor, "right"),
            steps=batches,
            workers=workers,
        )
        return sum(each.images.shape == (batch, 3, size, size) and each.num_images for each in loader)

    return read


def plain(dataset: Dataset[Any], size: int, batch: int, workers: int) -> Callable[[int], int]:
    """Reads some batches; the images in them."""

    def read(batches: int) -> int:
        loader = DataLoader(dataset, batch, shuffle=True, drop_last=True, num_workers=workers)
        found = 0
        for number, each in enumerate(loader, 1):
            found += len(each) * (each.shape == (batch, 3, size, size))
            if number == batches:
                break
        return found

    return read


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=480, help="read in each round")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    paths = sorted(given.folder.glob("*.jpg"))
    if not paths:
        parser.error(f"{given.folder}: found no .jpg file, expected some")
    batches = given.images // given.batch
    paths *= -(-given.images // len(paths))
    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    settings = (given.size, given.batch, given.workers)
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            "ours": ours(paths, Path(folder), *settings),
            "plain": plain(Plain(paths, given.size, last), *settings),
            "as u8": plain(Plain(paths, given.size, [transforms.PILToTensor()]), *settings),
        }
        rates = defaultdict[tuple[str, str], list[float]](list)
        for _ in range(given.rounds + 1):  # the first one fills the cache of files
            for name, read in contestants.items():
                begin, used = time.perf_counter(), processor_time()
                found = read(batches)
                if found != batches * given.batch:
                    raise SystemExit(f"{name}: found {found} images, expected {batches * given.batch}")
                rates[name, "s"].append(found / (time.perf_counter() - begin))
                rates[name, "CPU s"].append(found / (processor_time() - used))
    shown: dict[str, float] = {}
    for unit in ("s", "CPU s"):
        for name in contestants:
            shown[f"{name}, images a {unit}"] = statistics.median(rates[name, unit][1:])
        for name in ("plain", "as u8"):
            pairs = zip(rates["ours", unit][1:], rates[name, unit][1:], strict=True)
            shown[f"ours / {name}, by the {unit}"] = statistics.median(one / other for one, other in pairs)
    for name, rate in shown.items():
        print(f"{name:30} {rate:8.2f}")
    return shown


def processor_time() -> float:
    """Of this process and of its workers that have ended, seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
