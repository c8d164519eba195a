"""InstructBLIP (Dai et al. 2023, arXiv 2305.06500): the queries are told what is asked before they look.

The idea: BLIP-2's Q-Former fetches the same from an image whatever is asked about it. Here the instruction is its text,
beside the queries in self-attention, so that they fetch what the instruction needs; the language model gets the same
instruction. Only the Q-Former (with norm and projection around it) is trained, on many data sets put as instructions.

    images u8[N,3,H,W] --vision--> --ln_vision--> f[N,V,E]
                                                     |
    queries, instruction --qformer--> f[N,Q,D] ------'  --projection--> visual f[N,Q,T] -.
    tokens i[B,L] --embedding--> f[B,L,T] ---------------------- IMAGE slots overwritten by visual
                                                                           |
            decoder (Vicuna): the answer       encoder-decoder (FlanT5): the encoder reads, the decoder answers

Several images of a row (frames of a video) are looked at one by one, each under the same instruction.

Legend: B rows, L tokens, N images, V vectors of width E an image, Q queries of width D, T width of the language model.
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


def released_limits(language: CausalLM | Seq2SeqLM) -> TextLimits:
    """Released configurations: max_txt_len 128, max_output_txt_len 256, instructions cut on the left. Of the 256 a
    decoder's answer has 255: the begin token that is taken off again is counted (LAVIS, blip2_vicuna_instruct.py)."""
    return TextLimits(prompt=128, answer=256 if isinstance(language, Seq2SeqLM) else 255, cut="left")


BRIDGE = {"ln_vision.*": ParamGroup(), "qformer.*": ParamGroup(), "projection.*": ParamGroup()}
"""The paper counts the Q-Former alone; in the released code norm and projection have gradients too."""


class InstructBlip(MultimodalModule):
    """An image encoder, a Q-Former that reads the instruction, and a language model.

    Args:
        vision: The image encoder; its class token is kept.
        qformer: Sizes of the Q-Former and, for a start without BLIP-2, its BERT.
        language: A decoder (Vicuna) or an encoder-decoder (FlanT5).
        ln_vision: The norm behind the encoder; its eps is 1e-5 in the released code, 1e-6 in transformers.
        reader: The Q-Former's tokenizer: a folder or a name on the hub; "" takes bytes as tokens.
        instructed: Whether the Q-Former reads the instruction; without, it is BLIP-2's, as in the paper's ablation
            (sec. 3.2, table 2).
        chat: A template of `processing/templates`: instructblip (decoders), blip2_t5 (encoder-decoders).
        image: How images are fitted into the encoder's square; None squashes them, as BLIP-2 does.
        max_length: Tokens a row may have, visual slots included.
        text_limits: Where instructions and answers are cut; None cuts them as the released code does.
        special_in_turns: Whether special tokens written in turns (`</s>`) are special tokens; else they are text.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    net: Blip2Net

    stages: ClassVar[dict[str, Stage]] = {"align": Stage(train=BRIDGE), "instruct": Stage(train=BRIDGE)}
    # The heads of BLIP-2's first stage, and what is written with the last block's text.
    keys_to_ignore_on_load: ClassVar[tuple[str, ...]] = (
        "heads.*",
        "qformer.words.*",
        "qformer.positions.*",
        "qformer.*.text_*",
    )

    def __init__(
        self,
        vision: EvaTower | OpenClipTower,
        qformer: QFormerConnector,
        language: CausalLM | Seq2SeqLM,
        ln_vision: LayerNormConnector = LayerNormConnector(),
        reader: str = "bert-base-uncased",
        instructed: bool = True,
        chat: str = "instructblip",
        image: ImagePolicy | None = None,
        max_length: int = 512,
        text_limits: TextLimits | None = None,
        special_in_turns: bool = False,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        components = {
            "vision": vision,
            "ln_vision": replace(ln_vision, in_width=vision.width),
            "qformer": replace(qformer, text="instruction" if instructed else "none", in_width=vision.width),
            "projection": LinearConnector(in_width=qformer.width, out_width=language.width),
            "language": language,
        }
        tokenizer = language_tokenizer(language)
        released = released_limits(language)
        text_limits = text_limits or released
        limit = text_limits.prompt or released.prompt or qformer.positions
        processor = Processor(
            tokenizer,
            load_template(chat, tokenizer),
            fitting(image, size=vision.image_size, mean=vision.mean, fit="squash"),
            vectors_per_image=qformer.queries,
            max_length=max_length,
            special_in_turns=special_in_turns,
            text_limits=text_limits,
            seq2seq=isinstance(language, Seq2SeqLM),
            query_text=QueryText(tokenizer=reader_tokenizer(reader, qformer.vocab), max_length=limit)
            if instructed
            else None,
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
    "reader": "",
}
