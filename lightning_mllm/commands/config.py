"""Configuration files read strictly: where each key stands, a key written twice, and the files that a file extends.

    extends: ../llava15_7b/net.yaml      at the top of a file: it states only what differs from that one

The file that is named, relative to the one that names it, counts as one given before. What that means is the rule of
several files: maps of settings merge; lists and maps of named entries, such as `data.train`, are stated whole.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.commands.secrets import hidden
from lightning_mllm.commands.yaml_text import Loader, YamlError, as_yaml_errors, composed, read_text

COMMAND_LINE = "command line"
EXTENDS = "extends"

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*:/")
"""As it is, and as `Path` writes it."""
LONG = re.compile(r"[^\s:/]{400,}")
"""A word that nobody reads."""

KeyPath = tuple[str, ...]
"""Keys from the top down, without the `init_args` in between."""


class ConfigError(ValueError):
    """A wrong configuration, told in one sentence, without secrets."""

    def __init__(self, sentence: str) -> None:
        short = LONG.sub(lambda found: f"{found[0][:60]}...", hidden(sentence))
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in short))


@dataclass(kw_only=True)
class Config:
    """What the files and the command line say, in order, with the location of every key."""

    locations: dict[KeyPath, str] = field(default_factory=dict)
    """Where a key was set last, as `file:line` or 'command line'."""
    classes: dict[KeyPath, type] = field(default_factory=dict)
    """Which class a later file's `init_args` without `class_path` belong to."""
    flags: dict[str, str] = field(default_factory=dict)
    """Options of the command line that are no settings."""

    def location(self, path: KeyPath) -> str:
        """Where `path`, or failing that the nearest mapping around it, was set."""
        for length in range(len(path), 0, -1):
            inside = (where for key, where in self.locations.items() if key[:length] == path[:length])
            if found := self.locations.get(path[:length]) or next(inside, ""):
                return found
        return ""

    def head(self, path: KeyPath) -> str:
        """`file:line: key`, with which a sentence about a key begins."""
        where, dotted = self.location(path), ".".join(path)
        return f"{where}: {dotted}" if where else dotted


def layers(
    path: Path, config: Config, under: KeyPath = (), known: tuple[Path, ...] = ()
) -> Iterator[tuple[Path, object]]:
    """What a file extends, the farthest first, and then the file itself, each with its content.

    The keys of a file are noted when it is given out, so that they stand in `config` while its content is merged.

    Args:
        path: The file.
        config: Notes the location of each key.
        under: Where the content stands.
        known: The files, resolved, that extend this one.

    Raises:
        ConfigError: A file is absent, no YAML or no mapping, has a python tag, states a key twice, or extends itself.
    """
    node, tree = _parsed(path)
    if isinstance(tree, dict) and EXTENDS in tree:
        assert isinstance(node, yaml.MappingNode)
        line = next(key.start_mark.line + 1 for key, _ in node.value if key.value == EXTENDS)
        name, chain = tree.pop(EXTENDS), (*known, path.resolve())
        where, other = f"{path}:{line}: {EXTENDS}", path.parent / str(name)
        if not isinstance(name, str) or not name.endswith(".yaml"):
            raise ConfigError(f"{where}: found '{name}', expected a YAML file, relative to this one")
        if other.resolve() in chain:
            raise ConfigError(f"{where}: found {name}, which extends this file, expected no circle")
        if not other.is_file():
            raise ConfigError(f"{where}: found no file {other}, expected one{nearest_file(other)}")
        yield from layers(other, config, under, chain)
    if not under and not isinstance(tree, dict):
        found = "a list" if isinstance(tree, list) else f"'{tree}'"
        raise ConfigError(f"{path}: found {found}, expected a mapping with model, data, stage, ...")
    _note_locations(node, under, str(path), config)
    yield path, tree


def read_yaml(path: Path, config: Config) -> dict[str, Any]:
    """The content of a file that extends no other, such as the record of a run.

    Raises:
        ConfigError: As `layers`.
    """
    *_, (_, tree) = layers(path, config)
    assert isinstance(tree, dict)
    return tree


def _parsed(path: Path) -> tuple[yaml.Node, object]:
    try:
        text = read_text(path)
        node, tree = composed(text), _loaded(text)
    except OSError as error:
        reason = f"cannot read the configuration file ({error.strerror}){nearest_file(path)}"
        raise ConfigError(f"{path}: {reason}") from None
    except YamlError as error:
        raise ConfigError(f"{path}{f':{error.line}' if error.line else ''}: {error}") from None
    if node is None:
        raise ConfigError(f"{path}: found an empty file, expected a mapping such as stage: {{lr: 1.0e-3}}")
    return node, tree


def _loaded(text: str) -> object:
    """The values of a text that was composed, and so is within bounds."""
    with as_yaml_errors():
        return yaml.load(text, Loader=Loader)


def _note_locations(node: yaml.Node | None, path: KeyPath, file: str, config: Config) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_locations(item, (*path, str(index)), file, config)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                dotted = ".".join((*path, name))
                raise ConfigError(f"{file}:{line}: {dotted}: found a second time, first on line {seen[name]}")
            seen[name] = line
            inner = path if name == "init_args" else (*path, name.removesuffix("+"))
            config.locations[inner] = f"{file}:{line}"
            _note_locations(value, inner, file, config)


def nearest_file(path: Path) -> str:
    """A clause naming the YAML file beside which `path` was perhaps meant; of an address, what to do with it."""
    if ADDRESS.match(str(path)):
        return "; nothing is read from an address: download it and name the file"
    siblings = [each.name for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return nearest(path.name, siblings)


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause naming the word of `known` closest to `word`; empty when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; the nearest is '{close[0]}'" if close else ""


def option_tree(dotted: str, text: str) -> dict[str, object]:
    """`--model.vision.layer=-1` as nested mappings, so that options are checked like files."""
    tree: object
    try:
        composed(text)
        tree = _loaded(text)
    except YamlError as error:
        if error.is_yaml:
            raise ConfigError(f"{COMMAND_LINE}: {dotted}: {error}") from None
        tree = text
    if dotted in ("model", "data") and isinstance(tree, str) and not tree.endswith(".yaml"):
        tree = {"class_path": tree}
    first, *rest = dotted.split(".")
    for key in reversed(rest):
        tree = {key: tree}
    return {first: tree}
