"""Secrets in settings: given as the name of an environment variable, kept in memory alone, written as that name.

    token: ${oc.env:HF_TOKEN}     read when the stage is built; config.yaml, stage.json and W&B hold this text

A setting is secret by its name (`token`, `api_key`, `password`, ...), or because its text is that of an environment
variable with such a name. One that is written out in YAML or on the command line is recorded as if it had been the
variable of its name. What was seen is left out of the sentences of errors as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jsonargparse

FORM = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)\}")
NAME = (
    r"(?:[a-z0-9_]*_)?(?:api_?key|secret|(?:secret|access|private)_key|pass(?:word|wd|phrase)|credentials?)"
    r"|(?:[a-z0-9_]*_)?(?:hf|hub|auth|access|api|bearer|refresh|session|git|github|gitlab|wandb|security)_token"
    r"|token|authorization"
)
"""Settings of tokens that a language model reads, such as `pad_token`, are none."""
SETTING = re.compile(NAME, re.IGNORECASE)
VARIABLE = re.compile(rf"{NAME}|[a-z0-9_]*_(?:token|secret|key|password)", re.IGNORECASE)
SAID = re.compile(rf"(?<![a-z0-9_])({NAME})(['\"]?\s*[=:]\s*['\"]?)(?!\$\{{|found )[^\s'\",;)}}\]]+", re.IGNORECASE)
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)|(?<=https://)[^/@\s]+(?=@)|(?<=http://)[^/@\s]+(?=@)")
"""User and password of a URL; the token that a web address has alone."""
LEAST = 8
"""Characters of a variable's text that may be looked for elsewhere."""

_seen: dict[str, str] = {}
"""Secret -> the name of the variable that it is recorded as."""


def note(tree: object) -> None:
    """Remembers the secrets of settings, as in YAML."""
    for name, value in _leaves(tree):
        if value and SETTING.fullmatch(name) and not FORM.fullmatch(value):
            _seen[value] = name.upper()


def hidden(text: str) -> str:
    """A sentence without secrets."""
    known = {**_of_environment(), **_seen}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return SAID.sub(r"\1\2***", IN_ADDRESS.sub("***", text))


def recorded(tree: object) -> object:
    """Settings as they are written down: with names of variables instead of secrets."""
    note(tree)
    known = {**_of_environment(), **_seen}

    def written(value: str, path: str) -> str:
        if value in known:
            return f"${{oc.env:{known[value]}}}"
        for secret in sorted(known, key=len, reverse=True):
            value = value.replace(secret, "***") if len(secret) >= LEAST else value
        return IN_ADDRESS.sub("***", value)

    return _changed(tree, written)


def revealed(tree: object) -> object:
    """Settings with the texts of variables instead of their names; a Namespace is itself changed.

    Raises:
        ValueError: There is no such variable; names the setting.
    """

    def read(value: str, path: str) -> str:
        found = FORM.fullmatch(value)
        if found is None and "${" in value:
            raise ValueError(f"{path}: found '{value}', expected ${{oc.env:NAME}} alone, or a text without ${{")
        if found is None:
            return value
        if not (text := os.environ.get(found[1])):
            raise ValueError(f"{path}: found no environment variable {found[1]}, expected it to hold this setting")
        return text

    for name, value in _leaves(tree):
        found = FORM.fullmatch(value)
        # A variable such as DATA_ROOT is no secret: its text may be part of other settings, which stay as they are.
        if found and (SETTING.fullmatch(name) or VARIABLE.fullmatch(found[1])) and (text := os.environ.get(found[1])):
            _seen[text] = found[1]
    return _changed(tree, read)


def _of_environment() -> dict[str, str]:
    found = ((name, text) for name, text in os.environ.items() if VARIABLE.fullmatch(name))
    return {text: name for name, text in found if len(text) >= LEAST and not os.path.exists(text)}


def _leaves(tree: object, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts of settings, each with the last name above it."""
    if isinstance(tree, jsonargparse.Namespace):
        tree = vars(tree)
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves(value, key)
    elif isinstance(tree, str):
        yield key, tree


def _changed(tree: object, change: Callable[[str, str], str], path: str = "") -> object:
    """The tree with other texts; `change` is told the key of each, without the `init_args` in between."""
    if isinstance(tree, jsonargparse.Namespace):
        for name, value in vars(tree).items():
            setattr(tree, name, _changed(value, change, _below(path, name)))
        return tree
    if isinstance(tree, Mapping):
        known = cast(Mapping[str, object], tree)
        return {name: _changed(value, change, _below(path, name)) for name, value in known.items()}
    if isinstance(tree, list):
        return [_changed(value, change, path) for value in tree]
    return change(tree, path) if isinstance(tree, str) else tree


def _below(path: str, name: str) -> str:
    return path if name == "init_args" else f"{path}.{name}".lstrip(".")
