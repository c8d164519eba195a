"""Chat templates by name: those of the package (`templates/*.yaml`), and a tokenizer's own."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from importlib.resources import files
from typing import Any

import yaml
from transformers import PreTrainedTokenizerFast

from lightning_mllm.processing.chat_template import ChatTemplate
from lightning_mllm.processing.tokenizer_template import TokenizerTemplate

TEMPLATES = files("lightning_mllm.processing") / "templates"

Chat = ChatTemplate | TokenizerTemplate


def tokenizer_template(tokenizer: PreTrainedTokenizerFast) -> TokenizerTemplate:
    """The tokenizer's own template.

    Raises:
        ValueError: it has none.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"chat: found a tokenizer without a chat template, expected one of {', '.join(names())}")
    return TokenizerTemplate(tokenizer=tokenizer)


def load_template(name: str, tokenizer: PreTrainedTokenizerFast) -> Chat:
    """The template `name`, with the tokenizer's own begin and end tokens; "tokenizer" is the tokenizer's own template.

    Raises:
        ValueError: no such template, or one that needs a token the tokenizer does not have.
    """
    if name == "tokenizer":
        return tokenizer_template(tokenizer)
    if name not in names():
        near = difflib.get_close_matches(name, [*names(), "tokenizer"], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"chat: found {name!r}, expected one of {', '.join([*names(), 'tokenizer'])}{hint}")
    settings: dict[str, Any] = yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8"))
    if other := settings.pop("wordless", None):
        settings["wordless"] = load_template(other, tokenizer)
    others: dict[str, str] = settings.pop("tasks", {})
    settings["tasks"] = {task: load_template(other, tokenizer) for task, other in others.items()}
    template = ChatTemplate(name=name, **settings)
    wraps = [f.name for f in fields(template) if f.name not in ("name", "system", "wordless", "tasks")]
    written = "".join(str(getattr(template, each)) for each in wraps)
    tokens: dict[str, str] = {}
    for mark, token in (("bos", tokenizer.bos_token), ("eos", tokenizer.eos_token)):
        if token is not None:
            tokens[mark] = str(token)
        elif "{" + mark + "}" in written:
            raise ValueError(f"chat: template {name!r} writes a {mark} token, which the tokenizer does not have")
    return replace(template, **tokens)


def names() -> list[str]:
    """The templates of the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in TEMPLATES.iterdir() if entry.name.endswith(".yaml"))
