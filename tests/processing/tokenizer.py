"""A Llama-style tokenizer trained on the spot: Metaspace BPE with byte fallback, `<s>` put before every text."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
TEXT = (
    "what is the colour of small red cube sphere left right behind how many there are a an and 2 17 yes no on "
    "table dog Question Answer it they see USER Human Assistant ASSISTANT INST SYS picture , . ? ! : ###"
)
WORDS = TEXT.split()


@cache
def _trained() -> str:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


def llama_tokenizer(*extra: str, normalised: bool = False, **tokens: str) -> PreTrainedTokenizerFast:
    """The tokenizer, with `extra` special tokens; `normalised`: spaces written as Llama 2's tokenizer.json does."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | tokens
    trained = Tokenizer.from_str(_trained())
    if normalised:
        trained.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
        trained.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **named)
    if extra:
        tokenizer.add_tokens(list(extra), special_tokens=True)
    return tokenizer


def first_space_tokenizer() -> PreTrainedTokenizerFast:
    """As `legacy: false`: a space is put before a text, and not behind special tokens; USER is one token there.

    In Llama's own vocabulary too " USER" is two tokens and "USER" is one.
    """
    state = json.loads(_trained())
    new = [("\u2581", "U"), ("E", "R"), ("\u2581U", "S"), ("U", "S"), ("US", "ER")]
    vocabulary = state["model"]["vocab"]
    for pair in new:
        vocabulary.setdefault("".join(pair), len(vocabulary))
    state["model"]["merges"] = [list(pair) for pair in new] + state["model"]["merges"]
    trained = Tokenizer.from_str(json.dumps(state))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A GPT-style tokenizer: byte-level BPE, nothing put before a text, offsets without the leading space."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="</s>")
