"""What the folders of transformers' BLIP-2 and InstructBLIP have in common: a language model behind a Q-Former.

Their processors put an image's slots before all text, and then whatever the tokenizer puts around a text:

    ours     [slots] [before] question [after]
    theirs   [slots] tokenizer(question), whose post-processor writes `before` and `after`

They have no chat template, which these processors would not read back: one calls `processor(images, text)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    Blip2Config,
    Blip2Processor,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipProcessor,
    PreTrainedTokenizerFast,
)

from lightning_mllm.contracts import IMAGE_MARK, Turn
from lightning_mllm.weights.hf import (
    HfFolder,
    generation_config,
    image_fit,
    image_processor,
    image_settings,
    language_tensors,
    multimodal_tokenizer,
    notes,
    padded_rows,
    spare_token,
)
from lightning_mllm.weights.hf_tokenizer import writes_around

QUERY_PADDING = (
    "for a batch of unequal questions take qformer_input_ids and qformer_attention_mask from"
    " processor.qformer_tokenizer(texts, padding=True); the processor of transformers pads them on the wrong side"
)
"""Of transformers 5.23."""

ASKED = "the question"
"""Stands for a question where a template is asked what it writes around one."""


class Writes(Protocol):
    """Of a processor, what its folder is made of."""

    tokenizer: PreTrainedTokenizerFast
    chat: Any
    image: Any
    prefix: list[int]
    text_limits: Any
    vectors_per_image: int
    max_length: int

    @property
    def eos_token_ids(self) -> list[int]: ...


@dataclass(frozen=True, kw_only=True)
class Wrap:
    """What stands around a question behind an image's slots."""

    before: str
    after: str
    keeps: bool = True
    """Whether the question itself stands there: captions are written without one."""

    @classmethod
    def of(cls, processor: Writes) -> Wrap:
        """What a processor writes.

        Raises:
            ValueError: It writes anything in front of the image.
        """
        turn = Turn(role="user", text=f"{IMAGE_MARK}\n{ASKED}")
        (first, *others) = processor.chat.render((turn,), generate=True)
        if processor.prefix or not first.image or any(piece.image for piece in others):
            raise ValueError(
                f"chat: found the template {processor.chat.name!r}, expected one that puts an image before all text,"
                " as transformers' BLIP-2 does"
            )
        before, asked, after = "".join(piece.text for piece in others).partition(ASKED)
        return cls(before=before, after=after, keeps=bool(asked))

    def tokenizer(self, processor: Writes, side: str) -> PreTrainedTokenizerFast:
        """A tokenizer that puts this around every text, pads on `side`, and has an image and a padding token."""
        full = multimodal_tokenizer(processor.tokenizer, max_length=processor.max_length)
        return writes_around(full, self.before, self.after, side)


class Net(Protocol):
    """An image encoder, the norm behind it and a Q-Former, which an architecture turns into a folder."""

    hf_class: str
    processor: Writes
    vision: Any
    ln_vision: Any
    qformer: Any
    decoding: dict[str, Any]

    def state_dict(self) -> dict[str, Any]: ...


