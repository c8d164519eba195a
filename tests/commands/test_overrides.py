"""What the command line means: which stage, which length, which value; and what it may not leave open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Union

import jsonargparse
import pytest
import yaml

from lightning_mllm.cli import main
from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.launch import ParsedCLI, compose, whole_numbers_first
from lightning_mllm.commands.run import overrides_of
from tests.commands.conftest import TOY
from tests.test_cli import refused


def stage(*arguments: str) -> dict[str, object]:
    return compose(["fit", f"--config={TOY}", *arguments], ParsedCLI).settings["stage"].as_dict()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--stage.steps=5",), {"steps": 5, "epochs": None}),
        (("--stage.steps=5", "--stage.epochs=None"), {"steps": 5, "epochs": None}),
        (("--stage.epochs=None",), {"steps": None, "epochs": None}),
        (("--stage.epochs", "None", "--stage.lora=None"), {"epochs": None, "lora": None}),
        (("stage.lr=0.5", "seed_everything=3"), {"lr": 0.5}),
        (("--stage.lr=0.5", "--config=late.yaml"), {"lr": 0.5, "steps": 7, "epochs": None}),
        (("--config=late.yaml", "--stage.epochs=2"), {"steps": None, "epochs": 2.0}),
    ],
)
def test_values(
    given: tuple[str, ...], expected: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("late.yaml").write_text("stage: {steps: 7, lr: 0.25}\n")
    assert stage(*given).items() >= expected.items()


def test_both_lengths_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capsys, "fit", f"--config={TOY}", "--stage.steps=5", "--stage.epochs=2")
    assert "stage.steps: found 5 and stage.epochs 2.0, expected one of them" in sentence


def test_a_setting_of_one_stage_goes_to_that_stage() -> None:
    stages = ["align", "instruct"]
    given = ["--stage.lr=1", "--align.stage.lr=2", "--instruct.stage.init_from={a: 1}", "--model.connector.depth=1"]
    assert overrides_of(given, stages, stages) == {
        "align": ["--stage.lr=1", "--stage.lr=2", "--model.connector.depth=1"],
        "instruct": ["--stage.lr=1", "--stage.init_from={a: 1}", "--model.connector.depth=1"],
    }
    assert overrides_of(["--stage.name=x", "--data.train={}"], stages, ["align"]) == {
        "align": ["--stage.name=x", "--data.train={}"]
    }
    for wrong, part in {
        "--stage.init_from={a: 1}": "--align.stage.init_from, --instruct.stage.init_from",
        "--stage.name=x": "--align.stage.name",
        "--data.init_args.train.a.limit=3": "--align.data.train.a.limit",
        "--data.test+={}": "--align.data.test",
        "--model=a.B": "--align.model",
        "--run_dir=x": "--runs",
        "--align.ckpt_path=x": "its own checkpoint",
    }.items():
        with pytest.raises(ConfigError, match="found") as refusal:
            overrides_of([wrong], stages, stages)
        assert part in str(refusal.value), wrong
    with pytest.raises(ConfigError, match="setting of the stage 'instruct', expected one of align"):
        overrides_of(["--instruct.stage.lr=1"], stages, ["align"])


def test_settings_among_the_arguments_of_a_verb() -> None:
    parser = Arguments("run")
    parser.add_argument("experiment")
    parser.add_argument("--only")
    given, settings = parser.with_settings(["--stage.lr", "1", "here", "--only", "a", "data.workers=2", "--x.y=3"])
    assert (given.experiment, given.only) == ("here", "a")
    assert settings == ["--stage.lr=1", "--data.workers=2", "--x.y=3"]
    with pytest.raises(ConfigError, match="run: found an unknown argument there; mllm run --help"):
        parser.with_settings(["here", "there"])


def test_modules_beside_an_experiment_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory (of every verb), beside the file that names them, and beside its `experiments`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    folder = tmp_path / "project/experiments/mine"
    folder.mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(["ask", "nowhere", "a question"])
    for number, place in enumerate((tmp_path, folder, tmp_path / "project")):
        module = f"own_net_{number}"
        (place / f"{module}.py").write_text("from tests.toy import Toy\n\n\nclass Net(Toy):\n    pass\n")
        content = {**yaml.safe_load(TOY.read_text()), "model": {"class_path": f"{module}.Net"}}
        content["model"]["init_args"] = yaml.safe_load(TOY.read_text())["model"]["init_args"]
        (folder / "train.yaml").write_text(yaml.safe_dump(content))
        found = compose(["fit", f"--config={folder / 'train.yaml'}"], ParsedCLI).settings
        assert found["model"]["class_path"] == f"{module}.Net"
        assert found["run_dir"] == "runs/mine/train"


def test_a_run_whose_class_is_not_here_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for run, model in {"net": "absent_net.Net", "part": {"class_path": "absent_net.Part"}}.items():
        Path(run, "weights").mkdir(parents=True)
        Path(run, "weights", "stage.json").write_text("{}")
        settings = yaml.safe_load(TOY.read_text())
        if isinstance(model, str):
            settings["model"]["class_path"] = model
        else:
            settings["model"]["init_args"]["vision"] = model
        Path(run, "config.yaml").write_text(yaml.safe_dump(settings))
        sentence = refused(capsys, "ask", run, "?")
        assert f"{run}/config.yaml:" in sentence and ": model" in sentence, sentence
        assert "but there is no module 'absent_net', expected one that is installed or in the working" in sentence


def test_one_batch_is_not_all_of_them() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    # In this order by a library that was imported earlier.
    parser.add_argument("--limit", type=Union[float, int, None])  # noqa: UP007
    assert isinstance(parser.parse_args(["--limit=1"]).limit, float)
    whole_numbers_first(parser)
    one, all_of_them = parser.parse_args(["--limit=1"]).limit, parser.parse_args(["--limit=1.0"]).limit
    assert (type(one), type(all_of_them)) == (int, float)
