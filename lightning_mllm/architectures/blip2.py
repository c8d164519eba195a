"""BLIP-2's second stage and InstructBLIP in their published stages; what the net computes is drawn in `nets/blip2.py`.

BLIP-2 (Li et al. 2023, arXiv 2301.12597, sec. 3.3): a frozen language model is told what the queries of the first stage
(`blip2_representation.py`) fetch from an image. InstructBLIP (Dai et al. 2023, arXiv 2305.06500): with a reader, the
Q-Former reads the instruction beside its queries, so that they fetch what the instruction needs; the language model
gets the same instruction. BLIP-2's fine-tuning for VQA (appendix) does the same with the question.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.projector import LinearConnector
from lightning_mllm.connectors.qformer_connector import TINY_QFORMER, QFormerConnector
from lightning_mllm.contracts import ParamGroup, Stage
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.seq2seq import Seq2SeqLM
from lightning_mllm.language.tokenizer import language_tokenizer, reader_tokenizer
from lightning_mllm.nets.blip2 import Blip2Net
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.limits import TextLimits
from lightning_mllm.processing.processor import Processor
from lightning_mllm.processing.query_text import QueryText
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.vision.tower import TINY_TOWER, OpenClipTower

BRIDGE = {"ln_vision.*": ParamGroup(), "qformer.*": ParamGroup(), "projection.*": ParamGroup()}
"""The papers count the Q-Former alone; in the released code norm and projection have gradients too."""


class Blip2(MultimodalModule):
    """An image encoder, a Q-Former and a language model, of which the last is never trained.

    Args:
        vision: The image encoder; its class token is kept.
        qformer: Sizes of the Q-Former and, for a start without the first stage, its BERT.
        language: A decoder (OPT, Vicuna) or an encoder-decoder (FlanT5).
        ln_vision: The norm behind the encoder; its eps is 1e-5 in the released code, 1e-6 in transformers.
        reader: The Q-Former's tokenizer, a folder or a name on the hub, "" for bytes as tokens, where it reads the
            instruction (InstructBLIP; BLIP-2's VQA); None where it reads nothing (BLIP-2; InstructBLIP's ablation, sec.
            3.2, table 2).
        reader_length: Tokens of an instruction that the Q-Former reads; longer ones are cut on the left.
        chat: A template of `processing/templates`: blip2, blip2_caption or instructblip (decoders), blip2_t5.
        image: How images are fitted into the encoder's square; None squashes them, as BLIP-2 does.
        max_length: Tokens a row may have, visual slots included.
        text_limits: Where prompts and answers are cut.
        special_in_turns: Whether special tokens written in turns (`</s>`) are special tokens; else they are text.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    net: Blip2Net

    stages: ClassVar[dict[str, Stage]] = {
        "generative": Stage(train=BRIDGE),
        "caption": Stage(train={"vision.*": ParamGroup(), **BRIDGE}),
        "vqa": Stage(train={"vision.*": ParamGroup(), **BRIDGE}),
        # InstructBLIP: the Q-Former meets Vicuna, and is tuned on instructions.
        "align": Stage(train=BRIDGE),
        "instruct": Stage(train=BRIDGE),
    }
    # The heads of the first stage, and the text that the Q-Former does not read or that comes to nothing.
    keys_to_ignore_on_load: ClassVar[tuple[str, ...]] = (
        "heads.*",
        "qformer.words.*",
        "qformer.positions.*",
        "qformer.*.text_feed_forward.*",
    )

    def __init__(
        self,
        vision: EvaTower | OpenClipTower,
        qformer: QFormerConnector,
        language: CausalLM | Seq2SeqLM,
        ln_vision: LayerNormConnector = LayerNormConnector(),
        reader: str | None = None,
        reader_length: int = 128,
        chat: str = "blip2",
        image: ImagePolicy | None = None,
        max_length: int = 512,
        text_limits: TextLimits = TextLimits(),
        special_in_turns: bool = False,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        components = {
            "vision": vision,
            "ln_vision": replace(ln_vision, in_width=vision.width),
            "qformer": replace(qformer, text="none" if reader is None else "instruction", in_width=vision.width),
            "projection": LinearConnector(in_width=qformer.width, out_width=language.width),
            "language": language,
        }
        query_text = None
        if reader is not None:
            query_text = QueryText(tokenizer=reader_tokenizer(reader, qformer.vocab), max_length=reader_length)
        tokenizer = language_tokenizer(language)
        processor = Processor(
            tokenizer,
            load_template(chat, tokenizer),
            fitting(image, size=vision.image_size, mean=vision.mean, fit="squash"),
            vectors_per_image=qformer.queries,
            max_length=max_length,
            special_in_turns=special_in_turns,
            text_limits=text_limits,
            seq2seq=isinstance(language, Seq2SeqLM),
            query_text=query_text,
        )
        super().__init__(net=Blip2Net, components=components, processor=processor, stage=stage, decoding=decoding)

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images, 4 queries, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "vision": TINY_TOWER,
    "qformer": TINY_QFORMER,
    "language": TINY_LLAMA,
}
