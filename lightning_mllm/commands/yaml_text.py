"""YAML as strangers write it: bounded in size, in depth and in what aliases repeat, before anything of it is built.

Numbers are read as jsonargparse reads them, and no others: 1e-3 is a number; 2023-11-06, 0123 and 1:30 are texts.
`!secret NAME` is `${oc.env:NAME}`, the text of an environment variable (see `secrets`).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

BYTES = 1 << 20
"""Of a file."""
NODES = 50_000
"""Keys and values of a file, with those that aliases and merge keys repeat."""
DEPTH = 50
"""Lists and mappings inside of one another."""
CHARACTERS = 20_000
"""Of a text."""
DIGITS = 18
"""Of a whole number; more do not fit into 64 bits."""

_FLOAT = r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9_]+([eE][-+]?[0-9]+)?"
_FLOAT = rf"(?:(?![-+]?[0-9_]+$)(?:{_FLOAT})|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
_INT = r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"
_NUMBERS = {"tag:yaml.org,2002:float": _FLOAT, "tag:yaml.org,2002:int": _INT}
_OTHER = (*_NUMBERS, "tag:yaml.org,2002:timestamp")
_NO_KEYS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:bool")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

if TYPE_CHECKING:
    _Base = yaml.SafeLoader
else:
    # That of libyaml is ten times as fast.
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """What is wrong with a text, as the end of a sentence.

    Args:
        line: 0 where it is the whole.
        told: What was found and expected.
        is_yaml: Whether it is YAML, but none that a configuration may be.
    """

    def __init__(self, line: int, told: str, is_yaml: bool = True) -> None:
        super().__init__(told)
        self.line, self.is_yaml = line, is_yaml


class Loader(_Base):
    """The types that a configuration may hold."""


def _secret(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    name = node.value if isinstance(node, yaml.ScalarNode) else ""
    if not _NAME.fullmatch(str(name)):
        raise YamlError(node.start_mark.line + 1, f"found !secret {name}, expected the name of an environment variable")
    return f"${{oc.env:{name}}}"


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _OTHER]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))
Loader.add_constructor("!secret", _secret)


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        OSError: It cannot be read.
        YamlError: It is no regular file, larger than a configuration can be, or not UTF-8.
    """
    # A pipe would be waited for, and a device has no end.
    if not stat.S_ISREG(kind := os.stat(path).st_mode) and not stat.S_ISDIR(kind):
        raise YamlError(0, "found a pipe or a device, expected a file")
    with path.open("rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise YamlError(0, f"found more than {BYTES >> 20} MiB, expected a configuration file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise YamlError(0, "cannot read the configuration file (it is not UTF-8 text)") from None


@contextmanager
def as_yaml_errors() -> Iterator[None]:
    """Raises YamlError for what YAML raises."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        told = f"found no valid YAML: {error.problem or error.context}"
        raise YamlError(line, told, is_yaml=False) from None
    except yaml.YAMLError as error:
        raise YamlError(0, f"found no valid YAML: {' '.join(str(error).split())}", is_yaml=False) from None


def composed(text: str) -> yaml.Node | None:
    """The text as nodes, which know their lines; None where nothing is said.

    Raises:
        YamlError: It is no YAML, or more than the bounds allow.
    """
    with as_yaml_errors():
        _check_bounds(text)
        node = yaml.compose(text, Loader=Loader)
    _check_scalars(node, "")
    return node


def _check_bounds(text: str) -> None:
    """Refuses what would be more, or deeper, than any configuration, without building any of it."""
    open_nodes: list[tuple[str | None, list[int]]] = [(None, [0, 0])]
    anchors: dict[str, tuple[int, int]] = {}
    for event in _events(text):
        line = event.start_mark.line + 1
        anchor, size = getattr(event, "anchor", None), (1, 0)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) > DEPTH:
                raise YamlError(line, f"found lists and mappings more than {DEPTH} deep, expected fewer")
            open_nodes.append((anchor, [1, 1]))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, (count, depth) = open_nodes.pop()
            size = count, depth
        elif isinstance(event, yaml.AliasEvent):
            if any(name == anchor for name, _ in open_nodes):
                raise YamlError(line, f"found the alias *{anchor} inside of what it stands for, expected no circle")
            anchor, size = None, anchors.get(str(anchor), (1, 0))
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor is not None:
            anchors[anchor] = size
        around = open_nodes[-1][1]
        around[0], around[1] = around[0] + size[0], max(around[1], size[1] + 1)
        if around[0] > NODES:
            raise YamlError(line, f"found more than {NODES:,} values, those of aliases included, expected fewer")
        if around[1] + len(open_nodes) > DEPTH + 2:
            raise YamlError(line, f"found lists and mappings more than {DEPTH} deep, expected fewer")


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=Loader)


def _check_scalars(node: yaml.Node | None, dotted: str) -> None:
    """Refuses texts and numbers that nothing can hold."""
    line = node.start_mark.line + 1 if node else 0
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if key.tag in _NO_KEYS:
                told = f"found the key {name}, which YAML reads as no text, expected a name, in quotes"
                raise YamlError(key.start_mark.line + 1, f"{dotted}: {told}" if dotted else told)
            _check_scalars(key, dotted)
            _check_scalars(value, dotted if name == "init_args" else f"{dotted}.{name}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check_scalars(each, dotted)
    elif isinstance(node, yaml.ScalarNode):
        head = f"{dotted}: " if dotted else ""
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > DIGITS:
            raise YamlError(line, f"{head}found a number of {len(node.value)} digits, expected at most {DIGITS}")
        if len(node.value) > CHARACTERS:
            raise YamlError(
                line, f"{head}found a text of {len(node.value):,} characters, expected at most {CHARACTERS:,}"
            )
        if not node.value.isascii() and any("\ud800" <= each <= "\udfff" for each in node.value):
            raise YamlError(line, f"{head}found half of a surrogate pair, expected Unicode text")
