"""SPHINX's nets in small."""

from __future__ import annotations

from typing import Any

import torch

from lightning_mllm.architectures.sphinx import TINY, Sphinx
from lightning_mllm.connectors.mixed import MixedConnector
from lightning_mllm.processing.images import ImagePolicy

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}

FIVE: dict[str, Any] = {"image": ImagePolicy(size=TINY["vision"].image_size, fit="pad", views=5)}
POOLED: dict[str, Any] = {**FIVE, "connector": MixedConnector(pool=(1, 2))}
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    # What a module is made with, and vectors of each view: 4 queries, 1 + 2 x 2 of the others (pooled 1 + 1), 2 ends.
    "one view": ({}, (11,)),
    "five views": (FIVE, (11,) * 5),
    "five views, pooled": (POOLED, (11, 8, 8, 8, 8)),
}


def built(**settings: Any) -> Sphinx:
    module = Sphinx.tiny(**settings)
    module.configure_model()
    return module.eval()


def spread(module: Sphinx, seed: int = 0) -> Sphinx:
    """The module with noise on every parameter: no norm is one, no bias zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module
