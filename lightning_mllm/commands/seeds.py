"""`mllm run EXPERIMENT --seeds 0,1,2`: the same recipe from several seeds, each a run of its own, and what they spread.

runs/NAME/seed-0/STAGE   one run a seed: its stages start from one another, as those of any run
runs/NAME/seed-1/STAGE
runs/NAME/compare.html   mean and spread of every score; `mllm compare runs/NAME` takes all seeds there
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.commands.compare import write_comparison
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.launch import say
from lightning_mllm.commands.sweep_agent import SWEEP_ID
from lightning_mllm.evaluation.compared_runs import side_of_seeds
from lightning_mllm.weights.lineage import RECORD, WEIGHTS

SETTING = "seed_everything"


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` as numbers.

    Raises:
        ConfigError: One is no whole number from 0 on, or is given twice.
    """
    parts = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() for each in parts) or len({int(each) for each in parts}) < len(parts):
        raise ConfigError(f"--seeds: found '{text}', expected different whole numbers such as 0,1,2")
    return [int(each) for each in parts]


def seeded(run: Path, seed: int | None, overrides: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder and the settings of one seed of a run; of None, those that are given."""
    return (run, [*overrides]) if seed is None else (run / f"seed-{seed}", [*overrides, f"--{SETTING}={seed}"])


def run_seeds(
    seeds: Sequence[int], stages: Sequence[str], overrides: Sequence[str], run: Callable[[int], Path]
) -> None:
    """Runs every seed and compares them; stops at the first that is not finished.

    Args:
        seeds: As in `parse_seeds`.
        stages: What every seed trains.
        overrides: Settings of the command line; none of them is the seed.
        run: Runs one seed; gives the run's folder.

    Raises:
        ConfigError: A setting names the seed too, or an agent of a sweep runs this as one trial.
    """
    if SWEEP_ID in os.environ:
        raise ConfigError(
            "--seeds: found a sweep agent, whose run is one; expected seed_everything as a parameter of it"
        )
    for each in overrides:
        if each.lstrip("-").partition("=")[0].split(".")[-1] == SETTING:
            raise ConfigError(
                f"--{each.lstrip('-')}: found it with --seeds, which says the seeds; leave one of them out"
            )
    folders = []
    for seed in seeds:
        folder = run(seed)
        if not all((folder / stage / WEIGHTS / RECORD).is_file() for stage in stages):
            say(f"{folder.parent}: no comparison, for seed {seed} is not done")
            return
        folders.append(folder)
    tested = [folder for folder in folders if any(folder.glob("*/test.json"))]
    if len(tested) > 1:
        _compare(tested)


@rank_zero_only
def _compare(folders: Sequence[Path]) -> None:
    # Other seeds in the same folder may be of another recipe, or not finished.
    write_comparison([side_of_seeds(folders)], folders[0].parent)
