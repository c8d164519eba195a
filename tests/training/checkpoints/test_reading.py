"""What is written is read by a process that has imported nothing of ours, as plain values."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import jsonargparse
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.experiments import names, shipped
from lightning_mllm.commands.run import plan
from lightning_mllm.training.callbacks.averaging import EMA, LAWA
from lightning_mllm.training.callbacks.best import BestWeights
from lightning_mllm.training.checkpoints import ShardedCheckpointIO, newest, read_state
from lightning_mllm.training.stage import StageSettings
from tests.training.callbacks.test_best import run

FULL = bool(os.environ.get("MLLM_FULL"))
READ = """
import sys, pathlib, torch
found = list(pathlib.Path(sys.argv[1]).rglob("state.pt"))
for each in found:
    torch.load(each, weights_only=True)
assert not [name for name in sys.modules if name.startswith("lightning")]
print(len(found))
"""


def stages_that_ship() -> dict[str, StageSettings]:
    """Stage -> its settings, as a run of the experiment has them."""
    parser, found = jsonargparse.ArgumentParser(exit_on_error=False), {}
    parser.add_argument("--stage", type=StageSettings)
    for name in names(shipped()) if FULL else ("quickstart/llava",):
        if name.startswith("sweeps/"):
            continue
        for hardware in ("cpu", "gpu1", "gpu8"):
            try:
                planned = plan(shipped() / name, hardware=hardware)
            except ConfigError:
                continue  # it has another file of hardware
            for stage, parsed in planned.parsed.items():
                settings = parser.instantiate(parser.parse_object({"stage": parsed.resolved["stage"]}))["stage"]
                found[f"{name}/{stage}"] = settings
            break
    return found


@pytest.mark.skipif(not FULL, reason="make test-faults")
@pytest.mark.fault
def test_a_fresh_process_reads_what_was_written(
    tmp_path: Path, fault_row: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = (EarlyStopping("val/loss", patience=9), Timer(timedelta(days=1)), LearningRateMonitor())
    run(tmp_path / "one", EMA(), BestWeights(), *more)
    run(tmp_path / "two", LAWA(update_every_n_steps=2), ModelCheckpoint(tmp_path / "two/own"))
    kept = newest(tmp_path / "one/checkpoints")
    assert kept is not None
    state, io, stages = read_state(kept), ShardedCheckpointIO(), stages_that_ship()
    for name, settings in stages.items():
        own = tmp_path / "shipped" / name / "step-1"
        io.save(own, {"weights.w": torch.ones(1)}, {**state, "stage": asdict(settings)})
        io.wait()
    command = [sys.executable, "-c", READ, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": "", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(stages) + 5
    fault_row("T14", f"{done.stdout.strip()} of {done.stdout.strip()}", f"states of {len(stages)} shipped stages read")
