"""A conversation in a terminal or through a pipe: answers stream, pictures join, mistakes are told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lightning_mllm.commands import ask
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.inference import Model
from tests.inference.nets import FEW, model_of
from tests.inference.test_model import BLUE, RED


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    found = model_of("llava")
    monkeypatch.setitem(found.module.decoding, "answer", FEW)
    monkeypatch.setattr(ask, "load_given", lambda name, given: found)
    monkeypatch.chdir(tmp_path)
    RED.save("red.png")
    BLUE.save("blue.png")
    return found


def test_a_conversation_comes_from_a_pipe(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["What is it?", "", "/image absent.png", "/image blue.png", "And this?", "/what", "/new", "2 + 2?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    ask.main(["run", "--chat", "--image", "red.png"])
    talk = model.conversation()
    expected = [talk.ask("What is it?", RED), talk.ask("And this?", BLUE), model.answer(None, "2 + 2?")]
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{each}\n" for each in expected)
    absent, unknown = printed.err.splitlines()
    assert absent == "mllm: --image: found no file absent.png, expected a picture"
    assert unknown == "mllm: found /what, expected a question, /image PATH or /new"


def test_the_question_stands_behind_its_pictures_or_before(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    answer = model.answer([RED, BLUE], "Which is red?")
    for line in (
        ["--image", "red.png", "--image", "blue.png", "Which is red?"],
        ["Which is red?", "--image=red.png", "--image=blue.png"],
    ):
        ask.main(["run", *line])
        assert capsys.readouterr().out == f"{answer}\n"


def test_a_question_may_open_it(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ask.main(["run", "2 + 2?", "--chat"])
    assert capsys.readouterr().out == model.answer(None, "2 + 2?") + "\n"
    with pytest.raises(ConfigError, match="ask: found no question, expected one"):
        ask.main(["run"])
