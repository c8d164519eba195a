"""The command lines and the environment of W&B's own agent: every kind of value arrives, each run has a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb.wandb_agent
import yaml

from lightning_mllm.cli import main
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.launch import ParsedCLI, compose
from lightning_mllm.commands.run import plan
from lightning_mllm.commands.sweep_agent import agents_run, as_yaml, options_of, trial_folder
from lightning_mllm.commands.yaml_text import Loader
from tests.commands.conftest import TOY

MACROS = ("${args}", "${args_no_hyphens}", "${args_json}")
VALUES = {
    "stage": {"lr": 1e-05, "warmup": 0.5},  # W&B's nested parameters
    "stage.epochs": None,
    "stage.steps": 2,
    "stage.betas": [0.9, 0.98],
    "stage.train": {"connector.*": {"lr": 3e-05, "weight_decay": None, "exclude": []}},
    "trainer.enable_progress_bar": False,
    "trainer.logger": None,
    "trainer.benchmark": True,
    "model.language": {"depth": 1},
    "seed_everything": 7,
}


def agent_command(command: list[str], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `wandb agent` starts: its own method, with the process left out."""
    started: list[list[str]] = []

    class Process(SimpleNamespace):
        def __init__(self, command: list[str], **_: Any) -> None:
            super().__init__()
            started.append(command)

    monkeypatch.setattr(wandb.wandb_agent, "AgentProcess", Process)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "")  # restored behind the test; the agent sets it
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    agent: Any = wandb.wandb_agent.Agent.__new__(wandb.wandb_agent.Agent)
    vars(agent).update(
        _sweep_command=command, _function=None, _in_jupyter=False, _run_processes={}, _forward_signals=False
    )
    given = {key: {"value": value} for key, value in values.items()}
    agent._command_run({"run_id": "r1", "program": "mllm", "args": given})
    return started[0]


@pytest.mark.parametrize("macro", MACROS)
def test_every_kind_of_value_trains(macro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = agent_command(["${env}", "${program}", "fit", f"--config={TOY}", macro], VALUES, monkeypatch)
    assert command[:2] == ["/usr/bin/env", "mllm"]
    main(command[2:])
    run = Path("runs/sweeps/s1/r1/toy")
    found = yaml.safe_load((run / "config.yaml").read_text())
    stage = found["stage"]
    assert (stage["lr"], stage["warmup"], stage["name"], stage["global_batch"]) == (1e-5, 0.5, "align", 8)
    assert (stage["epochs"], stage["steps"], stage["betas"]) == (None, 2, [0.9, 0.98])
    ((pattern, group),) = stage["train"].items()
    assert (pattern, group["lr"], group["weight_decay"], group["exclude"]) == ("connector.*", 3e-5, None, [])
    assert found["trainer"]["enable_progress_bar"] is False and found["trainer"]["logger"] is None
    assert found["trainer"]["benchmark"] is True and found["seed_everything"] == 7
    assert found["model"]["init_args"]["language"]["init_args"] == {"width": 24, "depth": 1, "dropout": 0.0}
    assert json.loads((run / "weights/stage.json").read_text())["steps"] == 2


def test_a_value_of_python_is_one_of_yaml() -> None:
    for value in (["it's", None, True], {"a": {"b": [1e-05, "None", "x\ny", "\N{GREEK SMALL LETTER ALPHA}"]}}, [], {}):
        assert yaml.load(as_yaml(str(value)), Loader=Loader) == value
    for text in ("[q_proj, v_proj]", "{align: 1.0}", "['it''s']", "{1: 2}", "[1,", "None of it", '{"a": null}'):
        assert as_yaml(text) == text
    assert as_yaml("None") == "null"
    assert options_of("{align: 1}") is options_of("--a={}") is options_of("[1]") is None


def test_a_nested_setting_is_laid_over_those_of_files() -> None:
    parsed = compose(["fit", f"--config={TOY}", "--stage={'lr': 0.5}", "--stage.warmup=0"], ParsedCLI)
    assert (parsed.settings.stage.lr, parsed.settings.stage.name, parsed.settings.stage.warmup) == (0.5, "align", 0)
    with pytest.raises(ConfigError, match=r"command line: stage.lrr: .*the nearest is 'lr'"):
        compose(["fit", f"--config={TOY}", '{"stage": {"lrr": 0.5}}'], ParsedCLI)


def test_each_run_of_a_sweep_has_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trial_folder("runs", {"WANDB_RUN_ID": "a"}) is trial_folder("runs", {"WANDB_SWEEP_ID": "s"}) is None
    assert trial_folder("r", {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "a"}) == Path("r/sweeps/s/a")
    with pytest.raises(ValueError, match=r"WANDB_RUN_ID: found '../a', expected letters"):
        trial_folder("r", {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "../a"})
    monkeypatch.setenv("MLLM_TRIAL_DIR", "kept/003")
    command = ["fit", f"--config={TOY}"]
    assert compose(command, ParsedCLI).run_dir == Path("kept/003/toy")
    assert compose([*command, "--run_dir=x"], ParsedCLI).run_dir == Path("x")
    planned = plan(Path("quickstart/llava"), overrides=["--align.stage.lr=0.5"], only="align")
    assert planned.run == Path("kept/003") and planned.parsed["align"].run_dir == Path("kept/003/align")
    assert planned.settings == {"align": ["--stage.lr=0.5"]}


def test_the_run_that_an_agent_waits_for_is_that_of_the_last_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "run")
    with agents_run(is_last=True, runs="r"):
        assert os.environ["WANDB_RUN_ID"] == "run"
    with agents_run(is_last=False, runs="r"):
        assert not {"WANDB_RUN_ID", "WANDB_SWEEP_ID"} & set(os.environ)
        assert trial_folder("r") == Path("r/sweeps/sweep/run"), "that of ranks which are started meanwhile"
    assert "MLLM_TRIAL_DIR" not in os.environ
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_SWEEP_ID")
        with agents_run(is_last=False, runs="r"):
            assert "WANDB_RUN_ID" not in os.environ, "given without a sweep"
    assert (os.environ["WANDB_SWEEP_ID"], os.environ["WANDB_RUN_ID"]) == ("sweep", "run")
