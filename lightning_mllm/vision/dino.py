"""DINOv2's image encoder: pixels in, the normalised vectors of the class token and of the patches out.

u8[N,3,H,W] -> (x / 255 - mean) / std -> patches of P x P -> [CLS, registers] + patches + positions -> blocks -> norm
                                                                                     -> f[N,V,D], without registers

DINOv2 (arXiv 2304.07193); with registers: arXiv 2309.16588.

Legend: N images, H = W pixels, P patch, V vectors, D width.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lightning_mllm.interop.keys.dino import DINO_KEYS
from lightning_mllm.vision.encoder import Statistic, VisionEncoder
from lightning_mllm.vision.positions import resized
from lightning_mllm.weights.files import TensorFiles
from lightning_mllm.weights.hub import tensors_at


class DinoVision(VisionEncoder):
    """A DINOv2; names are timm's.

    Args:
        whole: Of which the parts are taken over.
        mean: Of RGB in [0, 1], by channel.
        std: Likewise.
        keep_cls: Whether the class token's vector stands first in the output.
    """

    def __init__(self, whole: VisionTransformer, mean: Statistic, std: Statistic, keep_cls: bool) -> None:
        super().__init__(mean, std)
        assert whole.cls_token is not None and whole.pos_embed is not None
        self.cls_token = whole.cls_token
        self.reg_token = whole.reg_token
        self.pos_embed = whole.pos_embed
        self.patch_embed = whole.patch_embed
        self.blocks = whole.blocks
        self.norm = whole.norm
        self.keep_cls = keep_cls

    def encode(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        # Under autocast the convolution gives 16 bits, and what the blocks add up is kept in 32.
        patches = self.patch_embed(pixels.to(self.cls_token.dtype)).to(self.cls_token.dtype)
        cls = self.cls_token.expand(len(patches), -1, -1)
        if self.reg_token is None:
            x = torch.cat([cls, patches], dim=1) + self.pos_embed
        else:
            registers = self.reg_token.expand(len(patches), -1, -1)
            x = torch.cat([cls, registers, patches + self.pos_embed], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        patches = x[:, -patches.shape[1] :]
        return torch.cat([x[:, :1], patches], dim=1) if self.keep_cls else patches


@dataclass(frozen=True, kw_only=True)
class DinoTower:
    """A DINOv2 of timm; the defaults are SPHINX's.

    Raises:
        ValueError: On use, if there is no such model, it is no DINOv2, or its weights cannot be had.
    """

    model: str = "vit_giant_patch14_dinov2"
    """A name of timm; `_reg4` in it has registers."""
    weights: str | None = ""
    """None: fresh; "": timm's, from the hub; else a file, a folder or a name on the hub, in the names of timm or of the
    authors (`dinov2_vitg14_pretrain.pth`)."""
    image_size: int = 224
    """Side of the square of pixels; positions (of 518 pixels in the weights) are resized as the authors do it."""
    cls: Literal["drop", "keep"] = "keep"
    """What becomes of the class token's vector."""
    config: dict[str, Any] | None = None
    """Arguments of timm's model over those of `model` (`embed_dim`, `depth`, ...)."""

    @property
    def width(self) -> int:
        """D."""
        return self._first.num_features

    @property
    def num_vectors(self) -> int:
        """V."""
        return self._first.patch_embed.num_patches + (self.cls == "keep")

    @property
    def mean(self) -> Statistic:
        """ImageNet's."""
        return self._published.mean

    @property
    def std(self) -> Statistic:
        return self._published.std

    @property
    def _published(self) -> Any:
        _expect(self.model)
        return timm.get_pretrained_cfg(self.model)

    @property
    def _arguments(self) -> dict[str, Any]:
        return {**(self.config or {}), "img_size": self.image_size}

    @property
    def _first(self) -> VisionTransformer:
        return _one_block(self.model, json.dumps(self._arguments))

    def build(self) -> DinoVision:
        whole = _create(self.model, self._arguments)
        return DinoVision(whole, self.mean, self.std, keep_cls=self.cls == "keep")

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        return None if self.weights is None else self._used(self.weights or self._published.hf_hub_id)

    def _used(self, source: str) -> Iterator[tuple[str, Tensor]]:
        files = TensorFiles(tensors_at(source, "vision.weights"))
        tensors = ((name, files[name]) for name in files)
        yield from DINO_KEYS.to_ours(_without_place_of_cls(files) if "register_tokens" in files else tensors)

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        if name != "pos_embed" or tensor.ndim != 3:
            return None
        registers = self._first.num_reg_tokens > 0
        # What the authors' hub says of each: `interpolate_antialias`, `interpolate_offset`.
        how: dict[str, Any] = {"antialias": True, "cls": 0} if registers else {"antialias": False, "offset": 0.1}
        positions = resized(tensor[0], shape[1:], **how)
        return None if positions is None else positions.unsqueeze(0)

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, DinoVision)
        return list(module.blocks)


def _without_place_of_cls(files: TensorFiles) -> Iterator[tuple[str, Tensor]]:
    """The authors' tensors with registers: timm has added the class token's position to the token."""
    for name in files:
        if name == "register_tokens":
            yield "reg_token", files[name]
        elif name == "cls_token":
            yield name, files[name] + files["pos_embed"][:, :1]
        else:
            yield name, files[name][:, 1:] if name == "pos_embed" else files[name]


def _expect(model: str) -> None:
    if not timm.is_model(model) or "dinov2" not in model:
        names = timm.list_models("*dinov2*")
        near = difflib.get_close_matches(model, names, n=1, cutoff=0.0)[0]
        raise ValueError(f"vision.model: found {model!r}, expected a DINOv2 of timm (the nearest is {near!r})")


def _create(model: str, arguments: dict[str, Any]) -> VisionTransformer:
    _expect(model)
    whole = timm.create_model(model, pretrained=False, num_classes=0, **arguments)
    assert isinstance(whole, VisionTransformer)
    return whole


@cache
def _one_block(model: str, arguments: str) -> VisionTransformer:
    """The model with one block and no memory, from which sizes are read."""
    with torch.device("meta"):
        return _create(model, {**json.loads(arguments), "depth": 1})
