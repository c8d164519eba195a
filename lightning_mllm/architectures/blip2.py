"""BLIP-2's second stage (Li et al. 2023, arXiv 2301.12597, sec. 3.3): a frozen language model is told what queries see.

The idea: the Q-Former of the first stage (`blip2_representation.py`) has learned what of an image can be said; one
linear layer puts that in the words of a frozen language model, in front of its text.

    images u8[N,3,H,W] --vision--> --ln_vision--> f[N,V,E]
                                                     |
    queries [and a question] --qformer--> f[N,Q,D] --'  --projection--> visual f[N,Q,T] -.
    tokens i[B,L] --embedding--> f[B,L,T] ---------------------- IMAGE slots overwritten by visual
                                                                           |
            decoder (OPT): next token          encoder-decoder (FlanT5): the encoder reads, the decoder writes the rest

Legend: B rows, L tokens, N images, V vectors of width E an image, Q queries of width D, T width of the language model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.projector import Linear, LinearConnector
from lightning_mllm.connectors.qformer import TINY_QFORMER, QFormer, QFormerConnector
from lightning_mllm.connectors.qformer_hf import qformer_settings, qformer_spec
from lightning_mllm.connectors.qformer_keys import BLIP2_QFORMER_KEYS, LAVIS_HEADS_KEYS, LAVIS_QFORMER_KEYS
from lightning_mllm.contracts import Batch, ParamGroup, Stage
from lightning_mllm.evaluation.generation import Decoding
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.hf import language_spec
from lightning_mllm.language.seq2seq import Seq2SeqLM
from lightning_mllm.language.slots import texts_of_images
from lightning_mllm.language.tokenizer import language_tokenizer, reader_tokenizer
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.limits import TextLimits
from lightning_mllm.processing.processor import Processor
from lightning_mllm.processing.query_text import QueryText
from lightning_mllm.training.prompted import PromptedModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.vision.eva_hf import eva_settings, eva_tower
from lightning_mllm.vision.eva_keys import BLIP2_VISION_KEYS, EVA_KEYS
from lightning_mllm.vision.tower import TINY_TOWER, OpenClipTower
from lightning_mllm.weights.hf import HfFolder
from lightning_mllm.weights.hf_blip2 import Facts, question_folder
from lightning_mllm.weights.keymap import KeyMap

HF_KEYS = (
    BLIP2_VISION_KEYS.under("vision.", "vision_model.")
    + KeyMap([("ln_vision.{...}", "vision_model.post_layernorm.{...}")])
    + BLIP2_QFORMER_KEYS.under("qformer.", "")
    + KeyMap([("projection.linear.{...}", "language_projection.{...}"), ("language.{...}", "language_model.{...}")])
)
"""Ours <-> files of transformers' `Blip2ForConditionalGeneration`."""

LAVIS_KEYS = (
    EVA_KEYS.under("vision.", "visual_encoder.")
    + KeyMap([("ln_vision.{...}", "ln_vision.{...}")])
    + LAVIS_QFORMER_KEYS.under("qformer.", "")
    + LAVIS_HEADS_KEYS.under("heads.", "")
    + KeyMap(
        [("projection.linear.{...}", "opt_proj.{...}"), ("language.{...}", "opt_model.{...}")],
        aliases=[("t5_proj.{...}", "opt_proj.{...}"), ("t5_model.{...}", "opt_model.{...}")],
    )
)
"""Ours <-> LAVIS's checkpoints of both stages (`blip2_pretrained*.pth`)."""


