"""`mllm mix --sweep`: a row a beta, the best one written, nothing tested twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightning_mllm.cli import main
from lightning_mllm.commands.mix_curve import best_beta, parse_betas
from tests.commands.test_mix import same, weights
from tests.test_cli import refused

SETS = """\
data:
  class_path: data_modules.module.CaptionDataModule
  init_args:
    test:
      held_out:
        source: {class_path: tests.training.data.Squares, init_args: {samples: 8}}
        task: exact
        part: held_out
      asked:
        source: {class_path: tests.training.data.Squares, init_args: {samples: 6, text_only: true}}
        task: exact
stage: {name: align, init_from: {nothing: 1.0}, epochs: 3}
"""


def rows(folder: str) -> list[dict[str, float]]:
    with open(Path(folder, "sweep.csv"), newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_betas() -> None:
    assert parse_betas("0:1:0.1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert parse_betas("0.2:0.6:0.25") == [0.2, 0.45]
    for wrong in ("0:1", "0:1:0", "0:1:-0.1", "1:0:0.1", "0:1.1:0.1", "-1:1:0.5", "0.5:0.5:0.1", "a:b:c", "0:1:2"):
        with pytest.raises(ValueError, match=f"--sweep: found '{wrong}', expected FROM:TO:STEP from 0 to 1"):
            parse_betas(wrong)


def test_the_best_loss_is_the_lowest() -> None:
    values = {0.0: 0.3, 0.5: 0.2, 1.0: 0.4}
    assert best_beta(values, "vqa_accuracy_novel") == 1.0
    assert best_beta(values, "loss") == best_beta(values, "perplexity_novel") == 0.5


def test_the_curve_and_the_best_mix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sets.yaml").write_text(SETS)
    command = ["mix", "toy/real", "toy/text", "--evaluate=sets.yaml", "--trainer.enable_progress_bar=false"]
    main([*command, "--sweep=0:1:1", "--to=curve"])
    shown = capsys.readouterr().out
    found = rows("curve")
    assert [row["beta"] for row in found] == [0, 1]
    assert list(found[0]) == [
        "beta",
        *("exact_match_held_out", "exact_match_held_out_low", "exact_match_held_out_high"),
        *("exact_match", "exact_match_low", "exact_match_high"),
    ], "no blind twins"
    told = json.loads(Path("curve/sweep.json").read_text())
    best = max(found, key=lambda row: row["exact_match_held_out"])
    assert told["best"] == best["beta"] and told["value"] == best["exact_match_held_out"]
    assert f"best beta {best['beta']:g}: exact_match_held_out {best['exact_match_held_out']:.3f}" in shown
    with Image.open("curve/sweep.png") as image:
        assert image.format == "PNG" and image.size == (960, 540)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 5

    # What was tested is what the run itself scores on the same sets, and what is written as the best.
    tests = yaml.safe_load(SETS)["data"]["init_args"]
    Path("tests.yaml").write_text(yaml.safe_dump({"data": {"init_args": tests}}))
    run = Path("runs/toy/text")
    main(["test", f"--config={run / 'config.yaml'}", "--config=tests.yaml", "--trainer.enable_progress_bar=false"])
    scores = json.loads((run / "test.json").read_text())["scores"]
    assert found[0]["exact_match_held_out"] == scores["exact_match_held_out"]["value"]
    assert found[0]["exact_match_low"] == scores["exact_match"]["low"]
    assert found[0]["exact_match_held_out"] != found[1]["exact_match_held_out"]
    main(["mix", f"toy/real={told['best']}", f"toy/text={1 - told['best']}", "--to", "again"])
    assert same(weights("curve/mix"), weights("again"))

    # Asked again, more finely and for another score: only what is new is tested.
    before = {path.parent.name: path.stat().st_mtime_ns for path in Path("curve/betas").glob("*/test.json")}
    main([*command, "--sweep=0:1:0.5", "--score=exact_match", "--to=curve"])
    after = {path.parent.name: path.stat().st_mtime_ns for path in Path("curve/betas").glob("*/test.json")}
    assert set(after) == {"0", "0.5", "1"} and before.items() <= after.items()
    assert [row["beta"] for row in rows("curve")] == [0, 0.5, 1]
    assert json.loads(Path("curve/sweep.json").read_text())["score"] == "exact_match"

    # Another question in the same place is refused.
    assert "found files there" in refused(capsys, *command, "--sweep=0:1:0.5", "--to=curve", "--hardware.eval_batch=2")
    sentence = refused(capsys, *command, "--sweep=0:1:0.5", "--to=curve", "--score=exact_mach")
    assert "--score: found 'exact_mach', expected one of exact_match_held_out, exact_match" in sentence


def test_wrong_sweeps_are_refused_before_anything_is_tested(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sets.yaml").write_text(SETS)
    Path("none.yaml").write_text(yaml.safe_dump({"stage": {"name": "align"}}))
    Path("plain").mkdir()
    torch.save(weights("runs/toy/real"), "plain/pytorch_model.bin")
    sweep = ("--sweep=0:1:0.5", "--to=curve")
    for arguments, sentence in {
        ("toy/real", "toy/text", *sweep): "--sweep takes two sources, --evaluate CONFIG and no --base",
        ("toy/real", "--evaluate=sets.yaml", *sweep): "--sweep takes two sources",
        ("toy/real", "toy/text", "--base=toy/base", "--evaluate=sets.yaml", *sweep): "and no --base",
        ("toy/real", "toy/text", "--evaluate=none.yaml", *sweep): "none.yaml: found no data.test, expected sets",
        ("toy/real", "toy/text", "--evaluate=absent.yaml", *sweep): "absent.yaml: cannot read the configuration file",
        ("plain", "toy/text", "--evaluate=sets.yaml", *sweep): "'plain' is no run, expected one as the first source",
        ("toy/real", "other/align", "--evaluate=sets.yaml", *sweep): "differ in 16 tensors",
        ("toy/real", "toy/text", "--evaluate=sets.yaml", "--sweep=0:2:1", "--to=curve"): "--sweep: found '0:2:1'",
    }.items():
        assert sentence in refused(capsys, "mix", *arguments), arguments
    assert not Path("curve").exists()
