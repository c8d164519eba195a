"""A request is known by what is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.synthesis.request import Context, Message, Request
from lightning_mllm.contracts import ImageFile

REQUEST = Request(
    id="7/detail",
    kind="detail",
    image="val/7.jpg",
    messages=(Message("system", "Describe."), Message("user", "A cat.", (ImageFile(Path("7.jpg")),))),
    context=Context(captions=("A cat.",), boxes=(), width=4, height=3),
    max_tokens=9,
    temperature=0.5,
)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "8/detail"},
        {"max_tokens": 10},
        {"temperature": 0.0},
        {"messages": REQUEST.messages[:1]},
        {"image": "val/8.jpg"},
        {"messages": (REQUEST.messages[0], Message("user", "A cat."))},
    ],
)
def test_whatever_is_sent_changes_the_fingerprint(change: dict) -> None:
    assert replace(REQUEST, **change).fingerprint != REQUEST.fingerprint


def test_a_folder_of_pictures_may_move() -> None:
    moved = Message("user", "A cat.", (ImageFile(Path("elsewhere/7.jpg")),))
    assert replace(REQUEST, messages=(REQUEST.messages[0], moved)).fingerprint == REQUEST.fingerprint


def test_the_context_of_checks_is_not_sent() -> None:
    context = Context(captions=(), boxes=(), width=4, height=3)
    assert replace(REQUEST, context=context).fingerprint == REQUEST.fingerprint
