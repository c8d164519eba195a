"""What classes take in YAML: names, types and defaults of their arguments, and what a type is called in a sentence."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, Union

from lightning_mllm.commands.config import ConfigError, nearest
from lightning_mllm.commands.trust import allow, refusal

WORDS = (str, int, float, bool, Enum, PurePath)
"""Types that are written as one word."""


def import_class(name: str, where: str) -> type:
    """The class with the dotted name `name`.

    Raises:
        ConfigError: There is none, or its package is not trusted; names the closest one in its module.
    """
    module, _, leaf = name.rpartition(".")
    if reason := refusal(name):
        raise ConfigError(f"{where}: found class '{name}', {reason}")
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
    if reason := refusal(f"{result.__module__}.{result.__qualname__}"):
        raise ConfigError(f"{where}: found class '{name}', {reason}")
    allow(name)
    return result


def _arguments(cls: type) -> tuple[dict[str, tuple[object, object]], bool]:
    """Type and default of each argument, and whether `cls` takes any other keyword.

    `**settings` of a class are those of the class that it extends.
    """
    if dataclasses.is_dataclass(cls):
        hints, found = _hints(cls), {}
        for each in dataclasses.fields(cls):
            if each.init:
                default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
                empty = default is dataclasses.MISSING
                found[each.name] = hints.get(each.name, Any), inspect.Parameter.empty if empty else default
        return found, False
    found: dict[str, tuple[object, object]] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        method = vars(owner)["__init__"]
        parameters, hints = inspect.signature(method).parameters, _hints(method)
        for name, each in list(parameters.items())[1:]:
            if each.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                found.setdefault(name, (hints.get(name, Any), each.default))
        if owner is object or not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
            return found, owner is object
    return found, True


def _hints(owner: object) -> dict[str, object]:
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError):
        # Names imported for type checkers only: the keys are still known.
        return {}


def parameters_of(cls: type) -> dict[str, object] | None:
    """Names and types of what `cls` accepts in YAML; None when it takes any keyword."""
    found, open_ended = _arguments(cls)
    return (
        None
        if open_ended and cls.__init__ is not object.__init__
        else {name: hint for name, (hint, _) in found.items()}
    )


def defaults_of(cls: type) -> dict[str, object]:
    """What `cls` takes where nothing is said; arguments without a default are left out."""
    found, _ = _arguments(cls)
    return {name: default for name, (_, default) in found.items() if default is not inspect.Parameter.empty}


def options_of(hint: object) -> list[object]:
    """The members of a union other than None; of another type that itself."""
    return [each for each in _union(hint) if each is not type(None)]


def takes_nothing(hint: object) -> bool:
    """Whether null is a value of this type."""
    return type(None) in _union(hint) or hint in (object, Any, None) or isinstance(hint, typing.TypeVar)


def _union(hint: object) -> tuple[object, ...]:
    if origin_of(hint) in (Union, types.UnionType):
        return tuple(part for each in typing.get_args(hint) for part in _union(each))
    if origin_of(hint) is typing.Annotated:
        return _union(typing.get_args(hint)[0])
    return (hint,)


def origin_of(hint: object) -> object:
    """`dict` of `dict[str, int]`; of a type without arguments that itself."""
    return typing.get_origin(hint) or hint


def entries_of(hint: object) -> object | None:
    """The type of the entries of a map of named entries; None where `hint` is no such map."""
    for each in options_of(hint):
        if origin_of(each) in (dict, Mapping):
            inner = typing.get_args(each)
            return inner[1] if inner else Any
    return None


def items_of(hint: object) -> object | None:
    """The type of the items of a list; None where `hint` is none."""
    for each in options_of(hint):
        if origin_of(each) in (list, tuple, Sequence, set):
            inner = typing.get_args(each)
            return inner[0] if inner else Any
    return None


def is_composed(hint: object) -> bool:
    """Whether a value of this type is written as a mapping."""
    # `Any` is a class from Python 3.11 on.
    if hint is Any or not inspect.isclass(hint):
        return origin_of(hint) is dict
    return hint.__module__ != "builtins" and not issubclass(hint, WORDS)


def settings_class(value: Mapping[str, object], hint: object) -> type | None:
    """The dataclass that a mapping without `class_path` is of: the first of the union that knows all of its keys."""
    options = options_of(hint)
    found = [each for each in options if inspect.isclass(each) and dataclasses.is_dataclass(each)]
    if not found or len(found) < len(options):
        return None
    accepting = [each for each in found if set(value) <= set(parameters_of(each) or value)]
    return (accepting or found)[0]


def is_protocol(base: type) -> bool:
    return bool(getattr(base, "_is_protocol", False))


def fits(cls: type, base: type) -> bool:
    """Whether the class may stand where `base` is expected; of a protocol with properties that cannot be asked."""
    return is_protocol(base) or issubclass(cls, base)


def called(hint: object) -> str:
    """What a value of this type is called: `a number`, `one of linear, cosine`, `a mapping`."""
    options, names = options_of(hint), {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    words = [f"one of {', '.join(choices)}"] if (choices := choices_of(hint)) else []
    for each in options:
        origin = origin_of(each)
        if origin is Literal:
            continue
        if origin is tuple and Ellipsis not in typing.get_args(each):
            words.append(f"{len(typing.get_args(each))} values")
        elif items_of(each) is not None:
            words.append("a list")
        elif inspect.isclass(each) and is_protocol(each):
            # Of the protocol and those that it extends.
            methods = [name for base in each.__mro__[::-1] for name in vars(base) if is_protocol(base)]
            own = [name for name in dict.fromkeys(methods) if not name.startswith("_")]
            words.append(f"a frozen dataclass with {', '.join(own[:-1])} and {own[-1]} (see {each.__module__})")
        elif each in names:
            words.append(names[each])
        elif is_composed(each) or origin is dict:
            words.append("a mapping")
        else:
            words.append(f"a {getattr(each, '__name__', each)}")
    return " or ".join(dict.fromkeys(words)) or "nothing"


def choices_of(hint: object) -> list[str]:
    """The words of a type that names them."""
    words = [str(word) for each in options_of(hint) if origin_of(each) is Literal for word in typing.get_args(each)]
    return list(dict.fromkeys(words))
