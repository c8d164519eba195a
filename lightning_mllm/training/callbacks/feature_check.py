"""Before training from cached features: whether the images that training will show have any."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lightning_mllm.contracts import ImageFile, ImageRef
from lightning_mllm.processing.cached_processor import CachedProcessor
from lightning_mllm.weights.feature_store import FeatureStore

MOST = 100_000
"""Samples of a source that are looked at, a fixed random choice; those of a smaller source all."""


class FeatureCheck(Callback):
    """Asks the store for the images in files of the sources and sets of a data module; nothing without a cache.

    A file that was not noted when features were written is read and hashed, as training will do it. Images that are in
    no file of their own are found, or not found, when they are shown.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises ValueError if one has none, or has changed."""
        data: Any = getattr(trainer, "datamodule", None)
        processor = getattr(pl_module, "processor", None)
        if stage != "fit" or not isinstance(processor, CachedProcessor):
            return
        store, limit = processor.features, processor.limits.max_bytes
        assert isinstance(store, FeatureStore)
        for title, refs in shown_images(data):
            missing = [ref.name for ref in islice(_without(store, refs, limit), 2)]
            if missing:
                raise ValueError(
                    f"{title}: found no features of {missing[0]}{' and others' if missing[1:] else ''} in"
                    f" {store.folder}, expected those of every picture: it is new or has changed; run mllm cache again"
                )


def _without(store: FeatureStore, refs: Iterator[ImageRef], limit: int) -> Iterator[ImageFile]:
    for ref in refs:
        if isinstance(ref, ImageFile) and store.row_of_file(ref) is None:
            try:
                known = store.find(ref, limit)
            except ValueError:
                continue  # an image that cannot be read is refused, or its sample replaced, as without a cache
            if known is None:
                yield ref


def shown_images(data: Any, most: int | None = MOST) -> Iterator[tuple[str, Iterator[ImageRef]]]:
    """Each source that is trained on and each set that is answered meanwhile, which are loaded, and their images.

    Args:
        data: A data module of sources.
        most: Samples of a source that are looked at; None: all.
    """
    for name, source in (getattr(data, "train", None) or {}).items():
        yield f"data.train.{name}", _images_of(data, name, _chosen(len(source), most))
    if hasattr(data, "evaluation_samples"):
        for name, _, samples in data.evaluation_samples("val"):
            yield f"data.val.{name}", (ref for sample in samples for ref in sample.images)


def _images_of(data: Any, name: str, indices: Iterable[int]) -> Iterator[ImageRef]:
    for index in indices:
        if data.train[name].has_image(index):
            try:
                sample, _ = data.training_sample(name, index)
            except ValueError:
                continue  # a record that training refuses, or replaces
            yield from sample.images


def _chosen(count: int, most: int | None) -> Iterable[int]:
    if most is None or count <= most:
        return range(count)
    return sorted(random.Random(0).sample(range(count), most))
