"""Whether a run folder already holds what is about to be made there: trained, begun, tested, or something else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.identity import (
    IDENTITY,
    changed_files_of,
    is_allowed,
    moved_folders,
    read_identity,
    refuse,
)
from lightning_mllm.commands.lock import LOCK
from lightning_mllm.commands.recipe import Recipe, differences
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.checkpoints.finding import candidates, must_have
from lightning_mllm.weights.lineage import RECORD, WEIGHTS
from lightning_mllm.weights.run_records import REMEDY, read_config, read_record, read_test

MADE_BY_TRAINING = (
    "checkpoints.json",
    "metrics.csv",
    "skipped_steps.jsonl",
    "test.json",
    "test_answers.jsonl",
    "answers.jsonl",
    "wandb/tracked.json",
    IDENTITY,
)
"""What there is no more of once the stage is trained anew; what W&B keeps of the earlier run is that run's."""
FOLDERS = {
    WEIGHTS: ("*.safetensors", "*.safetensors.index.json", ".*.writing"),
    "checkpoints": ("step-*", ".step-*", "best-*", ".best-*"),
}
"""The same of folders, in which something else may lie."""
LOGGED = ("wandb", "tensorboard", "csv", "mlruns")
"""Folders of loggers (commands/loggers.py)."""
OURS_BEFORE = (LOCK, *LOGGED, "bad_samples.jsonl", "answers.jsonl", "test_answers.jsonl")
LOGS = (".log", ".out", ".err", ".ckpt", ".writing", ".part")
"""What may be in the folder of a run that has not begun: what a launcher writes there, or a run that was stopped, or a
command that used what the stage would start from (`mllm predict`)."""


def is_done(run_dir: Path, recipe: Recipe, allowed: Sequence[str] = ()) -> bool:
    """Whether the stage in `run_dir` has written its weights under this recipe, from files that hold the same still.

    Args:
        allowed: Names of differences that make no other stage (`--allow-drift`).

    Raises:
        ConfigError: It has, under another one, or from other data; names what differs.
    """
    refuse_foreign(run_dir)
    if not (run_dir / WEIGHTS / RECORD).is_file():
        return False
    known = _trained(run_dir)["settings"].get("config")
    if not isinstance(known, Mapping):
        raise ConfigError(
            f"{run_dir / WEIGHTS / RECORD}: found no 'config' in 'settings', expected that of a stage; {REMEDY}"
        )
    if set(known) == {"mix"}:
        raise ConfigError(
            f"{run_dir}: found a mix of {', '.join(known['mix'])}, expected a stage to train; name another --run_dir,"
            " or say --overwrite"
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
                " same; name another --runs to train again, or say --overwrite"
            )


def checkpoint_of(run_dir: Path, recipe: Recipe, allowed: Sequence[str] = ()) -> Path | None:
    """The folder of checkpoints, from whose newest whole one a stopped stage goes on; None where none was written.

    Raises:
        ConfigError: They were written under another recipe; names the keys that differ.
        ValueError: One was written, and none is there.
    """
    folder, config = run_dir / "checkpoints", run_dir / "config.yaml"
    _check_metrics(run_dir)
    if not must_have(folder):
        return None
    if known := read_config(config, "move it away to go on with the settings that are given now, or say --overwrite"):
        _refuse_another(run_dir, known, recipe, "a checkpoint written", allowed)
    return folder


def changed_settings(run_dir: Path, recipe: Recipe) -> list[str]:
    """The settings in which the stage that goes on differs from its `config.yaml`: those that were allowed."""
    known = read_config(run_dir / "config.yaml", "move it away")
    return differences(known, recipe) if known else []


def allowed_names(run_dir: Path, allowed: Sequence[str]) -> tuple[str, ...]:
    """Of differences: those that are allowed now, and those that were before."""
    before = (name for each in read_identity(run_dir).get("drift", ()) for name in each["names"])
    return (*allowed, *before)


def _refuse_another(run_dir: Path, known: Recipe, recipe: Recipe, found: str, allowed: Sequence[str]) -> dict[str, str]:
    """The files that settings name and whose content changed.

    Raises:
        ConfigError: Other settings differ, but for those that are allowed, and data that were moved.
    """
    other = [name for name in differences(known, recipe) if not is_allowed(name, allowed)]
    files, same = changed_files_of(run_dir, recipe)
    other = [name for name in other if name not in same and name not in files]
    moved = moved_folders(run_dir, recipe, other) if other else set()
    if changed := [name for name in other if name not in moved]:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{run_dir}: found {found} under other settings ({', '.join(changed[:5])}{more}), expected the same; name "
            f"another --run_dir, say --overwrite to train anew, or --allow-drift {changed[0]}"
        )
    return files