Rename = Callable[[Iterator[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]]
"""Our names and tensors -> theirs on disk."""


def question_folder(
    net: Any,
    *,
    vision: dict[str, Any],
    qformer: dict[str, Any],
    rename: Rename,
    reader: PreTrainedTokenizerFast | None = None,
) -> HfFolder:
    """A language model behind a Q-Former as a folder.

    Args:
        net: With `language` and `logits`.
        vision: Fields of the vision configuration.
        qformer: Fields of the Q-Former's.
        rename: Gives the tensors their names on disk.
        reader: The tokenizer of a Q-Former that reads the question; None for BLIP-2's.

    Raises:
        ValueError: The processor's template does not begin with the image, an image has several views, or the language
            model's embeddings are not as wide as what it computes with.
    """
    processor, language = net.processor, net.language
    if (width := language.get_input_embeddings().embedding_dim) != language.config.hidden_size:
        raise ValueError(
            f"language.word_embed_proj_dim: found {width}, expected {language.config.hidden_size}, the width that"
            " transformers' BLIP-2 projects to"
        )
    wrap = Wrap.of(processor)
    tokenizer = wrap.tokenizer(processor, "right" if language.config.is_encoder_decoder else "left")
    text, ends = language.config.to_dict(), processor.eos_token_ids
    text["vocab_size"] = padded_rows(text["vocab_size"], max(tokenizer.get_vocab().values()) + 1)
    # The language model generates by its own settings, not by those of the whole.
    text["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    config: Any = (Blip2Config if reader is None else InstructBlipConfig)(
        vision_config=vision,
        qformer_config=qformer,
        text_config=AutoConfig.for_model(**text),
        num_query_tokens=processor.vectors_per_image,
        image_token_index=tokenizer.get_vocab()[IMAGE_MARK],
        architectures=[net.hf_class],
        dtype=language.dtype,
    )
    if text.get("scale_decoder_outputs") is False:
        # How a file says that FlanT5 has a head of its own; transformers 5 sets it back when it builds or reads one.
        config.text_config.tie_word_embeddings = False
    parts = [_images(net), tokenizer] if reader is None else [_images(net), tokenizer, reader]
    kind: Any = Blip2Processor if reader is None else InstructBlipProcessor
    like = spare_token(processor.tokenizer)
    return HfFolder(
        config=config,
        processor=kind(*parts, num_query_tokens=processor.vectors_per_image),
        generation=generation_config(
            processor,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=getattr(language.config, "decoder_start_token_id", None),
        ),
        tensors=lambda: rename(language_tensors(net.state_dict(), language, text["vocab_size"], like)),
        logits=net.logits,
        asks=wrap.keeps,
        notes={
            **_notes(net),
            "text_limits": asdict(processor.text_limits),
            "special_in_turns": processor.special_in_turns,
        },
        advice="" if reader is None or tokenizer.padding_side == "right" else QUERY_PADDING,
        caveat=_caveat(net, vision),
    )


def pair_folder(
    net: Any, *, vision: dict[str, Any], qformer: dict[str, Any], rename: Rename, width: int, lacks: Sequence[str]
) -> HfFolder:
    """A Q-Former that compares images and texts as a folder.

    Args:
        net: With `pair_logits`.
        vision: Fields of the vision configuration.
        qformer: Fields of the Q-Former's.
        rename: Gives the tensors their names on disk.
        width: Of the space in which images and texts are compared.
        lacks: Glob patterns of the tensors that the class has no place for.
    """
    processor = net.processor
    pieces = processor.chat.render((Turn(role="assistant", text=ASKED),))
    before, _, after = "".join(piece.text for piece in pieces).partition(ASKED)
    before = "".join(processor.tokenizer.convert_ids_to_tokens(processor.prefix)) + before
    tokenizer = Wrap(before=before, after=after).tokenizer(processor, "right")

    def named(beside: bool) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in net.state_dict().items():
            if beside == any(fnmatchcase(name, pattern) for pattern in lacks):
                yield name, tensor

    config: Any = Blip2Config(
        vision_config=vision,
        qformer_config={**qformer, "use_qformer_text_input": True},
        num_query_tokens=net.qformer.queries.shape[1],
        image_text_hidden_size=width,
        architectures=[net.hf_class],
        dtype=torch.float32,
    )
    return HfFolder(
        config=config,
        processor=Blip2Processor(_images(net), tokenizer),
        generation=GenerationConfig(),
        tensors=lambda: rename(named(False)),
        beside=lambda: named(True),
        logits=net.pair_logits,
        compared="pairs",
        notes={**_notes(net), "rerank": net.rerank, "retrieval_length": net.search.max_length},
        caveat=_caveat(net, vision),
    )


def _images(net: Net) -> Any:
    if (views := net.processor.image.views) != 1:
        raise ValueError(f"image.views: found {views}, expected 1, all that transformers' BLIP-2 knows")
    mean, std = (tuple(each.flatten().tolist()) for each in (net.vision.mean, net.vision.std))
    return image_processor(net.processor.image.size, net.processor.image.fit, mean, std)


def _notes(net: Net) -> dict[str, Any]:
    return {
        "chat": net.processor.chat.name,
        "image": asdict(net.processor.image),
        "max_length": net.processor.max_length,
        "ln_vision_eps": net.ln_vision.eps,
        "decoding": {task: asdict(how) for task, how in net.decoding.items()},
    }


def _caveat(net: Net, vision: dict[str, Any]) -> str:
    """transformers gives the norm behind the encoder the epsilon of the encoder's own norms."""
    ours, theirs = net.ln_vision.eps, vision["layer_norm_eps"]
    return "" if ours == theirs else f"; ln_vision.eps is {ours}, and transformers has {theirs} there"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a folder says, transformers' own or one that we wrote."""

    config: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image: dict[str, Any]
    """Fields of an `ImagePolicy`."""
    ln_vision_eps: float
    notes: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Of a folder of transformers' BLIP-2 or InstructBLIP.

        Raises:
            ValueError: It has no image settings.
        """
        config: Any = AutoConfig.from_pretrained(folder)
        known, images = notes(folder), image_settings(folder)
        mean, std = tuple(images["image_mean"]), tuple(images["image_std"])
        policy = known.get("image") or {
            "size": config.vision_config.image_size,
            "fit": image_fit(images),
            "mean": mean,
        }
        return cls(
            config=config,
            mean=mean,
            std=std,
            image={**policy, "mean": tuple(policy["mean"])},
            ln_vision_eps=known.get("ln_vision_eps", config.vision_config.layer_norm_eps),
            notes=known,
        )
