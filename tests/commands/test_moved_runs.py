"""A run folder that is copied, moved or renamed is the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lightning_mllm import load
from lightning_mllm.cli import main
from lightning_mllm.inference import stage_of
from tests.commands.conftest import trained
from tests.test_cli import refused

QUIET = ("--stage.epochs=1", "--trainer.enable_progress_bar=false")
RED = Image.new("RGB", (8, 8), "red")


@pytest.fixture
def answer(place: Path) -> str:
    """What the last stage says, from its own place."""
    RED.save("red.png")
    return load("runs/toy/text").answer(RED, "?")


def test_the_record_names_stages_of_the_same_run_by_their_own_names(place: Path) -> None:
    record = json.loads(Path("runs/toy/text/weights/stage.json").read_text())
    assert record["init_from"] == {"base": 1.0}
    assert [each["source"] for each in record["lineage"]] == ["base"]


def test_a_moved_run_answers_is_tested_and_mixed(
    place: Path, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("far/away").mkdir(parents=True)
    shutil.move("runs/toy", "far/away/mine")
    shutil.rmtree("runs")
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    moved = Path("../far/away/mine")
    main(["ask", str(moved / "text"), "--image", "../red.png", "?"])
    assert capsys.readouterr().out.strip() == answer
    main(["test", f"--config={moved / 'text/config.yaml'}", "--trainer.enable_progress_bar=false"])
    assert (moved / "text/test.json").is_file()
    assert not Path("runs").exists()
    main(["mix", f"{moved / 'real'}=0.0", f"{moved / 'text'}=1.0", "--to", "mixed"])
    assert load("mixed").answer(RED, "?") == answer


def test_a_renamed_run_with_an_older_record(place: Path, answer: str) -> None:
    """Records of old name what they start from by experiment and stage; the one beside it is meant."""
    file = Path("runs/toy/text/weights/stage.json")
    record = json.loads(file.read_text())
    record["init_from"] = {"toy/base": 1.0}
    record["lineage"][0]["source"] = "toy/base"
    file.write_text(json.dumps(record))
    shutil.copytree("runs/toy", "copies/renamed")
    shutil.rmtree("runs/toy/base")
    # Another run has the old name now.
    shutil.copytree("runs/other/align", "runs/toy/base")
    assert load("copies/renamed/text").answer(RED, "?") == answer


def test_a_stage_and_its_ancestor_of_the_same_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("runs/toy/base", "runs/y/instruct")
    trained("x/instruct", 9, "--stage.name=instruct", "--stage.init_from={y/instruct: 1.0}", *QUIET)
    assert stage_of(Path("runs/x")) == Path("runs/x/instruct")
    main(["mix", "x=0.5", "y/instruct=0.5", "--to", "between"])
    assert load("between").answer(RED, "?")


def test_an_ancestor_that_is_gone_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("runs/toy/base")
    RED.save("red.png")
    sentence = refused(capsys, "ask", "runs/toy/text", "--image", "red.png", "?")
    assert "found no 'base' (stage 'instruct')" in sentence
    assert "runs/toy/text starts from" in sentence and "runs/toy/base" in sentence
