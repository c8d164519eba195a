"""Whether a run folder already holds what is about to be trained there: finished, begun, or something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.training.checkpoints import newest

MADE_BY_TRAINING = ("weights", "checkpoints", "metrics.csv", "test.json", "test_answers.jsonl", "answers.jsonl")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted keys in which two recipes differ, without the `init_args` in between."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new))
        return [each for key in keys for each in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == json.loads(json.dumps(new)) else [path.replace("init_args.", "")]


def is_done(run_dir: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether the stage in `run_dir` has written its weights under this recipe.

    Raises:
        ConfigError: It has, under another one; names the keys that differ.
    """
    stage_file = run_dir / "weights" / "stage.json"
    if not stage_file.is_file():
        return False
    known = json.loads(stage_file.read_text(encoding="utf-8"))["settings"]["config"]
    if isinstance(known, Mapping) and set(known) == {"mix"}:
        raise ConfigError(
            f"{run_dir}: found a mix of {', '.join(known['mix'])}, expected a stage to train; name another --run_dir,"
            " delete the folder, or say --overwrite"
        )
    _refuse_another(run_dir, known, recipe, "weights trained")
    return True


def checkpoint_of(run_dir: Path, recipe: Mapping[str, Any], recipe_of: Any) -> Path | None:
    """The newest complete checkpoint, from which a stopped stage goes on; None where there is none.

    Args:
        recipe_of: Takes from a resolved configuration what decides the result.

    Raises:
        ConfigError: It was written under another recipe; names the keys that differ.
    """
    last, config = newest(run_dir / "checkpoints"), run_dir / "config.yaml"
    if last is None:
        return None
    if config.is_file():
        known = recipe_of(yaml.safe_load(config.read_text(encoding="utf-8")))
        _refuse_another(run_dir, known, recipe, "a checkpoint written")
    return last


def _refuse_another(run_dir: Path, known: Any, recipe: Mapping[str, Any], found: str) -> None:
    if changed := sorted(differences(known, recipe)):
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{run_dir}: found {found} under other settings ({', '.join(changed[:5])}{more}), expected the same; name "
            f"another --run_dir, delete the folder to train again, or say --overwrite"
        )


def clear(run_dir: Path) -> None:
    """Removes what an earlier training left in the folder, the record of its weights first."""
    (run_dir / "weights" / "stage.json").unlink(missing_ok=True)
    for name in MADE_BY_TRAINING:
        place = run_dir / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
