from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import SceneText
from lightning_mllm.contracts import Turn
from tests.data_modules.files import generator, write

CAPTIONS = ["a red circle at the top.", "one thing: a circle.", "at the top is a circle."]
PAIRS = [("What colour is it?", "red"), ("Where is it?", "top")]
RECORD: dict[str, Any] = {
    "id": "reading-0",
    "captions": CAPTIONS,
    "questions": [{"kind": "any", "question": question, "answer": answer} for question, answer in PAIRS],
}


def source(folder: Path, *records: dict[str, Any], **settings: Any) -> SceneText:
    made = SceneText(write(folder / "readings.jsonl", records or [RECORD]), **settings)
    made.load()
    return made


def test_a_conversation_asks_everything_about_the_full_description(tmp_path: Path) -> None:
    sample = source(tmp_path, prompts=("Question: {question} Answer:",)).sample(0, generator())
    assert sample.turns == (
        Turn(role="system", text="a red circle at the top.\n"),
        Turn(role="user", text="Question: What colour is it? Answer:"),
        Turn(role="assistant", text="red"),
        Turn(role="user", text="Question: Where is it? Answer:"),
        Turn(role="assistant", text="top"),
    )
    assert sample.id == "reading-0" and sample.references == ("top",) and not sample.images


def test_one_question_and_its_prompt_are_drawn(tmp_path: Path) -> None:
    asked = source(tmp_path, form="question", prompts=("{question}", "Q: {question}"), end=" ")
    drawn = {asked.sample(0, generator(seed)).turns for seed in range(40)}
    opening = Turn(role="system", text="a red circle at the top. ")
    assert drawn == {
        (opening, Turn(role="user", text=prompt + question), Turn(role="assistant", text=answer))
        for prompt in ("", "Q: ")
        for question, answer in PAIRS
    }
    assert asked.sample(0, generator(3)) == asked.sample(0, generator(3))


def test_captions_follow_one_another_in_any_order(tmp_path: Path) -> None:
    told = source(tmp_path, form="captions")
    orders = set()
    for seed in range(60):
        opening, *turns = told.sample(0, generator(seed)).turns
        assert all(turn.text == "" and turn.role == "user" for turn in turns[::2])
        order = (opening.text.removesuffix("\n"), *(turn.text for turn in turns[1::2]))
        assert sorted(order) == sorted(CAPTIONS)
        orders.add(order)
    assert len(orders) == 6


def test_a_continuation_gives_at_most_half_of_another_caption(tmp_path: Path) -> None:
    continued = source(tmp_path, form="continuation")
    given = set()
    for seed in range(200):
        opening, beginning, rest = continued.sample(0, generator(seed)).turns
        whole = f"{beginning.text} {rest.text}".strip()
        assert whole in CAPTIONS and whole != opening.text.strip()
        assert len(beginning.text.split()) <= len(whole.split()) / 2
        given.add(beginning.text)
    assert {"", "a", "a red", "a red circle", "one", "one thing:", "at", "at the", "at the top"} == given


def test_lengths_count_what_is_said(tmp_path: Path) -> None:
    assert source(tmp_path, form="conversation").length(0) == 6 + 4 + 1 + 3 + 1
    assert source(tmp_path, form="captions").length(0) == 6 + 4 + 6
    assert not source(tmp_path).has_image(0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"captions": CAPTIONS[:1]}, "found 1 captions and 2 questions, expected at least 2 and 1"),
        ({"questions": []}, "found 3 captions and 0 questions"),
        ({"captions": ["a", "<image>"]}, "found 1 <image> marks, expected none"),
        ({"captions": ["a", " "]}, "'caption' is empty"),
        ({"questions": [{"question": "a"}]}, "has no 'answer'"),
        ({"captions": "a"}, "'captions' is a text, expected a list"),
    ],
)
def test_records_that_break_a_rule(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"readings\.jsonl:2 \(id reading-0\): {sentence}"):
        source(tmp_path, RECORD, {**RECORD, **change})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"form": "poem"}, "form: found 'poem', expected one of conversation, question"),
        ({"prompts": ("Question:",)}, r"prompts: found 'Question:', expected \{question\} once in each"),
        ({"prompts": ()}, r"prompts: found \(\)"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SceneText("nowhere.jsonl", **settings)
