"""The image tower of a CLIP of ConvNeXt: pixels in, one visual vector a cell of its last map out.

u8[N,3,H,W] -> (x / 255 - mean) / std -> stem -> stages -> norm of each cell -> f[N,D,H/32,W/32]
                                                  -> cells repeated to G x G -> [their mean] + cells -> f[N,1+G*G,D]

ConvNeXt (arXiv 2201.03545), trained as CLIP by LAION; how SPHINX reads it: its released code (`llama_ens`), where the
cells are repeated until there are as many as the patches of its other towers.

Legend: N images, H = W pixels, D width, G rows of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from lightning_mllm.vision.encoder import Statistic, VisionEncoder
from lightning_mllm.vision.source import OpenClipSource

TRUNK = "visual.trunk."
"""What a ConvNeXt's tensors stand below in open_clip's files."""

NORMS = ("norm_pre.", "head.norm.")
"""The norm of the last map, in timm's two kinds of ConvNeXt; here it is called `norm`."""

STRIDE = 32


class ConvNextVision(VisionEncoder):
    """A ConvNeXt without pooling; names are timm's, but for the last norm.

    Args:
        trunk: The net, of which the parts are taken over.
        mean: Of RGB in [0, 1], by channel.
        std: Likewise.
        grid: G.
        keep_cls: Whether the mean of the cells stands first in the output, as a class token's vector would.
    """

    def __init__(self, trunk: ConvNeXt, mean: Statistic, std: Statistic, grid: int, keep_cls: bool) -> None:
        super().__init__(mean, std)
        self.stem = trunk.stem
        self.stages = trunk.stages
        head: Any = trunk.head
        # The classifier's norm stands behind its pooling, which is left out.
        self.norm: Any = head.norm if isinstance(trunk.norm_pre, nn.Identity) else trunk.norm_pre
        self.grid = grid
        self.keep_cls = keep_cls

    def encode(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        cells = self.norm(self.stages(self.stem(pixels.to(next(self.stem.parameters()).dtype))))
        for axis in (-2, -1):
            cells = cells.repeat_interleave(self.grid // cells.shape[axis], dim=axis)
        x = cells.flatten(2).transpose(1, 2)
        return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) if self.keep_cls else x


@dataclass(frozen=True, kw_only=True)
class ConvNextTower:
    """The image tower of an open_clip model with a ConvNeXt of timm; the defaults are SPHINX's.

    Raises:
        ValueError: On use, if there is no such model, it is no ConvNeXt, or its cells do not go into the grid.
    """

    model: str = "convnext_xxlarge"
    """As in `OpenClipTower`."""
    weights: str | None = "laion2b_s34b_b82k_augreg_soup"
    """As in `OpenClipTower`."""
    grid: int = 16
    """G: cells are repeated to so many rows and columns, a multiple of their own number (8 of 256 pixels)."""
    cls: Literal["drop", "keep"] = "keep"
    """What becomes of the mean of all cells, which stands for a class token."""
    config: dict[str, Any] | None = None
    """An open_clip configuration in place of `model`."""

    @property
    def source(self) -> OpenClipSource:
        return OpenClipSource("" if self.config else self.model, self.weights, self.config)

    @property
    def vision_config(self) -> Mapping[str, Any]:
        """The tower's own part of the configuration."""
        config = self.source.model_config()["vision_cfg"]
        if not isinstance(trunk := _smallest(config.get("timm_model_name", "")), ConvNeXt):
            found = "no model of timm" if trunk is None else f"a {type(trunk).__name__}"
            raise ValueError(f"{self.source.title}: found {found}, expected a ConvNeXt of timm")
        return config

    @property
    def image_size(self) -> int:
        """Side of the square of pixels."""
        return self.vision_config.get("image_size", 224)

    @property
    def width(self) -> int:
        """D."""
        trunk = _smallest(self.vision_config["timm_model_name"])
        assert isinstance(trunk, ConvNeXt)
        return trunk.num_features

    @property
    def num_vectors(self) -> int:
        """V."""
        return self.grid**2 + (self.cls == "keep")

    @property
    def mean(self) -> Statistic:
        return self.source.statistics()[0]

    @property
    def std(self) -> Statistic:
        return self.source.statistics()[1]

    def build(self) -> ConvNextVision:
        rows = self.image_size // STRIDE
        if rows < 1 or self.grid < 1 or self.grid % rows:
            raise ValueError(
                f"vision.grid: found {self.grid}, expected a multiple of the {rows} rows of cells that"
                f" {self.source.title} makes of {self.image_size} pixels"
            )
        config: Any = {**self.vision_config, "timm_model_pretrained": False, "timm_drop_path": 0.0}
        whole = _build_vision_tower(self.source.model_config()["embed_dim"], config)
        assert isinstance(whole, TimmModel) and isinstance(whole.trunk, ConvNeXt)
        mean, std = self.source.statistics()
        return ConvNextVision(whole.trunk, mean, std, grid=self.grid, keep_cls=self.cls == "keep")

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        tensors = self.source.tensors(TRUNK)
        return None if tensors is None else self._used(tensors)

    def _used(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            name = name.removeprefix(TRUNK)
            norm = next((prefix for prefix in NORMS if name.startswith(prefix)), None)
            yield (name if norm is None else f"norm.{name.removeprefix(norm)}"), tensor

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, ConvNextVision)
        stages: Any = module.stages
        return [block for stage in stages for block in stage.blocks]


@cache
def _smallest(name: str) -> nn.Module | None:
    """The model of timm with one block a stage and no memory, from which widths are read."""
    if not timm.is_model(name):
        return None
    with torch.device("meta"):
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, depths=(1, 1, 1, 1))
        except TypeError:  # it has no stages
            return timm.create_model(name, pretrained=False, num_classes=0)
