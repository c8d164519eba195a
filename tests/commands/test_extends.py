"""A YAML file states only what differs from the one that it extends."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_mllm.commands.command_line import read_files, value_at
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.experiments import copy, order_of_stages, shipped
from lightning_mllm.commands.launch import ParsedCLI, compose
from tests.commands.conftest import TOY
from tests.test_cli import refused

SQUARES = "class_path: tests.training.data.Squares"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("base/stage.yaml").write_text(TOY.read_text())
    Path("base/vision.yaml").write_text("width: 8\n")


def write(name: str, text: str) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return Path(name)


def test_settings_merge_and_named_entries_are_stated_whole() -> None:
    middle = "extends: ../base/stage.yaml\nstage: {lr: 0.5, steps: 7}\nmodel:\n  init_args:\n    vision: {width: 12}\n"
    write("middle/stage.yaml", middle)
    last = (
        f"extends: ../middle/stage.yaml\nstage: {{warmup: 0}}\ndata:\n  init_args:\n    train: {{b: {{{SQUARES}}}}}\n"
    )
    tree = read_files([write("last/stage.yaml", last)])
    stage = {"name": "align", "epochs": 10, "steps": 7, "global_batch": 8, "lr": 0.5, "warmup": 0}
    assert tree["stage"] == stage and "extends" not in tree
    assert value_at(tree, ("model", "vision")) == {"width": 12}
    assert value_at(tree, ("model", "language")) == {"width": 24, "depth": 2}
    assert value_at(tree, ("data", "train")) == {"b": {**yaml.safe_load(SQUARES), "init_args": {}}}
    assert value_at(tree, ("data", "test", "squares", "task")) == "exact"
    # The later length replaces the earlier one, as in a later --config; the record of a run is complete.
    settings = compose(["fit", "--config=last/stage.yaml", "--stage.lr=0.25"], ParsedCLI).resolved
    found = [value_at(settings, ("stage", key)) for key in ("steps", "epochs", "lr", "betas")]
    assert found == [7, None, 0.25, [0.9, 0.999]]
    assert "extends" not in settings


def test_a_file_that_is_named_inside_another_may_extend_one_too() -> None:
    write("parts/wide.yaml", "extends: ../base/vision.yaml\nwidth: 20\n")
    other = "model:\n  init_args: {vision: ../parts/wide.yaml}\n"
    stage = write("mine/stage.yaml", f"extends: ../base/stage.yaml\n{other}")
    assert value_at(read_files([stage]), ("model", "vision")) == {"width": 20}
    found = compose(["fit", f"--config={stage}", "--model.vision=base/vision.yaml"], ParsedCLI).resolved
    assert value_at(found, ("model", "vision", "width")) == 8


def test_a_path_is_relative_to_the_file_that_names_it_and_not_to_the_one_that_extends_that() -> None:
    named = write("base/named.yaml", "extends: stage.yaml\nmodel:\n  init_args:\n    vision: vision.yaml\n")
    deep = f"extends: ../../../{named}\nmodel:\n  init_args:\n    vision: {{width: 12}}\n"
    assert value_at(read_files([write("mine/a/b/stage.yaml", deep)]), ("model", "vision")) == {"width": 12}
    write("base/vision.yaml", "widht: 8\n")
    with pytest.raises(ConfigError, match=r"base/vision\.yaml:1: model\.vision\.widht: found an unknown key"):
        read_files([Path("mine/a/b/stage.yaml")])


def test_a_class_may_lie_beside_the_file_that_is_extended() -> None:
    write("lent/lent_pictures.py", "from tests.training.data import Squares as Lent\n")
    lent = "{pictures: {class_path: lent_pictures.Lent}}"
    write("lent/stage.yaml", f"extends: ../base/stage.yaml\ndata:\n  init_args:\n    train: {lent}\n")
    tree = read_files([write("mine/stage.yaml", "extends: ../lent/stage.yaml\n")])
    assert value_at(tree, ("data", "train", "pictures")) == {"class_path": "lent_pictures.Lent", "init_args": {}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# a comment\nextends: absent.yaml\n", "mine.yaml:2: extends: found no file absent.yaml"),
        ("extends: 3\n", "mine.yaml:1: extends: found '3', expected a YAML file"),
        ("extends: [base/stage.yaml]\n", "mine.yaml:1: extends: found '['base/stage.yaml']', expected a YAML file"),
        ("stage: {lr: 1}\nextends: mine.yaml\n", "mine.yaml:2: extends: found mine.yaml, which extends this file"),
        ("extends: circle.yaml\n", "circle.yaml:1: extends: found mine.yaml, which extends this file"),
        ("extends: wrong.yaml\n", "wrong.yaml:2: stage.lr: found 'fast', expected a number"),
        ("extends: wrong.yaml\nstage:\n  lr: slow\n", "mine.yaml:3: stage.lr: found 'slow', expected a number"),
        ("extends: unknown.yaml\n", "unknown.yaml:3: stage.lrr: found an unknown key"),
        ("extends: base/vision.yaml\n", "base/vision.yaml:1: width: found an unknown key"),
    ],
)
def test_what_is_wrong_is_told_with_its_file_and_line(
    text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("circle.yaml", "extends: mine.yaml\n")
    write("wrong.yaml", "extends: base/stage.yaml\nstage: {lr: fast}\n")
    write("unknown.yaml", "extends: base/stage.yaml\nstage:\n  lrr: 1\n")
    write("mine.yaml", text)
    assert refused(capsys, "fit", "--config=mine.yaml").startswith(sentence)


def test_the_order_of_stages_follows_what_an_extended_file_says() -> None:
    write("experiments/a/begin.yaml", "stage: {name: align}\n")
    write("experiments/a/end.yaml", "extends: ../../base/stage.yaml\nstage: {init_from: {begin: 1.0}}\n")
    write("experiments/b/begin.yaml", "extends: ../a/begin.yaml\n")
    write("experiments/b/after.yaml", "extends: ../a/end.yaml\n")
    assert order_of_stages(Path("experiments/b")) == ["begin", "after"]
    with pytest.raises(ConfigError, match=r"b/after\.yaml:1: extends: found no file"):
        write("experiments/b/after.yaml", "extends: ../a/ende.yaml\n")
        order_of_stages(Path("experiments/b"))


def test_a_copied_experiment_brings_what_it_extends() -> None:
    copy("instructblip_vicuna13b", Path("experiments"))
    for name in ("instructblip_vicuna7b/net.yaml", "_parts/qformer.yaml", "_parts/vicuna_13b_v11.yaml"):
        assert Path("experiments", name).read_bytes() == (shipped() / name).read_bytes()
    resolved = []
    for root in (Path("experiments"), shipped()):
        files = [f"--config={root / 'instructblip_vicuna13b' / name}.yaml" for name in ("net", "align")]
        resolved.append(compose(["fit", *files], ParsedCLI).resolved)
    assert resolved[0] == resolved[1]
