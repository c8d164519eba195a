"""Tokenizers as folders of transformers hold them."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from lightning_mllm.contracts import IMAGE_MARK

PAD_TOKEN = "<pad>"


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
        **{
            name: token
            for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES
            if (token := getattr(tokenizer, name)) is not None
        },
    )
    made.chat_template = tokenizer.chat_template
    return made


def multimodal_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str | None = None,
    *,
    max_length: int | None = None,
    begins: bool = True,
) -> PreTrainedTokenizerFast:
    """A copy with this template, or without any, and with the image and padding tokens that processors need.

    Rows of a batch are padded on the left: answers are written behind them.

    Args:
        tokenizer: Of the language model.
        chat_template: Jinja.
        max_length: Tokens that a row may have.
        begins: Whether it puts its begin token before a text; not where the template writes one, so that there is one.
    """
    copied = padded_left(tokenizer, max_length)
    if IMAGE_MARK not in copied.get_vocab():
        copied.add_tokens([_special(IMAGE_MARK)], special_tokens=True)
    if copied.pad_token is None:
        copied.add_special_tokens({"pad_token": _special(PAD_TOKEN)})
    copied.chat_template = chat_template  # pyright: ignore[reportAttributeAccessIssue]
    return copied if begins else writes_around(copied)


def spare_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token of which added rows are copies: one that no answer holds."""
    candidates: list[Any] = [tokenizer.unk_token_id, tokenizer.bos_token_id, 0]
    return next(token for token in candidates if token is not None)


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)
