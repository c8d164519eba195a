"""The page shows the model what gradio keeps of a conversation, and its browser nothing of other servers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from lightning_mllm.contracts import ImageFile, Turn
from lightning_mllm.serving.page import REFUSED, Alone, answered, conversation
from tests.inference.nets import FEW, model_of
from tests.inference.test_model import BLUE, RED


def test_a_turn_is_answered_behind_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llava")
    monkeypatch.setitem(model.module.decoding, "answer", FEW)
    for image, name in ((RED, "red.png"), (BLUE, "blue.png")):
        image.save(tmp_path / name)
    talk = model.conversation()
    first = list(answered(model, {"files": [str(tmp_path / "red.png")], "text": "What is it?"}, []))
    assert first[-1] == talk.ask("What is it?", RED)
    assert all(after.startswith(before) for before, after in pairwise(first))
    # gradio 6.31: files and text of a message are one turn, or each is one.
    file = {"type": "file", "file": {"path": str(tmp_path / "red.png")}}
    for asked in (
        [{"role": "user", "content": [file, {"type": "text", "text": "What is it?"}]}],
        [{"role": "user", "content": [file]}, {"role": "user", "content": "What is it?"}],
    ):
        history: list[dict[str, Any]] = [
            *asked,
            {"role": "assistant", "content": [{"type": "text", "text": first[-1]}]},
        ]
        turns, images = conversation(history)
        assert turns == talk.turns[:2] and images == [ImageFile(tmp_path / "red.png")]
    expected = talk.ask("And this?", BLUE)
    assert list(answered(model, {"files": [str(tmp_path / "blue.png")], "text": "And this?"}, history))[-1] == expected
    absent = {"files": [str(tmp_path / "absent.png")], "text": "?"}
    (refused,) = answered(model, absent, history)
    assert refused.startswith(REFUSED + "absent.png: cannot read the image")
    wrong = [
        {"role": "user", "content": [{"path": absent["files"][0]}, "?"]},
        {"role": "assistant", "content": refused},
    ]
    assert conversation([*history, *wrong]) == conversation(history)
    assert conversation([{"role": "user", "content": "<image>?"}])[0] == [Turn(role="user", text="image?")]


def test_no_page_loads_from_elsewhere() -> None:
    policy = TestClient(Alone(PlainTextResponse("page"))).get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
