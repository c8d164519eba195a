"""The programs of docs/use.md run as printed, and the model is asked as its command is."""

from __future__ import annotations

from pathlib import Path

import pytest

import lightning_mllm
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.inference import Model
from tests.architectures.blip2s import built
from tests.documents import ROOT, blocks
from tests.inference.nets import FEW, model_of
from tests.inference.test_model import BLUE, RED

TEXT = (ROOT / "docs/use.md").read_text(encoding="utf-8")
PROGRAMS = [block for language, block in blocks(TEXT) if language == "python"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.chdir(tmp_path)
    RED.save("my.png")
    BLUE.save("one.png")
    found = model_of("llava")
    monkeypatch.setitem(found.module.decoding, "answer", FEW)
    known = {"runs/quickstart/llava": found, "runs/quickstart/blip2/representation": Model(built(Blip2Representation))}
    monkeypatch.setattr(lightning_mllm, "load", known.__getitem__, raising=False)
    return found


def test_answers_and_features(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(PROGRAMS[0], names)
    first = model.answer("my.png", "What colour is the circle?")
    assert capsys.readouterr().out.startswith(first + "\n")
    exec(PROGRAMS[1], names)
    assert "tensor([[" in capsys.readouterr().out


def test_openai_s_client(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    from lightning_mllm.serving.app import build_app
    from tests.serving.test_app import served

    with served(build_app(model, "llava")) as url:
        assert "http://127.0.0.1:8000/v1" in PROGRAMS[2]
        exec(PROGRAMS[2].replace("http://127.0.0.1:8000/v1", url), {})
    assert capsys.readouterr().out == model.answer("my.png", "Describe the picture.") + "\n"
