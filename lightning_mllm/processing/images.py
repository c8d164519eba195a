"""How an image becomes the square of pixels that a vision tower sees.

The three ways are those of CLIP (crop), of LLaVA-1.5 (pad) and of towers with a fixed input (squash). Crop and pad
give, pixel for pixel, what transformers' CLIPImageProcessor and LlavaImageProcessor (do_pad) give before they rescale
and normalise. Normalising is the tower's own work, on the device.

In training a policy may show a random part of an image, or its mirror image, in place of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

Fit = Literal["crop", "pad", "squash"]

# Beyond this the published order (enlarge, then cut) would build hundreds of megabytes of pixels for one thin image.
MAX_INTERMEDIATE = 32_000_000


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """Pixels of one image as the tower wants them.

    Raises:
        ValueError: `size` below 1, an unknown `fit`, or a share out of range.
    """

    size: int
    """Side of the square, in pixels."""
    fit: Fit
    """crop: shortest edge to `size`, then the centre; pad: a square of `mean` colour around it; squash: neither."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Colour of the padding, RGB in [0, 1]; OpenAI CLIP's channel means."""
    random_area: tuple[float, float] | None = None
    """In training: a random part with a share of the area between these, from 3:4 to 4:3 (`random_part`)."""
    random_flip: float = 0.0
    """In training: how often an image is mirrored, left to right."""

    def __post_init__(self) -> None:
        low, high = self.random_area or (1.0, 1.0)
        if not 0 < low <= high <= 1:
            raise ValueError(f"image.random_area: found {self.random_area}, expected two rising shares of at most 1")
        if not 0 <= self.random_flip <= 1:
            raise ValueError(f"image.random_flip: found {self.random_flip}, expected a share from 0 to 1")
        if self.size < 1:
            raise ValueError(f"image.size: found {self.size}, expected at least 1")
        if self.fit not in get_args(Fit):
            raise ValueError(f"image.fit: found {self.fit!r}, expected one of {', '.join(get_args(Fit))}")

    @property
    def num_views(self) -> int:
        """How many squares one image becomes."""
        return 1

    def __call__(self, image: Image.Image, random: torch.Generator | None = None) -> UInt8[Tensor, "V 3 S S"]:
        """The views of an RGB image; what is random about them is left out where there is no generator to draw from."""
        assert image.mode == "RGB", image.mode
        if random is not None and self.random_area is not None:
            image = image.crop(random_part(*image.size, self.random_area, random))
        if random is not None and self.random_flip and _drawn(0, 1, random) < self.random_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        square = {"crop": self._crop, "pad": self._pad, "squash": self._squash}[self.fit](image)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].contiguous()

    def _squash(self, image: Image.Image) -> Image.Image:
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC)

    def _crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        # Rounding as in transformers: the long edge down, the offset down.
        wide, high = (int(self.size * width / short), int(self.size * height / short))
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        if wide * high > MAX_INTERMEDIATE:
            box = (
                left * width / wide,
                top * height / high,
                (left + self.size) * width / wide,
                (top + self.size) * height / high,
            )
            return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        resized = image.resize((wide, high), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.size, top + self.size))

    def _pad(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        if side * side > MAX_INTERMEDIATE:
            scale = self.size / side
            image = image.resize(
                (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC
            )
            width, height = image.size
            side = self.size
        red, green, blue = (int(channel * 255) for channel in self.mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return self._squash(square)


def random_part(
    width: int, height: int, area: tuple[float, float], random: torch.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a part; of an image too thin for one, the middle (torchvision RandomResizedCrop)."""
    for _ in range(10):
        pixels = width * height * _drawn(*area, random)
        ratio = math.exp(_drawn(math.log(3 / 4), math.log(4 / 3), random))
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = (int(torch.randint(n + 1, (), generator=random)) for n in (width - wide, height - high))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _drawn(low: float, high: float, random: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=random))


def fitting(
    given: ImagePolicy | None, *, size: int, mean: tuple[float, float, float], fit: Fit = "crop"
) -> ImagePolicy:
    """The policy of a tower that takes squares of `size`: the given one, or its usual `fit`.

    Raises:
        ValueError: The given one makes squares of another size.
    """
    if given is not None and given.size != size:
        raise ValueError(f"image.size: found {given.size}, expected {size}, which the tower takes")
    return given or ImagePolicy(size=size, fit=fit, mean=mean)
