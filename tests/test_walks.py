"""A reader who follows a path through the code opens few files, and a net stands without the rest of the project."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.cli import main
from lightning_mllm.contracts import ImageFile, Sample, Turn
from tests.commands.conftest import TOY
from tests.walks import ROOT, files_on_the_stack, files_run, lines_of, modules_behind

NETS = sorted(path.stem for path in (ROOT / "lightning_mllm/nets").glob("[a-z]*.py"))


def image_bytes_to_loss(folder: Path) -> set[Path]:
    """A picture in a file and a question, to the loss of LLaVA."""
    module = LLaVA.tiny()
    module.configure_model()
    Image.new("RGB", (20, 16), "red").save(folder / "red.png")
    turns = (Turn(role="user", text="<image>\nWhat?"), Turn(role="assistant", text="Red."))
    sample = Sample(id="a", turns=turns, images=(ImageFile(folder / "red.png"),))
    with files_run() as found, torch.no_grad():
        batch = module.processor.collate([module.processor(sample)])
        assert module.net(batch).loss.isfinite()
    return found


def yaml_to_optimizer(folder: Path) -> set[Path]:
    """Where YAML is read, the stage's settings are made, and the optimizer is."""
    points = ("yaml.load", "lightning_mllm.training.stage.StageSettings.__init__", "torch.optim.AdamW.__init__")
    with files_on_the_stack(*points) as found:
        main(["fit", f"--config={TOY}", f"--run_dir={folder / 'run'}", "--trainer.enable_progress_bar=false"])
    return found


def checkpoint_to_folder(folder: Path) -> set[Path]:
    """Where the weights of a run are read, the configuration is made, and both are written."""
    points = (
        "transformers.LlavaConfig.__init__",
        "transformers.PreTrainedConfig.save_pretrained",
        "lightning_mllm.weights.files.TensorFiles.__getitem__",
        "lightning_mllm.weights.files.write_tensors",
    )
    del folder, points
    raise NotImplementedError


def told(files: set[Path]) -> str:
    names = [str(path.relative_to(ROOT)) for path in sorted(files)]
    return f"{len(files)} files, {lines_of(files)} lines: {', '.join(names)}"


def test_image_bytes_to_loss(tmp_path: Path) -> None:
    files = image_bytes_to_loss(tmp_path)
    assert len(files) <= 12 and lines_of(files) <= 1800, told(files)


def test_yaml_to_optimizer(tmp_path: Path) -> None:
    files = yaml_to_optimizer(tmp_path)
    assert len(files) <= 6, told(files)


@pytest.mark.parametrize("net", NETS)
def test_a_net_stands_alone(net: str) -> None:
    ours, packages = modules_behind(f"lightning_mllm.nets.{net}")
    assert len(ours) <= 20, ours
    assert not packages & {"lightning", "torchmetrics", "wandb", "data_modules"}
    assert not [each for each in ours if each.split(".")[1] in ("training", "evaluation", "interop", "architectures")]


if __name__ == "__main__":
    import tempfile

    for walk in (image_bytes_to_loss, yaml_to_optimizer):
        with tempfile.TemporaryDirectory() as name:
            print(f"{walk.__name__}: {told(walk(Path(name)))}", file=sys.stderr)
    for net in NETS:
        print(f"import nets.{net}: {len(modules_behind(f'lightning_mllm.nets.{net}')[0])} files", file=sys.stderr)
