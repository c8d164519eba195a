"""`mllm mix`: a mix is a run as any other, and what cannot be mixed is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lightning_mllm import load
from lightning_mllm.cli import main
from lightning_mllm.evaluation.report import write_report
from lightning_mllm.interop import format
from lightning_mllm.interop.format import Format
from lightning_mllm.weights.files import BESIDE, sha256, write_tensors
from lightning_mllm.weights.keymap import KeyMap
from lightning_mllm.weights.stage_weights import initial_tensors
from tests.commands.conftest import TOY, trained
from tests.test_cli import refused


def weights(run: str | Path) -> dict[str, Tensor]:
    return load_file(Path(run) / "weights" / "model.safetensors")


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_mix_is_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["mix", "toy/real=0.25", "toy/text=0.75", "--to", "runs/toy/mixed"])
    assert capsys.readouterr().out.strip().endswith("runs/toy/mixed")
    run = Path("runs/toy/mixed")
    sentence = refused(capsys, "fit", f"--config={TOY}", f"--run_dir={run}")
    assert "found a mix of toy/real, toy/text, expected a stage to train" in sentence
    assert sorted(each.name for each in run.iterdir()) == ["config.yaml", "weights"]
    real, text, mixed = weights("runs/toy/real"), weights("runs/toy/text"), weights(run)
    assert set(mixed) == set(real)
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.25 * real[name] + 0.75 * text[name], rtol=0, atol=1e-6)
    record = json.loads((run / "weights/stage.json").read_text())
    assert record["stage"] == "instruct" and record["steps"] == 0 and record["whole"] is True
    assert record["init_from"] == {"toy/real": 0.25, "toy/text": 0.75}
    assert [Path(each["source"]).name for each in record["lineage"]] == ["base", "real", "text"]
    assert record["lineage"][1]["sha256"] == sha256(Path("runs/toy/real/weights"))
    assert record["names"] == sorted(mixed) and record["sha256"] == sha256(run / "weights")

    # What init_from mixes is the same.
    between = initial_tensors({"toy/real": 0.25, "toy/text": 0.75}, Path("runs"), {})
    assert same(dict(between), mixed)

    # It is asked, tested and shown as any other, and is what its experiment ends with.
    module = load(run).module
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in mixed.items())
    Image.new("RGB", (8, 8), "red").save("red.png")
    main(["ask", str(run), "--image", "red.png", "?"])
    assert capsys.readouterr().out.strip() == load("runs/toy").answer("red.png", "?")
    main(["test", f"--config={run / 'config.yaml'}", "--trainer.enable_progress_bar=false"])
    assert json.loads((run / "test.json").read_text())["scores"]["exact_match"]
    report = write_report(Path("runs/toy"))
    assert [stage.name for stage in report.stages][-1] == "mixed" and report.stages[-1].steps == 0

    # All is in it: a stage goes on from it, wherever it is and whether or not its parents are there.
    shutil.move(run, "mixed")
    shutil.rmtree("runs")
    trained("next", 5, "--stage.init_from={./mixed: 1.0}", "--stage.epochs=1", "--trainer.enable_progress_bar=false")
    assert torch.equal(load("runs/next").module.state_dict()["language.head.weight"], mixed["language.head.weight"])


def test_a_run_that_alone_has_a_weight_comes_out_to_the_bit(place: Path) -> None:
    for name, shares in (("real", (1, 0)), ("text", (0, 1))):
        main(["mix", f"toy/real={shares[0]}", f"toy/text={shares[1]}", "--to", name])
        assert same(weights(name), weights(f"runs/toy/{name}"))


def test_differences_are_added_to_a_base(place: Path) -> None:
    main(["mix", "toy/real=0.9", "runs/toy/text=0.8", "--base", "toy/base", "--to", "sum"])
    base, real, text, found = (weights(each) for each in ("runs/toy/base", "runs/toy/real", "runs/toy/text", "sum"))
    for name, tensor in found.items():
        expected = base[name] + 0.9 * (real[name] - base[name]) + 0.8 * (text[name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    record = json.loads(Path("sum/weights/stage.json").read_text())
    assert record["init_from"] == {"toy/base": pytest.approx(-0.7), "toy/real": 0.9, "toy/text": 0.8}
    main(["mix", "toy/real=0", "--base", "toy/base", "--to", "none"])
    assert same(weights("none"), base)


def test_wrong_mixes_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        ("toy/real=0.5", "toy/text=0.6"): "found the weights {'toy/real': 0.5, 'toy/text': 0.6}, expected weights from",
        ("toy/real=1.5", "toy/text=-0.5"): "expected weights from 0 to 1 that sum to 1",
        ("toy/real", "toy/text=1"): "mix: found 'toy/real', expected a source with its weight",
        ("toy/real=half", "toy/text=1"): "mix: found 'toy/real=half', expected a source with its weight",
        ("toy/real=0.5", "toy/real=0.5"): "mix: found 'toy/real' a second time",
        ("toy/real=0.5", "runs/toy/real=0.5"): "mix: found 'toy/real' a second time as 'runs/toy/real'",
        ("toy/rael=0.5", "toy/text=0.5"): "mix: found no 'toy/rael' in runs, expected a finished stage",
        ("toy=0.5", "toy/text=0.5"): "runs/toy: found the last stages",
        ("other/align=0.5", "toy/text=0.5"): "'other/align' and 'toy/text' differ in 16 tensors ('language.blocks.0",
        ("toy/real=0.5", "--base=toy/real"): "mix: found the base 'toy/real' among the sources ['toy/real']",
        ("toy/real=1", "--evaluate=x.yaml"): "mix: found --evaluate, expected it with --sweep only",
        ("toy/real=1", "--stage.lr=1"): "mix: found --stage.lr=1, expected it with --sweep only",
    }
    for arguments, sentence in wrong.items():
        assert sentence in refused(capsys, "mix", *arguments, "--to", "new"), arguments
    # Another width; the shapes are compared before anything is written.
    wide = weights("runs/toy/text")
    wide["connector.weight"] = torch.zeros(24, 17)
    write_tensors(Path("wide/model.safetensors"), wide)
    write_tensors(Path("plain/model.safetensors"), weights("runs/toy/real"))
    sentence = refused(capsys, "mix", "plain=0.5", "wide=0.5", "--to", "new")
    assert "'connector.weight' has shape (24, 17) in" in sentence and "wide', expected (24, 16) as in" in sentence
    # Another architecture, and a run without its configuration.
    file = Path("runs/toy/text/config.yaml")
    file.write_text(file.read_text().replace("tests.toy.Toy\n", "tests.toy.Language\n"))
    sentence = refused(capsys, "mix", "toy/real=0.5", "toy/text=0.5", "--to", "new")
    assert f"{file}: found the architecture tests.toy.Language, expected tests.toy.Toy" in sentence
    file.unlink()
    assert "found no configuration" in refused(capsys, "mix", "toy/real=0.5", "toy/text=0.5", "--to", "new")
    assert "found files there" in refused(capsys, "mix", "toy/real=1", "--to", "runs/toy/base")
    # Changed since it was used.
    write_tensors(Path("runs/toy/base/weights/model.safetensors"), wide)
    assert "changed or were cut" in refused(capsys, "mix", "toy/real=0.5", "toy/base=0.5", "--to", "new")
    assert not Path("new").exists() and not list(Path().glob(".new*"))


def test_adapters_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("runs/toy/text")
    adapters = {"language.head.lora_A.default.weight": torch.ones(1, 24)}
    write_tensors(run / "weights/model.safetensors", {**weights(run), **adapters})
    record = json.loads((run / "weights/stage.json").read_text())
    changed = {**record, "sha256": sha256(run / "weights"), "lora_scale": 2.0}
    (run / "weights/stage.json").write_text(json.dumps(changed))
    assert "'toy/text' has adapters" in refused(capsys, "mix", "toy/real=0.5", "toy/text=0.5", "--to", "new")


def test_folders_and_files_that_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        tensors = {"projector.weight": torch.randn(3, 4), "projector.bias": torch.randn(3).bfloat16()}
        write_tensors(Path(name, "model.safetensors"), tensors, shard_bytes=50)
        write_tensors(Path(name, BESIDE), {"extra": torch.randn(2)})
        Path(name, "config.json").write_text(json.dumps({"name": name}))
        Path(name, "tokenizer").mkdir()
    main(["mix", "one=0.5", "two=0.5", "--to", "both"])
    assert sorted(each.name for each in Path("both").iterdir()) == sorted(
        ["config.json", "mix.json", "model.safetensors", BESIDE]
    )
    assert json.loads(Path("both/config.json").read_text()) == {"name": "one"}
    told = json.loads(Path("both/mix.json").read_text())
    assert set(told["mix"].values()) == {0.5}
    assert [Path(each["source"]).name for each in told["lineage"]] == ["one", "two"]
    assert [each["sha256"] for each in told["lineage"]] == [sha256(Path("one")), sha256(Path("two"))]
    maps = {"hf": KeyMap([("connector.{...}", "projector.{...}")])}
    one, two, both = (dict(initial_tensors({name: 1.0}, tmp_path, maps)) for name in ("one", "two", "both"))
    assert set(both) == {"connector.weight", "connector.bias", "extra"}
    assert {name: tensor.dtype for name, tensor in both.items()} == {name: t.dtype for name, t in one.items()}
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2, rtol=0, atol=1e-2 if "bias" in name else 1e-6)

    main(["mix", "one/model-00001-of-00002.safetensors=1", "--to", "file"])
    assert set(load_file("file/model.safetensors")) == {"projector.weight"}


def test_a_run_with_foreign_weights_of_the_same_names(place: Path) -> None:
    """The net's tables rename what is no run; the toy has none, so a name that is ours already has to be told."""
    from tests.toy import Toy

    with pytest.MonkeyPatch.context() as patch:
        theirs = Format(architecture=f"{Toy.__module__}.Toy", keys=KeyMap([("{...}", "their.{...}")]))
        patch.setattr(format, "formats", lambda: {"theirs": (theirs,)})
        foreign = {f"their.{name}": 2 * tensor for name, tensor in weights("runs/toy/real").items()}
        write_tensors(Path("foreign/model.safetensors"), foreign)
        main(["mix", "foreign=0.5", "toy/real=0.5", "--to", "half"])
    real = weights("runs/toy/real")
    for name, tensor in weights("half").items():
        torch.testing.assert_close(tensor, 1.5 * real[name])
    assert yaml.safe_load(Path("half/config.yaml").read_text())["run_dir"] == "half"
