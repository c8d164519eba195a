"""Configuration files read strictly: where each key stands, and which keys the classes they name accept.

jsonargparse checks values; this file runs before it and adds what it lacks: a key written twice, an unknown key with
its file, line and nearest valid neighbour, and a class that cannot be found.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Union

import yaml

COMMAND_LINE = "command line"

KeyPath = tuple[str, ...]
"""Keys from the top down, without the `init_args` in between."""


class ConfigError(ValueError):
    """A wrong configuration, told in one sentence."""


@dataclass(kw_only=True)
class Config:
    """What the files and the command line say, in order, with the place of every key."""

    places: dict[KeyPath, str] = field(default_factory=dict)
    """Where a key was set last, as `file:line` or 'command line'."""
    classes: dict[KeyPath, type] = field(default_factory=dict)
    """Which class a later file's `init_args` without `class_path` belong to."""
    values: dict[KeyPath, Any] = field(default_factory=dict)
    """Scalars, as written last."""

    def location(self, path: KeyPath) -> str:
        """Where `path`, or failing that the nearest mapping around it, was set."""
        for length in range(len(path), 0, -1):
            inside = (place for key, place in self.places.items() if key[:length] == path[:length])
            if found := self.places.get(path[:length]) or next(inside, ""):
                return found
        return ""


