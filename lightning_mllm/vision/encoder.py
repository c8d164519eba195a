"""What all vision encoders share, and the plain one: CLIP's vision transformer, up to the block that is used.

    images u8[N,3,H,W] --(x / 255 - mean) / std--> pixels f[N,3,H,W] --encode--> f[N,V,D]
    VisionTower.encode: patches of P x P -> [CLS] + patches + positions -> blocks -> f[N,V,D]

Legend: N images, H and W pixels, P patch, V vectors an image, D width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, UInt8
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from lightning_mllm.vision.positions import sines

Statistic = tuple[float, float, float]
"""A number for each of R, G and B in [0, 1]."""


class VisionEncoder(nn.Module):
    """An encoder; a subclass adds `encode`.

    Args:
        mean: Of the images that the encoder was trained on, by channel.
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistic, std: Statistic) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        """Visual vectors, row by row of the image; in the dtype of the encoder, without autograd if it is frozen."""
        with autograd_where_trained(self):
            return self.encode(normalised(images, self.mean, self.std))

    def encode(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        """Visual vectors of normalised pixels, which are in float32."""
        raise AssertionError(f"{type(self).__name__} has no encode")


class VisionTower(VisionEncoder):
    """A vision transformer of open_clip without what lies beyond its last used block; names are open_clip's.

    Args:
        visual: The image tower, of which the parts are taken over.
        mean: Of RGB in [0, 1], by channel.
        std: Likewise.
        keep_cls: Whether the class token's vector stands first in the output.
        output_position_scale: Amplitude of the fixed positions that are added to the vectors of the patches; 0: none.
        norm: Whether `ln_post` is applied to all vectors.
    """

    output_position_embedding: Tensor | None

    def __init__(
        self,
        visual: VisionTransformer,
        mean: Statistic,
        std: Statistic,
        keep_cls: bool,
        output_position_scale: float = 0.0,
        norm: bool = False,
    ) -> None:
        super().__init__(mean, std)
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.conv1 = visual.conv1
        self.ln_pre = visual.ln_pre
        self.transformer = visual.transformer
        self.ln_post = visual.ln_post if norm else None
        self.keep_cls = keep_cls
        self.output_position_scale = output_position_scale
        rows = math.isqrt(len(self.positional_embedding) - 1)
        fixed = (
            output_position_scale * sines(rows, self.positional_embedding.shape[1]) if output_position_scale else None
        )
        self.register_buffer("output_position_embedding", fixed, persistent=False)

    def encode(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N V D"]:
        patches = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(patches), 1, -1)
        # Under autocast the convolution gives 16 bits, and what the blocks add up is kept in 32.
        x = torch.cat([cls, patches.to(cls.dtype)], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        if self.ln_post is not None:
            x = self.ln_post(x)
        if self.output_position_embedding is not None:
            x = torch.cat([x[:, :1], x[:, 1:] + self.output_position_embedding.to(x.dtype)], dim=1)
        return x if self.keep_cls else x[:, 1:]


def normalised(
    images: UInt8[Tensor, "N 3 H W"], mean: Float[Tensor, "3 1 1"], std: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "N 3 H W"]:
    """Pixels in float32, of mean 0 and deviation 1 over the images that `mean` and `std` are of."""
    return (images.float() / 255 - mean.float()) / std.float()


def autograd_where_trained(module: nn.Module) -> AbstractContextManager[object]:
    """No graph of a module whose parameters are all frozen, so that it saves nothing for the backward pass."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()))
