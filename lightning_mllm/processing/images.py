"""Encoded bytes to an upright RGB image, and that to the square of pixels that a vision tower sees.

    bytes --decode_image--> RGB --ImagePolicy--> u8[V, 3, S, S]

Image files may hold anything: what Pillow alone decodes to wrong pixels, or to more than fits, is right or refused.

The ways to a square are those of CLIP (crop), LLaVA-1.5 (pad) and towers with a fixed input (squash): pixel for pixel
what transformers' CLIPImageProcessor and LlavaImageProcessor (do_pad) give before they rescale and normalise.

With several views the square is k times as large: the first view is all of it at the tower's size, the others are its
k x k parts, row by row (SPHINX, arXiv 2311.07575, sec. 3.3; released code: `llama_ens5`, `llama_ens10`).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightning_mllm.boxes import Frame
from lightning_mllm.contracts import ImageRef
from lightning_mllm.processing.augmentation import drawn, random_part
from lightning_mllm.processing.pixel_modes import converted

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

MAX_SCANS = 100  # of a progressive JPEG, each of which goes over all pixels; photos have about ten
ORIENTATION = 0x0112  # the tag of EXIF that says how the camera was held: 2 to 8 not upright, 0 nothing

Decode = Literal["upright", "stored"]
"""How pixels become RGB.

upright: The camera's orientation (EXIF) is applied, transparency is put over white, 16 bits are scaled to 8.
stored: None of this, as in the released code of LAVIS (caption_datasets.py), LLaVA (train.py), CogVLM
    (utils/utils/dataset.py) and LLaMA2-Accessory (conversation/dataset.py): `Image.open(path).convert("RGB")`.
"""


class ImageError(ValueError):
    """An image that cannot be used; the message begins with the image's name."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """How large an image may be; all is checked before a pixel is decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 49_000_000
    max_side: int = 20_000
    max_memory: int = 250_000_000  # bytes of pixels while they are decoded: RGB takes 4 of each, grey 5, RGBA 8


def decode_image(ref: ImageRef, limits: ImageLimits = ImageLimits(), decode: Decode = "upright") -> Image.Image:
    """The first frame of `ref`, or a picture that is open, as an RGB image.

    Raises:
        ImageError: missing, too large, truncated, damaged, of another format than `FORMATS`, with pixels (floating
            point, 32-bit integer) whose range the file does not state, or of another size than its annotations say.
    """
    try:
        opened: Image.Image | None = getattr(ref, "image", None)  # of a picture that is open (`image_in_memory.py`)
        data = b"" if opened is not None else ref.read(limits.max_bytes)
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; size is ours to judge, just below.
            warnings.simplefilter("ignore")
            if opened is not None:
                return rgb(opened, limits, decode)
            if len(data) > limits.max_bytes:
                raise ValueError(f"found {len(data)} bytes, expected at most {limits.max_bytes}")
            if data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
                raise ValueError(f"found a JPEG of {scans} scans, expected at most {MAX_SCANS}")
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                pixels = rgb(image, limits, decode)
        if (size := getattr(ref, "size", None)) is not None and pixels.size != tuple(size):
            (width, height), (told, high) = pixels.size, size
            turned = " (as the camera was held: EXIF)" if (height, width) == (told, high) else ""
            raise ValueError(
                f"found {width} x {height} pixels{turned}, expected {told} x {high} as the annotations say: their"
                " coordinates would be of another picture"
            )
        return pixels
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise ImageError(f"{ref.name}: found bytes of no known image format, expected one of {formats}") from error
    except Exception as error:
        # Damaged files reach every kind of exception inside the decoders (struct.error, SyntaxError, KeyError, ...).
        reason = str(error) or type(error).__name__
        raise ImageError(reason if reason.startswith(ref.name) else f"{ref.name}: {reason}") from error


def _check_size(image: Image.Image, limits: ImageLimits, turned: bool = False) -> None:
    (width, height), mode = image.size, image.mode
    if min(image.size) < 1:
        raise ValueError(f"found {width} x {height} pixels, expected at least 1 x 1")
    if max(image.size) > limits.max_side:
        raise ValueError(f"found {width} x {height} pixels, expected sides of at most {limits.max_side}")
    if width * height > limits.max_pixels:
        raise ValueError(f"found {width} x {height} = {width * height} pixels, expected at most {limits.max_pixels}")
    own = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4  # bytes of each
    layers = [h * v for _, h, v, _ in getattr(image, "layer", ()) if image.info.get("progressive")]
    scans = 2 * sum(layers) / max(layers, default=1)  # what a progressive JPEG keeps from scan to scan
    after = own * turned + 4 * (mode != "RGB" or image.has_transparency_data)
    each = 17 if image.format == "WEBP" else own + max(scans, after) + 0.2 * (image.format == "GIF")
    if (found := int(each * width * height)) > limits.max_memory:
        told = f"{width} x {height} pixels of {each:g} bytes each ({image.format}, {mode}) = {found} bytes"
        raise ValueError(f"found {told}, expected at most {limits.max_memory}")


def rgb(image: Image.Image, limits: ImageLimits, decode: Decode) -> Image.Image:
    """An image, of whichever mode, as RGB; ValueError for one that is too large or whose range is not known."""
    _check_size(image, limits)
    if kind := {"F": "floating-point", "I": "32-bit integer"}.get(image.mode):
        raise ValueError(f"found {kind} pixels, expected 8 or 16 bits a channel")
    image.load()
    if decode == "upright" and image.getexif().get(ORIENTATION) in range(2, 9):
        _check_size(image, limits, turned=True)
        image = ImageOps.exif_transpose(image)
    plain = image.mode == "RGB" and not image.has_transparency_data
    return image if plain else converted(image, upright=decode == "upright")


