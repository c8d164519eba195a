from __future__ import annotations

from typing import Any

import pytest

from data_modules.containers.reading import RecordError
from data_modules.dialects.conversation import Conversation, Picture, Utterance
from data_modules.dialects.rules import ruled, rules_of
from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK

ROLES: dict[str, Any] = {"s": "system", "u": "user", "a": "assistant"}


def conversation(roles: str, images: int = 0, **texts: str) -> Conversation:
    """Turns by the first letters of their roles, each its number unless told otherwise (`t1="..."`)."""
    turns = [Utterance(ROLES[role], texts.get(f"t{k}", str(k))) for k, role in enumerate(roles)]
    return Conversation(turns=tuple(turns), images=tuple(Picture(f"{k}.png") for k in range(images)))


def told(found: Conversation) -> str:
    return " ".join(turn.role[0] + turn.text for turn in found.turns)


@pytest.mark.parametrize(
    ("roles", "repair", "expected", "counted"),
    [
        ("uuaa", "join_same_roles", "u0\n1 a2\n3", "turns of one role joined"),
        ("suauua", "join_same_roles", "s0 u1 a2 u3\n4 a5", "turns of one role joined"),
        ("aua", "drop_leading_assistant", "u1 a2", "leading assistant dropped"),
        ("saua", "drop_leading_assistant", "s0 u2 a3", "leading assistant dropped"),
        ("aaua", "drop_leading_assistant", "u2 a3", "leading assistant dropped"),
        ("uau", "drop_trailing_user", "u0 a1", "trailing user dropped"),
        ("uauu", "drop_trailing_user", "u0 a1", "trailing user dropped"),
    ],
)
def test_turns_are_repaired_by_name(roles: str, repair: str, expected: str, counted: str) -> None:
    changed: list[str] = []
    assert told(ruled(conversation(roles), rules_of(repair), changed)) == expected and changed == [counted]
    changed = []
    assert told(ruled(conversation("ua"), rules_of(repair), changed)) == "u0 a1" and not changed
    others = {"join_same_roles", "drop_leading_assistant", "drop_trailing_user"} - {repair}
    for rules in (rules_of(), rules_of(sorted(others))):
        with pytest.raises(RecordError, match=r"expected (user|assistant|pairs)"):
            ruled(conversation(roles), rules, [])


def test_all_repairs_at_once() -> None:
    changed: list[str] = []
    every = rules_of(["drop_trailing_user", "join_same_roles", "drop_leading_assistant"])
    assert told(ruled(conversation("saauuaau"), every, changed)) == "s0 u3\n4 a5\n6"
    assert changed == ["turns of one role joined", "leading assistant dropped", "trailing user dropped"]


def test_images_go_with_the_turn_that_is_dropped() -> None:
    found = ruled(conversation("uau", 2, t0="<image> a", t2="<image> b"), rules_of("drop_trailing_user"), [])
    assert found.images == (Picture("0.png"),) and told(found) == "u<image> a a1"


def test_turns_that_differ_in_loss_are_not_joined() -> None:
    turns = (*conversation("ua").turns, Utterance("assistant", "2", learn=False))
    with pytest.raises(RecordError, match="turns 1 and 2 are to be joined and differ in loss"):
        ruled(Conversation(turns=turns), rules_of("join_same_roles"), [])


def test_something_is_learned() -> None:
    turns = tuple(turn._replace(learn=False) for turn in conversation("uaua").turns)
    with pytest.raises(RecordError, match="no turn of assistant is learned"):
        ruled(Conversation(turns=turns), rules_of(), [])


def test_missing_marks() -> None:
    changed: list[str] = []
    found = ruled(conversation("sua", 2), rules_of(marks="front"), changed)
    assert told(found) == "s0 u<image>\n<image>\n1 a2" and changed == ["marks put in front"]
    with pytest.raises(
        RecordError, match=r"found 0 <image> marks and 2 images, .*; write <image> where .* marks: front"
    ):
        ruled(conversation("ua", 2), rules_of(), [])
    with pytest.raises(RecordError, match="found 1 <image> marks and 2 images"):
        ruled(conversation("ua", 2, t0=IMAGE_MARK), rules_of(marks="front"), [])


def test_marks_that_are_words() -> None:
    changed: list[str] = []
    found = ruled(conversation("ua", t0="a <image>", t1="an <image>"), rules_of(marks="words"), changed)
    assert told(found) == f"ua {LITERAL_MARK} aan {LITERAL_MARK}" and changed == ["marks as words"]
    shown = ruled(conversation("ua", 1, t0="a <image>", t1="an <image>"), rules_of(marks="words"), [])
    assert told(shown) == f"ua {IMAGE_MARK} aan {LITERAL_MARK}"
    with pytest.raises(RecordError, match=r"found 1 <image> marks and 0 images, .*; \\<image> is the words"):
        ruled(conversation("ua", t0="a <image>"), rules_of(), [])
    with pytest.raises(RecordError, match="turn 0 of system has an <image> mark"):
        ruled(conversation("sua", 1, t0=IMAGE_MARK, t1=IMAGE_MARK), rules_of(), [])


def test_names_that_are_none() -> None:
    with pytest.raises(ValueError, match="turns: found 'join', expected refuse or some of join_same_roles"):
        rules_of("join")
    with pytest.raises(ValueError, match="turns: found refuse and join_same_roles, expected one or the other"):
        rules_of(["refuse", "join_same_roles"])
    with pytest.raises(ValueError, match="marks: found 'back', expected given, front, words"):
        rules_of(marks="back")
