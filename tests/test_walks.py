"""A reader who follows a path through the code opens few files (what a net imports: tests/nets/test_imports.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

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
        batch = module.processor.collate([module.processor.encode(sample)])
        assert module.net(batch).loss.isfinite()
    return found


def yaml_to_optimizer(folder: Path) -> set[Path]:
    """Where YAML is read, the stage's settings are made, and the optimizer is."""
    points = ("yaml.load", "lightning_mllm.training.stage.StageSettings.__post_init__", "torch.optim.AdamW.__init__")
    with files_on_the_stack(*points) as found:
        main(["fit", f"--config={TOY}", f"--run_dir={folder / 'run'}", "--trainer.enable_progress_bar=false"])
    return found


def checkpoint_to_folder(folder: Path) -> set[Path]:
    """Where the configuration of the folder is made and written, and the weights are, once the net is loaded."""
    net, stage = (ROOT / f"experiments/quickstart/llava/{name}.yaml" for name in ("net", "instruct"))
    squares = "{squares: {class_path: tests.training.data.Squares, init_args: {samples: 16}}}"
    own = ["--stage.init_from={}", "--stage.steps=1", f"--data.train={squares}", "--data.test=null"]
    run, quiet = folder / "runs/llava/instruct", "--trainer.enable_progress_bar=false"
    main(["fit", f"--config={net}", f"--config={stage}", *own, f"--run_dir={run}", quiet])
    points = (
        "transformers.LlavaConfig.__init__",
        "transformers.PreTrainedConfig.save_pretrained",
        "lightning_mllm.weights.safetensors_writer.write_safetensors",
    )
    # The folder is made, and then checked: only the first is the walk.
    figures, answers = {"rows": 1, "answers": 1, "printed": "Red."}, SimpleNamespace(answer=lambda *_: "Red.")
    checks: dict[str, Any] = {"verify": lambda *_: figures, "load": lambda *_: answers}
    with files_on_the_stack(*points) as found, patch.multiple("lightning_mllm.export.export", **checks):
        main(["export", str(run), "--to", str(folder / "exported")])
    return found


def told(files: set[Path]) -> str:
    names = [str(path.relative_to(ROOT)) for path in sorted(files)]
    return f"{len(files)} files, {lines_of(files)} lines: {', '.join(names)}"


def test_image_bytes_to_loss(tmp_path: Path) -> None:
    """Text, label mask and image of a sample, the batch, the net: every file that is run."""
    files = image_bytes_to_loss(tmp_path)
    assert len(files) <= 12 and lines_of(files) <= 1800, told(files)


def test_yaml_to_optimizer(tmp_path: Path) -> None:
    files = yaml_to_optimizer(tmp_path)
    assert len(files) <= 6, told(files)


def test_checkpoint_to_folder(tmp_path: Path) -> None:
    files = checkpoint_to_folder(tmp_path)
    assert len(files) <= 6, told(files)


if __name__ == "__main__":
    import tempfile

    for walk in (image_bytes_to_loss, yaml_to_optimizer, checkpoint_to_folder):
        with tempfile.TemporaryDirectory() as name:
            print(f"{walk.__name__}: {told(walk(Path(name)))}", file=sys.stderr)
    for net in NETS:
        print(f"import nets.{net}: {len(modules_behind(f'lightning_mllm.nets.{net}')[0])} files", file=sys.stderr)
