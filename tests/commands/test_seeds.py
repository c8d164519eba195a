"""`mllm run --seeds` and `mllm compare`, on the toy architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.cli import main
from lightning_mllm.commands import run as run_command
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.seeds import parse_seeds, run_seeds
from tests.commands.test_run_checks import STAGE, TEST, folder
from tests.test_cli import refused

__all__ = ["folder"]

RUN = ["run", "experiments/toy", "--seeds", "3,11"]


@pytest.fixture
def two_stages(folder: Path) -> Path:
    told = STAGE.format(name="instruct", sources="{align: 1.0}", test=TEST.format(task="exact"))
    (folder / "instruct.yaml").write_text(told)
    return folder


def record(stage: str) -> dict:
    return json.loads(Path(stage, "weights/stage.json").read_text())


def test_every_seed_is_a_run_of_its_own_and_then_they_are_compared(
    two_stages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/toy/seed-7/align").mkdir(parents=True)  # of an earlier command, which was stopped
    main(RUN)
    told = capsys.readouterr().out
    align, instruct = ([record(f"runs/toy/seed-{seed}/{stage}") for seed in (3, 11)] for stage in ("align", "instruct"))
    assert align[0]["sha256"] != align[1]["sha256"]
    for start, then in zip(align, instruct, strict=True):
        assert then["lineage"][0]["sha256"] == start["sha256"], "of the same seed"
    assert [each["settings"]["config"]["seed_everything"] for each in instruct] == [3, 11]
    assert Path("runs/toy/seed-3/report.html").is_file()
    assert "runs/toy/compare.html" in told
    found = json.loads(Path("runs/toy/compare.json").read_text())
    spread = next(each for each in found["seeds"] if each["score"] == "exact_match")
    tested = [json.loads(Path(f"runs/toy/seed-{seed}/instruct/test.json").read_text()) for seed in (3, 11)]
    assert spread["values"] == [each["scores"]["exact_match"]["value"] for each in tested]

    main(["compare", "runs/toy/seed-3", "toy/seed-11/instruct", "--to", "between"])
    told = capsys.readouterr().out
    assert "are seeds of one recipe" in told, "their configurations differ in the seed alone"
    assert "exact_match: " in told and "between/compare.html" in told.splitlines()[-1]
    assert [each["name"] for each in json.loads(Path("between/compare.json").read_text())["sides"]] == [
        "toy/seed-3",
        "toy/seed-11/instruct",
    ]


def test_a_seed_that_is_not_finished_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(run_command, "run_experiment", lambda *_, seed, **__: asked.append(seed) or Path("runs/toy/a"))
    main(RUN)
    assert asked == [3] and "runs/toy: no comparison, for seed 3 is not done" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "1,1", "a", "1,-2", "0,1.5", "00,0", "²"])
def test_seeds_are_different_whole_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="expected different whole numbers such as 0,1,2"):
        parse_seeds(text)
    assert parse_seeds("0, 12") == [0, 12]


def test_wrong_words_are_refused_in_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in ("--seed_everything=4", "--align.seed_everything=4"):
        assert f"{setting}: found it with --seeds" in refused(capsys, *RUN, setting)
    assert "compare: found no folder runs/none" in refused(capsys, "compare", "runs/none", "experiments/toy")
    assert "found no test.json in experiments/toy" in refused(capsys, "compare", "experiments/toy", "experiments")


def test_a_trial_of_a_sweep_is_one_run(two_stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    with pytest.raises(ConfigError, match="--seeds: found a sweep agent, whose run is one"):
        run_seeds([3, 11], ["align"], [], lambda seed: Path())
