"""What nets that compare pictures with texts say of each: vectors, similarities, whether the two belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_mllm.contracts import IMAGE_MARK, Batch, ImageRef, Sample, Turn
from lightning_mllm.training.module import MultimodalModule


@dataclass(frozen=True)
class Match:
    """How well N pictures agree with N texts."""

    similarity: Float[Tensor, " N"]
    """Cosine of the text and its nearest query, as contrast compares them."""
    probability: Float[Tensor, " N"]
    """Of belonging together, from the matching head, which looks at both at once."""


def encode_image(module: MultimodalModule, images: Sequence[ImageRef]) -> Tensor:
    """As `Model.encode_image`."""
    net: Any = _compares(module, "encode_image")
    shown = [Sample(id=f"image {i}", turns=(_image(),), images=(image,)) for i, image in enumerate(images)]
    batch = _batch(module, shown, generate=True)
    return net.embed_images(batch)["vectors"] if hasattr(net, "embed_images") else net.encode_images(batch)


def encode_text(module: MultimodalModule, texts: Sequence[str]) -> Tensor:
    """As `Model.encode_text`."""
    net: Any = _compares(module, "encode_text")
    if hasattr(module, "embed_texts"):
        return module.embed_texts(list(texts))["vectors"]  # pyright: ignore[reportCallIssue]
    batch = _batch(module, [Sample(id=f"text {i}", turns=(_text(text),)) for i, text in enumerate(texts)])
    return net.encode_texts(batch.tokens, batch.segments)


def match(module: MultimodalModule, images: Sequence[ImageRef], texts: Sequence[str]) -> Match:
    """As `Model.match`."""
    net: Any = _compares(module, "match")
    if not hasattr(net, "pair_logits"):
        raise ValueError(
            f"match: found {type(net).__name__}, which has no matching head, expected one of BLIP-2's first stage; "
            "the product of encode_image and encode_text is the similarity"
        )
    if len(images) != len(texts):
        raise ValueError(f"match: found {len(images)} images for {len(texts)} texts, expected one each")
    pairs = [
        Sample(id=f"pair {i}", turns=(_image(), _text(text)), images=(image,))
        for i, (image, text) in enumerate(zip(images, texts, strict=True))
    ]
    logits = net.pair_logits(_batch(module, pairs, may_cut=False))
    return Match(similarity=logits[:, 0], probability=logits[:, 1:].softmax(-1)[:, 1])


def _compares(module: MultimodalModule, name: str) -> Any:
    net = module.net
    if not (hasattr(net, "embed_images") or hasattr(net, "encode_texts")):
        raise ValueError(
            f"{name}: found {type(net).__name__}, which compares no pictures with texts, expected a net that does, such"
            " as BLIP-2's first stage (runs/quickstart/blip2/representation) or CLIP"
        )
    return net


def _batch(
    module: MultimodalModule, samples: Sequence[Sample], *, generate: bool = False, may_cut: bool = True
) -> Batch:
    rows = [module.processor.encode(each, generate=generate, may_cut=may_cut) for each in samples]
    cuts = (row.id for row in rows for note in row.notes if note == "cut" or note.startswith("overlong"))
    if not may_cut and (cut := next(cuts, None)):
        raise ValueError(f"{cut}: found a text of more than {module.processor.max_length} tokens, expected no more")
    return module.processor.collate(rows).to(module.device)


def _image() -> Turn:
    return Turn(role="user", text=IMAGE_MARK)


def _text(text: str) -> Turn:
    return Turn(role="assistant", text=text)
