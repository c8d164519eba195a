"""What the README tells a reader to type or to open exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from lightning_mllm.cli import HELP, main
from tests.commands.conftest import TOY
from tests.documents import blocks, check_command, commands, parses
from tests.training.runs import losses

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS, COMMANDS = blocks(TEXT), commands(TEXT)


def test_fits_in_one_sitting() -> None:
    assert len(TEXT.splitlines()) <= 300
    assert TEXT.isascii()
    prose = [line for line in re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL).splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > 120] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_command(command)


@pytest.mark.parametrize("command", ["mllm run x --hardwear=cpu", "mllm world d --image 3", "mllm fit --stage.lrr=1"])
def test_a_command_that_does_not_parse_is_seen(command: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        parses(*command.split()[1:])


def test_the_commands_of_the_help_parse() -> None:
    lines = [line.split("   ")[0].strip() for line in HELP.splitlines() if line.startswith("  mllm")]
    commands = [re.sub(r" \[.*", "", line) for line in lines]
    assert len(commands) > 8
    for command in commands:
        for each in command.removeprefix("mllm ").split(" | "):
            verb, *given = each.replace("--config F", f"--config={TOY}").split()
            parses(verb, *(given or ([f"--config={TOY}"] if verb in ("validate", "test", "predict") else [])))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:experiments|tests|requirements)[\w./]*\w", TEXT))))
def test_paths_exist(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / f"{path}.lock").exists()


def test_every_experiment_is_in_the_table() -> None:
    """Those of `backbones` and of `sweeps` stand there together."""
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for path in (ROOT / "experiments").rglob("*.yaml")
        if not path.parent.name.startswith("_")
    }
    together = ("experiments/backbones", "experiments/sweeps")
    listed = set(re.findall(r"^\| `(experiments/[\w/.]+)`", TEXT, flags=re.MULTILINE))
    assert listed == {next((each for each in together if folder.startswith(each)), folder) for folder in folders}


def test_the_data_example_names_what_there_is() -> None:
    example = next(yaml.safe_load(block) for language, block in BLOCKS if language == "yaml")
    data = example["data"]
    for named in (data, *data["init_args"]["train"].values()):
        module, _, cls = named["class_path"].rpartition(".")
        assert isinstance(getattr(__import__(module, fromlist=[cls]), cls), type)


def test_an_architecture_and_a_source_of_ones_own_train_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed files, as they are, beside one another: `mllm fit` takes two steps and hands over the better one's
    connector.
    """
    for _, block in [*BLOCKS, *blocks((ROOT / "docs/data.md").read_text(encoding="utf-8"))]:
        if named := re.match(r"# (\w+\.(?:py|yaml))\b", block):
            (tmp_path / named[1]).write_text(block, encoding="utf-8")
    assert {each.name for each in tmp_path.iterdir()} == {"mine.py", "pictures.py", "mine.yaml", "best.yaml"}
    for name in ("red", "green", "blue", "white"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (72, 72), name).save(tmp_path / "pictures" / f"{name}_square.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    main(["fit", "--config", "mine.yaml", "--config", "best.yaml", "--run_dir", "run", *quiet])
    trained = load_file(tmp_path / "run/weights/model.safetensors")
    assert {name.split(".")[0] for name in trained} == {"connector"}
    assert [step for step, _ in losses(tmp_path / "run", "train/loss")] == [1, 2]
    assert [step for step, _ in losses(tmp_path / "run", "val/loss")] == [1, 2]
    best = json.loads((tmp_path / "run/weights/stage.json").read_text())["settings"]["best"]
    assert best["monitor"] == "val/loss" and best["step"] in (1, 2)


def test_install_files_name_no_host() -> None:
    for name in ("requirements.lock", "requirements/uv.txt", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", text), name
    assert not (ROOT / "uv.lock").exists()
