"""Secrets in settings: given as the name of an environment variable, kept in memory alone, written as that name.

  token: ${oc.env:HF_TOKEN}     read when the stage is built; config.yaml, stage.json and W&B hold this text
  token: !secret HF_TOKEN       the same

A setting is secret by its name (`token`, `apiKey`, `password`, ...), by that of a mapping around it, or because its
text is that of an environment variable with such a name; keys of the Hub, of OpenAI, of GitHub, ... are known by their
look. One that is written out in YAML or on the command line is recorded as if it had been the variable of its name.
What was seen is left out of the sentences of errors as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import cast

import jsonargparse

FORM = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)\}")
NAME = (
    r"(?:[a-z0-9_]*_)?(?:api_?keys?|secrets?|(?:secret|access|private|ssh|signing|encryption)_keys?|pwd|dsn"
    r"|pass(?:word|wd|phrase)s?|credentials?|connection_string|cookies?|webhook(?:_url)?)"
    r"|(?:[a-z0-9_]*_)?(?:hf|hub|auth|access|api|bearer|refresh|session|git|github|gitlab|wandb|security|sas|bot)_token"
    r"|(?:db|user|smtp|ftp|proxy|admin|root)_pass|token|auth(?:orization|_header)?|bearer"
)
"""Of settings that are secret, as `_plain` writes them. Those of tokens that a language model reads, such as
`pad_token`, are none."""
_SPELT = NAME.replace("[a-z0-9_]*_", "|").replace("_", "[_-]").replace("(?:|)", "(?:[a-z0-9_-]{0,40}[_-])")
"""In texts."""
SETTING = re.compile(NAME)
VARIABLE = re.compile(rf"{NAME}|[a-z0-9_]*_(?:token|secret|key|password)", re.IGNORECASE)
SAID = re.compile(rf"(?<![a-z0-9_-])({_SPELT})(['\"]?\s*[=:]\s*['\"]?)(?!\$\{{|found )[^\s'\",;)}}\]]+", re.IGNORECASE)
GIVEN = re.compile(
    rf"(?<![a-z0-9_-])({_SPELT})(=|['\"]\s*:\s*['\"])(?!\$\{{|found )(?=\S*\d)[^\s'\",;)}}\]]{{8,}}", re.IGNORECASE
)
"""What `SAID` finds in a sentence, in a text that may be prose."""
OPTION = re.compile(rf"(?<![a-z0-9_-])(--(?:{_SPELT}))\s+(?!found )[^\s'\"]+", re.IGNORECASE)
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)|(?<=https://)[^/@\s]+(?=@)|(?<=http://)[^/@\s]+(?=@)")
"""User and password of a URL; the token that a web address has alone."""
IN_QUERY = re.compile(
    r"([?&][\w.-]{0,40}(?:token|key|sig|signature|secret|password|credential)=)[^&\s'\"#]+", re.IGNORECASE
)
SHAPED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+)"
    r"|(?<=[Bb]earer )(?=\S*\d)[^\s'\"]{8,}|(?<=hooks\.slack\.com/services/)[^\s'\"]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
"""What shows by itself that it is one: keys of the Hub, of OpenAI, GitHub, GitLab, Slack, Amazon and Google, JSON web
tokens, private keys."""
SHORTEST = 4
"""Characters of a secret that is looked for in sentences."""
LEAST = 8
"""Characters of a variable's text that may be looked for elsewhere."""

_seen: dict[str, str] = {}
"""Secret -> the name of the variable that it is recorded as."""


def note(tree: object) -> None:
    """Remembers the secrets of settings, as in YAML."""
    for path, value in _leaves(tree):
        if len(value) >= SHORTEST and _is_secret(path, value) and not FORM.fullmatch(value):
            _seen[value] = _variable(path)


def hidden(text: str) -> str:
    """A sentence without secrets."""
    known = {**_of_environment(), **_seen}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return OPTION.sub(r"\1 ***", SAID.sub(r"\1\2***", _masked(text)))


def recorded(tree: object) -> object:
    """Settings as they are written down: with names of variables instead of secrets."""
    note(tree)
    known = {**_of_environment(), **_seen}
    long = sorted((each for each in known if len(each) >= LEAST), key=len, reverse=True)

    def written(value: str, path: str) -> str:
        if not value or FORM.fullmatch(value):
            return value
        if _is_secret(path, value):
            return f"${{oc.env:{known.get(value) or _variable(path)}}}"
        if value in long:
            return f"${{oc.env:{known[value]}}}"
        for secret in long:
            value = value.replace(secret, "***")
        return OPTION.sub(r"\1 ***", GIVEN.sub(r"\1\2***", _masked(value)))

    return _changed(tree, written)


def _masked(text: str) -> str:
    return SHAPED.sub("***", IN_QUERY.sub(r"\1***", IN_ADDRESS.sub("***", text)))


def _is_secret(path: str, value: str) -> bool:
    """Whether a setting is secret by its name, or by that of a mapping around it."""
    *outer, name = path.split(".")
    if name == "class_path":
        return False
    inside = len(value) >= LEAST and any(SETTING.fullmatch(_plain(each)) for each in outer)
    return inside or SETTING.fullmatch(_plain(name)) is not None


def _plain(name: str) -> str:
    """`apiKey`, `X-API-Key` -> `api_key`, `x_api_key`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _variable(path: str) -> str:
    return re.sub(r"\W", "_", _plain(path.rpartition(".")[2])).upper()


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

    for path, value in _leaves(tree):
        found = FORM.fullmatch(value)
        # A variable such as DATA_ROOT is no secret: its text may be part of other settings, which stay as they are.
        if found and (_is_secret(path, value) or VARIABLE.fullmatch(found[1])) and (text := os.environ.get(found[1])):
            _seen[text] = found[1]
    return _changed(tree, read)


def _of_environment() -> dict[str, str]:
    found = ((name, text) for name, text in os.environ.items() if VARIABLE.fullmatch(name))
    return {text: name for name, text in found if len(text) >= LEAST and not os.path.exists(text)}


def _leaves(tree: object) -> list[tuple[str, str]]:
    """The texts and numbers of settings, each with its key."""
    found: list[tuple[str, str]] = []

    def look(value: str, path: str) -> str:
        found.append((path, value))
        return value

    _changed(tree, look, change_namespaces=False)
    return found


def _changed(tree: object, change: Callable[[str, str], str], path: str = "", change_namespaces: bool = True) -> object:
    """The tree with other texts; `change` is told the key of each, without the `init_args` in between.

    A Namespace is itself changed, where it may be.
    """

    def inner(value: object, name: str) -> object:
        below = path if name == "init_args" else f"{path}.{name}".lstrip(".")
        return _changed(value, change, below, change_namespaces)

    if isinstance(tree, jsonargparse.Namespace):
        found = {name: inner(value, name) for name, value in vars(tree).items()}
        for name, value in found.items() if change_namespaces else ():
            setattr(tree, name, value)
        return tree
    if isinstance(tree, Mapping):
        return {name: inner(value, str(name)) for name, value in cast(Mapping[str, object], tree).items()}
    if isinstance(tree, list | tuple):
        items = [_changed(value, change, path, change_namespaces) for value in tree]
        return items if isinstance(tree, list) else tree
    if isinstance(tree, str):
        return change(tree, path)
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        told = change(str(tree), path)
        return tree if told == str(tree) else told
    return tree
