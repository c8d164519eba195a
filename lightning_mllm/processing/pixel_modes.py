"""RGB of whatever Pillow opens: grey, palettes, 16 bits, LAB, transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms, ImageOps

# Pillow's names of single-channel 16-bit pixels.
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


def converted(image: Image.Image, upright: bool) -> Image.Image:
    """An image of any mode but floating point and 32-bit integers as RGB.

    Args:
        image: Loaded.
        upright: As `images.Decode`: whether it is turned as the camera was held, put over white where transparent, and
            scaled to 8 bits; else it is what Pillow makes of it.
    """
    if image.mode == "LAB":
        image = ImageOps.exif_transpose(image) if upright else image
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        colours = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert colours is not None
        return colours
    if not upright:
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
