"""Trained models for use: `load(RUN).answer(image, question)`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import jsonargparse
import torch
from PIL import Image

from lightning_mllm.commands.config import Config, read_yaml
from lightning_mllm.commands.merge import check_keys
from lightning_mllm.contracts import IMAGE_MARK, ImageFile, ImageRef, Sample, Turn
from lightning_mllm.export.importing import import_folder
from lightning_mllm.language.generation import Decoding
from lightning_mllm.processing.decode import ImageInMemory
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.lineage import RECORD, WEIGHTS, starts_from

Picture = str | Path | Image.Image
"""A file, or a picture that is open."""


class Model:
    """A trained net that answers."""

    def __init__(self, module: MultimodalModule) -> None:
        self.module = module.eval()

    def answer(self, image: Picture | Sequence[Picture] | None, text: str, decoding: Decoding | None = None) -> str:
        """The answer to `text` about `image`.

        Args:
            image: A file, an open picture, several of them, or None for a question without one.
            text: The question; `<image>` in it says where a picture stands, otherwise they stand first.
            decoding: How to generate; None takes the net's own settings for questions.

        Raises:
            ValueError: A picture cannot be read or is of another kind, the question marks another number of them than
                are given, or it is longer than what the net reads.
        """
        given = (
            [image] if isinstance(image, str | Path | Image.Image) else [] if image is None else list(_listed(image))
        )
        images: tuple[ImageRef, ...] = tuple(
            ImageInMemory(each) if isinstance(each, Image.Image) else ImageFile(Path(each)) for each in given
        )
        if images and IMAGE_MARK not in text:
            text = f"{IMAGE_MARK}\n" * len(images) + text
        sample = Sample(id="question", turns=(Turn(role="user", text=text),), images=images)
        processor = self.module.processor
        row = processor.encode(sample, generate=True, may_cut=False)
        batch = processor.collate([row], padding="left").to(self.module.device)
        chosen = decoding or self.module.decoding.get("answer") or Decoding(max_new_tokens=128)
        with torch.inference_mode():
            return processor.decode(self.module.generate(batch, chosen)[0])


def _listed(images: object) -> Sequence[Picture]:
    """Several pictures; ValueError for arrays and tensors, which do not say what their numbers are."""
    several = isinstance(images, list | tuple)
    odd = next((each for each in images if not isinstance(each, Picture)), None) if several else images
    if odd is not None:
        kind = f"{type(odd).__module__}.{type(odd).__qualname__}"
        raise ValueError(f"image: found a {kind}, expected a path or an open picture (PIL.Image.fromarray makes one)")
    return cast(Sequence[Picture], images)


def load(path: str | Path, device: str | torch.device = "cpu", chat: str | None = None) -> Model:
    """A trained model.

    Args:
        path: A run (its last stage is taken), a stage of a run, or a folder in the layout of transformers.
        device: Where it answers.
        chat: How conversations are written, for a folder of transformers that does not say it, or another way than it
            says: a template of `processing/templates`.

    Raises:
        ValueError: `path` is none of these, or a folder without a chat template and none is named.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        module = import_folder(folder, chat)
    elif chat is not None:
        raise ValueError(f"chat: found {chat!r} for {folder}, expected none: a run knows its own")
    else:
        module = _from_run(stage_of(folder))
    module.configure_model()
    return Model(module.to(device))


def load_apart(path: Path) -> MultimodalModule:
    """The net of a run or a folder, on the CPU, as `load`; adapters that its last stage trained stay apart."""
    if (path / "config.json").is_file():
        return load(path).module
    module = _from_run(stage_of(path), apart=True)
    module.configure_model()
    return module.eval()


def stage_of(run: Path) -> Path:
    """The folder of the last finished stage of `run`; `run` itself if it is a stage.

    Raises:
        ValueError: There is no finished stage, or there are several last ones.
    """
    if (run / WEIGHTS / RECORD).is_file():
        return run
    records = {
        each.parents[1].name: json.loads(each.read_text(encoding="utf-8"))
        for each in sorted(run.glob(f"*/{WEIGHTS}/{RECORD}"))
    }
    if not records:
        raise ValueError(f"{run}: found no finished stage, expected a run such as runs/quickstart/llava")
    last = [
        run / name
        for name, record in records.items()
        if not any(starts_from(other, later, name, record) for other, later in records.items())
    ]
    if len(last) != 1:
        raise ValueError(f"{run}: found the last stages {[str(each) for each in last]}, expected one; name it")
    return last[0]


def _settings(stage: Path) -> dict[str, Any]:
    """The record of a run, whose classes can be imported.

    Raises:
        ValueError: One cannot; names the line.
    """
    config = Config()
    settings = read_yaml(stage / "config.yaml", config)
    check_keys(settings["model"], MultimodalModule, config, ("model",))
    return settings


def _from_run(stage: Path, apart: bool = False) -> MultimodalModule:
    """The net of a finished stage: its own configuration, its own weights and those of its ancestors.

    Args:
        stage: Its folder.
        apart: Whether adapters that it trained are built as such, and not folded into what they adapt.
    """
    settings = _settings(stage)
    use: dict[str, Any] = {"name": settings["stage"]["name"], "train": {}, "init_from": {str(stage.resolve()): 1.0}}
    if apart and (lora := _module(stage, settings, settings["stage"]).lora) is not None:
        use["lora"] = asdict(lora)
    return _module(stage, settings, use)


def _module(stage: Path, settings: dict[str, Any], use: dict[str, Any]) -> MultimodalModule:
    """The net that a stage's file describes, not yet built, with settings of its stage."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MultimodalModule, "model", required=True)
    parser.add_argument("--stage", type=StageSettings)
    parser.link_arguments("stage", "model.init_args.stage")
    try:
        parsed = parser.parse_object({"model": settings["model"], "stage": use})
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{stage / 'config.yaml'}: {' '.join(str(error).split())}") from None
    module = parser.instantiate(parsed)["model"]
    module.runs = settings["runs"]
    return module
