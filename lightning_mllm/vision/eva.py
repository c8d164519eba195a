"""The image encoder of BLIP-2: EVA-CLIP's ViT-g without its last block, pixels in, visual vectors out.

u8[N,3,H,W] -> (x / 255 - mean) / std -> patches of P x P -> [CLS] + patches + positions -> blocks -> f[N,V,D]

EVA (arXiv 2211.07636); BLIP-2 (arXiv 2301.12597, sec. 3.3): the second last layer's output, all 1 + 16 x 16 vectors of
it, no norm behind.

Legend: N images, H = W pixels, P patch, V vectors, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS, EVA_KEYS
from lightning_mllm.vision.encoder import Statistic, VisionEncoder
from lightning_mllm.vision.positions import resized
from lightning_mllm.weights.files import TensorFiles
from lightning_mllm.weights.hub import tensors_at
from lightning_mllm.weights.keymap import KeyMap, Rule

PUBLISHED = "timm/eva_giant_patch14_clip_224.laion400m_s11b_b41k"
"""EVA-CLIP's ViT-g/14 on the hub, with all its 40 blocks."""

EPS = 1e-6

Layouts = tuple[tuple[str, str, KeyMap], ...]
"""Prefix of the tower's tensors in a file, one of their names that tells the layout, and the table."""

LAYOUTS: Layouts = tuple(
    (prefix, marker, KeyMap([Rule(ours=None, theirs=("post_layernorm.{...}",))]) + keys)
    for prefix, marker, keys in (
        ("vision_model.", "embeddings.class_embedding", BLIP2_VISION_KEYS),
        ("", "embeddings.class_embedding", BLIP2_VISION_KEYS),
        ("visual_encoder.", "cls_token", EVA_KEYS),
        ("", "cls_token", EVA_KEYS),
    )
)


class EvaAttention(nn.Module):
    """Self-attention whose queries and values have a bias, and whose keys have none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qv_bias = nn.Parameter(torch.zeros(2 * width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N V D"]) -> Float[Tensor, "N V D"]:
        query, value = self.qv_bias.chunk(2)
        bias = torch.cat([query, torch.zeros_like(query), value])
        parts = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "N V D"]) -> Float[Tensor, "N V D"]:
        return self.fc2(F.gelu(self.fc1(x)))


class EvaBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn, self.mlp = EvaAttention(width, heads), Mlp(width, inner)

    def forward(self, x: Float[Tensor, "N V D"]) -> Float[Tensor, "N V D"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class EvaEncoder(VisionEncoder):
    """What EVA's towers share: all but their block. Names are timm's.

    Args:
        spec: The sizes.
        block: Makes a block of a width, a number of heads and the width of its MLP.
    """

    def __init__(self, spec: EvaSpec, block: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__(spec.mean, spec.std)
        self.cls_token = nn.Parameter(torch.empty(1, 1, spec.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + spec.num_patches, spec.width))
        self.patch_embed = nn.Conv2d(3, spec.width, spec.patch_size, stride=spec.patch_size)
        self.blocks = nn.ModuleList(block(spec.width, spec.heads, spec.feedforward) for _ in range(spec.depth))
        self.apply(_as_eva_starts)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.half: torch.dtype | None = getattr(torch, spec.dtype) if spec.dtype else None
        for module in self.modules() if self.half else ():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(self.half)

    def encode(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        """The class token's vector stands first.

        Raises:
            ValueError: The tower is trained, and its weights are in 16 bits.
        """
        if torch.is_grad_enabled() and self.half is not None:
            raise ValueError(f"vision.dtype: found {self.half} in a tower that is trained, expected null")
        if self.half is None or self.patch_embed.weight.dtype != self.half:  # cast by whoever uses it, or never
            return self._through(pixels.to(self.patch_embed.weight.dtype))
        with torch.autocast(pixels.device.type, dtype=self.half):
            return self._through(pixels)

    def _through(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(len(patches), -1, -1)
        # Under autocast the convolution gives 16 bits, and what the blocks add up is kept in 32.
        x = torch.cat([cls, patches.to(cls.dtype)], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class EvaVision(EvaEncoder):
    """The tower; see the spec for the sizes. Names are timm's, but for the biases of attention."""

    def __init__(self, spec: EvaTower) -> None:
        super().__init__(spec, EvaBlock)


@dataclass(frozen=True, kw_only=True)
class EvaSpec:
    """The sizes of a tower of EVA, and where its weights are.

    Raises:
        ValueError: Sizes that do not go together; on use, if there are no such weights.
    """

    published: ClassVar[str]
    """The name on the hub that `weights: ""` stands for."""
    layouts: ClassVar[Layouts]

    weights: str | None
    depth: int
    image_size: int
    patch_size: int
    width: int
    heads: int
    feedforward: int
    dtype: str | None = None
    """Of the weights of linear and convolution layers, with which they then also compute (`float16` for a frozen tower
    that must be small, as released); None: float32, or what `hardware.precision` says."""
    mean: Statistic = OPENAI_DATASET_MEAN
    """Of RGB in [0, 1], by channel."""
    std: Statistic = OPENAI_DATASET_STD

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"vision.heads: found {self.heads}, expected a divisor of the width {self.width}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision.image_size: found {self.image_size}, expected a multiple of the patch's {self.patch_size}"
            )
        if self.dtype not in (None, "float16", "bfloat16"):
            raise ValueError(f"vision.dtype: found {self.dtype!r}, expected float16, bfloat16 or null")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        return None if self.weights is None else self._used(self.weights or self.published)

    def _used(self, source: str) -> Iterator[tuple[str, Tensor]]:
        files = TensorFiles(tensors_at(source, "vision.weights"))
        layouts = [layout for layout in self.layouts if layout[0] + layout[1] in files]
        if not layouts:
            raise ValueError(
                f"{source}: found no image encoder, expected one of the tensors"
                f" {', '.join(sorted(prefix + marker for prefix, marker, _ in self.layouts))}"
            )
        prefix, _, keys = layouts[0]
        tensors = ((name.removeprefix(prefix), files[name]) for name in files if name.startswith(prefix))
        for name, tensor in keys.to_ours(tensors):
            if not name.startswith("blocks.") or int(name.split(".")[1]) < self.depth:
                yield name, tensor

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        if name != "pos_embed" or tensor.ndim != 3:
            return None
        positions = resized(tensor[0], shape[1:], antialias=False)
        return None if positions is None else positions.unsqueeze(0)

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, EvaEncoder)
        return list(module.blocks)


@dataclass(frozen=True, kw_only=True)
class EvaTower(EvaSpec):
    """An EVA image encoder; the defaults are BLIP-2's.

    Raises:
        ValueError: Sizes that do not go together; on use, if there are no such weights.
    """

    published: ClassVar[str] = PUBLISHED
    layouts: ClassVar[Layouts] = LAYOUTS

    weights: str | None = ""
    """None: fresh; "": EVA-CLIP's own, from the hub; else a file, a folder or a name on the hub, in the names of timm,
    of LAVIS (`eva_vit_g.pth`) or of transformers' BLIP-2."""
    depth: int = 39
    """How many blocks are used, the first; ViT-g has 40."""
    image_size: int = 224
    """Side of the square of pixels; positions are resized for another one than that of the weights (364, 490)."""
    patch_size: int = 14
    width: int = 1408
    """D."""
    heads: int = 16
    feedforward: int = 6144

    @property
    def num_vectors(self) -> int:
        """V."""
        return self.num_patches + 1

    def build(self) -> EvaVision:
        return EvaVision(self)


def _as_eva_starts(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
