"""`mllm sweep`: what is checked before a trial, what a killed sweep keeps, and what it finds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.cli import main
from lightning_mllm.commands.command_line import read_command_line
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.experiments import shipped
from lightning_mllm.commands.run import plan
from lightning_mllm.commands.sweep import run_local
from lightning_mllm.commands.sweep_agent import TRIAL_DIR
from lightning_mllm.commands.sweep_file import read_sweep, resolved, stage_of, sweep_path
from lightning_mllm.commands.sweep_local import LocalSweep, start_process
from lightning_mllm.commands.sweep_search import propose, to_stop, waits
from lightning_mllm.commands.trials import State, Trial, held, read_metric, read_trials
from tests.commands.conftest import TOY
from tests.commands.test_sweep_agent import agent_command
from tests.test_cli import refused

SHIPPED = sorted((shipped() / "sweeps").glob("*.yaml"))
SWEEP: dict[str, Any] = {
    "program": "mllm",
    "command": ["${env}", "${program}", "run", "toy", "${args}"],
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {"stage.lr": {"values": [1e-9, 0.05]}, "data.val.held_out.limit": {"value": 4}},
}


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an experiment of one stage that is scored by held-out samples."""
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(TOY.read_text())
    source = {"class_path": "tests.training.data.Squares", "init_args": {"samples": 8}}
    tree["data"]["init_args"] |= {"val": {"held_out": {"source": source, "task": "loss"}}, "test": None}
    tree["stage"] |= {"epochs": None, "steps": 4, "validate_every": 2}
    tree["stage"]["global_batch"] = 16  # the micro-batch of _hardware/cpu.yaml
    tree["trainer"] = {"enable_progress_bar": False}
    folder = tmp_path / "experiments/toy"
    folder.mkdir(parents=True)
    (folder / "align.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def written(**changes: Any) -> Path:
    content = {key: value for key, value in {**SWEEP, **changes}.items() if value is not None}
    Path("rates.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Path("rates.yaml")


class Over:
    """A process that has ended."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class InProcess:
    """Trains a trial where its process would be started; the numbers of trials, as they are started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, killed_in: tuple[int, ...] = ()) -> None:
        self.monkeypatch, self.killed_in, self.started = monkeypatch, killed_in, list[int]()

    def __call__(self, command: list[str], folder: Path) -> Over:
        number = int(folder.name)
        self.started.append(number)
        with self.monkeypatch.context() as patch:
            patch.setenv(TRIAL_DIR, str(folder))
            assert command[:3] == ["/usr/bin/env", "mllm", "run"]
            if number in self.killed_in:
                # As if the machine had gone down after a checkpoint: half of it is trained.
                patch.setattr("lightning_mllm.training.stage.StageSettings.lr_factor", interrupted)
                with pytest.raises(SystemExit):
                    main([*command[2:], "--checkpoint_every=1"])
                raise KeyboardInterrupt
            main(command[2:])
        return Over()


def interrupted(self: Any, step: int, total: int) -> float:
    if step > 2:
        raise KeyboardInterrupt
    return 1.0


def test_a_killed_sweep_goes_on_and_finds_the_planted_best(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_mllm.commands.sweep_local.POLL", 0)
    sweep, folder = read_sweep(written()), Path("kept")
    first = InProcess(monkeypatch, killed_in=(2,))
    with pytest.raises(KeyboardInterrupt):
        run_local(sweep, folder, start=first)
    assert [each.state for each in read_trials(folder)] == ["finished", "running"]
    assert json.loads((folder / "sweep.json").read_text())["best"] == 1
    assert (folder / "002/align/checkpoints").is_dir() and not (folder / "002/align/weights").exists()
    capsys.readouterr()
    second = InProcess(monkeypatch)
    report = run_local(sweep, folder, start=second)
    assert (first.started, second.started) == ([1, 2], [2])
    assert "goes on from checkpoints/step-" in capsys.readouterr().out
    assert report.best is not None and report.best.values["stage.lr"] == 0.05
    assert [each.state for each in report.trials] == ["finished"] * 2
    # All is done: nothing is started.
    third = InProcess(monkeypatch)
    LocalSweep(sweep, folder, count=None, parallel=1, seed=0, start=third).run()
    assert third.started == []
    found = json.loads((folder / "sweep.json").read_text())
    assert (found["best"], found["goal"], len(found["trials"])) == (2, "minimize", 2)
    assert (folder / "sweep.png").is_file() and "trial 2" in (folder / "sweep.html").read_text()
    # The best one is an experiment of the same recipe.
    best = plan(folder / "best").parsed["align"]
    assert "extends" in (folder / "best/align.yaml").read_text()
    with monkeypatch.context() as patch:
        patch.setenv(TRIAL_DIR, str(folder / "002"))
        trained = plan(Path("toy"), overrides=["--stage.lr=0.05", "--data.val.held_out.limit=4"]).parsed["align"]
    assert best.recipe == trained.recipe and trained.is_done()
    assert best.resolved["data"] == trained.resolved["data"]
    # Another sweep does not go on in this folder.
    with pytest.raises(ConfigError, match="kept: found a sweep with another seed, expected the same"):
        run_local(sweep, folder, seed=1, start=third)


def test_failures_in_a_row_end_it(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_mllm.commands.sweep_local.POLL", 0)
    sweep = read_sweep(written(parameters={"stage.lr": {"values": [1e-4, 1e-3, 1e-2, 1e-1]}}))

    def fails(command: list[str], folder: Path) -> Over:
        (folder / "log.txt").write_text("much\nmllm: data.train: found no file\n")
        return Over(2)

    with pytest.raises(ConfigError, match=r"003/log.txt: found the end of 3 .*row: data.train: found no file"):
        LocalSweep(sweep, Path("kept"), count=None, parallel=1, seed=0, start=fails).run()
    assert [each.state for each in read_trials(Path("kept"))] == ["failed"] * 3
    # Nothing stands in `metrics.csv`, though the process ended well.
    local = LocalSweep(sweep, Path("kept"), count=1, parallel=1, seed=0, start=lambda *_: Over())
    with pytest.raises(ConfigError, match="val/loss is absent or not finite"):
        local.run()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import SweepConfig
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    sweep = read_sweep(path)
    loaded = load_sweep_config(str(path))
    assert loaded is not None and loaded == sweep.content and sweep_path(path.stem).samefile(path)
    SweepConfig(loaded)
    for _, values in sweep.variants():
        stage = stage_of(sweep, values)
        (folder,) = [shipped() / each for each in sweep.content["command"] if (shipped() / each).is_dir()]
        assert (folder / f"{stage}.yaml").is_file()
        given = {name: each["value"] for name, each in values.items()}
        assert sweep.command(values) == agent_command([*sweep.content["command"]], given, monkeypatch)


def test_every_key_of_a_shipped_sweep_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every value; without the parser of LightningCLI, which the sweeps of other tests go through."""
    read: list[str] = []

    def compose(arguments: list[str], kind: type) -> None:
        read_command_line(arguments[1:])
        read.append(arguments[0])

    monkeypatch.setattr("lightning_mllm.commands.run.compose", compose)
    for path in SHIPPED:
        sweep = read_sweep(path)
        for _, values in sweep.variants():
            resolved(sweep, values)
    assert len(read) > 20


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a key": ({"parameters": {"stage.lrr": {"values": [1]}}}, ("rates.yaml:13: stage.lrr: ", "nearest is 'lr'")),
    "of a stage": ({"parameters": {"align.stage.lrr": {"value": 1}}}, ("rates.yaml:13: align.stage.lrr", "'align.lr'")),
    "nested": (
        {"parameters": {"stage": {"parameters": {"lrr": {"value": 1}}}}},
        ("rates.yaml:1", "stage.lrr: found an unknown key", "nearest is 'lr'"),
    ),
    "a value": (
        {"parameters": {"stage.decay": {"values": ["cosine", "cosin"]}}},
        ("rates.yaml:13: stage.decay: found 'cosin', expected one of", "nearest is 'cosine'"),
    ),
    "schema": ({"method": "gird"}, ("rates.yaml:8: method: 'gird' is not one of",)),
    "top": ({"parametrs": {}}, ("rates.yaml:19: parametrs: found an unknown key", "nearest is 'parameters'")),
    "numbers": ({"parameters": {"stage.lr": {"min": "1e-3", "max": 1.0}}}, ("numbers, which YAML writes with a dot",)),
    "metric": ({"metric": {"name": "val/los"}}, ("metric.name: found 'val/los'", "nearest is 'val/loss'")),
    "none": ({"metric": None}, ("rates.yaml: found no metric",)),
    "curve": (
        {"metric": {"name": "test/exact_match"}, "early_terminate": {"type": "hyperband", "min_iter": 1}},
        ("early_terminate: found the metric 'test/exact_match', which has no curve",),
    ),
    "program": ({"command": ["python", "train.py"]}, ("command: found 'python train.py', expected mllm run",)),
    "command": ({"command": None}, ("rates.yaml: command: found '/usr/bin/env python mllm",)),
    "macro": ({"command": ["mllm", "run", "toy", "${args_append_hydra}"]}, ("found ${args_append_hydra}, expected",)),
    "untested": (
        {
            "command": ["mllm", "fit", f"-c={TOY}", "${args}"],
            "metric": {"name": "test/exact_match"},
            "parameters": {"stage.lr": {"value": 0.05}},
        },
        ("metric.name: found 'test/exact_match', expected what the stage is scored by: train/loss",),
    ),
    "seeds": (
        {"command": ["mllm", "run", "toy", "--seeds=0,1", "${args}"]},
        ("command: found --seeds, expected a parameter seed_everything",),
    ),
    "folder": ({"command": ["mllm", "fit", f"-c={TOY}", "--run_dir=x"]}, ("run_dir: found it in a sweep",)),
    "source": (
        {"parameters": {"stage.init_from": {"values": [{"other/stage": 1.0}]}}},
        ("rates.yaml", "init_from: found no 'other/stage' in runs, expected a finished stage"),
    ),
    "count": (
        {"method": "random", "parameters": {"stage.lr": {"value": 0.05}}},
        ("--count: found none, expected how many trials of a random search",),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_before_a_trial(case: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, parts = WRONG[case]
    if case == "curve":
        tree = yaml.safe_load(Path("experiments/toy/align.yaml").read_text())
        tree["data"]["init_args"]["test"] = yaml.safe_load(TOY.read_text())["data"]["init_args"]["test"]
        Path("experiments/toy/align.yaml").write_text(yaml.safe_dump(tree))
    sentence = refused(capsys, "sweep", str(written(**changes)), "--local", "--to=kept")
    assert [part for part in parts if part not in sentence] == [], sentence
    assert not Path("kept/001").exists()


def test_it_says_how_a_server_runs_it(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", str(written()), "--count=5"])
    shown = capsys.readouterr().out
    assert "wandb sweep rates.yaml" in shown and "wandb agent --count 5 SWEEP_ID" in shown
    assert "nearest is 'learning_rate'" in refused(capsys, "sweep", "learning_rat")


def test_without_the_extra_it_names_it(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sweeps.config.schema", None)
    assert "pip install lightning-mllm[sweep]" in refused(capsys, "sweep", str(written()))


def trial(
    number: int, value: float | None, state: State = "finished", history: tuple[float, ...] = (), **given: object
) -> Trial:
    """`stage__lr` is the parameter `stage.lr`."""
    values = {name.replace("__", "."): {"value": each} for name, each in given.items()}
    return Trial(number=number, values=values, stage="align", state=state, value=value, history=list(history))


def test_proposals_follow_from_the_seed_alone(workdir: Path) -> None:
    space = {"lr": {"min": 0.0, "max": 1.0}, "kind": {"values": [None, {"r": 1}]}}
    for method in ("random", "bayes"):
        sweep = read_sweep(written(method=method, parameters=space))
        known = [trial(n, abs(lr - 0.3), lr=lr, kind=None) for n, lr in enumerate((0.1, 0.5, 0.9), start=1)]
        found = [propose(sweep, known, 4, seed=0, parallel=1) for _ in range(2)]
        assert found[0] == found[1] != propose(sweep, known, 4, seed=1, parallel=1)
        # Two at once: the third result may be known or not.
        half = [*known[:2], trial(3, None, "running", lr=0.9, kind=None)]
        assert propose(sweep, known, 4, seed=0, parallel=2) == propose(sweep, half, 4, seed=0, parallel=2)
        assert waits(sweep, half, 4, 1) is (method == "bayes") and not waits(sweep, half, 4, 2)
    grid = read_sweep(written())
    tried = [trial(1, 1.0, stage__lr=1e-9)]
    assert propose(grid, tried, 2, seed=0, parallel=1) == {
        "stage.lr": {"value": 0.05},
        "data.val.held_out.limit": {"value": 4},
    }
    assert propose(grid, [*tried, trial(2, 1.0, stage__lr=0.05)], 3, seed=0, parallel=1) is None


def test_hyperband_stops_the_worst(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_mllm.commands.sweep_local.POLL", 0)
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    sweep = read_sweep(written(early_terminate=early, parameters={"stage.lr": {"values": [1e-3, 1e-2, 1e-1]}}))
    good = [trial(n, 0.1, history=(2.0, 0.1 * n), stage__lr=n) for n in (1, 2)]
    assert to_stop(sweep, [*good, trial(3, 2.0, "running", (2.0, 2.0))]) == [3]
    assert to_stop(sweep, [*good, trial(3, 2.0, "running", (2.0,))]) == []
    told: list[str] = []

    class Training(Over):
        """Never ends by itself."""

        def poll(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return None

        def terminate(self) -> None:
            # What is noted before it is told.
            told.append(read_trials(Path("kept"))[-1].state)

    def start(command: list[str], folder: Path) -> Over:
        (folder / "align").mkdir()
        losses = (2.0, 2.0) if folder.name == "003" else (2.0, 0.1)
        rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
        (folder / "align/metrics.csv").write_text(f"step,val/loss\n{rows}3,0.")
        return Training() if folder.name == "003" else Over()

    trials = LocalSweep(sweep, Path("kept"), count=None, parallel=1, seed=0, start=start).run()
    assert [each.state for each in trials] == ["finished", "finished", "stopped"] and told == ["stopped"]
    assert trials[2].value == 2.0 and trials[2].history == [2.0, 2.0]


def test_the_metric_of_a_run(tmp_path: Path) -> None:
    assert read_metric(tmp_path, "val/loss") == read_metric(tmp_path, "test/cider") == []
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n1,2.0,\n2,1.0,0.5\n3,0.5,nan\n4,0.1")
    assert read_metric(tmp_path, "train/loss") == [2.0, 1.0, 0.5]
    found = read_metric(tmp_path, "val/loss")
    assert found[0] == 0.5 and len(found) == 2 and found[1] != found[1], "a loss that is lost is no earlier one"
    (tmp_path / "test.json").write_text(json.dumps({"scores": {"cider": {"value": 1.5, "low": 1, "high": 2}}}))
    assert read_metric(tmp_path, "test/cider") == [1.5] and read_metric(tmp_path, "test/bleu") == []


def test_a_process_holds_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that a killed sweep left is waited for; each has its folder, its log, and the commands of this one."""
    one = trial(1, None, "running")
    lock = held(tmp_path, one)
    process = start_process(
        ["/bin/sh", "-c", f'echo "$MLLM_TRIAL_DIR $OMP_NUM_THREADS"; command -v mllm; test -e /dev/fd/{lock}'],
        tmp_path / "001",
        lock,
        3,
    )
    assert process.wait(60) == 0
    words = (tmp_path / "001/log.txt").read_text().split()
    threads = os.environ["OMP_NUM_THREADS"]
    assert words[:2] == [str(tmp_path / "001"), threads] and words[2:] == [shutil.which("mllm", path=path_of())]
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))
    os.close(held(tmp_path, one))
    assert "001 is still trained by a process that a stopped sweep left" in capsys.readouterr().out
    os.close(lock)


def path_of() -> str:
    import sys

    return os.pathsep.join([str(Path(sys.argv[0]).parent.absolute()), str(Path(sys.executable).parent)])


def test_ctrl_c_reaches_the_trials(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told to end, once, and stay begun."""
    sweep, processes, told = read_sweep(written()), list[subprocess.Popen[bytes]](), list[float]()
    ended: list[int] = []

    class Told(subprocess.Popen[bytes]):
        def terminate(self) -> None:
            ended.append(self.pid)
            super().terminate()

    def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
        processes.append(Told(["/bin/sh", "-c", "kill -STOP $$; exec sleep 60"]))
        return processes[-1]

    def signalled(seconds: float) -> None:
        told.append(seconds)
        if len(told) == 1:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(time, "sleep", signalled)
    monkeypatch.setattr("lightning_mllm.commands.sweep_local.GRACE", 0.05)
    with pytest.raises(SystemExit) as stopped:
        LocalSweep(sweep, Path("kept"), count=None, parallel=2, seed=0, start=start).run()
    assert stopped.value.code == 143
    assert len(processes) == 2 and all(each.returncode is not None for each in processes)
    assert ended == [each.pid for each in processes], "a second signal would leave a trial no time to save"
    assert [each.state for each in read_trials(Path("kept"))] == ["running"] * 2
