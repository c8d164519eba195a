"""The best trial of a sweep as an experiment of its own, which `mllm run` takes: files that say what differs.

BEST/net.yaml      extends that of the experiment that was searched
BEST/STAGE.yaml    extends that of the stage, and states the values that were found
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.commands.command_line import read_command_line, read_files, split_options, value_at
from lightning_mllm.commands.config import EXTENDS, option_tree
from lightning_mllm.commands.run import parser, plan
from lightning_mllm.commands.sweep_agent import as_yaml
from lightning_mllm.commands.sweep_file import SweepFile, Values
from lightning_mllm.weights.files import write_text

KEPT_APART = ("runs", "run_dir", "ckpt_path")
"""Where a run is kept is no matter of what was found."""


def write_best(sweep: SweepFile, values: Values, folder: Path, *, said: str) -> list[Path]:
    """Writes the stages of a run as an experiment.

    Args:
        values: The parameters of the run.
        folder: Of the experiment.
        said: A comment at the top of each stage.
    """
    verb, *arguments = sweep.arguments(values)
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# {said}\n"
    if verb == "fit":
        _, tree, _ = read_command_line(arguments)
        kept = {key: value for key, value in tree.items() if key not in KEPT_APART}
        return [_write(folder / f"{_stage_file(arguments).stem}.yaml", head, kept)]
    given, overrides = parser().with_settings(arguments)
    planned = plan(given.experiment, hardware=given.hardware, only=given.only, runs=given.runs, overrides=overrides)
    written: list[Path] = []
    net = planned.folder / "net.yaml"
    if net.is_file():
        written.append(_write(folder / "net.yaml", head, {EXTENDS: _named(net, folder)}))
    for stage, settings in planned.settings.items():
        files = [each for each in (net, planned.folder / f"{stage}.yaml") if each.is_file()]
        _, whole, _ = read_command_line([*(f"--config={each}" for each in files), *settings])
        options = [(name, value) for name, value in split_options(settings)[1] if name.split(".")[0] not in KEPT_APART]
        written.append(_stage(folder / f"{stage}.yaml", head, files, options, whole))
    return written


def _stage_file(arguments: list[str]) -> Path:
    return split_options(arguments)[0][-1]


def _named(file: Path, folder: Path) -> str:
    """How a file in `folder` names another: from there where both are below the working directory."""
    here = Path.cwd()
    inside = file.resolve().is_relative_to(here) and folder.resolve().is_relative_to(here)
    return os.path.relpath(file.resolve(), folder.resolve()) if inside else str(file.resolve())


def _write(path: Path, head: str, tree: Mapping[str, Any]) -> Path:
    write_text(path, head + yaml.safe_dump(dict(tree), sort_keys=False, default_flow_style=None, width=110))
    return path


def _stage(
    path: Path, head: str, files: list[Path], options: list[tuple[str, str]], whole: Mapping[str, object]
) -> Path:
    """A file that extends the stage and says the options.

    A map of named entries, of which an option changes one, is stated whole in a file: where the file does not read as
    the command line did, the map around the setting is stated in its place.
    """
    extends: dict[str, Any] = {EXTENDS: _named(files[-1], path.parent)}
    tree: dict[str, Any] = {}
    for name, text in options:
        key = [each.removesuffix("+") for each in name.split(".") if each != "init_args"]
        for length in range(len(key), 0, -1):
            stated = value_at(whole, key[:length]) if length < len(key) or name.endswith("+") else None
            part = option_tree(".".join(key), as_yaml(text)) if stated is None else _nested(key[:length], stated)
            tried = _laid_over(tree, part)
            _write(path, head, {**extends, **tried})
            if value_at(read_files([*files[:-1], path]), key[:2]) == value_at(whole, key[:2]):
                break
        tree = tried
    return _write(path, head, {**extends, **tree})


def _nested(key: list[str], value: object) -> dict[str, Any]:
    for each in reversed(key):
        value = {each: value}
    assert isinstance(value, dict)
    return value


def _laid_over(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        both = isinstance(found.get(key), dict) and isinstance(value, dict)
        found[key] = _laid_over(found[key], value) if both else value
    return found
