"""Encoded bytes to an upright RGB image: the one place where image files, which may hold anything, are trusted or not.

Pillow alone turns 16-bit grey almost white and floating point black, ignores the camera's orientation, puts black
behind transparency and decodes far more pixels than fit in memory. Here each of these is either right or refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from lightning_mllm.contracts import ImageRef

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

ORIENTATION = 0x0112
"""The tag of EXIF that says how the camera was held."""

# Pillow's names of single-channel 16-bit pixels.
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


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
    """How large an image may be; all three are checked before a pixel is decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    max_side: int = 20_000


@dataclass(frozen=True)
class ImageInMemory:
    """A picture that is open already; it becomes RGB as its file would, and is known by its content."""

    image: Image.Image

    @property
    def name(self) -> str:
        """Tells pictures of different content apart."""
        return self._name

    @cached_property
    def _name(self) -> str:
        image = self.image
        try:
            pixels = image.tobytes()
        except Exception:
            return "the given picture"  # decoding says what is wrong with it
        facts = (image.mode, image.size, dict(image.getexif()).get(ORIENTATION), image.info.get("transparency"))
        palette = b"" if image.palette is None else bytes(image.palette.palette)
        digest = blake2b(pixels + palette + repr(facts).encode(), digest_size=8)
        return f"the given picture {digest.hexdigest()}"

    def read(self, max_bytes: int) -> bytes:
        """For what reads files alone: a PNG of the upright picture; `decode_image` takes the picture itself."""
        stream = BytesIO()
        _rgb(self.image, ImageLimits(), "upright").save(stream, format="PNG")
        if stream.tell() > max_bytes:
            raise ValueError(f"{self.name}: found {stream.tell()} bytes as PNG, expected at most {max_bytes}")
        return stream.getvalue()


def decode_image(ref: ImageRef, limits: ImageLimits = ImageLimits(), decode: Decode = "upright") -> Image.Image:
    """The first frame of `ref`, or a picture that is open, as an RGB image.

    Raises:
        ImageError: missing, too large, truncated, damaged, of another format than `FORMATS`, with pixels (floating
            point, 32-bit integer) whose range the file does not state, or of another size than its annotations say.
    """
    try:
        opened = ref.image if isinstance(ref, ImageInMemory) else None
        data = b"" if opened is not None else ref.read(limits.max_bytes)
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; size is ours to judge, just below.
            warnings.simplefilter("ignore")
            if opened is not None:
                return _rgb(opened, limits, decode)
            if len(data) > limits.max_bytes:
                raise ValueError(f"found {len(data)} bytes, expected at most {limits.max_bytes}")
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                pixels = _rgb(image, limits, decode)
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


def _rgb(image: Image.Image, limits: ImageLimits, decode: Decode) -> Image.Image:
    _check_size(image.size, limits)
    if image.mode in ("F", "I"):
        kind = "floating-point" if image.mode == "F" else "32-bit integer"
        raise ValueError(f"found {kind} pixels, expected 8 or 16 bits a channel")
    image.load()
    if image.mode == "LAB":
        image = ImageOps.exif_transpose(image) if decode == "upright" else image
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if decode == "stored":
        return image.convert("RGB")
    image = ImageOps.exif_transpose(image)
    transparent = image.info.get("transparency")
    if image.mode in GREY_16:
        # Pillow's own conversion clips at 255 instead of scaling.
        pixels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
        if isinstance(transparent, int):
            image.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    elif image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # Pillow keeps the upper byte of 16-bit colours, and both bytes of the transparent one.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.new("RGB", pixels.size, (255, 255, 255))
        image.paste(pixels, mask=pixels.getchannel("A"))
    return image.convert("RGB")
