"""A whole CLIP (both towers) of open_clip, for contrastive training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
from torch import Tensor, nn

from lightning_mllm.vision.positions import resized
from lightning_mllm.vision.source import OpenClipSource


@dataclass(frozen=True, kw_only=True)
class OpenClipModel:
    """Image tower, text tower and temperature of open_clip, under its own names: its files fit without renaming."""

    model: str = ""
    """As in `OpenClipTower`."""
    weights: str | None = None
    """As in `OpenClipTower`."""
    config: dict[str, Any] | None = None
    """An open_clip configuration in place of `model`."""

    @property
    def source(self) -> OpenClipSource:
        return OpenClipSource(self.model, self.weights, self.config)

    @property
    def image_size(self) -> int:
        return self.source.model_config()["vision_cfg"].get("image_size", 224)

    @property
    def text_config(self) -> dict[str, Any]:
        return self.source.model_config()["text_cfg"]

    @property
    def context_length(self) -> int:
        """Tokens of every text, padding included."""
        return self.text_config.get("context_length", 77)

    @property
    def vocab(self) -> int:
        return self.text_config.get("vocab_size", 49408)

    def build(self) -> open_clip.CLIP:
        config = self.source.model_config()
        if config["text_cfg"].get("hf_model_name"):
            raise ValueError(f"{self.source.title}: found a text tower of transformers, expected one of open_clip")
        return open_clip.CLIP(
            config["embed_dim"],
            config["vision_cfg"],
            config["text_cfg"],
            quick_gelu=config.get("quick_gelu", False),
            nonscalar_logit_scale=True,  # FSDP2 refuses parameters without a dimension
        )

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        tensors = self.source.tensors()
        if tensors is None:
            return None
        return ((name, tensor.reshape(1) if name == "logit_scale" else tensor) for name, tensor in tensors)

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        return resized(tensor, shape) if name == "visual.positional_embedding" else None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, open_clip.CLIP)
        visual: Any = module.visual
        return [*visual.transformer.resblocks, *module.transformer.resblocks]
