"""What the folders of transformers' BLIP-2 and InstructBLIP have in common: a language model behind a Q-Former.

Their processors put an image's slots before all text, and then whatever the tokenizer puts around a text:

    ours     [slots] [before] question [after]
    theirs   [slots] tokenizer(question), whose post-processor writes `before` and `after`

They have no chat template, which these processors would not read back: one calls `processor(images, text)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    Blip2Config,
    Blip2Processor,
    CLIPImageProcessor,
    InstructBlipConfig,
    InstructBlipProcessor,
    LlavaImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.qformer import QFormer
from lightning_mllm.contracts import IMAGE_MARK, Turn
from lightning_mllm.interop.folder import (
    FolderFacts,
    generation_config,
    image_processor,
    language_tensors,
    notes_of,
    padded_rows,
)
from lightning_mllm.interop.format import HfFolder, Tensors, TrainedNet
from lightning_mllm.interop.hf_components import eva_settings, eva_tower, language_spec, qformer_settings, qformer_spec
from lightning_mllm.interop.tokenizer import multimodal_tokenizer, spare_token, writes_around
from lightning_mllm.language.seq2seq import Seq2SeqLM
from lightning_mllm.processing.limits import TextLimits
from lightning_mllm.processing.processor import Processor
from lightning_mllm.processing.query_text import QueryText

QUERY_PADDING = (
    "for a batch of unequal questions take qformer_input_ids and qformer_attention_mask from"
    " processor.qformer_tokenizer(texts, padding=True); the processor of transformers pads them on the wrong side"
)
"""Of transformers 5.23."""

READER = "qformer_tokenizer"
"""Where a folder of InstructBLIP has the Q-Former's tokenizer."""

ASKED = "the question"
"""Stands for a question where a template is asked what it writes around one."""


@dataclass(frozen=True, kw_only=True)
class Wrap:
    """What stands around a question behind an image's slots."""

    before: str
    after: str
    keeps: bool = True
    """Whether the question itself stands there: captions are written without one."""

    @classmethod
    def of(cls, processor: Processor) -> Wrap:
        """What a processor writes.

        Raises:
            ValueError: It writes anything in front of the image.
        """
        turn = Turn(role="user", text=f"{IMAGE_MARK}\n{ASKED}")
        (first, *others) = processor.chat.render((turn,), generate=True)
        if processor.prefix or not first.mark or any(piece.mark for piece in others):
            raise ValueError(
                f"chat: found the template {processor.chat.name!r}, expected one that puts an image before all text,"
                " as transformers' BLIP-2 does"
            )
        before, asked, after = "".join(piece.text for piece in others).partition(ASKED)
        return cls(before=before, after=after, keeps=bool(asked))

    def tokenizer(self, processor: Processor, side: str) -> PreTrainedTokenizerFast:
        """A tokenizer that puts this around every text, pads on `side`, and has an image and a padding token."""
        full = multimodal_tokenizer(processor.tokenizer, max_length=processor.max_length)
        return writes_around(full, self.before, self.after, side)


Rename = Callable[[Tensors], Tensors]
"""Our names and tensors -> theirs on disk."""


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """What all of transformers' BLIP-2 have: an EVA tower, the norm behind it and a Q-Former."""

    vision: nn.Module
    ln_vision: nn.LayerNorm
    qformer: QFormer

    @classmethod
    def of(cls, net: TrainedNet) -> ImageEncoder:
        vision, ln_vision, qformer = net.net.vision, net.net.ln_vision, net.net.qformer
        assert isinstance(vision, nn.Module) and isinstance(ln_vision, nn.LayerNorm) and isinstance(qformer, QFormer)
        return cls(vision=vision, ln_vision=ln_vision, qformer=qformer)

    def images(self, processor: Processor) -> CLIPImageProcessor | LlavaImageProcessor:
        """The image processor.

        Raises:
            ValueError: An image has several views.
        """
        if (views := processor.image.views) != 1:
            raise ValueError(f"image.views: found {views}, expected 1, all that transformers' BLIP-2 knows")
        return image_processor(processor.image, self.vision)

    def caveat(self, theirs: float) -> str:
        """transformers gives the norm behind the encoder the epsilon of the encoder's own norms."""
        ours = self.ln_vision.eps
        return "" if ours == theirs else f"; ln_vision.eps is {ours}, and transformers has {theirs} there"


