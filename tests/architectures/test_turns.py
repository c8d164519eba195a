"""What every architecture that is asked and answers does with the text of turns."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.export.export import hf_folder
from lightning_mllm.export.importing import import_folder
from tests.architectures.blip2s import INSTRUCTED, eva

NAMES = {
    "llava": "LLaVA",
    "sphinx": "Sphinx",
    "cogvlm": "CogVLM",
    "blip2": "Blip2",
    "instructblip": "Blip2",
}


def tiny(name: str, **settings: Any) -> Any:
    if name == "instructblip":
        return Blip2.tiny(**INSTRUCTED, **settings)
    module = importlib.import_module(f"lightning_mllm.architectures.{name}")
    return getattr(module, NAMES[name]).tiny(**settings)


def ends(net: Any) -> int:
    """How many end tokens a question has that writes two."""
    processor = net.processor
    asked = Sample(id="q", turns=(Turn(role="user", text="a</s>b</s>c"),))
    plain = Sample(id="q", turns=(Turn(role="user", text="abc"),))
    tokens, without = (processor.encode(each, generate=True).tokens.tolist() for each in (asked, plain))
    end = processor.tokenizer.eos_token_id
    return tokens.count(end) - without.count(end)


@pytest.mark.parametrize("name", NAMES)
def test_an_end_token_in_a_turn_is_text_unless_a_setting_says_otherwise(name: str) -> None:
    assert ends(tiny(name)) == 0
    assert ends(tiny(name, special_in_turns=True)) == 2


def folders() -> dict[str, Any]:
    """Nets that transformers has a place for."""
    eva_vision = eva("opt", special_in_turns=True)
    return {
        "llava": lambda: tiny("llava", special_in_turns=True),
        "cogvlm": lambda: tiny("cogvlm", special_in_turns=True),
        "blip2": lambda: Blip2.tiny(**eva_vision),
        "instructblip": lambda: Blip2.tiny(**INSTRUCTED | eva_vision),
    }


@pytest.mark.parametrize("name", folders())
def test_a_folder_notes_that_setting(tmp_path: Path, name: str) -> None:
    net = folders()[name]()
    net.configure_model()
    hf_folder(net).write(tmp_path)
    assert ends(import_folder(tmp_path)) == 2
