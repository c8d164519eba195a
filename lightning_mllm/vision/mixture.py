"""Several towers that look at the same image: SPHINX's mixed visual embeddings (arXiv 2311.07575, sec. 3.2).

    images u8[N,3,H,W] --resized to each tower's square--> towers
    group 0: [Q-Former]                 f[N,V0,D0]                         one tower: as it is
    group 1: [CLIP, ConvNeXt, DINOv2]   f[N,V1,D1], D1 the sum of widths   concatenated on channels, vector by vector

Legend: N images, H = W pixels, V vectors and D width of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lightning_mllm.component import ComponentSpec, Composite
from lightning_mllm.connectors.qformer_connector import TINY_QFORMER
from lightning_mllm.vision.convnext import ConvNextTower
from lightning_mllm.vision.dino import DinoTower
from lightning_mllm.vision.encoder import Statistic
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.vision.qformer_tower import QFormerTower
from lightning_mllm.vision.tower import TINY_TOWER

Resize = Literal["nearest", "bilinear", "bicubic"]


@runtime_checkable
class Tower(Protocol):
    """A `ComponentSpec` whose part turns u8[N,3,H,W] into f[N,V,D]."""

    # Any: jsonargparse takes a class for a protocol only where what its methods return is called the same.
    def build(self) -> Any: ...

    def pretrained(self) -> Any: ...

    def blocks(self, module: nn.Module) -> list[nn.Module]: ...

    @property
    def image_size(self) -> int:
        """H = W."""
        ...

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def num_vectors(self) -> int:
        """V."""
        ...

    @property
    def mean(self) -> Statistic:
        """Of RGB in [0, 1], by channel."""
        ...


class MixedVision(nn.Module):
    """Towers by group; tensors stand below `groups.{group}.{place}`.

    Args:
        groups: The towers.
        sizes: The square of pixels of each.
        resize: How images are brought to a size that they have not.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Module]], sizes: Sequence[Sequence[int]], resize: Resize) -> None:
        super().__init__()
        self.groups = nn.ModuleList(nn.ModuleList(group) for group in groups)
        self.sizes = [list(each) for each in sizes]
        self.resize: Resize = resize

    def forward(self, images: UInt8[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N _ _"], ...]:
        """f[N, V, D] of each group."""
        return tuple(torch.cat(list(each), dim=2) for each in self.each(images))

    def each(self, images: UInt8[Tensor, "N 3 H W"]) -> Iterator[Iterator[Tensor]]:
        """The vectors of each tower of each group."""
        for group, sizes in zip(self.groups, self.sizes, strict=True):
            assert isinstance(group, nn.ModuleList)
            yield (tower(at_size(images, size, self.resize)) for tower, size in zip(group, sizes, strict=True))


def at_size(images: UInt8[Tensor, "N 3 H W"], size: int, how: Resize) -> UInt8[Tensor, "N 3 S S"]:
    """Squares of `size` pixels; nearest copies pixels, the others filter against aliasing and round."""
    if images.shape[-2:] == (size, size):
        return images
    if how == "nearest":
        return F.interpolate(images, size=(size, size))
    smooth = F.interpolate(images.float(), size=(size, size), mode=how, antialias=True, align_corners=False)
    return smooth.round().clamp(0, 255).byte()


@dataclass(frozen=True, kw_only=True)
class MixedTower(Composite):
    """Any towers in any groups; every one sees the image at its own size and with its own statistics.

    Raises:
        ValueError: A group without a tower; on use, towers of one group that give different numbers of vectors, or
            towers of different sizes where `size` does not say that of the images.
    """

    groups: list[list[Tower]]
    """Towers whose vectors are concatenated on channels, by group; groups follow one another."""
    size: int = 0
    """Side of the square of pixels that comes in; 0: that of all towers."""
    resize: Resize = "nearest"
    """How images are brought to a tower's size; SPHINX's released code, 224 to 256 for ConvNeXt, leaves it to the
    default of `interpolate`, which is nearest."""

    def __post_init__(self) -> None:
        if not self.groups or not all(self.groups):
            raise ValueError(f"vision.groups: found {self.groups}, expected groups of at least one tower each")

    @property
    def components(self) -> Mapping[str, ComponentSpec]:
        return {f"groups.{g}.{i}": tower for g, group in enumerate(self.groups) for i, tower in enumerate(group)}

    @property
    def image_size(self) -> int:
        """Side of the square of pixels that comes in."""
        sizes = sorted({tower.image_size for group in self.groups for tower in group})
        if not self.size and len(sizes) > 1:
            raise ValueError(f"vision.size: found 0 and towers of {sizes} pixels, expected the size of the images")
        return self.size or sizes[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """D of each group."""
        return tuple(sum(tower.width for tower in group) for group in self.groups)

    @property
    def vectors(self) -> tuple[int, ...]:
        """V of each group."""
        for g, (first, *others) in enumerate(self.groups):
            for i, tower in enumerate(others, 1):
                if tower.num_vectors != first.num_vectors:
                    raise ValueError(
                        f"vision.groups: found {tower.num_vectors} vectors of {type(tower).__name__} ({g}.{i}),"
                        f" expected {first.num_vectors} as of {type(first).__name__} ({g}.0), beside which they stand"
                    )
        return tuple(group[0].num_vectors for group in self.groups)

    @property
    def num_vectors(self) -> int:
        """Of an image, in all groups."""
        return sum(self.vectors)

    @property
    def mean(self) -> Statistic:
        """The first tower's: the colour that images are padded with."""
        return self.groups[0][0].mean

    def build(self) -> MixedVision:
        assert self.num_vectors and self.image_size
        groups = [[tower.build() for tower in group] for group in self.groups]
        sizes = [[tower.image_size for tower in group] for group in self.groups]
        return MixedVision(groups, sizes, self.resize)


TINY_MIXTURE = MixedTower(
    groups=[
        [
            QFormerTower(
                weights=None,
                vision=EvaTower(weights=None, depth=1, image_size=16, patch_size=8, width=16, heads=2, feedforward=24),
                qformer=TINY_QFORMER,
            )
        ],
        [
            TINY_TOWER,
            ConvNextTower(
                weights=None,
                grid=2,
                config={
                    "embed_dim": 16,
                    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "image_size": 32},
                    "text_cfg": {"context_length": 16, "vocab_size": 259, "width": 16, "heads": 2, "layers": 1},
                },
            ),
            DinoTower(
                model="vit_small_patch14_dinov2",
                weights=None,
                image_size=16,
                config={"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
            ),
        ],
    ],
    size=16,
)
"""SPHINX's four towers, of random values and no file: 4 queries and 5 vectors of an image of 16 pixels."""
