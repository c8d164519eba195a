"""Numbers that no stage can train with, and weights that are not there: told before a net, or data, is built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jsonargparse

from lightning_mllm.commands.config import ADDRESS
from lightning_mllm.commands.hardware import Hardware
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.files import PICKLES
from lightning_mllm.weights.lineage import InitSource

TENSORS = (".safetensors", *PICKLES)
SEEDS = 2**32
"""As many as numpy takes."""


def check_settings(settings: jsonargparse.Namespace) -> None:
    """Refuses numbers out of their range, and any that is infinite or not a number.

    Args:
        settings: Of a verb, with nothing built.

    Raises:
        ValueError: Names the key.
    """
    # The net's copy of the stage comes after the stage.
    for path, number in _numbers({"stage": settings["stage"], **vars(settings)}, ""):
        if not math.isfinite(number):
            raise ValueError(f"{path}: found {number}, expected a finite number")
    seed = settings["seed_everything"]
    if not isinstance(seed, bool) and not 0 <= seed < SEEDS:
        raise ValueError(f"seed_everything: found {seed}, expected a number from 0 to {SEEDS - 1}")
    for name in ("run_dir", "runs"):
        if ADDRESS.match(str(settings[name])):
            raise ValueError(f"{name}: found the address {settings[name]}, expected a folder of this machine")
    StageCheckpoint(settings["checkpoint_every"])
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--stage", type=StageSettings)
    parser.add_argument("--hardware", type=Hardware)
    parser.instantiate(jsonargparse.Namespace({name: settings[name].clone() for name in ("stage", "hardware")}))


def check_sources(sources: Iterable[str], runs: Path) -> None:
    """Refuses weights to start from that are not there.

    Raises:
        ValueError: Names the first of them.
    """
    for source in sources:
        try:
            found = InitSource.find(source, runs).path
        except ValueError as error:
            raise ValueError(f"stage.{error}") from None
        if found.is_file() and found.suffix not in TENSORS:
            raise ValueError(f"stage.init_from: found {source}, expected a file of tensors ({', '.join(TENSORS)})")


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    """Every number that is no whole one, with its key, without the `init_args` in between."""
    value = vars(value) if isinstance(value, jsonargparse.Namespace) else value
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _numbers(each, path if name == "init_args" else f"{path}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each, path)
    elif isinstance(value, float):
        yield path, value
