from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.launch import CLI, ParsedCLI, compose
from lightning_mllm.export.export import hf_folder
from lightning_mllm.training.stage import StageSettings
from tests.architectures.samples import ONE, TEXT, batch_of
from tests.connectors.own import Deep, Gated, Unsized

ROOT = Path(__file__).resolve().parents[2]


def parsed(quickstart: str, folder: Path, text: str) -> CLI:
    """A quickstart's stage, then a file that names another connector."""
    recipe = ROOT / "experiments/quickstart" / quickstart
    stage = sorted(each.stem for each in recipe.glob("*.yaml") if each.stem != "net")[0]
    own = folder / "own.yaml"
    own.write_text(f"model: {{init_args: {{connector: {text}}}}}\n", encoding="utf-8")
    files = [recipe / "net.yaml", recipe / f"{stage}.yaml", ROOT / "experiments/_hardware/cpu.yaml", own]
    return compose(["fit", *[f"--config={each}" for each in files]], ParsedCLI)


@pytest.mark.parametrize(
    ("quickstart", "kind", "settings"),
    [("llava", Gated, {"inner": 4}), ("llava", Deep, {"depth": 4}), ("cogvlm", Gated, {"inner": 4})],
)
def test_a_connector_of_ones_own_is_taken_from_yaml(
    tmp_path: Path, quickstart: str, kind: type[Any], settings: dict[str, Any]
) -> None:
    place = f"tests.connectors.own.{kind.__name__}"
    cli = parsed(quickstart, tmp_path, f"{{class_path: {place}, init_args: {json.dumps(settings)}}}")
    found = cli.settings["model"]["init_args"]["connector"]
    assert (found["class_path"], kind(**vars(found["init_args"]))) == (place, kind(**settings))
    # What is recorded of a run says it too.
    recipe: Any = cli.recipe
    assert recipe["model"]["init_args"]["connector"]["class_path"] == place


def test_one_that_builds_nothing_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"own\.yaml:1: model\.connector: found '\S+own\.Other', expected .* build, pre"
    ):
        parsed("llava", tmp_path, "{class_path: tests.connectors.own.Other}")
    with pytest.raises(ConfigError, match=r"model\.connector: .* the nearest is 'Gated'"):
        parsed("llava", tmp_path, "{class_path: tests.connectors.own.Gatd}")


@pytest.mark.parametrize("kind", [LLaVA, CogVLM])
@pytest.mark.parametrize("spec", [Gated(), Deep()])
def test_a_connector_of_ones_own_learns(kind: type[Any], spec: Any) -> None:
    stage = StageSettings(name="align" if kind is LLaVA else "caption")
    module = kind.tiny(connector=spec, stage=stage)
    module.configure_model()
    module(batch_of(module, ONE, TEXT)).loss.backward()
    assert all(torch.any(p.grad != 0) for p in module.net.connector.parameters())
    if not (kind is LLaVA and isinstance(spec, Deep)):
        with pytest.raises(
            ValueError, match=rf"connector: found {type(spec).__name__}, expected \w+Connector .*exported"
        ):
            hf_folder(module)


@pytest.mark.parametrize("kind", [LLaVA, CogVLM])
def test_one_without_widths_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=re.escape("connector: Unsized has no field 'in_width', expected a frozen")):
        kind.tiny(connector=Unsized())
