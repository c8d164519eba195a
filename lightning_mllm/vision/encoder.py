"""What all vision encoders share: pixels normalised with the encoder's own statistics, and no autograd where frozen.

    images u8[N,3,H,W] --(x / 255 - mean) / std--> pixels f[N,3,H,W] --encode--> f[N,V,D]

Legend: N images, H and W pixels, V vectors an image, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

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


def normalised(
    images: UInt8[Tensor, "N 3 H W"], mean: Float[Tensor, "3 1 1"], std: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "N 3 H W"]:
    """Pixels in float32, of mean 0 and deviation 1 over the images that `mean` and `std` are of."""
    return (images.float() / 255 - mean.float()) / std.float()


def autograd_where_trained(module: nn.Module) -> AbstractContextManager[object]:
    """No graph of a module whose parameters are all frozen, so that it saves nothing for the backward pass."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()))
