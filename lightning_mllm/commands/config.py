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

COMMAND_LINE = "command line"
EXTENDS = "extends"

KeyPath = tuple[str, ...]
"""Keys from the top down, without the `init_args` in between."""


class ConfigError(ValueError):
    """A wrong configuration, told in one sentence, without secrets."""

    def __init__(self, sentence: str) -> None:
        super().__init__(hidden(sentence))


class Loader(yaml.SafeLoader):
    """YAML as jsonargparse reads it: 1e-3 is a number, 2023-11-06 a text."""


_OTHER = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _OTHER]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9_]+([eE][-+]?[0-9]+)?"
_FLOAT = rf"(?:(?![-+]?[0-9_]+$)(?:{_FLOAT})|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
Loader.add_implicit_resolver(_OTHER[0], re.compile(_FLOAT), list("-+0123456789."))


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
            raise ConfigError(f"{where}: found no file {other}, expected one{_nearest_file(other)}")
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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the configuration file ({reason}){_nearest_file(path)}") from None
    try:
        node = yaml.compose(text, Loader=Loader)
        if node is None:
            raise ConfigError(f"{path}: found an empty file, expected a mapping such as stage: {{lr: 1.0e-3}}")
        return node, yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: found no valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: found no valid YAML: {' '.join(str(error).split())}") from None


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


def _nearest_file(path: Path) -> str:
    siblings = [each.name for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return nearest(path.name, siblings)


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause naming the word of `known` closest to `word`; empty when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; the nearest is '{close[0]}'" if close else ""


def option_tree(dotted: str, text: str) -> dict[str, object]:
    """`--model.vision.layer=-1` as nested mappings, so that options are checked like files."""
    try:
        tree: object = yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        tree = text
    if dotted in ("model", "data") and isinstance(tree, str) and not tree.endswith(".yaml"):
        tree = {"class_path": tree}
    first, *rest = dotted.split(".")
    for key in reversed(rest):
        tree = {key: tree}
    return {first: tree}
