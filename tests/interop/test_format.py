"""Formats are found by walking the package, and none is needed by another."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.interop import format
from lightning_mllm.interop.format import folder_formats, formats, formats_of, key_maps
from lightning_mllm.training.module import MultimodalModule
from tests.test_layers import ROOT, imported, within

PACKAGE = ROOT / "lightning_mllm/interop"


def test_every_format_is_of_an_architecture() -> None:
    for name, mine in formats().items():
        for each in mine:
            source, _, kind = each.architecture.rpartition(".")
            assert issubclass(getattr(importlib.import_module(source), kind), MultimodalModule), name
            assert bool(each.hf_class) == (each.write is not None) == (each.read is not None), name
    assert len(folder_formats()) == sum(bool(each.hf_class) for mine in formats().values() for each in mine)


def test_an_architecture_and_what_is_derived_from_it_have_its_formats() -> None:
    class Mine(LLaVA):
        pass

    expected = ["hf_llava", "llava_original"]
    assert [name for name, _ in formats_of(LLaVA)] == [name for name, _ in formats_of(Mine)] == expected
    assert list(key_maps(Mine, {})) == expected and key_maps(MultimodalModule, {}) == {}


def test_a_file_is_a_format_and_no_list_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_mllm.interop as package

    (tmp_path / "another.py").write_text(
        "from lightning_mllm.interop.format import Format\n"
        "from lightning_mllm.weights.keymap import KeyMap\n"
        "KEYS = KeyMap([('{...}', 'x.{...}')])\n"
        "FORMAT = Format(architecture='lightning_mllm.architectures.llava.LLaVA', keys=KEYS)\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(format, "formats", format.formats.__wrapped__)
    assert {name for name, _ in formats_of(LLaVA)} == {"another", "hf_llava", "llava_original"}


@pytest.mark.parametrize("name", formats())
def test_deleting_a_format_takes_nothing_else_along(name: str) -> None:
    own = PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"
    others = [
        path
        for place in ("lightning_mllm", "data_modules")
        for path in (ROOT / place).rglob("*.py")
        if path != own and own not in path.parents
    ]
    needed = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in others
        for line, module in imported(path)
        if within(module, f"lightning_mllm.interop.{name}")
    ]
    assert needed == []