def question_folder(net: TrainedNet, hf_class: str, rename: Rename, reader: QueryText | None = None) -> HfFolder:
    """A language model behind a Q-Former as a folder.

    Its last norm has the encoder's epsilon there, 1e-6: a net with another `ln_vision.eps` is given out only where the
    difference is within what the check allows.

    Args:
        net: With an encoder, a Q-Former, a projection and a language model.
        hf_class: Of transformers.
        rename: Gives the tensors their names on disk.
        reader: What a Q-Former reads of the question; None for BLIP-2's, which reads nothing.

    Raises:
        ValueError: A tower that transformers' BLIP-2 cannot hold, a template that does not begin with the image,
            several views an image, or a language model whose embeddings are not as wide as what it computes with.
    """
    processor, encoder, language = net.processor, ImageEncoder.of(net), net.net.language
    assert isinstance(language, PreTrainedModel)
    vision = eva_settings(encoder.vision, processor.image.size)
    embedding: Any = language.get_input_embeddings()
    text, ends = language.config.to_dict(), processor.stop_rule.tokens
    if (width := embedding.embedding_dim) != (hidden := language.config.hidden_size):
        raise ValueError(
            f"language.word_embed_proj_dim: found {width}, expected {hidden}, the width that transformers' BLIP-2"
            " projects to"
        )
    wrap = Wrap.of(processor)
    tokenizer = wrap.tokenizer(processor, "right" if processor.seq2seq else "left")
    text["vocab_size"] = padded_rows(text["vocab_size"], max(tokenizer.get_vocab().values()) + 1)
    # The language model generates by its own settings, not by those of the whole.
    text["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    config: Any = (Blip2Config if reader is None else InstructBlipConfig)(
        vision_config=vision,
        qformer_config=qformer_settings(encoder.qformer),
        text_config=AutoConfig.for_model(**text),
        num_query_tokens=processor.vectors_per_image,
        image_token_index=tokenizer.get_vocab()[IMAGE_MARK],
        architectures=[hf_class],
        dtype=language.dtype,
    )
    if text.get("scale_decoder_outputs") is False:
        # How a file says that FlanT5 has a head of its own; transformers 5 sets it back when it builds or reads one.
        config.text_config.tie_word_embeddings = False
    readers = [] if reader is None else [reader.tokenizer]
    kind: Any = Blip2Processor if reader is None else InstructBlipProcessor
    like = spare_token(processor.tokenizer)
    return HfFolder(
        config=config,
        processor=kind(encoder.images(processor), tokenizer, *readers, num_query_tokens=processor.vectors_per_image),
        generation=generation_config(
            processor,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=getattr(language.config, "decoder_start_token_id", None),
        ),
        tensors=lambda: rename(language_tensors(net.state(), language, text["vocab_size"], like)),
        asks=wrap.keeps,
        notes={
            **notes_of(net),
            "ln_vision_eps": encoder.ln_vision.eps,
            "text_limits": asdict(processor.text_limits),
            **({} if reader is None else {"reader_length": reader.max_length}),
        },
        advice="" if reader is None or tokenizer.padding_side == "right" else QUERY_PADDING,
        caveat=encoder.caveat(vision["layer_norm_eps"]),
    )


def read_questions(
    folder: Path, config: Blip2Config | InstructBlipConfig, chat: str | None, *, reads: bool
) -> dict[str, object]:
    """The arguments of `Blip2` for the net of a folder.

    Template, limits and the epsilon of `ln_vision` are those that an export of ours notes; other folders take the
    published template and limits, and transformers' epsilon.

    Args:
        folder: Of transformers.
        config: Its configuration.
        chat: Another template.
        reads: Whether the Q-Former reads the question.

    Raises:
        ValueError: A tower or a Q-Former that is not known here.
    """
    vision: Any = config.vision_config
    qformer: Any = config.qformer_config
    facts, language = FolderFacts.read(folder, vision.image_size), language_spec(folder, config)
    known, seq2seq = facts.notes, isinstance(language, Seq2SeqLM)
    # LAVIS, blip2_vicuna_instruct.py: max_txt_len 128, cut on the left; max_output_txt_len 256, of which a decoder's
    # begin token is taken off again.
    published = TextLimits(prompt=128, answer=256 if seq2seq else 255, cut="left") if reads else TextLimits()
    reader = {"reader": str(folder / READER), "reader_length": known.get("reader_length", 128)} if reads else {}
    return {
        "vision": eva_tower(vision, facts.mean, facts.std),
        "qformer": qformer_spec(qformer, config.num_query_tokens, "instruction" if reads else "none"),
        "language": language,
        "ln_vision": LayerNormConnector(eps=known.get("ln_vision_eps", vision.layer_norm_eps)),
        "chat": chat or known.get("chat") or ("blip2_t5" if seq2seq else "instructblip" if reads else "blip2"),
        "special_in_turns": known.get("special_in_turns", False),
        "text_limits": TextLimits(**known["text_limits"]) if "text_limits" in known else published,
        **reader,
        **facts.settings(max_length=512),
    }
