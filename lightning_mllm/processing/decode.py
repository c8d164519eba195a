"""Encoded bytes to an upright RGB image: the one place where image files, which may hold anything, are trusted or not.

Pillow alone turns 16-bit grey almost white and floating point black, ignores the camera's orientation, puts black
behind transparency and decodes far more pixels than fit in memory. Here each of these is either right or refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lightning_mllm.contracts import ImageRef

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Pillow's names of single-channel 16-bit pixels.
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


class ImageError(ValueError):
    """An image that cannot be used; the message begins with the image's name."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """How large an image may be; all three are checked before a pixel is decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    max_side: int = 20_000


def decode_image(ref: ImageRef, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """The first frame of `ref` as an upright RGB image: EXIF orientation applied, transparency over white.

    Raises:
        ImageError: missing, too large, truncated, damaged, of another format than `FORMATS`, or with pixels
            (floating point, 32-bit integer) whose range the file does not state.
    """
    try:
        data = ref.read(limits.max_bytes)
        if len(data) > limits.max_bytes:
            raise ValueError(f"found {len(data)} bytes, expected at most {limits.max_bytes}")
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; size is ours to judge, just below.
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, limits)
                return _upright_rgb(image)
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise ImageError(f"{ref.name}: found bytes of no known image format, expected one of {formats}") from error
    except Exception as error:
        # Damaged files reach every kind of exception inside the decoders (struct.error, SyntaxError, KeyError, ...).
        reason = str(error) or type(error).__name__
        if not reason.startswith(ref.name):
            reason = f"{ref.name}: {reason}"
        raise ImageError(reason) from error


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(size) < 1:
        raise ValueError(f"found {width} x {height} pixels, expected at least 1 x 1")
    if max(size) > limits.max_side:
        raise ValueError(f"found {width} x {height} pixels, expected sides of at most {limits.max_side}")
    if width * height > limits.max_pixels:
        raise ValueError(f"found {width} x {height} = {width * height} pixels, expected at most {limits.max_pixels}")


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I"):
        kind = "floating-point" if image.mode == "F" else "32-bit integer"
        raise ValueError(f"found {kind} pixels, expected 8 or 16 bits a channel")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in GREY_16:
        # Pillow's own conversion clips at 255 instead of scaling.
        pixels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.new("RGB", pixels.size, (255, 255, 255))
        image.paste(pixels, mask=pixels.getchannel("A"))
    return image.convert("RGB")
