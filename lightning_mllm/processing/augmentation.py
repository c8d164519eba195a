"""What training draws of an image."""

from __future__ import annotations

import math

import torch


def random_part(
    width: int, height: int, area: tuple[float, float], random: torch.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a part; of an image too thin for one, the middle (torchvision RandomResizedCrop)."""
    for _ in range(10):
        pixels = width * height * drawn(*area, random)
        ratio = math.exp(drawn(math.log(3 / 4), math.log(4 / 3), random))
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = (int(torch.randint(n + 1, (), generator=random)) for n in (width - wide, height - high))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def drawn(low: float, high: float, random: torch.Generator) -> float:
    """A number between two, all equally likely."""
    return low + (high - low) * float(torch.rand((), generator=random))