class Blip2(PromptedModule):
    """An image encoder, a Q-Former and a language model, of which the last is never trained.

    Args:
        vision: The image encoder; its class token is kept.
        qformer: Sizes of the Q-Former and, for a start without the first stage, its BERT.
        language: A decoder (OPT) or an encoder-decoder (FlanT5).
        ln_vision: The norm behind the encoder; its eps is 1e-5 in the released code, 1e-6 in transformers.
        reader: The Q-Former's tokenizer where it reads the question too (appendix, VQA fine-tuning); "" where it reads
            nothing.
        chat: A template of `processing/templates`: blip2, blip2_caption or blip2_t5.
        image: How images are fitted into the encoder's square; None squashes them, as BLIP-2 does.
        max_length: Tokens a row may have, visual slots included.
        text_limits: Where prompts and answers are cut.
        special_in_turns: Whether special tokens written in turns (`</s>`) are special tokens; else they are text.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    stages: ClassVar[dict[str, Stage]] = {
        "generative": Stage(
            train={"ln_vision.*": ParamGroup(), "qformer.*": ParamGroup(), "projection.*": ParamGroup()}
        ),
        "caption": Stage(
            train={
                "vision.*": ParamGroup(),
                "ln_vision.*": ParamGroup(),
                "qformer.*": ParamGroup(),
                "projection.*": ParamGroup(),
            }
        ),
        "vqa": Stage(
            train={
                "vision.*": ParamGroup(),
                "ln_vision.*": ParamGroup(),
                "qformer.*": ParamGroup(),
                "projection.*": ParamGroup(),
            }
        ),
    }
    key_maps: ClassVar[dict[str, KeyMap]] = {"hf": HF_KEYS, "lavis": LAVIS_KEYS}
    hf_class: ClassVar[str] = "Blip2ForConditionalGeneration"
    keys_to_ignore_on_load: ClassVar[tuple[str, ...]] = (
        "heads.*",
        "qformer.words.*",
        "qformer.positions.*",
        "qformer.*.text_feed_forward.*",
    )

    vision: nn.Module
    ln_vision: nn.LayerNorm
    qformer: QFormer
    projection: Linear
    language: PreTrainedModel

    def __init__(
        self,
        vision: EvaTower | OpenClipTower,
        qformer: QFormerConnector,
        language: CausalLM | Seq2SeqLM,
        ln_vision: LayerNormConnector = LayerNormConnector(),
        reader: str = "",
        chat: str = "blip2",
        image: ImagePolicy | None = None,
        max_length: int = 512,
        text_limits: TextLimits = TextLimits(),
        special_in_turns: bool = False,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        parts = {
            "vision": vision,
            "ln_vision": replace(ln_vision, in_width=vision.width),
            "qformer": replace(qformer, text="instruction" if reader else "none", in_width=vision.width),
            "projection": LinearConnector(in_width=qformer.width, out_width=language.width),
            "language": language,
        }
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
            query_text=QueryText(tokenizer=reader_tokenizer(reader, qformer.vocab)) if reader else None,
        )
        super().__init__(parts=parts, processor=processor, stage=stage, decoding=decoding)

    def encode_images(self, batch: Batch) -> Float[Tensor, "N Q T"]:
        """What the language model is shown of each image."""
        visual = self.ln_vision(self.vision(batch.images).to(self.ln_vision.weight.dtype))
        if batch.query_text is None:
            return self.projection(self.qformer.encode_images(visual))
        tokens, real = texts_of_images(batch, vectors=self.processor.vectors_per_image)
        return self.projection(self.qformer.encode_instructed(visual, tokens, real))

    def hf(self) -> HfFolder:
        """The net as a folder of transformers' BLIP-2.

        Its last norm has the encoder's epsilon there, 1e-6: a net with another `ln_vision.eps` is given out only where
        the difference is within what the check allows.

        Raises:
            ValueError: A tower, a Q-Former or a template that transformers' BLIP-2 has no place for.
        """
        own: Processor = self.processor
        if own.query_text is not None:
            raise ValueError("reader: found a Q-Former that reads the question, transformers' BLIP-2 has none")
        return question_folder(
            self,
            vision=eva_settings(self.vision, own.image.size),
            qformer=qformer_settings(self.qformer),
            rename=HF_KEYS.to_theirs,
        )

    @classmethod
    def from_hf(cls, folder: Path, chat: str | None = None) -> Self:
        """The net of a folder of transformers' BLIP-2, its parts without weights.

        Template, limits and the epsilon of `ln_vision` are those that an export of ours notes; other folders take
        BLIP-2's template and transformers' epsilon.

        Raises:
            ValueError: A tower or a Q-Former that this architecture does not have.
        """
        facts = Facts.read(folder)
        config, known, language = facts.config, facts.notes, language_spec(folder, facts.config)
        return cls(
            vision=eva_tower(config.vision_config, facts.mean, facts.std),
            qformer=qformer_spec(config.qformer_config, config.num_query_tokens, "none"),
            language=language,
            ln_vision=LayerNormConnector(eps=facts.ln_vision_eps),
            chat=chat or known.get("chat", "blip2_t5" if isinstance(language, Seq2SeqLM) else "blip2"),
            image=ImagePolicy(**facts.image),
            max_length=known.get("max_length", 512),
            special_in_turns=known.get("special_in_turns", False),
            text_limits=TextLimits(**known.get("text_limits", {})),
            decoding={task: Decoding(**how) for task, how in known.get("decoding", {}).items()},
        )

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images, 4 queries, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "vision": TINY_TOWER,
    "qformer": TINY_QFORMER,
    "language": TINY_LLAMA,
}
