"""What the folders of transformers' BLIP-2 and InstructBLIP have in common: a language model behind a Q-Former.

Their processors put an image's slots before all text, and then whatever the tokenizer puts around a text:

    ours     [slots] [before] question [after]
    theirs   [slots] tokenizer(question), whose post-processor writes `before` and `after`

They have no chat template, which these processors would not read back: one calls `processor(images, text)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    Blip2Config,
    Blip2Processor,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightning_mllm.contracts import IMAGE_MARK, Batch, Turn
from lightning_mllm.weights.hf import (
    HfFolder,
    image_processor,
    language_tensors,
    multimodal_tokenizer,
    padded_rows,
    spare_token,
)

ASKED = "the question"
"""Stands for a question where a template is asked what it writes around one."""

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
    def ends(self) -> list[int]: ...


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

    def tokenizer(self, own: PreTrainedTokenizerFast, side: str) -> PreTrainedTokenizerFast:
        """A tokenizer that puts this around every text, pads on `side`, and has an image and a padding token."""
        full = multimodal_tokenizer(own)
        backend = Tokenizer.from_str(full.backend_tokenizer.to_str())
        around: list[Any] = []
        for place, text in (("before", self.before), ("after", self.after)):
            if text:
                ids: list[int] = full(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
                around.append({"id": place, "ids": ids, "tokens": full.convert_ids_to_tokens(ids)})
        single = f"{'before ' if self.before else ''}$A{' after' if self.after else ''}"
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)  # pyright: ignore
        # Of the plain class: those of published models (Llama, OPT) make a post-processor of their own when read.
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            padding_side=side,
            clean_up_tokenization_spaces=False,
            model_max_length=full.model_max_length,
            **{name: token for name in NAMES if (token := getattr(full, name)) is not None},
        )


def square_processor(processor: Writes, tower: Any) -> Any:
    """The image processor of transformers for a tower with `mean` and `std`."""
    mean, std = (tuple(each.flatten().tolist()) for each in (tower.mean, tower.std))
    return image_processor(processor.image.size, processor.image.fit, mean, std)


def shared_notes(processor: Writes, ln_vision: Any, decoding: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers has no place for; `known_settings` reads it."""
    return {
        "chat": processor.chat.name,
        "image": asdict(processor.image),
        "max_length": processor.max_length,
        "ln_vision_eps": ln_vision.eps,
        "decoding": {task: asdict(how) for task, how in decoding.items()},
    }


def norm_caveat(ln_vision: Any, eps: float) -> str:
    """What to say of a difference where the norm behind the encoder has another epsilon than transformers gives it."""
    if ln_vision.eps == eps:
        return ""
    return f"; ln_vision.eps is {ln_vision.eps}, and transformers has the encoder's {eps} there"


def question_folder(
    *,
    hf_class: str,
    processor: Writes,
    vision: dict[str, Any],
    qformer: dict[str, Any],
    images: Any,
    language: PreTrainedModel,
    reader: PreTrainedTokenizerFast | None,
    state: Callable[[], Mapping[str, Tensor]],
    rename: Callable[[Iterator[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]],
    logits: Callable[[Batch], Tensor],
    notes: dict[str, Any],
    caveat: str,
) -> HfFolder:
    """A language model behind a Q-Former as a folder.

    Args:
        hf_class: The class that loads it.
        processor: Of the net.
        vision: Fields of the vision configuration.
        qformer: Fields of the Q-Former's.
        images: The image processor.
        language: The language model.
        reader: The tokenizer of a Q-Former that reads the question; None for BLIP-2's.
        state: The net's tensors.
        rename: Gives them the names on disk.
        logits: What the net says to a batch.
        notes: What is read when the folder comes back.
        caveat: As in `HfFolder`.

    Raises:
        ValueError: The processor's template does not begin with the image.
    """
    wrap = Wrap.of(processor)
    side = "right" if language.config.is_encoder_decoder else "left"
    tokenizer = wrap.tokenizer(processor.tokenizer, side)
    text, ends = language.config.to_dict(), processor.ends
    text["vocab_size"] = padded_rows(text["vocab_size"], max(tokenizer.get_vocab().values()) + 1)
    # The language model generates by its own settings, not by those of the whole.
    text["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if text.get("scale_decoder_outputs") is False:
        text["tie_word_embeddings"] = False  # how a configuration on disk says that FlanT5 has a head of its own
    config: Any = (Blip2Config if reader is None else InstructBlipConfig)(
        vision_config=vision,
        qformer_config=qformer,
        text_config=AutoConfig.for_model(**text),
        num_query_tokens=processor.vectors_per_image,
        image_token_index=tokenizer.get_vocab()[IMAGE_MARK],
        architectures=[hf_class],
        dtype=language.dtype,
    )
    more: dict[str, Any] = {"num_query_tokens": processor.vectors_per_image}
    saved = (
        Blip2Processor(images, tokenizer, **more)
        if reader is None
        else InstructBlipProcessor(images, tokenizer, reader, **more)
    )
    like = spare_token(processor.tokenizer)
    return HfFolder(
        config=config,
        processor=saved,
        generation=GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=getattr(language.config, "decoder_start_token_id", None),
        ),
        tensors=lambda: rename(language_tensors(state(), language, text["vocab_size"], like)),
        logits=logits,
        asks=wrap.keeps,
        notes={**notes, "text_limits": asdict(processor.text_limits)},
        caveat=caveat,
    )


def pair_folder(
    *,
    hf_class: str,
    processor: Writes,
    vision: dict[str, Any],
    qformer: dict[str, Any],
    queries: int,
    width: int,
    images: Any,
    state: Callable[[], Mapping[str, Tensor]],
    lacks: Sequence[str],
    rename: Callable[[Iterator[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]],
    logits: Callable[[Batch], Tensor],
    notes: dict[str, Any],
    caveat: str,
) -> HfFolder:
    """A Q-Former that compares images and texts as a folder.

    Args:
        queries: How many the Q-Former has.
        width: Of the space in which they are compared.
        lacks: Glob patterns of the tensors that the class has no place for.

    The others are those of `question_folder`.
    """
    pieces = processor.chat.render((Turn(role="assistant", text=ASKED),))
    before, _, after = "".join(piece.text for piece in pieces).partition(ASKED)
    first = "".join(processor.tokenizer.convert_ids_to_tokens(processor.prefix))
    tokenizer = Wrap(before=first + before, after=after).tokenizer(processor.tokenizer, "right")

    def named(kept: bool) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in state().items():
            if kept == any(fnmatchcase(name, pattern) for pattern in lacks):
                yield name, tensor

    config: Any = Blip2Config(
        vision_config=vision,
        qformer_config={**qformer, "use_qformer_text_input": True},
        num_query_tokens=queries,
        image_text_hidden_size=width,
        architectures=[hf_class],
        dtype=torch.float32,
    )
    return HfFolder(
        config=config,
        processor=Blip2Processor(images, tokenizer),
        generation=GenerationConfig(),
        tensors=lambda: rename(named(False)),
        beside=lambda: named(True),
        logits=logits,
        compared="pairs",
        notes=notes,
        caveat=caveat,
    )