class NotDone(SystemExit):
    """A training ended, and its stage is not done; the code says that the same command goes on (EX_TEMPFAIL)."""

    def __init__(self) -> None:
        super().__init__(75)


@rank_zero_only
def check_done(run_dir: Path) -> None:
    """Raises NotDone where a training left no weights, as one whose time was up (`trainer.max_time`)."""
    if not (run_dir / WEIGHTS / RECORD).is_file():
        print(f"{run_dir}: found no weights at the end of the training, the stage is not done", file=sys.stderr)
        raise NotDone


def remove_unfinished_files(run_dir: Path) -> None:
    """Removes what a killed training was about to write; nobody else writes there."""
    for pattern in (".*.writing", f"{WEIGHTS}/.*.writing", ".metrics.csv.part"):
        for each in run_dir.glob(pattern):
            each.unlink(missing_ok=True)


def is_tested(run_dir: Path, settings: Recipe) -> bool:
    """Whether its `test.json` is of its weights and of these settings, wherever the folder was copied to."""
    tested, trained = read_test(run_dir / "test.json"), _trained(run_dir)
    return bool(tested) and tested.get("weights") == trained.get("sha256") and tested.get("settings") == settings


def note_test(run_dir: Path, settings: Recipe) -> None:
    """Writes into `test.json` what its scores are of; a test that is stopped before that is taken again."""
    if tested := read_test(run_dir / "test.json"):
        write_json(run_dir / "test.json", {**tested, "settings": settings})


def _trained(run_dir: Path) -> dict:
    """The record of a stage's weights; nothing where it has none."""
    return read_record(run_dir / WEIGHTS / RECORD, needs=("settings", "lineage", "init_from", "sha256"))


def _check_metrics(run_dir: Path) -> None:
    """Raises ConfigError where `metrics.csv`, to which a run appends, is damaged; a last line that was cut is not."""
    try:
        MetricsCsv(str(run_dir / "metrics.csv")).rows()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def refuse_foreign(run_dir: Path) -> None:
    """Raises ConfigError where a folder holds files and no run of ours: nothing in it is replaced then."""
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise ConfigError(f"run_dir: found a file at {run_dir}, expected a folder of a run, or none")
    inside = [each for name in FOLDERS if (run_dir / name).is_dir() for each in (run_dir / name).iterdir()]
    found = [*(each for each in run_dir.iterdir() if each.name not in (*OURS_BEFORE, *FOLDERS)), *inside]
    foreign = sorted(str(each.relative_to(run_dir)) for each in found if not each.name.endswith(LOGS))
    if not foreign or _is_ours(run_dir):
        return
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    raise ConfigError(
        f"run_dir: found {foreign[0]}{more} in {run_dir}, which is no folder of a run, expected an empty folder, a new"
        " one, or that of a run; name another"
    )


def _is_ours(run_dir: Path) -> bool:
    config = run_dir / "config.yaml"
    if (run_dir / IDENTITY).is_file() or (run_dir / WEIGHTS / RECORD).is_file() or candidates(run_dir / "checkpoints"):
        return True
    if "scores" in read_test(run_dir / "test.json"):
        return True  # what it would start from was tested there
    return config.is_file() and bool(
        read_config(config, "name another --run_dir, or move it away if it is that of a run")
    )


def clear(run_dir: Path) -> None:
    """Removes what an earlier training left in the folder, the record of its weights first; files that no training
    writes stay where they are.

    Raises:
        ConfigError: No run of ours made the folder.
    """
    refuse_foreign(run_dir)
    if not run_dir.is_dir() or not _is_ours(run_dir):
        return
    (run_dir / WEIGHTS / RECORD).unlink(missing_ok=True)
    for name in MADE_BY_TRAINING:
        (run_dir / name).unlink(missing_ok=True)
    for folder, ours in FOLDERS.items():
        for pattern in ours:
            for path in (run_dir / folder).glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        if (run_dir / folder).is_dir() and not any((run_dir / folder).iterdir()):
            (run_dir / folder).rmdir()
