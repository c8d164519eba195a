"""Which value a class does not take, told in one sentence: file, line, key, found, expected.

jsonargparse judges; asked of one value at a time, its yes or no says which value it is, and its types say what was
expected. Only asked where it has refused the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import jsonargparse
from lightning import Trainer

from lightning_mllm.commands.config import Config, ConfigError, KeyPath, nearest
from lightning_mllm.commands.signatures import (
    called,
    choices_of,
    defaults_of,
    entries_of,
    import_class,
    items_of,
    parameters_of,
    settings_class,
    takes_nothing,
)

Wrong = tuple[KeyPath, str]
"""The key of a value, and what is wrong with it."""


def accepts(value: object, hint: object) -> bool:
    """Whether jsonargparse takes a value, as in YAML, for a setting of this type."""
    if value is None:  # which a parser takes for nothing said
        return takes_nothing(hint)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)  # pyright: ignore[reportArgumentType]
    except ValueError:
        return True  # a type that it does not check
    try:
        parser.parse_object({"value": value})
    except (jsonargparse.ArgumentError, ValueError, TypeError, KeyError):
        return False
    return True


def in_one_sentence(
    error: BaseException, tree: Mapping[str, object], settings: Mapping[str, object], config: Config
) -> ConfigError | None:
    """The sentence for an error that was raised while a configuration was read and what it names was built.

    Args:
        error: What was raised.
        tree: The whole configuration, as in YAML.
        settings: The type of each of its keys.
        config: Where keys stand.

    Returns:
        None where the error is of no setting.
    """
    if isinstance(error, NotImplementedError) and error.__context__ is not None:
        error = error.__context__  # Lightning tears down what was not built yet
    first = _first(error)
    if _in_jsonargparse(first):
        return _explain(tree, settings, config, str(error))
    sentence = placed(str(first), settings, config)
    told = isinstance(first, ValueError) and (first is not error or sentence != str(error))
    return ConfigError(sentence) if told else None


def refused_by_trainer(given: Mapping[str, object]) -> str:
    """The first setting that the Trainer refuses by itself; all of them, where they only do not go together."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for name, value in given.items():
        if name not in (*quiet, "callbacks", "default_root_dir"):
            try:
                Trainer(**{name: value}, **quiet)  # pyright: ignore[reportArgumentType]
            except Exception:
                return f"trainer.{name}"
    return "trainer"


def _first(error: BaseException) -> BaseException:
    """What jsonargparse, which tells of it in words of its own, was told by a class; else `error` itself."""
    while _in_jsonargparse(error) and (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _in_jsonargparse(error: BaseException) -> bool:
    """Whether jsonargparse raised it while it checked values, as opposed to code that a value was handed to."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "jsonargparse" in trace.tb_frame.f_code.co_filename


def _explain(tree: Mapping[str, object], settings: Mapping[str, object], config: Config, message: str) -> ConfigError:
    """The first value of `tree` that no setting takes; `message` where each value by itself is right."""
    every = [(key, tree.get(key), hint) for key, hint in settings.items() if key in tree]
    for search in (_wrong, partial(_wrong, missing=True)):
        for key, value, hint in every:
            for path, sentence in search(value, hint, (key,), config):
                return ConfigError(f"{config.head(path)}: {sentence}")
    return ConfigError(placed(" ".join(message.split()), settings, config))


def placed(sentence: str, settings: Mapping[str, object], config: Config) -> str:
    """A sentence of our own that begins with a key, or the end of one, with the file and the line before it."""
    head, colon, rest = sentence.partition(": ")
    key = tuple(head.split("."))
    if not colon or not head:
        return sentence
    if key[0] not in settings:
        # Who raised it does not know below which key it stands.
        known = [each for each in config.locations if each[-len(key) :] == key]
        if len(known) != 1:
            return sentence
        key = known[0]
    return f"{config.head(key)}: {rest}"


def _wrong(value: object, hint: object, path: KeyPath, config: Config, missing: bool = False) -> Iterator[Wrong]:
    """What is wrong with a value, from the inside out.

    Args:
        missing: Whether to look for arguments that are absent, too.
    """
    cls, arguments = None, value
    if isinstance(value, Mapping):
        if "class_path" in value:
            cls, arguments = import_class(str(value["class_path"]), config.head(path)), value.get("init_args") or {}
        elif entries_of(hint) is not None:
            for key, each in value.items():
                yield from _wrong(each, entries_of(hint), (*path, str(key)), config, missing)
        elif path == ("trainer",):
            cls = hint if isinstance(hint, type) else None
        else:
            cls = settings_class(value, hint)
    elif isinstance(value, list) and (item := items_of(hint)) is not None:
        for index, each in enumerate(value):
            inside = path if not isinstance(each, Mapping) else (*path, str(index))
            yield from _wrong(each, item, inside, config, missing)
    if cls is not None and isinstance(arguments, Mapping):
        parameters, defaults = parameters_of(cls) or {}, defaults_of(cls)
        for key, each in arguments.items():
            yield from _wrong(each, parameters.get(key, object), (*path, key), config, missing)
        for key in parameters if missing else ():
            if key not in arguments and key not in defaults:
                yield (*path, key), f"found nothing, expected {called(parameters[key])}"
    composed = cls is not None and not (isinstance(value, Mapping) and "class_path" in value)
    if not composed and not accepts(value, hint):
        found = value["class_path"] if isinstance(value, Mapping) and "class_path" in value else value
        yield path, f"found '{found}', expected {called(hint)}{nearest(str(found), choices_of(hint))}"
