"""Whether a run folder already holds what is about to be made there: trained, begun, tested, or something else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.identity import (
    IDENTITY,
    changed_files_of,
    is_allowed,
    moved_folders,
    read_identity,
    refuse,
)
from lightning_mllm.commands.recipe import Recipe, differences
from lightning_mllm.commands.run_files import read_config, read_record
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
    IDENTITY,
)
"""What there is no more of once the stage is trained anew; what W&B keeps of the earlier run is that run's."""


def is_done(run_dir: Path, recipe: Recipe, allowed: Sequence[str] = ()) -> bool:
    """Whether the stage in `run_dir` has written its weights under this recipe, from files that hold the same still.

    Args:
        allowed: Names of differences that make no other stage (`--allow-drift`).

    Raises:
        ConfigError: It has, under another one, or from other data; names what differs.
    """
    stage_file = run_dir / WEIGHTS / RECORD
    if not stage_file.is_file():
        return False
    known = _trained(run_dir)["settings"]["config"]
    if isinstance(known, Mapping) and set(known) == {"mix"}:
        raise ConfigError(
            f"{run_dir}: found a mix of {', '.join(known['mix'])}, expected a stage to train; name another --run_dir,"
            " delete the folder, or say --overwrite"
        )
    changed = _refuse_another(run_dir, known, recipe, "weights trained", allowed)
    refuse(run_dir, {name: what for name, what in changed.items() if not is_allowed(name, allowed)}, done=True)
    return True


def refuse_changed_source(run_dir: Path) -> None:
    """Raises ConfigError where a stage beside this finished one, from which it starts, was trained anew since then."""
    record = _trained(run_dir)
    used = {each["sha256"] for each in record["lineage"]}
    for name in record["init_from"]:
        beside = {} if "/" in name else _trained(run_dir.parent / name)
        if beside and beside["sha256"] not in used:
            raise ConfigError(
                f"{run_dir}: found weights trained from other weights of '{name}' than are there now, expected the"
                " same; delete the folder to train again, or say --overwrite"
            )


def checkpoint_of(run_dir: Path, recipe: Recipe, allowed: Sequence[str] = ()) -> Path | None:
    """The folder of checkpoints, from whose newest whole one a stopped stage goes on; None where none was written.

    Raises:
        ConfigError: They were written under another recipe; names the keys that differ.
        ValueError: One was written, and none is there.
    """
    folder, config = run_dir / "checkpoints", run_dir / "config.yaml"
    if not must_have(folder):
        return None
    if known := read_config(config, "delete it to go on with the settings that are given now, or say --overwrite"):
        _refuse_another(run_dir, known, recipe, "a checkpoint written", allowed)
    return folder


def changed_settings(run_dir: Path, recipe: Recipe) -> list[str]:
    """The settings in which the stage that goes on differs from its `config.yaml`: those that were allowed."""
    known = read_config(run_dir / "config.yaml", "delete it")
    return differences(known, recipe) if known else []


def allowed_names(run_dir: Path, allowed: Sequence[str]) -> tuple[str, ...]:
    """Of differences: those that are allowed now, and those that were before."""
    before = (name for each in read_identity(run_dir).get("drift", ()) for name in each["names"])
    return (*allowed, *before)


def _refuse_another(run_dir: Path, known: Recipe, recipe: Recipe, found: str, allowed: Sequence[str]) -> dict[str, str]:
    """The files that settings name and whose content changed.

    Raises:
        ConfigError: Other settings differ, but for those that are allowed, and places of the same data.
    """
    other = [name for name in differences(known, recipe) if not is_allowed(name, allowed)]
    files, same = changed_files_of(run_dir, recipe)
    other = [name for name in other if name not in same and name not in files]
    moved = moved_folders(run_dir, recipe, other) if other else set()
    if changed := [name for name in other if name not in moved]:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{run_dir}: found {found} under other settings ({', '.join(changed[:5])}{more}), expected the same; name "
            f"another --run_dir, delete the folder to train again, say --overwrite, or --allow-drift {changed[0]}"
        )
    return files


def is_tested(run_dir: Path, settings: Recipe) -> bool:
    """Whether its `test.json` is of its weights and of these settings, wherever the folder was copied to."""
    tested, trained = _tested(run_dir), _trained(run_dir)
    return bool(tested) and tested.get("weights") == trained.get("sha256") and tested.get("settings") == settings


def note_test(run_dir: Path, settings: Recipe) -> None:
    """Writes into `test.json` what its scores are of; a test that is stopped before that is taken again."""
    if tested := _tested(run_dir):
        write_json(run_dir / "test.json", {**tested, "settings": settings})


def _tested(run_dir: Path) -> dict:
    return read_record(run_dir / "test.json", "delete it to test again")


def _trained(run_dir: Path) -> dict:
    """The record of a stage's weights; nothing where it has none."""
    file, remedy = run_dir / WEIGHTS / RECORD, "put it back, or delete the folder of weights to train again"
    found = read_record(file, remedy)
    kinds = {"settings": dict, "lineage": list, "init_from": dict, "sha256": str}
    for name, kind in kinds.items() if found else ():
        if not isinstance(found.get(name), kind) or (name == "settings" and "config" not in found[name]):
            raise ConfigError(f"{file}: found no {name}, expected the record of a stage; {remedy}")
    return found


def clear(run_dir: Path) -> None:
    """Removes what an earlier training left in the folder, the record of its weights first."""
    (run_dir / WEIGHTS / RECORD).unlink(missing_ok=True)
    for name in MADE_BY_TRAINING:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
