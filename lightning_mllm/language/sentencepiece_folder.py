"""The tokenizer of a folder with SentencePiece's `tokenizer.model`, and of the JSON files that may stand beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from lightning_mllm.language.sentencepiece_tokenizer import pipeline, read_model
from lightning_mllm.weights.plain_files import read_object

LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
OPTIONS = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "chat_template")


def sentencepiece_folder(model: str) -> PreTrainedTokenizerFast | None:
    """The tokenizer that `tokenizer.model` gives, token for token as SentencePiece's library but for what `pipeline`
    says of user-defined symbols and of models that normalise; Llama's has neither.

    `tokenizer.model` counts where there is no `tokenizer.json` beside it, and also beside one if the tokenizer is
    Llama's (`tokenizer_class` of tokenizer_config.json, or none named): the published code of that family reads it
    (`use_fast=False`), and a `tokenizer.json` that some conversion made of it may differ. Every other `tokenizer.json`
    counts: T5's is what BLIP-2's and InstructBLIP's released code reads (`T5TokenizerFast`).

    `legacy` of tokenizer_config.json is obeyed; where it says nothing, it is true, as for transformers' slow tokenizer.

    Args:
        model: A folder, or a name on the hub.

    Returns:
        None where `tokenizer.model` is missing, of another format, or does not count.

    Raises:
        ValueError: A file with other content than expected, a model of an unsupported type, or an added token whose
            id is not the next one.
        OSError: The hub cannot be asked.
    """
    file = _find(model, "tokenizer.model")
    settings = _read(model, "tokenizer_config.json")
    named = settings.get("tokenizer_class")
    if file is None or (_find(model, "tokenizer.json") and named is not None and named not in LLAMA):
        return None
    if (proto := read_model(file)) is None:
        return None
    if "added_tokens_decoder" not in settings:
        settings |= _read(model, "special_tokens_map.json")
    if template := _find(model, "chat_template.jinja"):
        settings["chat_template"] = template.read_text(encoding="utf-8")
    tokens, extra = _special(proto, settings)
    added = _added(model, settings, [*tokens.values(), *extra])
    try:
        backend = pipeline(
            proto,
            [token for _, token in added],
            legacy=settings.get("legacy") is not False,
            prefix_space=settings.get("add_prefix_space") is not False,
        )
        for expected, token in added:
            if expected not in (None, found := backend.token_to_id(token.content)):
                raise ValueError(f"found id {expected} for the added token {token.content!r}, expected {found}")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=settings.get("add_bos_token", True),
        add_eos_token=settings.get("add_eos_token", False),
        extra_special_tokens=extra,
        **tokens,
        **{name: settings[name] for name in OPTIONS if settings.get(name) is not None},
    )


def _special(proto: Any, settings: dict[str, Any]) -> tuple[dict[str, str | None], list[str]]:
    """The special tokens that have a name, the model's own where nothing is said; and others."""
    tokens = {
        name: _content(settings[name]) for name in PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES if name in settings
    }
    for name in ("bos", "eos", "unk", "pad"):
        id = getattr(proto.trainer_spec, f"{name}_id")
        tokens.setdefault(f"{name}_token", proto.pieces[id].piece if 0 <= id < len(proto.pieces) else None)
    extra: Any = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    return tokens, [_content(each) or "" for each in (extra.values() if isinstance(extra, dict) else extra)]


def _added(model: str, settings: dict[str, Any], special: Sequence[str | None]) -> list[tuple[int | None, AddedToken]]:
    """Added tokens with their ids, in that order; behind them special tokens of which no id is known."""
    found: dict[int, dict[str, Any]] = {}
    if "added_tokens_decoder" in settings:
        found = {int(id): token for id, token in settings["added_tokens_decoder"].items()}
    elif listed := _read(model, "added_tokens.json"):
        found = {id: {"content": content} for content, id in listed.items()}
    else:
        found = {token["id"]: token for token in _read(model, "tokenizer.json").get("added_tokens", [])}
    given = {
        each["content"]: each
        for each in (settings.get(name) for name in PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES)
        if isinstance(each, dict)
    }
    others = [content for content in dict.fromkeys(special) if content]
    others = [content for content in others if content not in {token["content"] for token in found.values()}]
    every = [*sorted(found.items()), *((None, given.get(content, {"content": content})) for content in others)]
    return [
        (
            id,
            AddedToken(
                token["content"],
                special=token["content"] in special or token.get("special", False),
                lstrip=token.get("lstrip", False),
                rstrip=token.get("rstrip", False),
                single_word=token.get("single_word", False),
            ),
        )
        for id, token in every
    ]


def _content(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _find(model: str, name: str) -> Path | None:
    """A file of a folder or of a repository on the hub; None if there is no such file.

    Raises:
        OSError: The hub cannot be asked whether there is; with HF_HUB_OFFLINE what is not on this machine is not there.
    """
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(model, name))
    except LocalEntryNotFoundError:
        if not constants.HF_HUB_OFFLINE:
            raise
    except EntryNotFoundError:
        pass
    return None


def _read(model: str, name: str) -> dict[str, Any]:
    file = _find(model, name)
    return {} if file is None else read_settings(file)


def read_settings(file: Path) -> dict[str, Any]:
    """A JSON file that holds settings by name.

    Raises:
        ValueError: It holds something else.
    """
    return read_object(file, "settings by name")
