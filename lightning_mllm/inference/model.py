"""A trained net that answers questions about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from lightning_mllm.contracts import IMAGE_MARK, ImageFile, ImageRef, Sample, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.processing.decode import ImageInMemory
from lightning_mllm.training.module import MultimodalModule

Picture = str | Path | Image.Image
"""A file, or a picture that is open."""


class Model:
    """A trained net that answers."""

    def __init__(self, module: MultimodalModule) -> None:
        self.module = module.eval()

    def answer(self, image: Picture | Sequence[Picture] | None, text: str, decoding: Decoding | None = None) -> str:
        """The answer to `text` about `image`.

        Args:
            image: A file, an open picture, several of them, or None for a question without one.
            text: The question; `<image>` in it says where a picture stands, otherwise they stand first.
            decoding: How to generate; None takes the net's own settings for questions.

        Raises:
            ValueError: A picture cannot be read or is of another kind, the question marks another number of them than
                are given, or it is longer than what the net reads.
        """
        given = (
            [image] if isinstance(image, str | Path | Image.Image) else [] if image is None else list(_listed(image))
        )
        images: tuple[ImageRef, ...] = tuple(
            ImageInMemory(each) if isinstance(each, Image.Image) else ImageFile(Path(each)) for each in given
        )
        if images and IMAGE_MARK not in text:
            text = f"{IMAGE_MARK}\n" * len(images) + text
        sample = Sample(id="question", turns=(Turn(role="user", text=text),), images=images)
        processor = self.module.processor
        row = processor.encode(sample, generate=True, may_cut=False)
        batch = processor.collate([row], padding="left").to(self.module.device)
        chosen = decoding or self.module.decoding.get("answer") or Decoding(max_new_tokens=128)
        with torch.inference_mode():
            return processor.decode(self.module.generate(batch, chosen)[0])


def _listed(images: object) -> Sequence[Picture]:
    """Several pictures; ValueError for arrays and tensors, which do not say what their numbers are."""
    several = isinstance(images, list | tuple)
    odd = next((each for each in images if not isinstance(each, Picture)), None) if several else images
    if odd is not None:
        kind = f"{type(odd).__module__}.{type(odd).__qualname__}"
        raise ValueError(f"image: found a {kind}, expected a path or an open picture (PIL.Image.fromarray makes one)")
    return cast(Sequence[Picture], images)
