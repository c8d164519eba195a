"""Which images of a batch are one picture, so that it is encoded once for all rows that show it.

Legend: N images of a batch, U of them different.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_mllm.contracts import Batch


class DistinctImages(NamedTuple):
    """The different images of a batch."""

    places: Int[Tensor, " U"]
    """Where each stands first among `Batch.images`."""
    of_images: Int[Tensor, " N"]
    """Which of these each image is."""


def distinct_images(batch: Batch) -> DistinctImages | None:
    """Of images of one file (`Batch.image_ids`) those with the same pixels, which augmentation makes differ.

    Returns:
        None where all differ as far as the host knows, where images have several views, and where to look at pixels
        would make training wait for a device.
    """
    images = batch.images
    if batch.image_ids is None or not batch.num_files < batch.num_images == len(images) == len(batch.image_ids):
        return None  # several views of an image have one number
    if images.device.type != "cpu" and torch.is_grad_enabled():
        return None
    found: dict[int, int] = {}
    first = [found.setdefault(number, place) for place, number in enumerate(batch.image_ids.tolist())]
    same = (images == images[first]).flatten(1).all(1).tolist()
    first = [one if equal else place for place, (one, equal) in enumerate(zip(first, same, strict=True))]
    number = {place: i for i, place in enumerate(sorted(set(first)))}
    return DistinctImages(
        images.new_tensor(list(number), dtype=torch.long),
        images.new_tensor([number[i] for i in first], dtype=torch.long),
    )