def read_yaml(path: Path, config: Config, under: KeyPath = ()) -> Any:
    """The content of `path`, noting the place of each of its keys, which stand under `under`, in `config`.

    Raises:
        ConfigError: The file is absent, is no YAML, has a python tag, or states a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the configuration file ({reason}){_nearest_file(path)}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ConfigError(f"{path}: found an empty file, expected a mapping such as stage: {{lr: 1.0e-3}}")
        _note_places(node, under, str(path), config)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: found no valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: found no valid YAML: {' '.join(str(error).split())}") from None


def _note_places(node: yaml.Node | None, path: KeyPath, file: str, config: Config) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_places(item, (*path, str(index)), file, config)
    elif isinstance(node, yaml.ScalarNode):
        config.values[path] = node.value
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                dotted = ".".join((*path, name))
                raise ConfigError(f"{file}:{line}: {dotted}: found a second time, first on line {seen[name]}")
            seen[name] = line
            inner = path if name == "init_args" else (*path, name.removesuffix("+"))
            config.places[inner] = f"{file}:{line}"
            _note_places(value, inner, file, config)


def _nearest_file(path: Path) -> str:
    siblings = [each.name for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return nearest(path.name, siblings)


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause naming the word of `known` closest to `word`; empty when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; the nearest is '{close[0]}'" if close else ""


def option_tree(dotted: str, text: str) -> dict[str, Any]:
    """`--model.vision.layer=-1` as nested mappings, so that options are checked like files."""
    try:
        tree: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        tree = text
    if dotted in ("model", "data") and isinstance(tree, str) and not tree.endswith(".yaml"):
        tree = {"class_path": tree}
    for key in reversed(dotted.split(".")):
        tree = {key: tree}
    assert isinstance(tree, dict)
    return tree


def import_class(name: str, where: str) -> type:
    """The class with the dotted name `name`.

    Raises:
        ConfigError: There is none; names the closest one in its module.
    """
    module, _, leaf = name.rpartition(".")
    try:
        found = importlib.import_module(module) if module.strip(".") else None
    except ModuleNotFoundError as error:
        absent = f"{where}: found class '{name}', but there is no module '{error.name}'"
        if error.name and not (module == error.name or module.startswith(error.name + ".")):
            raise ConfigError(f"{absent}, which its module imports") from error
        raise ConfigError(
            f"{absent}, expected one that is installed or in the working directory (or beside the file, for mllm fit)"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"{where}: found class '{name}', but its module cannot be imported ({type(error).__name__}: {error})"
        ) from error
    result = getattr(found, leaf, None)
    if not isinstance(result, type):
        names = [each for each, value in vars(found).items() if isinstance(value, type)] if found else []
        wanted = "expected a dotted path such as package.module.Class" if not found else f"'{module}' has no such class"
        raise ConfigError(f"{where}: found class '{name}', but {wanted}{nearest(leaf, names)}")
    return result


def parameters_of(cls: type) -> dict[str, Any] | None:
    """Names and types of what `cls` accepts in YAML; None when it takes any keyword."""
    if dataclasses.is_dataclass(cls):
        names = [each.name for each in dataclasses.fields(cls) if each.init]
    else:
        signature = inspect.signature(cls.__init__)
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()):
            return None
        names = [name for name in signature.parameters if name != "self"]
    try:
        hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    except (NameError, TypeError):
        # Names imported for type checkers only: the keys are still known.
        hints = {}
    return {name: hints.get(name, Any) for name in names}


def check_keys(value: Any, hint: Any, config: Config, path: KeyPath = ()) -> None:
    """Refuse every key of `value` that the type `hint` does not accept.

    Raises:
        ConfigError: Names file and line, the key, what was expected and the nearest valid key.
    """
    options = options_of(hint)
    if isinstance(value, Mapping):
        _check_mapping(value, options, config, path)
    elif isinstance(value, int | float) and options and all(_is_composed(each) for each in options):
        raise ConfigError(f"{_head(config, path)}: found '{value}', expected a mapping")
    elif isinstance(value, str) and value.endswith(".yaml") and any(_is_composed(each) for each in options):
        place = config.location(path)
        folder = Path(place.rpartition(":")[0]).parent if place != COMMAND_LINE else Path()
        check_keys(read_yaml(folder / value, config, path), hint, config, path)
    elif isinstance(value, str) and _names_a_class(value, options):
        import_class(value, _head(config, path))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [typing.get_args(each)[0] for each in options if _origin(each) in (list, tuple, Sequence, set)]
        if not items and options and all(_is_composed(each) for each in options):
            raise ConfigError(f"{_head(config, path)}: found a list, expected a mapping")
        for index, item in enumerate(value):
            if items:
                check_keys(item, items[0], config, (*path, str(index)))


def _names_a_class(value: str, options: list[Any]) -> bool:
    """Whether a text stands for a class by its dotted path: `--trainer.callbacks=package.Callback`."""
    dotted = "." in value and all(part.isidentifier() for part in value.split("."))
    texts = [each for each in options if inspect.isclass(each) and issubclass(each, (str, Enum, PurePath))]
    return dotted and not texts and any(inspect.isclass(each) and _is_composed(each) for each in _inner(options))


def _inner(options: list[Any]) -> list[Any]:
    """The options, and what lists of them hold."""
    return [inner for each in options for inner in (each, *(typing.get_args(each) if _origin(each) is list else ()))]


def _check_mapping(value: Mapping[str, Any], options: list[Any], config: Config, path: KeyPath) -> None:
    if "class_path" in value:
        where = f"{config.location((*path, 'class_path'))}: {'.'.join(path)}"
        cls = import_class(str(value["class_path"]), where)
        bases = [each for each in options if inspect.isclass(each)]
        if bases and len(bases) == len(options) and not any(fits(cls, base) for base in bases):
            wanted = " or ".join(base.__name__ for base in bases)
            raise ConfigError(f"{where}: found class '{cls.__name__}', expected a {wanted}")
        config.classes[path] = cls
        unknown = set(value) - {"class_path", "init_args", "dict_kwargs"}
        for key in sorted(unknown):
            parameters = parameters_of(cls) or {}
            hint = f"; '{key}' belongs under init_args" if key in parameters else nearest(key, ["init_args"])
            raise ConfigError(
                f"{_head(config, (*path, key))}: found an unknown key, expected class_path and init_args{hint}"
            )
    if "class_path" in value or "init_args" in value:
        arguments = value.get("init_args")
        if path in config.classes and isinstance(arguments, Mapping):
            _check_arguments(arguments, config.classes[path], config, path)
        return
    if path in config.classes:
        _check_arguments(value, config.classes[path], config, path)
        return
    for each in options:
        if _origin(each) in (dict, Mapping):
            inner = typing.get_args(each)
            for key, item in value.items():
                check_keys(item, inner[1] if inner else Any, config, (*path, str(key)))
            return
    settings = [each for each in options if _is_settings(each)]
    if settings and len(settings) == len(options):
        accepting = [each for each in settings if set(value) <= set(parameters_of(each) or value)]
        _check_arguments(value, (accepting or settings)[0], config, path)


def _check_arguments(value: Mapping[str, Any], cls: type, config: Config, path: KeyPath) -> None:
    parameters = parameters_of(cls)
    if parameters is None:
        return
    for written, item in value.items():
        key = str(written).removesuffix("+")
        if key not in parameters:
            expected = f"one of {', '.join(parameters)}" if len(parameters) < 20 else f"an argument of {cls.__name__}"
            raise ConfigError(
                f"{_head(config, (*path, key))}: found an unknown key, expected {expected}{nearest(key, parameters)}"
            )
        check_keys(item, parameters[key], config, (*path, key))


def _head(config: Config, path: KeyPath) -> str:
    place = config.location(path)
    return f"{place}: {'.'.join(path)}" if place else ".".join(path)


def options_of(hint: Any) -> list[Any]:
    """The members of a union other than None; of another type that itself."""
    return [each for each in _union(hint) if each is not type(None)]


def _union(hint: Any) -> tuple[Any, ...]:
    if _origin(hint) in (Union, types.UnionType):
        return tuple(part for each in typing.get_args(hint) for part in _union(each))
    if _origin(hint) is typing.Annotated:
        return _union(typing.get_args(hint)[0])
    return (hint,)


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def fits(cls: type, base: type) -> bool:
    """Whether the class may stand where `base` is expected; of a protocol with properties that cannot be asked."""
    return getattr(base, "_is_protocol", False) or issubclass(cls, base)


def _is_composed(hint: Any) -> bool:
    """Whether a value of this type is written as a mapping."""
    # `Any` is a class from Python 3.11 on.
    if hint is Any or not inspect.isclass(hint):
        return _origin(hint) is dict
    return hint.__module__ != "builtins" and not issubclass(hint, _WORDS)


_WORDS = (str, int, float, bool, Enum, PurePath)


def _is_settings(hint: Any) -> bool:
    return inspect.isclass(hint) and dataclasses.is_dataclass(hint)
