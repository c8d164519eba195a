"""How an image becomes the square of pixels that a vision tower sees.

The three ways are those of CLIP (crop), of LLaVA-1.5 (pad) and of towers with a fixed input (squash). Crop and pad
give, pixel for pixel, what transformers' CLIPImageProcessor and LlavaImageProcessor (do_pad) give before they rescale
and normalise. Normalising is the tower's own work, on the device.
"""

from __future__ import annotations

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
        ValueError: `size` below 1 or an unknown `fit`.
    """

    size: int
    """Side of the square, in pixels."""
    fit: Fit
    """crop: shortest edge to `size`, then the centre; pad: a square of `mean` colour around it; squash: neither."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Colour of the padding, RGB in [0, 1]; OpenAI CLIP's channel means."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"image.size: found {self.size}, expected at least 1")
        if self.fit not in get_args(Fit):
            raise ValueError(f"image.fit: found {self.fit!r}, expected one of {', '.join(get_args(Fit))}")

    @property
    def num_views(self) -> int:
        """How many squares one image becomes."""
        return 1

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "V 3 S S"]:
        """The views of an RGB image."""
        assert image.mode == "RGB", image.mode
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
