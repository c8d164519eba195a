"""A new architecture, one file and one YAML, goes through the product's own verbs without touching any other file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightning_mllm.commands.launch import main
from lightning_mllm.inference import load
from lightning_mllm.training.checkpoints import newest
from tests.toy import Toy
from tests.training.data import COLOURS

TOY = ["--config", str(Path(__file__).with_name("toy.yaml")), "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages trained and the second one tested."""
    folder = tmp_path_factory.mktemp("runs")
    common = [*TOY, f"--runs={folder}"]
    main(["fit", *common, f"--run_dir={folder}/toy/align"])
    second = [*common, f"--run_dir={folder}/toy/instruct", "--stage.name=instruct", "--stage.epochs=50"]
    main(["fit", *second, '--stage.init_from={"toy/align": 1.0}'])
    main(["test", *second])
    return folder


def test_it_is_trained_handed_over_and_tested(runs: Path) -> None:
    for stage in ("align", "instruct"):
        for name in ("config.yaml", "metrics.csv", "weights/stage.json"):
            assert (runs / "toy" / stage / name).is_file(), (stage, name)
        assert newest(runs / "toy" / stage / "checkpoints") is not None, stage
    scores = json.loads((runs / "toy/instruct/test.json").read_text())["scores"]
    assert scores["exact_match"]["value"] == 1.0
    assert scores["exact_match_blind"]["value"] < 0.5


def test_it_goes_on_from_its_checkpoint(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [*TOY, f"--runs={runs}", "--stage.epochs=3", "--stage.name=instruct"]
    main(["fit", *short, f"--run_dir={tmp_path / 'whole'}"])
    forward, calls = Toy.forward, []

    def dies(self, batch):
        calls.append(batch)
        if len(calls) == 8:
            raise RuntimeError("in the fourth of six steps of two micro-batches each")
        return forward(self, batch)

    monkeypatch.setattr(Toy, "forward", dies)
    cut = [*short, f"--run_dir={tmp_path / 'cut'}", "--checkpoint_every=2"]
    with pytest.raises(RuntimeError, match="fourth"):
        main(["fit", *cut])
    monkeypatch.undo()
    checkpoint = newest(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step-3"  # the last whole one
    main(["fit", *cut, f"--ckpt_path={checkpoint}"])
    same, other = (load_file(tmp_path / each / "weights" / "model.safetensors") for each in ("whole", "cut"))
    assert set(same) == set(other)
    assert all(torch.equal(same[name], other[name]) for name in same)


def test_it_answers(runs: Path) -> None:
    model = load(runs / "toy")
    assert model.answer(Image.new("RGB", (8, 8), COLOURS["blue"]), "<image>colour") == "blue"
