"""BLIP-2's first stage as a LightningModule: `nets/blip2_representation.py`, its processor and published stages."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

from jaxtyping import Float, Int
from torch import Tensor

from lightning_mllm.connectors.alignment import (
    AlignmentConnector,
    LossWeights,
)
from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.qformer_connector import TINY_QFORMER, QFormerConnector
from lightning_mllm.contracts import Batch, ParamGroup, Sample, Stage, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.tokenizer import WRITE, reader_tokenizer
from lightning_mllm.nets.blip2_representation import Blip2RepresentationNet
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.vision.tower import TINY_TOWER, OpenClipTower


class Blip2Representation(MultimodalModule):
    """A Q-Former beside a frozen image encoder, taught by contrast, matching and captions.

    The negatives of a pair are the others of its micro-batch on all ranks, so a micro-batch is here a published number
    and not one of the hardware.

    Args:
        vision: The image encoder; its class token is past_key_values.
        qformer: Sizes of the Q-Former and the BERT it starts from; its text stream is always built.
        tokenizer: Of the Q-Former: a folder or a name on the hub; "" takes bytes as tokens.
        ln_vision: The norm behind the encoder; its eps is 1e-5 in the released code, 1e-6 in transformers.
        heads: Width of the space in which images and texts are compared.
        max_length: Tokens of a text (released configurations: 32).
        retrieval_length: Tokens of a text that is searched for or found; None for `max_length` (released blip2.py,
            `compute_sim_matrix`: 35, also where 32 were learned).
        image: How images are fitted into the encoder's square; None squashes them, as BLIP-2 does.
        label_smoothing: Of contrast and captions (released code: 0.1).
        soft_targets: Whether all pairs of one image are right answers and none of them a negative, for data in which an
            image has several texts (released code: where the data name images, as COCO retrieval does).
        negatives: Where matching draws its hard negatives: among the pairs of all ranks (released code) or of its own
            (ALBEF, arXiv 2107.07651, whose mining the paper takes).
        loss_weights: What each of the three losses is multiplied by.
        rerank: How many of the nearest are ranked anew by matching in retrieval (released configuration: 128); 0: none.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    net: Blip2RepresentationNet  # pyright: ignore[reportIncompatibleVariableOverride]

    read_by_scoring: ClassVar[tuple[str, ...]] = ("decoding", "rerank", "retrieval_length")
    packs = False
    stages: ClassVar[dict[str, Stage]] = {
        "representation": Stage(
            train={"ln_vision.*": ParamGroup(), "qformer.*": ParamGroup(), "heads.*": ParamGroup()}
        ),
        "retrieval": Stage(
            train={
                "vision.*": ParamGroup(),
                "ln_vision.*": ParamGroup(),
                "qformer.*": ParamGroup(),
                "heads.*": ParamGroup(),
            }
        ),
    }

    def __init__(
        self,
        vision: EvaTower | OpenClipTower,
        qformer: QFormerConnector,
        tokenizer: str = "bert-base-uncased",
        ln_vision: LayerNormConnector = LayerNormConnector(),
        heads: AlignmentConnector = AlignmentConnector(),
        max_length: int = 32,
        retrieval_length: int | None = None,
        image: ImagePolicy | None = None,
        label_smoothing: float = 0.1,
        soft_targets: bool = False,
        negatives: Literal["all", "rank"] = "all",
        loss_weights: LossWeights = LossWeights(),
        rerank: int = 0,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        image = fitting(image, size=vision.image_size, mean=vision.mean, fit="squash")
        reader = reader_tokenizer(tokenizer, qformer.vocab)
        chat = load_template("reader", reader)
        processor = Processor(reader, chat, image, 0, max_length)
        components = {
            "vision": vision,
            "ln_vision": replace(ln_vision, in_width=vision.width),
            "qformer": replace(qformer, text="full", in_width=vision.width),
            "heads": replace(heads, in_width=qformer.width, vocab=qformer.vocab),
        }
        net = partial(
            Blip2RepresentationNet,
            max_length=max_length,
            retrieval_length=retrieval_length or max_length,
            pad=processor.pad_id,
            decoder_start=reader.get_vocab()[WRITE],
            label_smoothing=label_smoothing,
            soft_targets=soft_targets,
            negatives=negatives,
            loss_weights=loss_weights,
            rerank=rerank,
        )
        super().__init__(net=net, components=components, processor=processor, stage=stage, decoding=decoding)
        self.search = Processor(reader, chat, image, 0, retrieval_length or max_length)
        """Of texts that are searched for or found."""

    @property
    def rerank(self) -> int:
        """As `evaluation.retrieval.Matcher` reads it."""
        return self.net.rerank

    def embed_images(self, batch: Batch) -> dict[str, Tensor]:
        """What retrieval keeps of images."""
        return self.net.embed_images(batch)

    def embed_texts(self, texts: list[str]) -> dict[str, Tensor]:
        """What retrieval keeps of texts."""
        rows = [
            self.search.encode(Sample(id=f"text {i}", turns=(Turn(role="assistant", text=text),)))
            for i, text in enumerate(texts)
        ]
        batch = self.search.collate(rows).to(self.device)
        return self.net.embed_texts(batch.tokens, batch.segments > 0)

    def similarity(self, images: dict[str, Tensor], texts: dict[str, Tensor]) -> Float[Tensor, "N M"]:
        return self.net.similarity(images, texts)

    def match(
        self, images: dict[str, Tensor], texts: dict[str, Tensor], image_of: Int[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        return self.net.match(images, texts, image_of)

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images, 4 queries, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "vision": TINY_TOWER,
    "qformer": TINY_QFORMER,
    "tokenizer": "",
    "heads": AlignmentConnector(width=16),
    "max_length": 64,
}
