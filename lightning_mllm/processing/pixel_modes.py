"""RGB of whatever Pillow opens: grey, palettes, 16 bits, LAB, transparency."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageCms

# Pillow's names of single-channel 16-bit pixels.
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
ROWS = 64


def converted(image: Image.Image, upright: bool) -> Image.Image:
    """An image of any mode but floating point and 32-bit integers as RGB.

    Some rows are converted at a time: nothing as large as the image is in memory but itself and what becomes of it.

    Args:
        image: Loaded, and turned as it is to be shown.
        upright: As `images.Decode`: whether it is put over white where transparent, and scaled to 8 bits; else it is
            what Pillow makes of it.
    """
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        box = (0, top, image.width, min(top + ROWS, image.height))
        whole.paste(_converted(image.crop(box), upright), box)
    return whole


def _converted(image: Image.Image, upright: bool) -> Image.Image:
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        colours = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert colours is not None
        return colours
    if not upright:
        return image.convert("RGB")
    transparent = image.info.get("transparency")
    if image.mode in GREY_16:
        # Pillow's own conversion clips at 255 instead of scaling.
        pixels = np.asarray(image)
        image = Image.fromarray(_eight_bits(pixels))
        if isinstance(transparent, int):
            image.putalpha(Image.fromarray(np.where(pixels == transparent, np.uint8(0), np.uint8(255))))
    elif image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # Pillow keeps the upper byte of 16-bit colours, and both bytes of the transparent one.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.has_transparency_data:
        pixels = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", pixels.size, (255, 255, 255))
        image.paste(pixels, mask=pixels.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(pixels: UInt16[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """16 bits scaled to 8 and rounded."""
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
