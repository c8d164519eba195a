"""What a sweep agent puts on the command line and into the environment of each run that it starts.

Values are written by Python (`${args}`, `${args_no_hyphens}`) or as one JSON object (`${args_json}`):

    --stage.gradient_clip=None --data.group=length --stage.lora={'r': 8, 'targets': ['q_proj', 'v_proj']}
    {"stage.gradient_clip": null, "data.group": "length", "stage.lora": {"r": 8, "targets": ["q_proj", "v_proj"]}}
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

OF_ONE_RUN = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
TRIAL_DIR = "MLLM_TRIAL_DIR"
"""Where `mllm sweep --local` tells a run to be kept."""
SWEEP_ID, RUN_ID = "WANDB_SWEEP_ID", "WANDB_RUN_ID"
"""What `wandb agent` tells each run that it starts; a preempted run is started again under the same."""


def trial_folder(runs: str | Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the experiment that this process runs for a sweep: RUNS/sweeps/SWEEP/RUN under an agent of W&B.

    Returns:
        None where no sweep has started this process.

    Raises:
        ValueError: An agent's id is no name of a folder.
    """
    if folder := environment.get(TRIAL_DIR):
        return Path(folder)
    sweep, run = environment.get(SWEEP_ID), environment.get(RUN_ID)
    if not sweep or not run:
        return None
    for name, value in ((SWEEP_ID, sweep), (RUN_ID, run)):
        if not re.fullmatch(r"\w[\w.-]*", value):
            raise ValueError(f"{name}: found '{value}', expected letters, digits, '.', '-' and '_'")
    return Path(runs, "sweeps", sweep, run)


@contextmanager
def agents_run(is_last: bool, runs: str | Path) -> Iterator[None]:
    """While one stage of an experiment is trained or tested: the run that the agent waits for is that of the last one.

    W&B would take the stages of a process for one run, and drop the steps of all but the first. Ranks that Lightning
    starts meanwhile inherit the environment, and are told the folder of the run in another way.
    """
    before = {name: os.environ.get(name) for name in (*OF_ONE_RUN, TRIAL_DIR)}
    if not is_last:
        folder = trial_folder(runs)
        for name in OF_ONE_RUN:
            os.environ.pop(name, None)
        if folder is not None:
            os.environ[TRIAL_DIR] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def as_yaml(text: str) -> str:
    """A value that Python may have written, as YAML reads it: `None` is null, in lists and mappings too."""
    if text == "None":
        return "null"
    if text[:1] not in ("[", "{"):
        return text
    try:
        value = ast.literal_eval(text)
        same = _dumped(value)
        # YAML that only looks like Python is left alone: 'it''s' is two texts there.
        return same if repr(value) == text and json.loads(same) == value else text
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text  # YAML, or what YAML will refuse


def options_of(argument: str) -> list[str] | None:
    """The options that one JSON object says; None where the argument is none."""
    if argument[:1] != "{":
        return None
    try:
        tree = json.loads(argument)
    except ValueError:
        return None
    return [f"--{key}={value if isinstance(value, str) else _dumped(value)}" for key, value in tree.items()]


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
