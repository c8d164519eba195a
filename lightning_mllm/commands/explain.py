"""jsonargparse's nested complaints, told in one sentence: file, key, found, expected, nearest."""

from __future__ import annotations

import re

from lightning_mllm.commands.command_line import EXPECTED
from lightning_mllm.commands.config import Config, KeyPath, nearest

_KEY = re.compile(r'^\s*(?:- )?Parser key "([^"]+)":\s*(.*)$')
_NOISE = re.compile(
    r"^(- )?(Expected a <class 'NoneType'>|Does not validate against|Subtypes:|Errors:|Given value|"
    r"Subclasses are disabled|Problem with given class_path|Expected a path but|Validation failed|"
    r"Subclass types expect one of|a class path \(str\)|a dict with|"
    # Another member of a union: its keys have been checked against all of them before.
    r"\w+\.__init__\(\) (got an unexpected keyword|missing \d+ required))"
)


def explain(message: str, config: Config) -> str:
    """One sentence from the text of an ArgumentError, or of a ValueError raised while settings are checked."""
    path, leaf = _innermost(message)
    sentence, key = _say(leaf, config)
    path = _written((*path, *key), sentence, config)
    place = config.location(path)
    return ": ".join(part for part in (place, ".".join(path), sentence) if part)


def _innermost(message: str) -> tuple[KeyPath, str]:
    """The deepest line that says something, and the keys that lead to it."""
    lines = [line for line in message.splitlines() if line.strip()]
    best, depth = 0, -1
    for number, line in enumerate(lines):
        text = line.strip()
        if _NOISE.match(text) or (_KEY.match(line) and not _KEY.match(line)[2]):  # pyright: ignore[reportOptionalSubscript]
            continue
        indent = _indent(line)
        if indent > depth:
            best, depth = number, indent
    keys: list[str] = []
    limit = _indent(lines[best]) + 1
    for line in reversed(lines[: best + 1]):
        found = _KEY.match(line)
        if found and _indent(line) < limit:
            keys[:0] = [part for part in found[1].split(".") if part != "init_args"]
            limit = _indent(line)
    inline = _KEY.match(lines[best])
    leaf = (inline[2] if inline else lines[best]).strip().removeprefix("- ")
    return tuple(keys), _with_value(leaf, lines, best)


def _with_value(leaf: str, lines: list[str], best: int) -> str:
    """A line of a union that says only what is expected, with what all its members expect and the value found."""
    if not re.fullmatch(r"Expected an? .+", leaf) or "Got value" in leaf:
        return leaf
    expected: list[str] = []
    for line in lines[best:]:
        text = line.strip()
        if found := re.match(r"- Expected an? (.+)$", text):
            expected += [found[1]] if "NoneType" not in found[1] else []
        elif found := re.match(r"Given value: (.*)$", text):
            return f"Expected a {' or '.join(expected)}. Got value: {found[1]}"
    return leaf


def _written(path: KeyPath, sentence: str, config: Config) -> KeyPath:
    """The path as it stands in a file: jsonargparse leaves out the names of named entries."""
    value = re.match(r"found '(.*?)'", sentence)
    if not path or path in config.places or value is None:
        return path
    for each, text in config.values.items():
        rest = iter(each)
        if text == value[1] and each[-1] == path[-1] and all(key in rest for key in path):
            return each
    return path


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _say(leaf: str, config: Config) -> tuple[str, KeyPath]:
    """The sentence for one line of jsonargparse, and the key it names beyond those around it."""
    if found := re.match(r"Expected (?:a|an) (.+?)\. Got value: (.*)$", leaf):
        words = re.findall(r"'([^']*)'|\"([^\"]*)\"", found[1]) if "Literal" in found[1] else []
        choices = [one or other for one, other in words]
        expected = f"one of {', '.join(choices)}" if choices else " or ".join(map(_type_name, found[1].split(" or ")))
        return f"found '{found[2]}', expected {expected}{nearest(found[2], choices)}", ()
    if found := re.match(r"Option '([^']+)' is not accepted", leaf):
        return "found an unknown key", _keys(found[1])
    if found := re.match(r"(?:Subcommand '\w+' does not accept option|Key) '([^']+)'", leaf):
        return f"found an unknown key{nearest(found[1], EXPECTED)}", _keys(found[1])
    if found := re.match(r"unrecognized arguments: (.*)$", leaf):
        return f"found an unknown option {found[1].split()[0]}", ()
    if found := re.search(r"arguments? (?:are|is) required: (.*)$", leaf):
        names = [name.strip() for name in found[1].split(",")]
        return f"found nothing, expected {'a value' if len(names) == 1 else 'values: ' + ', '.join(names)}", (
            _keys(names[0]) if len(names) == 1 else ()
        )
    if found := re.match(r'(?:Key|Option) "([^"]+)" (?:is required|not found).*$', leaf):
        return "found nothing, expected a value", _keys(found[1])
    if found := re.match(r"Import path (\S+) does not implement protocol (\w+)", leaf):
        methods = "build, pretrained and blocks" + (" and vectors" if found[2].startswith("Views") else "")
        return f"found {found[1]}, expected a frozen dataclass with {methods} (see connectors/spec.py)", ()
    if found := re.match(r"([a-z_]+(?:\.[a-z_]+)+|run_dir): ", leaf):
        # Our own settings name their key themselves, perhaps without what it belongs to.
        key = _keys(found[1])
        whole = next((each for each in config.places if each[-len(key) :] == key), key)
        place = config.location(whole)
        return f"{place + ': ' if place else ''}{'.'.join(whole)}: {leaf[found.end() :]}", ()
    return " ".join(leaf.split()), ()


def _keys(dotted: str) -> KeyPath:
    parts = dotted.split(".")
    if parts[0] in ("fit", "validate", "test", "predict"):
        parts = parts[1:]
    return tuple(part for part in parts if part != "init_args")


def _type_name(text: str) -> str:
    if found := re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>", text):
        names = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}
        return names.get(found[1], f"a {found[1]}")
    return text
