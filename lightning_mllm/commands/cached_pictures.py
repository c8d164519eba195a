"""The images whose features are to be written: each once, read, known by its bytes, and decoded where it is new."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from lightning_mllm.contracts import ImageFile, ImageRef
from lightning_mllm.processing.images import decode_image
from lightning_mllm.processing.processor import Processor
from lightning_mllm.weights.feature_store import FeatureStore, Words, times_of, words


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image that was read."""

    ref: ImageFile | None
    """Its file; None if it is in none of its own."""
    times: tuple[int, int, int] | None
    """Of the file, which did not change while it was read."""
    digest: Words
    pixels: UInt8[Tensor, "V 3 S S"] | None
    """Its views; None if there are features of these bytes, or it cannot be used."""
    size: tuple[int, int]
    error: str = ""
    """Why it cannot be used."""


@dataclass(frozen=True)
class Bytes:
    """An image whose bytes have been read."""

    name: str
    content: bytes

    def read(self, max_bytes: int) -> bytes:
        if len(self.content) > max_bytes:
            raise ValueError(f"found {len(self.content)} bytes, expected at most {max_bytes}")
        return self.content


class Pictures(Dataset[Picture]):
    """Images as `Picture`.

    Args:
        refs: Each once.
        processor: Decodes them and fits them into the tower's square.
        store: Its images are not decoded.
    """

    def __init__(self, refs: Sequence[ImageRef], processor: Processor, store: FeatureStore) -> None:
        self.refs, self.store = list(refs), store
        self.policy, self.limits = processor.image, processor.limits

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> Picture:
        ref = self.refs[index]
        file = ref if isinstance(ref, ImageFile) else None
        try:
            before = None if file is None else times_of(file)
            content = ref.read(self.limits.max_bytes)
            same = file is not None and times_of(file) == before
            digest = words(content)
            if self.store.row_of_bytes(digest) is not None:
                return Picture(ref=file, times=before if same else None, digest=digest, pixels=None, size=(0, 0))
            opened = ref if getattr(ref, "image", None) is not None else Bytes(ref.name, content)
            image = decode_image(opened, self.limits, self.policy.decode)
            pixels = self.policy(image)
        except (ValueError, OSError) as error:
            told = str(error) if str(error).startswith(ref.name) else f"{ref.name}: {error}"
            return Picture(ref=file, times=None, digest=(0, 0), pixels=None, size=(0, 0), error=told)
        return Picture(ref=file, times=before if same else None, digest=digest, pixels=pixels, size=image.size)


def distinct(refs: Iterable[ImageRef]) -> list[ImageRef]:
    """Each image once: files by their path, others by their name."""
    found: dict[str, ImageRef] = {}
    for ref in refs:
        found.setdefault(os.path.abspath(ref.path) if isinstance(ref, ImageFile) else ref.name, ref)
    return list(found.values())
