"""The net of a run, of a stage or of a folder in the layout of transformers, built and filled."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from lightning_mllm.commands.config import Config, read_yaml
from lightning_mllm.commands.merge import check_keys
from lightning_mllm.commands.secrets import revealed
from lightning_mllm.commands.trust import build_typed_classes_alone
from lightning_mllm.export.importing import import_folder
from lightning_mllm.inference.device_map import cast_parameters, dispatch_to_devices, floating_dtype
from lightning_mllm.inference.model import Model
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.hub import model_at
from lightning_mllm.weights.lineage import RECORD, WEIGHTS, starts_from
from lightning_mllm.weights.run_records import REMEDY, read_stage


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    chat: str | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device_map: str | None = None,
) -> Model:
    """A trained model.

    Args:
        path: A run (its last stage is taken), a stage of a run, a folder that `mllm export` wrote or in the layout of
            transformers, or the name of such a folder on the Hub, OWNER/NAME.
        device: Where it answers.
        chat: How conversations are written, for a folder of transformers that does not say it, or another way than it
            says: a template of `processing/templates`.
        dtype: Of the weights and of what is computed with them (`"bfloat16"`); None is what the run or folder says.
        device_map: "auto" distributes the blocks over the accelerators of this machine by accelerate, and leaves what
            does not fit on the CPU; `device` is then not read.

    Raises:
        ValueError: `path` is none of these, a folder without a chat template and none is named, an unknown `dtype` or
            `device_map`.
    """
    as_dtype, folder = floating_dtype(dtype), model_at(path)
    if device_map not in (None, "auto"):
        raise ValueError(f"device_map: found {device_map!r}, expected 'auto' or none")
    if (folder / "config.json").is_file():
        module = import_folder(folder, chat)
    elif chat is not None:
        raise ValueError(f"chat: found {chat!r} for {folder}, expected none: a run knows its own")
    else:
        module = _from_run(stage_of(folder))
    module.configure_model()
    module = module if as_dtype is None else cast_parameters(module, as_dtype)
    return Model(module.to(device) if device_map is None else dispatch_to_devices(module))


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
    records = {each.parents[1].name: read_stage(each) for each in sorted(run.glob(f"*/{WEIGHTS}/{RECORD}"))}
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


def settings_of(stage: Path) -> dict[str, Any]:
    """The record of a run, whose classes can be imported.

    Raises:
        ValueError: One cannot; names the line.
    """
    config = Config()
    settings = read_yaml(stage / "config.yaml", config)
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), dict) for name in ("model", "stage")):
        raise ValueError(f"{stage / 'config.yaml'}: found no settings of a run, expected what mllm fit wrote; {REMEDY}")
    check_keys(settings["model"], MultimodalModule, config, ("model",))
    return settings


def _from_run(stage: Path, apart: bool = False) -> MultimodalModule:
    """The net of a finished stage: its own configuration, its own weights and those of its ancestors.

    Args:
        stage: Its folder.
        apart: Whether adapters that it trained are built as such, and not folded into what they adapt.
    """
    settings = settings_of(stage)
    use: dict[str, Any] = {"name": settings["stage"]["name"], "train": {}, "init_from": {str(stage.resolve()): 1.0}}
    if apart and (lora := _module(stage, settings, settings["stage"]).lora) is not None:
        use["lora"] = asdict(lora)
    return _module(stage, settings, use)


def _module(stage: Path, settings: dict[str, Any], use: dict[str, Any]) -> MultimodalModule:
    """The net that a stage's file describes, not yet built, with settings of its stage."""
    build_typed_classes_alone()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MultimodalModule, "model", required=True)
    parser.add_argument("--stage", type=StageSettings)
    parser.link_arguments("stage", "model.init_args.stage")
    given = revealed({"model": settings["model"], "stage": use})
    assert isinstance(given, dict)
    try:
        parsed = parser.parse_object(given)
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{stage / 'config.yaml'}: {' '.join(str(error).split())}") from None
    module = parser.instantiate(parsed)["model"]
    module.runs = settings["runs"]
    return module
