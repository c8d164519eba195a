"""The spec of a CLIP image tower of open_clip; what it computes stands in `vision/encoder.py`, `VisionTower`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from open_clip.model import _build_vision_tower  # the one place that knows every field of a vision_cfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from lightning_mllm.vision.encoder import Statistic, VisionTower
from lightning_mllm.vision.positions import resized
from lightning_mllm.vision.source import OpenClipSource


@dataclass(frozen=True, kw_only=True)
class OpenClipTower:
    """The image tower of an open_clip vision transformer.

    Raises:
        ValueError: A number is out of range; on use, if there is no such model, it is no vision transformer, or it has
            no such layer.
    """

    model: str = ""
    """A name of open_clip (`ViT-L-14-336-quickgelu`), a JSON configuration, or a folder with `open_clip_config.json`;
    a path may start with `package:`."""
    weights: str | None = ""
    """None: fresh; "": those of the folder; else a file, or a tag of open_clip (`openai`)."""
    layer: int = -2
    """Whose output is used, counted as transformers' `hidden_states`: -1 is the last block, 0 the embeddings."""
    cls: Literal["drop", "keep"] = "drop"
    """What becomes of the class token's vector."""
    norm: bool = False
    """Whether the norm that stands behind the last block is applied, to all vectors (SPHINX's released code)."""
    output_position_scale: float = 0.0
    """Above 0, sines of the patches' positions times this are added to their vectors, for what attends to them in no
    order and a tower whose vectors do not tell where they stand (Qwen-VL's adapter, arXiv 2308.12966, sec. 2.1, has
    such positions too)."""
    config: dict[str, Any] | None = None
    """An open_clip configuration in place of `model`."""

    def __post_init__(self) -> None:
        if self.output_position_scale < 0:
            raise ValueError(f"vision.output_position_scale: found {self.output_position_scale}, expected 0 or more")

    @property
    def source(self) -> OpenClipSource:
        return OpenClipSource(self.model, self.weights, self.config)

    @property
    def vision_config(self) -> Mapping[str, Any]:
        """The tower's own part of the configuration."""
        config = self.source.model_config()["vision_cfg"]
        refusals = {
            "timm_model_name": "a timm model",
            "attentional_pool": "attentional pooling",
        }
        for key, what in refusals.items():
            if config.get(key):
                raise ValueError(f"{self.source.title}: found {what}, expected a plain vision transformer of open_clip")
        for key in ("layers", "image_size", "patch_size"):
            if not isinstance(config.get(key), int):
                raise ValueError(f"{self.source.title}, vision_cfg.{key}: found {config.get(key)!r}, expected a number")
        return config

    @property
    def image_size(self) -> int:
        """Side of the square of pixels."""
        return self.vision_config["image_size"]

    @property
    def patch_size(self) -> int:
        return self.vision_config["patch_size"]

    @property
    def width(self) -> int:
        """D."""
        return self.vision_config.get("width", 768)

    @property
    def num_vectors(self) -> int:
        """V."""
        config = self.vision_config
        return (config["image_size"] // config["patch_size"]) ** 2 + (self.cls == "keep")

    @property
    def mean(self) -> Statistic:
        return self.source.statistics()[0]

    @property
    def std(self) -> Statistic:
        return self.source.statistics()[1]

    @property
    def depth(self) -> int:
        """How many blocks are built: those up to `layer`."""
        layers: int = self.vision_config["layers"]
        depth = self.layer if self.layer >= 0 else layers + 1 + self.layer
        if not 1 <= depth <= layers:
            raise ValueError(f"vision.layer: found {self.layer}, expected from {-layers} to -1, or from 1 to {layers}")
        return depth

    def build(self) -> VisionTower:
        whole = self.source.model_config()
        config: Any = {**self.vision_config, "layers": self.depth, "patch_dropout": 0.0}
        visual = _build_vision_tower(whole["embed_dim"], config, quick_gelu=whole.get("quick_gelu", False))
        assert isinstance(visual, VisionTransformer)
        mean, std = self.source.statistics()
        return VisionTower(
            visual,
            mean,
            std,
            keep_cls=self.cls == "keep",
            output_position_scale=self.output_position_scale,
            norm=self.norm,
        )

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        tensors = self.source.tensors("visual.")
        return None if tensors is None else self._used(tensors)

    def _used(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if not self._beyond(name := name.removeprefix("visual.")):
                yield name, tensor

    def _beyond(self, name: str) -> bool:
        """Whether a tensor of the whole image tower lies behind the used layer."""
        if name.startswith("transformer.resblocks."):
            return int(name.split(".")[2]) >= self.depth
        return name == "proj" or (name.startswith("ln_post.") and not self.norm)

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        return resized(tensor, shape) if name == "positional_embedding" else None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, VisionTower)
        return list(module.transformer.resblocks)


TINY_TOWER = OpenClipTower(
    weights=None,
    layer=-1,
    cls="keep",
    config={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 259, "width": 16, "heads": 2, "layers": 1},
    },
)
"""Random values, no file: what the `tiny()` of an architecture with a Q-Former sees with."""