Fit = Literal["crop", "pad", "squash"]

# Beyond this the published order (enlarge, then cut) would build hundreds of megabytes of pixels for one thin image.
MAX_INTERMEDIATE = 32_000_000


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """Pixels of one image as the tower wants them; ValueError for settings that are out of range or unknown."""

    size: int
    """Side of the square, in pixels; of each, where there are several views."""
    fit: Fit
    """crop: shortest edge to `size`, then the centre; pad: a square of `mean` colour around it; squash: neither."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Colour of the padding, RGB in [0, 1]; OpenAI CLIP's channel means."""
    random_area: tuple[float, float] | None = None
    """In training: a random part with a share of the area between these, from 3:4 to 4:3 (`random_part`)."""
    random_flip: float = 0.0
    """In training: how often an image is mirrored, left to right."""
    decode: Decode = "upright"
    """How pixels become RGB (`Decode`): upright and over white, or as they are stored, as released code does."""
    views: int = 1
    """Squares that one image becomes: 1, or the whole and its k x k parts (5, 10, 17, ...)."""

    def __post_init__(self) -> None:
        low, high = self.random_area or (1.0, 1.0)
        if not 0 < low <= high <= 1:
            raise ValueError(f"image.random_area: found {self.random_area}, expected two rising shares of at most 1")
        if not 0 <= self.random_flip <= 1:
            raise ValueError(f"image.random_flip: found {self.random_flip}, expected a share from 0 to 1")
        if self.size < 1:
            raise ValueError(f"image.size: found {self.size}, expected at least 1")
        if self.decode not in get_args(Decode):
            raise ValueError(f"image.decode: found {self.decode!r}, expected one of {', '.join(get_args(Decode))}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"image.fit: found {self.fit!r}, expected one of {', '.join(get_args(Fit))}")
        if self.views != 1 and (self.views < 5 or math.isqrt(self.views - 1) ** 2 != self.views - 1):
            raise ValueError(f"image.views: found {self.views}, expected 1, or 1 + k x k for k from 2 (5, 10, ...)")

    @property
    def frame(self) -> Frame | None:
        """What coordinates in the squares are shares of: the image, or the square around it; None where it is cut."""
        frames: dict[Fit, Frame | None] = {"squash": "image", "pad": "square", "crop": None}
        return frames[self.fit]

    @property
    def random(self) -> bool:
        """Whether training shows other coordinates than evaluation."""
        return self.random_area is not None or self.random_flip > 0

    @property
    def num_views(self) -> int:
        """How many squares one image becomes."""
        return self.views

    @property
    def grid(self) -> int:
        """k: the square that is cut has `grid` times the side of a view."""
        return max(1, math.isqrt(self.views - 1))

    def __call__(self, image: Image.Image, random: torch.Generator | None = None) -> UInt8[Tensor, "V 3 S S"]:
        """The views of an RGB image; what is random about them is left out where there is no generator to draw from."""
        assert image.mode == "RGB", image.mode
        if random is not None and self.random_area is not None:
            image = image.crop(random_part(*image.size, self.random_area, random))
        if random is not None and self.random_flip and drawn(0, 1, random) < self.random_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        square = {"crop": self._crop, "pad": self._pad, "squash": _squash}[self.fit](image, self.size * self.grid)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
        return (pixels if self.views == 1 else self._views(pixels)).contiguous()

    def _views(self, pixels: UInt8[Tensor, "1 3 L L"]) -> UInt8[Tensor, "V 3 S S"]:
        # Bicubic without an antialiasing filter, of the large square and not of the image: as released.
        whole = F.interpolate(pixels.float(), (self.size, self.size), mode="bicubic", align_corners=False)
        tiles = pixels[0].unflatten(2, (self.grid, self.size)).unflatten(1, (self.grid, self.size))
        return torch.cat([whole.round().clamp(0, 255).byte(), tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)])

    def _crop(self, image: Image.Image, side: int) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        # Rounding as in transformers: the long edge down, the offset down.
        wide, high = (int(side * width / short), int(side * height / short))
        left, top = (wide - side) // 2, (high - side) // 2
        if wide * high > MAX_INTERMEDIATE:
            box = (left * width / wide, top * height / high, (left + side) * width / wide, (top + side) * height / high)
            return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
        resized = image.resize((wide, high), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))

    def _pad(self, image: Image.Image, side: int) -> Image.Image:
        width, height = image.size
        long = max(width, height)
        if long * long > MAX_INTERMEDIATE:
            scale = side / long
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            long = side
        red, green, blue = (int(channel * 255) for channel in self.mean)
        square = Image.new("RGB", (long, long), (red, green, blue))
        square.paste(image, ((long - width) // 2, (long - height) // 2))
        return _squash(square, side)


def _squash(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC)


def fitting(
    given: ImagePolicy | None, *, size: int, mean: tuple[float, float, float], fit: Fit = "crop"
) -> ImagePolicy:
    """The policy of a tower that takes squares of `size`: the given one (ValueError for another size), or `fit`."""
    if given is not None and given.size != size:
        raise ValueError(f"image.size: found {given.size}, expected {size}, which the tower takes")
    return given or ImagePolicy(size=size, fit=fit, mean=mean)
