"""The image encoder of CogVLM: EVA2-CLIP-E without its last block, pixels in, visual vectors out.

u8[N,3,H,W] -> (x / 255 - mean) / std -> patches of P x P -> [CLS] + patches + positions -> blocks -> f[N,V,D]

EVA-CLIP (arXiv 2303.15389); CogVLM (arXiv 2311.03079, sec. 2.1): the last block, which serves the contrastive loss, is
left out. The class token takes part in attention and is dropped at the output; no norm behind (released code).

Legend: N images, H = W pixels, P patch, V vectors, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_mllm.interop.keys.eva2 import COGVLM_VISION_KEYS, EVA2_KEYS
from lightning_mllm.vision.eva import EPS, EvaEncoder, EvaSpec, Layouts, Mlp
from lightning_mllm.weights.keymap import KeyMap, Rule

PUBLISHED = "timm/eva02_enormous_patch14_clip_224.laion2b_plus"
"""EVA2-CLIP-E/14+ on the hub, with all its 64 blocks."""

_BESIDE = KeyMap([Rule(ours=None, theirs=(name,)) for name in ("linear_proj.{...}", "boi", "eoi")])
"""What CogVLM's checkpoints keep beside the tower: the adapter and the vectors around its output."""

LAYOUTS: Layouts = (
    ("model.vision.", "patch_embedding.cls_embedding", COGVLM_VISION_KEYS + _BESIDE),
    ("", "patch_embedding.cls_embedding", COGVLM_VISION_KEYS + _BESIDE),
    ("", "cls_token", EVA2_KEYS),
)


class Eva2Attention(nn.Module):
    """Self-attention; queries, keys and values come from one layer with a bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N V D"]) -> Float[Tensor, "N V D"]:
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class Eva2Block(nn.Module):
    """x + norm1(attn(x)), then x + norm2(mlp(x)): the norms stand at the end of their branches."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn, self.mlp = Eva2Attention(width, heads), Mlp(width, inner)

    def forward(self, x: Float[Tensor, "N V D"]) -> Float[Tensor, "N V D"]:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class Eva2Vision(EvaEncoder):
    """The tower; see the spec for the sizes. Names are timm's, but for the bias of attention."""

    def __init__(self, spec: Eva2Tower) -> None:
        super().__init__(spec, Eva2Block)

    def _through(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        return super()._through(pixels)[:, 1:]


@dataclass(frozen=True, kw_only=True)
class Eva2Tower(EvaSpec):
    """An EVA2 image encoder; the defaults are CogVLM's.

    Raises:
        ValueError: Sizes that do not go together; on use, if there are no such weights.
    """

    published: ClassVar[str] = PUBLISHED
    layouts: ClassVar[Layouts] = LAYOUTS

    weights: str | None = ""
    """None: fresh; "": EVA2-CLIP's own, from the hub; else a file, a folder or a name on the hub, in the names of timm
    or of the public CogVLM checkpoints, whole ones and what they hold below `model.vision.`."""
    depth: int = 63
    """How many blocks are used, the first; EVA2-CLIP-E has 64."""
    image_size: int = 490
    """Side of the square of pixels; positions are resized for another one than that of the weights (224)."""
    patch_size: int = 14
    width: int = 1792
    """D."""
    heads: int = 16
    feedforward: int = 15360

    @property
    def num_vectors(self) -> int:
        """V."""
        return self.num_patches

    def build(self) -> Eva2Vision:
        return Eva2Vision(self)


TINY_EVA2 = Eva2Tower(weights=None, depth=2, image_size=16, patch_size=8, width=32, heads=2, feedforward=48)
"""Random values, no file: for the `tiny()` of an architecture."""
