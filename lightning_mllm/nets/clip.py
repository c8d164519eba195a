"""CLIP (Radford et al. 2021, arXiv 2103.00020): where the small world's own vision tower comes from.

The idea: images and their captions are embedded so that, in a batch, each image lies nearest to its own caption.

    images u8[B,3,H,W] --clip.visual--> f[B,E] --normalise--.
                                                            similarities [B,B] * exp(logit_scale) -> cross-entropy
    captions i[B,L] ---text tower, at the end--> f[B,E] --normalise--'      along rows and along columns, averaged

Legend: B pairs, E width of the common space, L tokens of a padded caption.
"""

from __future__ import annotations

import math
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_mllm.contracts import Batch, Output, Term
from lightning_mllm.nets.base import Net
from lightning_mllm.vision.encoder import Statistic, normalised

MAX_LOGIT_SCALE = math.log(100)
"""Sec. 2.5: "clipped to prevent scaling the logits by more than 100"."""


class ClipNet(Net):
    """Both towers of an open_clip model.

    Args:
        clip: Its text tower is causal.
        mean: Of RGB in [0, 1], by channel, of the images that the image tower takes.
        std: Likewise.
        end: The token at which the text tower's vector is taken.
    """

    entries = ("encode_images", "encode_texts")

    mean: Tensor
    std: Tensor

    def __init__(self, clip: open_clip.CLIP, mean: Statistic, std: Statistic, end: int) -> None:
        super().__init__()
        self.clip = clip
        self.end = end
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> Output:
        """Symmetric cross-entropy over pairs, and the share of images whose nearest caption is their own.

        Images of one and the same caption are all its own (UniCL, arXiv 2204.03610, eq. 3): none is a wrong answer.
        """
        if batch.num_images != len(batch.ids):
            raise ValueError(f"found {batch.num_images} images for {len(batch.ids)} captions, expected one each")
        scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        # Cross-entropy in float32, as autocast has it.
        logits = (scale * self.encode_images(batch) @ self.encode_texts(batch.tokens, batch.segments).T).float()
        own = (batch.tokens.unsqueeze(0) == batch.tokens.unsqueeze(1)).all(-1).to(logits.dtype)
        targets = own / own.sum(1, keepdim=True)
        both = [F.cross_entropy(each, targets, reduction="none") for each in (logits, logits.T)]
        hits = own.gather(1, logits.detach().argmax(1, keepdim=True))[:, 0]
        return Output(terms={"contrast": Term(losses=(both[0] + both[1]) / 2), "accuracy": Term(losses=hits, weight=0)})

    def encode_images(self, batch: Batch) -> Float[Tensor, "B E"]:
        """Unit vectors of the images."""
        pixels = normalised(batch.images, self.mean, self.std)
        dtype = self.clip.logit_scale.dtype
        return self.clip.encode_image(pixels.to(dtype), normalize=True)

    def encode_texts(self, tokens: Int[Tensor, "B T"], segments: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Unit vectors of right-padded captions, whose last token (the line end of `plain`) becomes the end token."""
        last, (_, width) = (segments > 0).sum(1) - 1, tokens.shape
        positions = torch.arange(width, device=tokens.device)
        # Nothing looks at what stands behind the end token, which pads too. open_clip's own `encode_text` pads every
        # batch to the longest text there may be.
        text = tokens.masked_fill(positions >= last.unsqueeze(1), self.end)
        clip: Any = self.clip
        embeds = clip.token_embedding(text) + clip.positional_embedding[:width]
        hidden = clip.ln_final(clip.transformer(embeds, attn_mask=clip.attn_mask[:width, :width]))
        pooled, projection = hidden[torch.arange(len(hidden), device=hidden.device), last], clip.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return F.normalize(pooled, dim=-1)
