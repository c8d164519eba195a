"""Which values a sweep tries next, and which of its trials are not worth their time: W&B's search, without its server.

A proposal is a function of the sweep file, the seed, its number and what is known of the trials before it.
"""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_mllm.commands.sweep_file import SweepFile, Values, plain, sweeps
from lightning_mllm.commands.trials import Trial

STATES = {"running": "running", "finished": "finished", "stopped": "killed", "failed": "failed"}
"""What W&B calls the states of a trial."""


def _run(sweep: SweepFile, trial: Trial, *, as_running: bool = False) -> Any:
    from sweeps import RunState, SweepRun

    known = {} if as_running or trial.value is None else {sweep.metric: trial.value}
    return SweepRun(
        name=trial.name,
        config=trial.values,
        state=RunState("running" if as_running else STATES[trial.state]),
        summaryMetrics=known,
        sampledHistory=[] if as_running else [{sweep.metric: value} for value in trial.history],
    )


def propose(sweep: SweepFile, trials: Sequence[Trial], number: int, *, seed: int, parallel: int) -> Values | None:
    """What trial `number` tries; None where a grid has no more.

    Of the `parallel - 1` trials before it the results are left out, whether they are known yet or not, so that the
    proposal does not hang on which of several processes was faster.

    Args:
        trials: Those with lower numbers; all but the latest `parallel - 1` are over.
    """
    known = [_run(sweep, each, as_running=each.number > number - parallel) for each in trials if each.number < number]
    random.seed(f"{seed}/{number}")
    np.random.seed(zlib.crc32(f"{seed}/{number}".encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about kernels of few points
        found = sweeps().next_run(sweep.content, known)
    return None if found is None else plain(found.config)


def waits(sweep: SweepFile, trials: Sequence[Trial], number: int, parallel: int) -> bool:
    """Whether a proposal needs the result of a trial that is not over."""
    return sweep.method == "bayes" and any(not each.is_over for each in trials if each.number <= number - parallel)


def to_stop(sweep: SweepFile, trials: Sequence[Trial]) -> list[int]:
    """The numbers of the running trials that hyperband would stop now."""
    if not sweep.stops_early:
        return []
    found = sweeps().stop_runs(sweep.content, [_run(sweep, each) for each in trials])
    names = {each.name for each in found}
    return [each.number for each in trials if each.name in names]
