"""What training reads in a configuration, what a test reads, and in which keys two of them differ.

A stage is the same stage under another test set, another decoding, on other hardware, in another folder, and where a
setting says what its class would take anyway. Validation sets, and how they are answered, count only where a callback
chooses weights by them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath

from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, WeightAveraging

from lightning_mllm.commands.command_line import SETTINGS
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.signatures import (
    defaults_of,
    entries_of,
    import_class,
    items_of,
    parameters_of,
    settings_class,
)
from lightning_mllm.training.callbacks.averaging import Averaging
from lightning_mllm.training.callbacks.best import BestWeights

Recipe = Mapping[str, object]

DECIDING: tuple[type, ...] = (Averaging, BestWeights, EarlyStopping, StochasticWeightAveraging, WeightAveraging)
"""Callbacks that decide which weights a stage hands over."""
LENGTH = ("max_steps", "max_epochs", "limit_train_batches", "overfit_batches")
VALIDATION = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")
"""Of the Trainer: how long it trains, and when it validates."""


def recipe_of(resolved: Recipe) -> dict[str, object]:
    """What decides the weights of a stage, in its resolved configuration or in the recipe of an older record."""
    trainer = _map(resolved["trainer"])
    callbacks = _deciding(trainer.get("callbacks") or ())
    scored = any(str(_map(each["init_args"]).get("monitor", "")).startswith("val/") for each in callbacks)
    left_out = ("test",) if scored else ()
    stage = {k: v for k, v in _map(resolved["stage"]).items() if scored or k != "validate_every"}
    return {
        "model": _without(_map(resolved["model"]), left_out or None),
        "data": _without(_map(resolved["data"]), left_out or None),
        "stage": stage,
        "seed_everything": resolved["seed_everything"],
        "trainer": {name: _batches(name, trainer.get(name)) for name in (*LENGTH, *(VALIDATION if scored else ()))}
        | ({"callbacks": callbacks} if callbacks else {}),
    }


def test_settings(resolved: Recipe) -> dict[str, object]:
    """What decides the scores of given weights, without what a class would take anyway."""
    found: dict[str, object] = {}
    for name in ("model", "data"):
        given = _map(resolved[name])
        only = [each for each in _scoring(str(given["class_path"])) if each != "val"]
        arguments = {key: value for key, value in _map(given["init_args"]).items() if key in only}
        found[name] = _map(stated({**given, "init_args": arguments}, SETTINGS[name]))["init_args"]
    return json.loads(json.dumps(found))


def _deciding(callbacks: object) -> list[dict[str, object]]:
    """Those that decide which weights a stage hands over, without where they are held meanwhile."""
    assert isinstance(callbacks, Sequence)
    found = [each for each in callbacks if issubclass(import_class(each["class_path"], "trainer.callbacks"), DECIDING)]
    return [{**each, "init_args": {k: v for k, v in each["init_args"].items() if k != "device"}} for each in found]


def _batches(name: str, value: object) -> object:
    """A limit of the Trainer, by which a whole number counts batches and a fraction is a share of them: 1 is one batch,
    1.0 (or nothing, for `limit_*`) all."""
    if not name.startswith(("limit_", "overfit_")) or isinstance(value, str):
        return value
    if name.startswith("limit_") and value is None:
        return 1.0
    return f"{value} batches" if isinstance(value, int) and value else value


def _scoring(class_path: str) -> tuple[str, ...]:
    """The arguments of a class that scoring alone reads."""
    return getattr(import_class(class_path, "config.yaml"), "read_by_scoring", ())


def _without(given: Recipe, left_out: tuple[str, ...] | None) -> dict[str, object]:
    path = str(given["class_path"])
    bounds: tuple[str, ...] = getattr(import_class(path, "config.yaml"), "bounds", ())
    names = (*bounds, *(_scoring(path) if left_out is None else left_out))
    return {**given, "init_args": {key: value for key, value in _map(given["init_args"]).items() if key not in names}}


def _map(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def stated(value: object, hint: object) -> object:
    """A setting without the arguments that are what its class takes where nothing is said."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            try:
                cls = import_class(str(value["class_path"]), "config.yaml")
            except ConfigError:
                return value  # of an older record, whose class is gone
            return {"class_path": value["class_path"], "init_args": _stated_of(cls, _map(value.get("init_args")))}
        if (inner := entries_of(hint)) is not None:
            return {key: stated(each, inner) for key, each in value.items()}
        settings = hint if isinstance(hint, type) and hint is SETTINGS["trainer"] else settings_class(value, hint)
        return dict(value) if settings is None else _stated_of(settings, value)
    if isinstance(value, list) and (item := items_of(hint)) is not None:
        return [stated(each, item) for each in value]
    return value


def _stated_of(cls: type, arguments: Recipe) -> dict[str, object]:
    hints, defaults = parameters_of(cls) or {}, defaults_of(cls)
    found = {key: stated(value, hints.get(key, object)) for key, value in arguments.items()}
    return {
        key: value
        for key, value in found.items()
        if key not in defaults or value not in _written(defaults[key], hints.get(key, object))
    }


def _written(default: object, hint: object) -> list[object]:
    """The ways in which YAML says a default."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        cls, fields = type(default), [each.name for each in dataclasses.fields(default) if each.init]
        hints = parameters_of(cls) or {}
        bare = {name: _written(getattr(default, name), hints.get(name, object))[0] for name in fields}
        short, named = _stated_of(cls, bare), f"{cls.__module__}.{cls.__qualname__}"
        return [short, {"class_path": named, "init_args": short}]
    if isinstance(default, Mapping):
        inner = entries_of(hint)
        return [{key: _written(each, inner)[0] for key, each in default.items()}]
    if isinstance(default, list | tuple | set):
        inner = items_of(hint)
        return [[_written(each, inner)[0] for each in default]]
    if isinstance(default, Enum):
        return [default.name, default.value]
    return [str(default)] if isinstance(default, PurePath) else [default]


def differences(known: Recipe, new: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, sorted, without the `init_args` in between."""
    old, now = (
        {key: stated(value, SETTINGS.get(key, object)) for key, value in recipe_of(each).items()}
        for each in (known, json.loads(json.dumps(new)))
    )
    return sorted(_differing(old, now, ""))


def _differing(old: object, new: object, path: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [each for key in keys for each in _differing(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [path.replace("init_args.", "")]
