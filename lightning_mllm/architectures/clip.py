"""CLIP (Radford et al. 2021, arXiv 2103.00020): where the small world's own vision tower comes from.

The idea: images and their captions are embedded so that, in a batch, each image lies nearest to its own caption.

    images u8[B,3,H,W] --clip.visual--> f[B,E] --normalise--.
                                                            similarities [B,B] * exp(logit_scale) -> cross-entropy
    captions i[B,L] ---text tower, at the end--> f[B,E] --normalise--'      along rows and along columns, averaged

Legend: B pairs, E width of the common space, L tokens of a padded caption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_mllm.contracts import Batch, Output, ParamGroup, Sample, Stage, Term, Turn
from lightning_mllm.evaluation.generation import Decoding
from lightning_mllm.language.tokenizer import load_tokenizer
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.clip import OpenClipModel

MAX_LOGIT_SCALE = math.log(100)
"""Sec. 2.5: "clipped to prevent scaling the logits by more than 100"."""


class ClipPretraining(MultimodalModule):
    """Contrastive training of both towers of an open_clip model on images and captions.

    The negatives of a pair are the others of its own micro-batch on its own rank, so a micro-batch is here a published
    number and not one of the hardware.

    Args:
        clip: Both towers. Its text tower must take the vector at the tokenizer's end token: `pool_type: eos` with that
            `eos_id`, or `argmax` where it is the last of the vocabulary.
        tokenizer: A folder (may start with `package:`) or a name on the hub; "" takes bytes as tokens.
        image: How images are fitted into the tower's square; None is CLIP's crop.
        stage: What to train; None for use only.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    stages: ClassVar[dict[str, Stage]] = {"contrast": Stage(train={"clip.*": ParamGroup()})}

    clip: open_clip.CLIP
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: OpenClipModel,
        tokenizer: str = "",
        image: ImagePolicy | None = None,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        image = image or ImagePolicy(size=clip.image_size, fit="crop", mean=clip.source.statistics()[0])
        if image.size != clip.image_size:
            raise ValueError(f"image.size: found {image.size}, expected {clip.image_size}, which the tower takes")
        words = load_tokenizer(tokenizer)
        end: Any = words.eos_token_id
        if len(words) > clip.vocab:
            raise ValueError(f"tokenizer: found {len(words)} tokens, expected at most {clip.vocab}, clip's vocab_size")
        pool = clip.text_config.get("pool_type", "argmax")
        reads = {"eos": clip.text_config.get("eos_id", 2), "argmax": len(words) - 1}
        if end is None or reads.get(pool) != end:
            raise ValueError(
                f"clip: text_cfg takes the vector at token {reads.get(pool)} (pool_type {pool}), expected the"
                f" tokenizer's end token {end}, as pool_type eos with eos_id {end}"
            )
        if clip.text_config.get("no_causal_mask"):
            raise ValueError("clip: found text_cfg.no_causal_mask, expected a causal text tower, which sees no padding")
        processor = Processor(words, load_template("plain", words), image, 0, clip.context_length)
        super().__init__(parts={"clip": clip}, processor=processor, stage=stage, decoding=decoding)
        self.end = int(end)
        mean, std = clip.source.statistics()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> Output:
        """Symmetric cross-entropy over pairs, and the share of images whose nearest caption is their own.

        Images of one and the same caption are all its own (UniCL, arXiv 2204.03610, eq. 3): none is a wrong answer.
        """
        if batch.num_images != len(batch.ids):
            raise ValueError(f"found {batch.num_images} images for {len(batch.ids)} captions, expected one each")
        scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        logits = scale * self.encode_images(batch) @ self.encode_texts(batch.tokens, batch.segments).T
        own = (batch.tokens.unsqueeze(0) == batch.tokens.unsqueeze(1)).all(-1).to(logits.dtype)
        targets = own / own.sum(1, keepdim=True)
        both = [F.cross_entropy(each, targets, reduction="none") for each in (logits, logits.T)]
        hits = own.gather(1, logits.detach().argmax(1, keepdim=True))[:, 0]
        return Output(terms={"contrast": Term(losses=(both[0] + both[1]) / 2), "accuracy": Term(losses=hits, weight=0)})

    def encode_images(self, batch: Batch) -> Float[Tensor, "B E"]:
        """Unit vectors of the images."""
        pixels = (batch.images.float() / 255 - self.mean.float()) / self.std.float()
        dtype = self.clip.logit_scale.dtype
        return self.clip.encode_image(pixels.to(dtype), normalize=True)

    def encode_texts(self, tokens: Int[Tensor, "B T"], segments: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Unit vectors of right-padded captions, whose last token (the line end of `plain`) becomes the end token."""
        last, (_, width) = (segments > 0).sum(1) - 1, tokens.shape
        places = torch.arange(width, device=tokens.device)
        # Nothing looks at what stands behind the end token, which pads too. open_clip's own `encode_text` pads every
        # batch to the longest text there may be.
        text = tokens.masked_fill(places >= last.unsqueeze(1), self.end)
        clip: Any = self.clip
        embeds = clip.token_embedding(text) + clip.positional_embedding[:width]
        hidden = clip.ln_final(clip.transformer(embeds, attn_mask=clip.attn_mask[:width, :width]))
        pooled, projection = hidden[torch.arange(len(hidden), device=hidden.device), last], clip.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return F.normalize(pooled, dim=-1)

    def answers(self, batch: Batch, part: str = "") -> list[str]:
        """For each image the nearest of the batch's captions (the first reference of each row)."""
        return self.retrieve(batch, [references[0] for references in batch.references])

    def retrieve(self, batch: Batch, captions: Sequence[str]) -> list[str]:
        """For each image the nearest of `captions`."""
        rows = [
            self.processor.encode(Sample(id=f"caption {i}", turns=(Turn(role="assistant", text=caption),)))
            for i, caption in enumerate(captions)
        ]
        written = self.processor.collate(rows).to(batch.images.device)
        nearest = (self.encode_images(batch) @ self.encode_texts(written.tokens, written.segments).T).argmax(1)
        return [captions[int(i)] for i in nearest]

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images of 4 patches, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "clip": OpenClipModel(
        config={
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
            "text_cfg": {
                "context_length": 64,
                "vocab_size": 259,
                "width": 32,
                "heads": 2,
                "layers": 2,
                "pool_type": "eos",
                "eos_id": 2,
            },
        },
    ),
}
