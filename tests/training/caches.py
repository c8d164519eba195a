"""A store of features of the tests' small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning_mllm.commands.cache import Writing, write
from lightning_mllm.commands.cached_pictures import distinct
from lightning_mllm.contracts import ImageRef, Sample
from lightning_mllm.training.cached_features import earlier_vision, use_cached_features
from lightning_mllm.weights.feature_store import FeatureStore
from tests.architectures.samples import ONE, OTHER, TEXT, TWO

SAMPLES = (ONE, OTHER, TEXT, TWO)


def written(
    module: Any,
    cache: Path,
    pictures: Sequence[ImageRef] | None = None,
    samples: Sequence[Sample] = SAMPLES,
    **how: Any,
) -> FeatureStore:
    """What the tower of a net makes of pictures, else of those of `samples`; the net is left as it was."""
    refs = distinct(pictures or [ref for each in samples for ref in each.images])
    sources = {} if module.stage is None else module.stage.init_from
    return write(module, earlier_vision(module, sources), refs, cache, Writing(**how), {}, "test")


def data_of(module: Any) -> Any:
    """What has the processor of a net, as its data module."""
    return SimpleNamespace(processor=module.processor)


def cached(module: Any, cache: Path, build: bool = True) -> Any:
    """The net without its tower, built."""
    use_cached_features(module, data_of(module), cache)
    if build:
        module.configure_model()
    return module
