"""A stage is the same one under what training does not read; what a test reads is tested again."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.cli import main
from lightning_mllm.commands.recipe import differences, recipe_of
from tests.commands.conftest import TOY
from tests.commands.test_run_checks import HARDWARE, NET, STAGE, TEST
from tests.commands.test_validation import BEST
from tests.test_cli import refused
from tests.toy import Toy

FIT = ("fit", f"--config={TOY}", "--run_dir=run", "--stage.epochs=1", "--trainer.enable_progress_bar=false")
RECORD = Path("run/weights/stage.json")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rewritten(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_what_training_does_not_read_makes_no_other_stage(capsys: pytest.CaptureFixture[str]) -> None:
    main(FIT)
    more = "{other: {source: {class_path: tests.training.data.Squares}, task: exact}}"
    for same in (
        [f"--data.test={more}"],
        ["--data.test=null"],
        [f"--data.val={more}", "--stage.validate_every=1"],
        ["--data.test.squares.limit=3"],
        ["--data.train.squares.class_path=tests.training.data.Squares"],
        ["--hardware.eval_batch=1", "--trainer.precision=32", "--checkpoint_every=1", "--runs=elsewhere"],
    ):
        capsys.readouterr()
        main([*FIT, *same])
        assert capsys.readouterr().out == "run is done\n", same
    for other, keys in {
        "--data.train.squares.samples=24": "data.train.squares.samples",
        "--stage.weight_decay=0.1": "stage.weight_decay",
        "--seed_everything=3": "seed_everything",
        "--model.language.depth=1": "model.language.depth",
        "--trainer.limit_train_batches=2": "trainer.limit_train_batches",
        "--trainer.overfit_batches=2": "trainer.overfit_batches",
    }.items():
        assert f"other settings ({keys})" in refused(capsys, *FIT, other)


def resolved(**trainer: Any) -> dict[str, Any]:
    """A resolved configuration of which only the Trainer is of interest."""
    model, data = ({"class_path": name, "init_args": {}} for name in ("tests.toy.Toy", "tests.training.data.Squares"))
    return {"model": model, "data": data, "stage": {}, "seed_everything": 0, "trainer": trainer}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"limit_train_batches": 1}, {"limit_train_batches": 1.0}, False),
        ({"limit_train_batches": 2}, {"limit_train_batches": 2}, True),
        ({"limit_train_batches": 1.0}, {}, True),
        ({"limit_train_batches": 0.5}, {}, False),
        ({"overfit_batches": 1}, {"overfit_batches": 1.0}, False),
        ({"overfit_batches": 0}, {"overfit_batches": 0.0}, True),
    ],
)
def test_one_batch_is_not_the_whole_of_them(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    recorded = json.loads(json.dumps(recipe_of(resolved(**one))))
    for known in (resolved(**one), recorded):
        assert differences(known, recipe_of(resolved(**other))) == ([] if same else [f"trainer.{next(iter(one))}"])


@pytest.mark.parametrize("name", ["StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"])
def test_averages_of_lightning_s_own_decide_the_weights(name: str) -> None:
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": {}}
    assert differences(resolved(), recipe_of(resolved(callbacks=[callback]))) == ["trainer.callbacks"]


def test_a_new_setting_of_the_library_makes_no_other_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """The record of an older version lacks it; its own test sets stood in it."""

    def older(record: Any) -> None:
        config = record["settings"]["config"]
        del config["stage"]["decay_scalars"], config["stage"]["min_lr"], config["data"]["init_args"]["group"]
        config["data"]["init_args"]["test"] = {"gone": {"task": "exact"}}
        config["stage"]["validate_every"] = 3

    main(FIT)
    rewritten(RECORD, older)
    capsys.readouterr()
    main(FIT)
    assert capsys.readouterr().out == "run is done\n"
    assert "other settings (stage.min_lr)" in refused(capsys, *FIT, "--stage.min_lr=1e-6")

    def another(record: Any) -> None:
        record["settings"]["config"]["stage"]["gone"] = 1

    rewritten(RECORD, another)
    assert "other settings (stage.gone)" in refused(capsys, *FIT)


def test_validation_counts_where_it_chooses_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    Path("best.yaml").write_text(yaml.safe_dump(BEST))
    main([*FIT, "--config=best.yaml"])
    capsys.readouterr()
    main([*FIT, "--config=best.yaml", "--data.test=null"])
    assert capsys.readouterr().out == "run is done\n"
    for other in ("stage.validate_every=1", "data.val.held_out.limit=2", "trainer.limit_val_batches=1"):
        told = refused(capsys, *FIT, "--config=best.yaml", f"--{other}")
        assert f"other settings ({other.partition('=')[0]})" in told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "experiments" / "toy"
    own.mkdir(parents=True)
    (own.parent / "_hardware").mkdir()
    (own.parent / "_hardware" / "cpu.yaml").write_text(HARDWARE)
    (own / "net.yaml").write_text(NET)
    for name, sources in (("align", "{}"), ("instruct", "{align: 1.0}")):
        test = TEST.format(task="exact")
        (own / f"{name}.yaml").write_text(STAGE.format(name=name, sources=sources, test=test))
    return own


def test_a_changed_test_is_taken_again_and_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tested() -> list[str]:
        capsys.readouterr()
        main(["run", str(folder)])
        out = capsys.readouterr().out
        assert "runs/toy/align is done" in out and "runs/toy/instruct is done" in out
        return [stage for stage in ("align", "instruct") if f"runs/toy/{stage} is tested" not in out]

    main(["run", str(folder)])
    assert tested() == []
    stage = folder / "instruct.yaml"
    stage.write_text(stage.read_text().replace("task: exact", "task: exact\n        limit: 4"))
    assert tested() == ["instruct"]
    assert json.loads(Path("runs/toy/instruct/test.json").read_text())["samples"]["exact"] == 4
    assert tested() == []
    # Said again as it is by default, it is the same test.
    stage.write_text(stage.read_text().replace("limit: 4", "limit: 4\n        turns: one"))
    assert tested() == []


def test_a_stage_whose_source_was_trained_anew_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", str(folder)])
    other = "--align.stage.lr=0.001"
    main(["run", str(folder), "--only", "align", other, "--overwrite"])
    told = "runs/toy/instruct: found weights trained from other weights of 'align' than are there now"
    assert told in refused(capsys, "run", str(folder), other)
    main(["run", str(folder), "--only", "instruct", "--overwrite"])
    capsys.readouterr()
    main(["run", str(folder), other])
    assert "runs/toy/instruct is tested" in capsys.readouterr().out


def test_a_stage_does_not_hold_the_net_of_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[Toy]] = []
    alive: list[int] = []
    configure = Toy.configure_model

    def watched(self: Toy) -> None:
        alive.append(sum(ref() is not None for ref in built if ref() is not self))
        built.append(weakref.ref(self))
        configure(self)

    monkeypatch.setattr(Toy, "configure_model", watched)
    gc.disable()
    try:
        main(["run", str(folder)])
    finally:
        gc.enable()
    assert len(alive) >= 4 and set(alive) == {0}, alive
