"""`mllm compare` as it is typed, on runs of known answers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from lightning_mllm.cli import main
from lightning_mllm.evaluation.comparison import compare
from tests.evaluation.tested_runs import write_tested


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    for k, seed in enumerate(("seed-0", "seed-1")):
        write_tested(folder / "runs/seeing" / seed, lambda i, k=k: (i + k * (i % 9 == 0)) % 5 > 0, captions=())
    write_tested(folder / "runs/blind", lambda i: i % 3 == 0, captions=())
    return folder


@pytest.fixture(autouse=True)
def in_the_folder_of_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("lightning_mllm.commands.compare.compare", partial(compare, draws=300))


def test_tables_sentences_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "seeing/seed-0", "runs/blind", "--to", "to"])
    told = capsys.readouterr().out
    sentence = next(line for line in told.splitlines() if line.startswith("vqa_accuracy: win: the difference "))
    assert sentence.endswith("would have been found in 80 % of such tests")
    assert "kinds of questions" in told and told.splitlines()[-1] == "to/compare.html"
    rows = [line for line in told.splitlines() if "vqa_accuracy" in line and "win" in line and "colour" in line]
    assert len(rows) == 1
    assert json.loads(Path("to/compare.json").read_text())["headlines"][0]["sentence"] in sentence


def test_seeds_alone_and_as_sides(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "seeing"])
    told = capsys.readouterr().out
    assert "between seeds" in told and "kinds of questions" not in told
    main(["compare", "blind", "seeing"])
    told = capsys.readouterr().out
    assert "vqa_accuracy: loss: " in told
    assert "blind: one seed, taken to vary from seed to seed as the others do." in told
    assert Path("comparison/compare.html").is_file()


def test_kinds_of_questions_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.evaluation.tested_runs.TYPES", ("[/count]", "[red]", "where"))
    for name, right in (("one", lambda i: i % 5 > 0), ("two", lambda i: i % 3 == 0)):
        write_tested(Path("runs/marked", name), right, captions=())
    main(["compare", "marked/one", "marked/two"])
    told = capsys.readouterr().out
    assert "[/count]" in told and "[red]" in told


def test_three_sides_name_the_other_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "blind", "seeing/seed-0", "seeing/seed-1"])
    told = capsys.readouterr().out
    assert "vqa_accuracy, blind against seeing/seed-0: loss" in told
    assert "vqa_accuracy, blind against seeing/seed-1: loss" in told
