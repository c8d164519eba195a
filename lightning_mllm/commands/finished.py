"""Whether a run folder already holds what is about to be made there: trained, begun, tested, or something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.recipe import Recipe, differences
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.training.checkpoints.finding import must_have
from lightning_mllm.weights.lineage import RECORD, WEIGHTS

MADE_BY_TRAINING = (
    "weights",
    "checkpoints",
    "checkpoints.json",
    "metrics.csv",
    "test.json",
    "test_answers.jsonl",
    "answers.jsonl",
    "wandb/tracked.json",
)
"""What there is no more of once the stage is trained anew; what W&B keeps of the earlier run is that run's."""


def is_done(run_dir: Path, recipe: Recipe) -> bool:
    """Whether the stage in `run_dir` has written its weights under this recipe.

    Raises:
        ConfigError: It has, under another one; names the keys that differ.
    """
    stage_file = run_dir / WEIGHTS / RECORD
    if not stage_file.is_file():
        return False
    known = _read(stage_file)["settings"]["config"]
    if isinstance(known, Mapping) and set(known) == {"mix"}:
        raise ConfigError(
            f"{run_dir}: found a mix of {', '.join(known['mix'])}, expected a stage to train; name another --run_dir,"
            " delete the folder, or say --overwrite"
        )
    _refuse_another(run_dir, known, recipe, "weights trained")
    return True


def refuse_changed_source(run_dir: Path) -> None:
    """Raises ConfigError where a stage beside this finished one, from which it starts, was trained anew since then."""
    record = _read(run_dir / WEIGHTS / RECORD)
    used = {each["sha256"] for each in record["lineage"]}
    for name in record["init_from"]:
        beside = {} if "/" in name else _read(run_dir.parent / name / WEIGHTS / RECORD)
        if beside and beside["sha256"] not in used:
            raise ConfigError(
                f"{run_dir}: found weights trained from other weights of '{name}' than are there now, expected the"
                " same; delete the folder to train again, or say --overwrite"
            )


def checkpoint_of(run_dir: Path, recipe: Recipe) -> Path | None:
    """The folder of checkpoints, from whose newest whole one a stopped stage goes on; None where none was written.

    Raises:
        ConfigError: They were written under another recipe; names the keys that differ.
        ValueError: One was written, and none is there.
    """
    folder, config = run_dir / "checkpoints", run_dir / "config.yaml"
    if not must_have(folder):
        return None
    if config.is_file():
        known = yaml.safe_load(config.read_text(encoding="utf-8"))
        _refuse_another(run_dir, known, recipe, "a checkpoint written")
    return folder


def _refuse_another(run_dir: Path, known: Recipe, recipe: Recipe, found: str) -> None:
    if changed := differences(known, recipe):
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{run_dir}: found {found} under other settings ({', '.join(changed[:5])}{more}), expected the same; name "
            f"another --run_dir, delete the folder to train again, or say --overwrite"
        )


def is_tested(run_dir: Path, settings: Recipe) -> bool:
    """Whether its `test.json` is of its weights and of these settings, wherever the folder was copied to."""
    tested, trained = _read(run_dir / "test.json"), _read(run_dir / WEIGHTS / RECORD)
    return bool(tested) and tested.get("weights") == trained.get("sha256") and tested.get("settings") == settings


def note_test(run_dir: Path, settings: Recipe) -> None:
    """Writes into `test.json` what its scores are of; a test that is stopped before that is taken again."""
    if tested := _read(run_dir / "test.json"):
        write_json(run_dir / "test.json", {**tested, "settings": settings})


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def clear(run_dir: Path) -> None:
    """Removes what an earlier training left in the folder, the record of its weights first."""
    (run_dir / WEIGHTS / RECORD).unlink(missing_ok=True)
    for name in MADE_BY_TRAINING:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
