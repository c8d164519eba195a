"""What the queries of a trained Q-Former say of an image, as visual vectors: BLIP-2 up to, and without, its projection.

u8[N,3,H,W] --vision--> --ln_vision--> f[N,V,E] --qformer, no text--> f[N,Q,D]

SPHINX (arXiv 2311.07575, sec. 3.2) looks at an image through `Salesforce/blip2-opt-2.7b`'s, among others.

Legend: N images, V vectors of width E an image, Q queries of width D.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lightning_mllm.component import ComponentSpec, Composite
from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.qformer import QFormer
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.interop.keys.blip2 import TOWER_HF_KEYS, TOWER_LAVIS_KEYS
from lightning_mllm.vision.encoder import Statistic, autograd_where_trained
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.vision.tower import OpenClipTower
from lightning_mllm.weights.hub import tensors_at
from lightning_mllm.weights.stage_weights import initial_tensors


class QFormerVision(nn.Module):
    """The tower; see the spec for its parts."""

    def __init__(self, vision: nn.Module, ln_vision: nn.LayerNorm, qformer: QFormer) -> None:
        super().__init__()
        self.vision = vision
        self.ln_vision = ln_vision
        self.qformer = qformer

    def forward(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N Q D"]:
        """What the queries fetch from each image; without autograd if the tower is frozen."""
        with autograd_where_trained(self):
            return self.qformer.encode_images(self.ln_vision(self.vision(images).to(self.ln_vision.weight.dtype)))


@dataclass(frozen=True, kw_only=True)
class QFormerTower(Composite):
    """BLIP-2's image encoder, the norm behind it and its Q-Former without text.

    Raises:
        ValueError: On use, weights that cannot be had or belong to another kind of net.
    """

    weights: str | None = "Salesforce/blip2-opt-2.7b"
    """None: each part's own; else a file, a folder or a name on the hub, in the layout of transformers' BLIP-2 or of
    LAVIS, or the folder of a run of `Blip2` or `Blip2Representation`, where a part that was never trained there comes
    from its own source."""
    vision: EvaTower | OpenClipTower = EvaTower()
    ln_vision: LayerNormConnector = LayerNormConnector(eps=1e-6)
    """1e-6 in transformers, through which SPHINX runs it; 1e-5 in BLIP-2's released code and our runs."""
    qformer: QFormerConnector = QFormerConnector()

    @property
    def components(self) -> Mapping[str, ComponentSpec]:
        return {
            "vision": self.vision,
            "ln_vision": replace(self.ln_vision, in_width=self.vision.width),
            "qformer": replace(self.qformer, text="none", in_width=self.vision.width),
        }

    @property
    def image_size(self) -> int:
        """Side of the square of pixels."""
        return self.vision.image_size

    @property
    def width(self) -> int:
        """D."""
        return self.qformer.width

    @property
    def num_vectors(self) -> int:
        """Q."""
        return self.qformer.queries

    @property
    def mean(self) -> Statistic:
        return self.vision.mean

    @property
    def std(self) -> Statistic:
        return self.vision.std

    @property
    def fresh(self) -> Sequence[str]:
        """Nothing, where there are weights of the whole."""
        return super().fresh if self.weights is None else ()

    def build(self) -> QFormerVision:
        vision, ln_vision, qformer = (spec.build() for spec in self.components.values())
        assert isinstance(ln_vision, nn.LayerNorm) and isinstance(qformer, QFormer)
        return QFormerVision(vision, ln_vision, qformer)

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        return super().pretrained() if self.weights is None else self._used(self.weights)

    def _used(self, weights: str) -> Iterator[tuple[str, Tensor]]:
        place = tensors_at(weights, "vision.weights").absolute()
        found = initial_tensors(
            {str(place): 1.0}, place.parent, {"hf": TOWER_HF_KEYS, "lavis": TOWER_LAVIS_KEYS}
        ).plain()
        known = self._names()
        yield from ((name, found[name]) for name in found if name in known)
        for part, spec in self.components.items():
            if not any(name.startswith(f"{part}.") for name in found):
                yield from ((f"{part}.{tail}", tensor) for tail, tensor in spec.pretrained() or ())

    def _names(self) -> set[str]:
        with torch.device("meta"):
            return set(self.build().state_dict())
