"""One configuration from many files: what a later one says is laid over the earlier ones, and each key is checked.

Maps of settings merge. Lists and maps of named entries (`data.train`, `stage.train`, `decoding`) are replaced whole;
`key+:` adds to a list. A YAML file named where settings are expected is read, relative to the file that names it. A
class of another name keeps those arguments of the earlier one that it takes too.

jsonargparse reads the result; what is wrong with a value is told by `wrong_values`.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath

from lightning_mllm.commands.config import (
    COMMAND_LINE,
    Config,
    ConfigError,
    KeyPath,
    layers,
    nearest,
    nearest_file,
)
from lightning_mllm.commands.signatures import (
    called,
    entries_of,
    fits,
    import_class,
    is_composed,
    items_of,
    options_of,
    origin_of,
    parameters_of,
    settings_class,
)
from lightning_mllm.commands.trust import allow, refusal
from lightning_mllm.commands.wrong_values import accepts
from lightning_mllm.commands.yaml_text import DEPTH

LIKE_A_NUMBER = re.compile(r"[-+]?(?:0[0-9_]+|[0-9]+(?::[0-9]+)+)")
"""Which older YAML reads as one: 0123 as 83, and 1:30 as 90."""


def merged(old: object, new: object, hint: object, config: Config, path: KeyPath = (), dotted: int = 0) -> object:
    """`new`, which stands at `path`, laid over `old`.

    Args:
        old: What is there already; None for nothing.
        new: As in YAML.
        hint: The type of the setting.
        config: Where keys stand; notes the classes that are named.
        path: Of the setting.
        dotted: How many keys below `path` an option names, `--data.train.captions.limit=3`: of a map of named entries
            it changes one.

    Raises:
        ConfigError: Names file and line, the key, what was expected and the nearest valid key.
    """
    options = options_of(hint)
    all_composed = bool(options) and all(map(is_composed, options))
    if isinstance(new, Mapping):
        return _mapping(old, new, hint, config, path, dotted)
    if isinstance(new, str) and (file := _file_named(new, options, config, path)) is not None:
        if not file.is_file():
            raise ConfigError(f"{config.head(path)}: found no file {new}, expected one{nearest_file(file)}")
        if len(path) > DEPTH:
            raise ConfigError(f"{config.head(path)}: found files more than {DEPTH} deep in one another, expected fewer")
        for _, tree in layers(file, config, path):
            old = merged(old, tree, hint, config, path)
        return old
    if (
        isinstance(new, str)
        and LIKE_A_NUMBER.fullmatch(new)
        and options
        and all(each in (int, float) for each in options)
    ):
        raise ConfigError(f"{config.head(path)}: found '{new}', expected {called(hint)}")
    if isinstance(new, str) and _names_a_class(new, options):
        import_class(new, config.head(path))
    elif isinstance(new, str) and _is_dotted(new) and any(origin_of(each) in (Callable, type) for each in options):
        if reason := refusal(new):
            raise ConfigError(f"{config.head(path)}: found '{new}', {reason}")
        allow(new)
    elif isinstance(new, int | float) and all_composed:
        raise ConfigError(f"{config.head(path)}: found '{new}', expected a mapping")
    elif isinstance(new, list):
        item = items_of(hint)
        if item is None and all_composed:
            raise ConfigError(f"{config.head(path)}: found a list, expected a mapping")
        return [merged(None, each, item or object, config, (*path, str(i))) for i, each in enumerate(new)]
    return new


def _names_a_class(value: str, options: list[object]) -> bool:
    """Whether a text stands for a class by its dotted path: `--trainer.callbacks=package.Callback`."""
    return _is_dotted(value) and _takes_classes(options)


def _is_dotted(value: str) -> bool:
    return "." in value and all(part.isidentifier() for part in value.split("."))


def _takes_classes(options: list[object]) -> bool:
    """Whether a text where one of these types is expected is none of its values, but names one."""
    texts = [each for each in options if inspect.isclass(each) and issubclass(each, (str, Enum, PurePath))]
    inner = [*options, *(items_of(each) for each in options if origin_of(each) is list)]
    return not texts and any(inspect.isclass(each) and is_composed(each) for each in inner)


def _file_named(value: str, options: list[object], config: Config, path: KeyPath) -> Path | None:
    """The file of settings that a text stands for, relative to the file that states it; None where it does not.

    jsonargparse would read a file of any name and of any size.
    """
    if not (any(map(is_composed, options)) if value.endswith(".yaml") else _takes_classes(options)):
        return None
    where = config.location(path)
    folder = Path(where.rpartition(":")[0]).parent if where != COMMAND_LINE else Path()
    found = value.endswith(".yaml") or any(_is_file(each / value) for each in (folder, Path()))
    return folder / value if found else None


def _is_file(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def _mapping(
    old: object, new: Mapping[str, object], hint: object, config: Config, path: KeyPath, dotted: int
) -> object:
    before = old if isinstance(old, Mapping) else {}
    if "class_path" in new:
        cls = _class_named(new, hint, config, path)
    else:
        cls = config.classes.get(path) if "class_path" in before or len(path) == 1 else None
    if cls is not None:
        stated = new.get("init_args") if "class_path" in new or "init_args" in new else new
        given = before.get("init_args", {}) if "class_path" in before else before
        name = str(new.get("class_path", before.get("class_path", "")))
        if "class_path" in before and name != before["class_path"]:
            known = parameters_of(cls) or {}
            given = {key: value for key, value in given.items() if key in known and accepts(value, known[key])}
        if not name:
            return _arguments(given, new, cls, config, path, dotted)
        if stated is not None and not isinstance(stated, Mapping):
            raise ConfigError(f"{config.head(path)}: found '{stated}' as init_args, expected a mapping")
        arguments = given if stated is None else _arguments(given, stated, cls, config, path, dotted)
        more = {"dict_kwargs": new["dict_kwargs"]} if "dict_kwargs" in new else {}
        _check_classes_in(more, config, path)
        return {"class_path": name, "init_args": arguments, **more}
    if "init_args" in new:
        _check_classes_in(new, config, path)
        return dict(new)
    if (inner := entries_of(hint)) is not None:
        entries = dict(before) if dotted else {}
        for key, value in new.items():
            entries[key] = merged(entries.get(key), value, inner, config, (*path, str(key)), max(0, dotted - 1))
        return entries
    if (settings := settings_class(new, hint)) is not None:
        return _arguments(before, new, settings, config, path, dotted)
    _check_classes_in(new, config, path)
    return dict(new)


def _check_classes_in(value: object, config: Config, path: KeyPath) -> None:
    """Refuses classes that may not be named, however deep they stand in what has no type."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            import_class(str(value["class_path"]), config.head(path))
        for key, each in value.items():
            _check_classes_in(each, config, path if key == "init_args" else (*path, str(key)))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check_classes_in(each, config, (*path, str(number)))


