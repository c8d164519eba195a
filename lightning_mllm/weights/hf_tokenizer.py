"""Tokenizers as folders of transformers hold them."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def padded_left(tokenizer: PreTrainedTokenizerFast, max_length: int | None = None) -> PreTrainedTokenizerFast:
    """A copy whose rows of a batch are padded on the left: answers are written behind them.

    Args:
        max_length: Tokens that a row may have; None leaves it as it is.
    """
    copied = copy.deepcopy(tokenizer)
    copied.padding_side = copied.init_kwargs["padding_side"] = "left"  # what is saved is what it was made with
    if max_length is not None:
        copied.model_max_length = max_length
    return copied


def writes_around(
    tokenizer: PreTrainedTokenizerFast, before: str = "", after: str = "", side: str = "left"
) -> PreTrainedTokenizerFast:
    """A copy that puts this around every text, and nothing else.

    Args:
        tokenizer: A tokenizer; its template, its padding token and its length are kept.
        before: Written before every text.
        after: Written behind every text.
        side: Where rows of a batch are padded.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    around: list[Any] = []
    for name, text in (("before", before), ("after", after)):
        if text:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
            around.append({"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)})
    single = f"{'before ' if before else ''}$A{' after' if after else ''}"
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)  # pyright: ignore
    # Of the plain class: those of published models (Llama, OPT) make a post-processor of their own when read.
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=side,
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        **{name: token for name in NAMES if (token := getattr(tokenizer, name)) is not None},
    )
    made.chat_template = tokenizer.chat_template
    return made
