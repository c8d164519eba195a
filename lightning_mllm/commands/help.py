"""`--model.help CLASS`, `--data.help`, `--stage.lora.help`: what a key of a stage file takes."""

from __future__ import annotations

import inspect
import pkgutil
import typing
from collections.abc import Iterator, Sequence
from importlib import import_module

import jsonargparse

from lightning_mllm.commands.command_line import SETTINGS, Options, read_files, split_options
from lightning_mllm.commands.config import COMMAND_LINE, Config, ConfigError, nearest
from lightning_mllm.commands.signatures import fits, import_class, options_of, parameters_of

WHERE = {"model": ("lightning_mllm.architectures",), "data": ("data_modules",)}
"""Packages whose classes are listed where none is named."""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks what a key takes."""
    return any(each.startswith("--") and each.partition("=")[0].endswith(".help") for each in arguments)


def show_help(arguments: Sequence[str]) -> None:
    """Print what the keys take that `--KEY.help [CLASS]` names; KEY's class is the given one, or that of the files.

    Raises:
        ConfigError: There is no such key or class.
    """
    rest, asked = _take_out(arguments)
    configs, _ = split_options(rest)
    config = Config()
    read_files(configs, config)
    for dotted, name in asked:
        _show(tuple(part for part in dotted.split(".") if part != "init_args"), name, config)


def _take_out(arguments: Sequence[str]) -> tuple[list[str], Options]:
    """The command line without what asks for help, and that: key and class, which may be empty."""
    rest: list[str] = []
    asked: Options = []
    given = list(arguments)
    while given:
        each = given.pop(0)
        name, equals, value = each.partition("=")
        if name.startswith("--") and name.endswith(".help"):
            if not equals and given and not given[0].startswith("-") and "=" not in given[0]:
                value = given.pop(0)
            asked.append((name.removeprefix("--").removesuffix(".help"), value))
        else:
            rest.append(each)
    return rest, asked


def _show(path: tuple[str, ...], name: str, config: Config) -> None:
    dotted = ".".join(path)
    bases, entries = _classes_taken(path, config)
    if name:
        chosen = [import_class(name, f"{COMMAND_LINE}: --{dotted}.help")]
        if bases and not any(fits(chosen[0], base) for base in bases):
            wanted = " or ".join(base.__name__ for base in bases)
            raise ConfigError(f"--{dotted}.help: found class '{name}', expected a {wanted}")
    else:
        chosen = [config.classes[path]] if path in config.classes else bases
    for cls in chosen:
        if not name and (known := sorted(_subclasses(cls, path[0]))):
            print(f"{dotted} is a {cls.__name__}; --{dotted}.help CLASS shows what one takes:")
            print("\n".join(f"  {each}" for each in known), end="\n\n")
            continue
        key = f"{dotted}.NAME" if entries else dotted
        parser = jsonargparse.ArgumentParser(prog=f"mllm fit --{key}", add_help=False)
        parser.add_class_arguments(cls, key, fail_untyped=False)
        shown = parser.format_help()
        print(shown[shown.index("\n\n") + 2 :] if "\n\n" in shown else shown)


def _classes_taken(path: tuple[str, ...], config: Config) -> tuple[list[type], bool]:
    """Which classes the key takes, followed from the top through the classes that the files name; and whether it is the
    entries of the key that take them.

    Raises:
        ConfigError: There is no such key.
    """
    if path[0] not in SETTINGS:
        raise ConfigError(f"--{'.'.join(path)}.help: found no setting '{path[0]}'{nearest(path[0], SETTINGS)}")
    hints = [SETTINGS[path[0]]]
    for depth, key in enumerate(path[1:], start=1):
        before = path[:depth]
        owners = [config.classes[before]] if before in config.classes else _classes(hints)
        known = {name: hint for owner in owners for name, hint in (parameters_of(owner) or {}).items()}
        if owners and key not in known:
            raise ConfigError(
                f"--{'.'.join(path)}.help: found no key '{key}' in {' or '.join(each.__name__ for each in owners)}"
                f"{nearest(key, known)}"
            )
        hints = [known[key]] if owners else _entries(hints)
    entries = not _classes(hints) and bool(_classes(_entries(hints)))
    hints = _entries(hints) if entries else hints
    if path not in config.classes and not _classes(hints):
        kind = ", ".join(str(getattr(hint, "__name__", hint)) for hint in hints) or "nothing"
        raise ConfigError(f"--{'.'.join(path)}.help: found a key of type {kind}, expected one with keys of its own")
    return _classes(hints), entries


def _entries(hints: Sequence[object]) -> list[object]:
    """What maps and lists of these types hold."""
    return [each for hint in hints for option in options_of(hint) for each in typing.get_args(option)[-1:]]


def _classes(hints: Sequence[object]) -> list[type]:
    options = [each for hint in hints for each in options_of(hint)]
    return [each for each in options if inspect.isclass(each) and each.__module__ != "builtins"]


def _subclasses(base: type, top: str) -> Iterator[str]:
    """Dotted names of the classes that are a `base`, in our packages."""
    if getattr(base, "_is_protocol", False):
        return
    for package in WHERE.get(top, ()):
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            for value in vars(import_module(module.name)).values():
                own = inspect.isclass(value) and value.__module__ == module.name and not inspect.isabstract(value)
                if own and issubclass(value, base) and value is not base and not value.__name__.startswith("_"):
                    yield f"{module.name}.{value.__name__}"
