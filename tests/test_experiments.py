"""Every YAML under experiments/ resolves, on every hardware it is offered for."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from lightning_mllm.commands.config import Config, read_yaml
from lightning_mllm.commands.run import experiment_name, hardware_file, order_of_stages
from lightning_mllm.commands.trainer import CLI, ParsedCLI, accumulation, at_once, compose

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
FILES = sorted(EXPERIMENTS.rglob("*.yaml"))
STAGES = [file for file in FILES if file.stem != "net" and not file.parent.name.startswith("_")]
HARDWARE = sorted(file.stem for file in (EXPERIMENTS / "_hardware").glob("*.yaml"))
ONE_DEVICE = ("quickstart", "backbones")
"""Experiments too small to be spread."""


@cache
def resolve(stage: Path, hardware: str) -> CLI:
    net = stage.parent / "net.yaml"
    shared = [f"--config={net}"] if net.is_file() else []
    machine = hardware_file(stage.parent, hardware)
    return compose(["fit", *shared, f"--config={stage}", f"--config={machine}"], ParsedCLI)


def name(path: Path) -> str:
    return str(path.relative_to(EXPERIMENTS))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_is_read_strictly(file: Path) -> None:
    tree = read_yaml(file, Config())
    assert isinstance(tree, dict)
    assert file.read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("stage", STAGES, ids=name)
def test_resolves_on_every_hardware(stage: Path) -> None:
    small = stage.relative_to(EXPERIMENTS).parts[0] in ONE_DEVICE
    for hardware in (each for each in HARDWARE if not (small and each == "gpu8")):
        settings = resolve(stage, hardware).settings
        steps = accumulation(
            settings["stage"]["global_batch"],
            at_once(settings["stage"]["micro_batch"], settings["hardware"]["micro_batch"]),
            settings["trainer"]["devices"],
        )
        assert steps >= 1
        assert settings["data"]["init_args"]["global_batch"] == settings["stage"]["global_batch"]
        assert settings["model"]["init_args"]["stage"]["name"] == settings["stage"]["name"]


@pytest.mark.parametrize("stage", STAGES, ids=name)
def test_names_a_stage_of_its_architecture(stage: Path) -> None:
    settings = resolve(stage, "cpu").settings
    module, _, cls = settings["model"]["class_path"].rpartition(".")
    architecture = getattr(__import__(module, fromlist=[cls]), cls)
    assert settings["stage"]["name"] in architecture.stages or settings["stage"]["train"]


@pytest.mark.parametrize("folder", sorted({stage.parent for stage in STAGES}), ids=name)
def test_ancestors_are_there(folder: Path) -> None:
    """What a stage starts from is an earlier stage of the folder or a stage of another experiment."""
    stages = order_of_stages(folder)
    for position, stage in enumerate(stages):
        for source in yaml.safe_load((folder / f"{stage}.yaml").read_text())["stage"].get("init_from") or {}:
            if "/" in source:
                assert (EXPERIMENTS / f"{source}.yaml").is_file(), source
            else:
                assert source in stages[:position], source
    assert experiment_name(folder) == name(folder)


PUBLISHED = [file for file in STAGES if re.match(r"llava(15)?_\d+b", file.parent.name)]


@pytest.mark.parametrize("stage", PUBLISHED, ids=name)
def test_every_published_number_is_stated(stage: Path) -> None:
    """A later change of a default must not change a paper's recipe."""
    stated = yaml.safe_load(stage.read_text())["stage"]
    needed = {"global_batch", "epochs", "lr", "weight_decay", "betas", "eps", "warmup", "decay", "gradient_clip"}
    assert needed - set(stated) == set()


def test_the_published_numbers() -> None:
    """Global batch, epochs and peak rate, from the papers."""
    table = {
        "llava_7b/align": (128, 1, 2e-3),
        "llava_7b/instruct": (32, 3, 2e-5),
        "llava15_7b/align": (256, 1, 1e-3),
        "llava15_7b/instruct": (128, 1, 2e-5),
        "llava15_13b/align": (256, 1, 1e-3),
        "llava15_13b/instruct": (128, 1, 2e-5),
        "llava15_7b_lora/instruct_lora": (128, 1, 2e-4),
    }
    for path, numbers in table.items():
        stage = yaml.safe_load((EXPERIMENTS / f"{path}.yaml").read_text())["stage"]
        assert (stage["global_batch"], stage["epochs"], stage["lr"]) == numbers, path
