"""A processor that shows what a frozen tower made of images (`mllm cache`) in place of their pixels.

images --bytes--> row of the store --> f[N, F]     N = images x views, as `Processor` gives u8[N, 3, S, S]
"""

from __future__ import annotations

import errno
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mllm.contracts import ImageRef
from lightning_mllm.processing.images import decode_image
from lightning_mllm.processing.processor import Processor


class Features(Protocol):
    """A store of features (`weights/feature_store.py`)."""

    @property
    def blank(self) -> Float[Tensor, "1 F"]:
        """Of the image that a batch without images carries."""
        ...

    def find(self, ref: ImageRef, max_bytes: int) -> int | None:
        """The row of an image; ValueError if it cannot be read."""
        ...

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of the picture."""
        ...

    def __getitem__(self, row: int) -> Float[Tensor, "N F"]: ...


class FeatureError(OSError):
    """An image without features. No ValueError: a source that replaces bad samples is not to replace this one."""


class CachedProcessor(Processor):
    """The same processor with features for pixels.

    Args:
        plain: Whose settings it has; its image policy draws nothing at random.
        features: Of the tower and of `plain.image`.

    Raises:
        ValueError: `plain` is of a class of its own.
    """

    def __init__(self, plain: Processor, features: Features) -> None:
        if type(plain) is not Processor:
            raise ValueError(
                f"hardware.feature_cache: found the processor {type(plain).__qualname__}, expected Processor, of which"
                " it is known how it shows images"
            )
        vars(self).update(vars(plain))
        self.features = features

    def _views(self, ref: ImageRef, random: torch.Generator | None) -> Tensor:
        try:
            row = self.features.find(ref, self.limits.max_bytes)
        except ValueError:
            row = None
        told = getattr(ref, "size", None)
        if row is not None and (told is None or tuple(told) == self.features.size(row)):
            return self.features[row]
        # An image that cannot be used is refused, or its sample replaced, as without a cache.
        decode_image(ref, self.limits, self.image.decode)
        raise FeatureError(
            errno.ENOENT,
            "found no features of this picture in hardware.feature_cache, expected those that mllm cache writes: the"
            " picture is new or has changed; run mllm cache again",
            ref.name,
        )

    def _blank(self, count: int) -> Float[Tensor, "N F"]:
        return self.features.blank.expand(count, -1)