def _class_named(new: Mapping[str, object], hint: object, config: Config, path: KeyPath) -> type:
    where = f"{config.location((*path, 'class_path'))}: {'.'.join(path)}"
    cls = import_class(str(new["class_path"]), where)
    options = options_of(hint)
    bases = [each for each in options if inspect.isclass(each)]
    if bases and len(bases) == len(options) and not any(fits(cls, base) for base in bases):
        wanted = " or ".join(base.__name__ for base in bases)
        raise ConfigError(f"{where}: found class '{cls.__name__}', expected a {wanted}")
    config.classes[path] = cls
    for key in sorted(set(new) - {"class_path", "init_args", "dict_kwargs"}):
        known = key in (parameters_of(cls) or {})
        near = f"; '{key}' belongs under init_args" if known else nearest(key, ["init_args"])
        where = config.head((*path, key))
        raise ConfigError(f"{where}: found an unknown key, expected class_path and init_args{near}")
    return cls


def _arguments(
    old: Mapping[str, object], new: Mapping[str, object], cls: type, config: Config, path: KeyPath, dotted: int
) -> dict[str, object]:
    """The arguments of a class."""
    parameters, found = parameters_of(cls), dict(old)
    for written, value in new.items():
        key = str(written).removesuffix("+")
        if parameters is not None and key not in parameters:
            expected = f"one of {', '.join(parameters)}" if len(parameters) < 20 else f"an argument of {cls.__name__}"
            raise ConfigError(
                f"{config.head((*path, key))}: found an unknown key, expected {expected}{nearest(key, parameters)}"
            )
        hint = object if parameters is None else parameters[key]
        before = found.get(key)
        now = merged(before, value, hint, config, (*path, key), max(0, dotted - 1))
        found[key] = now if key == written else [*_several(before), *_several(now)]
    return found


def _several(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def check_keys(value: object, hint: object, config: Config, path: KeyPath = ()) -> None:
    """Refuse every key of `value` that the type `hint` does not accept.

    Raises:
        ConfigError: As `merged`.
    """
    merged(None, value, hint, config, path)
