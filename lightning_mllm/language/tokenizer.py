"""Tokenizers: those of published models, and one of bytes for nets that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from lightning_mllm.contracts import IMAGE_MARK
from lightning_mllm.language.sentencepiece_folder import read_settings, sentencepiece_folder
from lightning_mllm.weights.files import resource
from lightning_mllm.weights.plain_files import check_folder, reason

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
WRITE = "[DEC]"
"""Opens a text that a Q-Former is to write (BLIP-2, released code: added to BERT's words)."""


class LanguageModel(Protocol):
    """What a tokenizer must fit."""

    @property
    def model(self) -> str: ...

    @property
    def vocab(self) -> int: ...


def language_tokenizer(language: LanguageModel) -> PreTrainedTokenizerFast:
    """The tokenizer of a language model.

    Raises:
        ValueError: There is none, or its tokens are more than the embedding has rows.
    """
    tokenizer = load_tokenizer(language.model)
    if len(tokenizer) > language.vocab:
        raise ValueError(
            f"language: the tokenizer has {len(tokenizer)} tokens, expected at most {language.vocab}, the rows of the"
            " embedding"
        )
    return tokenizer


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder (may start with `package:`) or of a name on the hub; "" is `byte_tokenizer()`.

    SentencePiece's `tokenizer.model` is read as `sentencepiece_folder` says, all else as transformers reads it.

    Raises:
        ValueError: There is none, only one without character offsets, or a file of it cannot be read.
    """
    if not model:
        return byte_tokenizer()
    place = str(resource(model))
    check_folder(Path(place))
    try:
        tokenizer = sentencepiece_folder(place)
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, HFValidationError):
            raise  # a sentence of ours
        raise _unreadable(model, error) from None
    if tokenizer is None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, trust_remote_code=False)
        except Exception as error:  # of files of strangers transformers raises every kind
            raise _unreadable(model, error) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{model}: found the slow tokenizer {type(tokenizer).__name__}, expected a fast one")
    # Where processors of transformers kept theirs before chat_template.jinja.
    file = Path(place) / "chat_template.json"
    if not tokenizer.chat_template and file.is_file():
        tokenizer.chat_template = read_settings(file).get("chat_template")
    return tokenizer


def _unreadable(model: str, error: Exception) -> ValueError:
    return ValueError(f"tokenizer: found {model!r}, expected a folder or a name on the hub ({reason(error)})")


def folder_chat(folder: Path) -> str:
    """Whose chat template a folder of transformers brings: "tokenizer".

    Raises:
        ValueError: It has none.
    """
    if load_tokenizer(str(folder)).chat_template:
        return "tokenizer"
    raise ValueError(
        f"{folder}: found no chat template (chat_template.jinja), expected one, or the name of one:"
        ' load(FOLDER, chat="vicuna_v1"), mllm ask --template vicuna_v1'
    )


def reader_tokenizer(model: str, vocab: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a Q-Former: that of `model`, as `load_tokenizer`, with `[DEC]`; a text ends as it says.

    Args:
        vocab: Rows of the Q-Former's table of words.

    Raises:
        ValueError: The table has fewer rows than there are tokens.
    """
    tokenizer = load_tokenizer(model)
    if WRITE not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(WRITE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    # Processors of transformers add an image's mark behind the last word; a Q-Former never reads it.
    marked = tokenizer.get_vocab().get(IMAGE_MARK) == len(tokenizer) - 1
    if len(tokenizer) - marked > vocab:
        raise ValueError(
            f"qformer.vocab: found {vocab}, expected at least {len(tokenizer)}, the tokens of {model!r} and {WRITE}"
        )
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token: 256 of them after `<pad>`, `<s>` (put before every text) and `</s>`."""
    specials = [PAD, BEGIN, END]
    vocabulary = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocabulary.index(BEGIN))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END)
