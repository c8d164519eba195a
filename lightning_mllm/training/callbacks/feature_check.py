"""Before training from cached features: whether the images that training will show have any."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer

from lightning_mllm.contracts import ImageFile, ImageRef, Sample
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
        data: object = getattr(trainer, "datamodule", None)
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


@runtime_checkable
class Sources(Protocol):
    """A data module of named sources (`data_modules.module.MultimodalDataModule`)."""

    train: Mapping[str, Any]

    def training_sample(self, name: str, index: int) -> tuple[Sample, object]:
        """As the first epoch shows it, and the generator that its picture draws from."""
        ...


@runtime_checkable
class Sets(Protocol):
    """A data module of sets that are answered."""

    def evaluation_samples(self, split: str) -> Iterator[tuple[str, object, Iterator[Sample]]]:
        """Each set of the split: its name, what it is scored by, and what is asked; reads the sources."""
        ...


def shown_images(data: object, most: int | None = MOST) -> Iterator[tuple[str, Iterator[ImageRef]]]:
    """Each source that is trained on and each set that is answered meanwhile, which are loaded, and their images.

    Args:
        data: A data module of sources.
        most: Samples of a source that are looked at; None: all.
    """
    if isinstance(data, Sources):
        for name, source in data.train.items():
            yield f"data.train.{name}", _images_of(data, name, _chosen(len(source), most))
    if isinstance(data, Sets):
        for name, _, samples in data.evaluation_samples("val"):
            yield f"data.val.{name}", (ref for sample in samples for ref in sample.images)


def _images_of(data: Sources, name: str, indices: Iterable[int]) -> Iterator[ImageRef]:
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
