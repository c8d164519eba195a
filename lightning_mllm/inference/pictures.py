"""What a user gives for a picture, and a question about some as a turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from lightning_mllm.contracts import IMAGE_MARK, ImageFile, ImageRef, Turn
from lightning_mllm.processing.image_in_memory import ImageInMemory

Picture = str | Path | Image.Image
"""A file, or a picture that is open."""
Pictures = Picture | Sequence[Picture] | None
"""One, several, or none."""


def question(image: Pictures, text: str) -> tuple[list[Turn], list[ImageRef]]:
    """A question as a turn, pictures in front of a text that marks none; and its pictures.

    Raises:
        ValueError: One is an array or a tensor.
    """
    images = [] if image is None else references(image)
    if images and IMAGE_MARK not in text:
        text = f"{IMAGE_MARK}\n" * len(images) + text
    return [Turn(role="user", text=text)], images


def references(images: Picture | Sequence[Picture]) -> list[ImageRef]:
    """Pictures that have not been read yet.

    Raises:
        ValueError: One is an array or a tensor, which does not say what its numbers are.
    """
    given = [images] if isinstance(images, Picture) else images
    several = isinstance(given, list | tuple)
    odd = next((each for each in given if not isinstance(each, Picture)), None) if several else given
    if odd is not None:
        kind = f"{type(odd).__module__}.{type(odd).__qualname__}"
        raise ValueError(f"image: found a {kind}, expected a path or an open picture (PIL.Image.fromarray makes one)")
    listed = cast(Sequence[Picture], given)
    return [ImageInMemory(each) if isinstance(each, Image.Image) else ImageFile(Path(each)) for each in listed]
