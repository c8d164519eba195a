"""`mllm experiments`: what ships is listed, copied with what it uses, and found by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.cli import main
from lightning_mllm.commands.experiments import experiment_folder, hardware_file, names, order_of_stages, shipped
from tests.test_cli import refused

ROOT = Path(__file__).resolve().parents[2]


def _values(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _values(each)
    else:
        yield tree


def test_the_list_agrees_with_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    main(["experiments"])
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "stages", "hardware", "what"] and all(len(line) == 4 for line in lines)
    listed = {name: hardware for name, _, hardware, _ in lines[1:] if not name.startswith("sweeps/")}
    rows = re.findall(r"^\| `experiments/([\w/.]+)` \|.*\| ([^|]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    told = {name: ", ".join(re.findall(r"`(\w+)`", hardware)) for name, hardware in rows}
    assert {name: hardware for name, hardware in listed.items() if "backbones" not in name} == {
        name: hardware for name, hardware in told.items() if name not in ("backbones", "sweeps")
    }
    stages = {name: stages for name, stages, _, _ in lines}
    assert stages["quickstart/llava"] == "align, instruct" and stages["sweeps/learning_rate"] == "mllm sweep"
    assert [name for name in stages if "one_budget" in name] == []


def test_a_copy_has_all_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart/instructblip", "blip2_opt2.7b"):
        assert name in names(shipped())
        main(["experiments", "copy", name])
    files = list(Path("experiments").rglob("*.yaml"))
    assert all(each.read_bytes() == (shipped() / each.relative_to("experiments")).read_bytes() for each in files)
    # Every file that a file names by its place came along, through other files too; nothing else did.
    mentioned = {
        (file.parent / str(value)).resolve()
        for file in files
        for value in _values(yaml.safe_load(file.read_text()))
        if str(value).endswith(".yaml")
    }
    assert mentioned == {each.resolve() for each in files if each.parent.name == "_parts"} and len(mentioned) > 5
    assert "it starts from quickstart/blip2/representation: mllm run quickstart/blip2" in capsys.readouterr().out
    Path("experiments/_parts/small_clip.yaml").write_text("layer: -1\n")
    sentence = refused(capsys, "experiments", "copy", "quickstart/instructblip")
    assert sentence.startswith("experiments/_parts/small_clip.yaml: found another file")
    assert "the nearest is 'quickstart/llava'" in refused(capsys, "experiments", "copy", "quickstart/lava")
    assert "found 'paste x'" in refused(capsys, "experiments", "paste", "x")


def test_a_sweep_is_copied_with_what_it_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["experiments", "copy", "sweeps/connector"])
    written = {str(each.relative_to("experiments")) for each in Path("experiments").rglob("*.yaml")}
    assert {"sweeps/connector.yaml", "sweeps/one_budget/blip2.yaml", "quickstart/llava/net.yaml"} <= written
    assert {"_parts/small_captions.yaml", "_hardware/cpu.yaml"} <= written
    assert "sweeps/learning_rate.yaml" not in written


def test_a_name_is_found_here_first_and_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart/llava", "experiments/quickstart/llava"):
        assert experiment_folder(name) == shipped() / "quickstart/llava"
    own = Path("experiments/quickstart/llava")
    own.mkdir(parents=True)
    (own / "only.yaml").write_text("stage: {name: align}\n")
    assert order_of_stages(Path("quickstart/llava")) == ["only"]
    # Without hardware files of its own it takes the shipped ones.
    assert hardware_file(own, "cpu") == shipped() / "_hardware/cpu.yaml"
    assert "the nearest is 'quickstart/cogvlm'" in refused(capsys, "run", "quickstart/cogvml")
