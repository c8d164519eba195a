"""Samples with the images of others: what a net learns, or answers, that sees nothing of its own picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from data_modules.sources.source import Source, Wrapped
from lightning_mllm.contracts import ImageRef, Sample

Images = tuple[ImageRef, ...]


class Blind(Wrapped):
    """Another source's samples, each with the images of another one that shows different files.

    A net trained on them is the blind-trained twin of one trained on the source itself: it has read the same texts in
    the same order and seen as many pictures, of which none tells an answer.

    Args:
        source: the samples; those without an image stay as they are.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = self.source.sample(index, generator)
        if not sample.images:
            return sample
        images = images_of_another(
            index,
            sample.images,
            len(self),
            lambda other: self.source.sample(other, generator).images if self.has_image(other) else (),
        )
        if images is None:
            raise ValueError(
                f"sample {sample.id}: found no other sample with {len(sample.images)} different images to exchange,"
                f" expected one of the {len(self)}; train on the source itself"
            )
        return replace(sample, images=images)

    def image_key(self, index: int) -> int | None:
        return None  # of another image than the source's


def images_of_another(index: int, own: Images, total: int, images_of: Callable[[int], Images]) -> Images | None:
    """Those of the next sample, from half of all `total` away on, that has as many images as `own` and other ones."""
    names = {image.name for image in own}
    for step in range(total):
        images = images_of((index + total // 2 + step) % total)
        if len(images) == len(own) and not names & {image.name for image in images}:
            return images
    return None
