from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_modules.mixture_sampler import seeded
from data_modules.sources.questions import Question, QuestionSource, most_common
from tests.data_modules.files import generator, touch, write


class Plain(QuestionSource):
    """Records that are the fields of a question."""

    def _questions(self, record: Any) -> Iterator[Question]:
        if record.get("split") == "other":
            return
        yield from (Question(**each) for each in record.get("several", [record]))


def record(id: str = "1", **changes: Any) -> dict[str, Any]:
    return {"id": id, "images": ["a.jpg"], "question": "What is it?", "answer": "a cat", **changes}


def source(folder: Path, records: list[Any], **settings: Any) -> Plain:
    touch(folder / "images", "a.jpg", "b.jpg")
    made = Plain(write(folder / "q.json", records), str(folder / "images"), **settings)
    made.load()
    return made


def test_a_record_becomes_a_sample(tmp_path: Path) -> None:
    given = record(references=["a cat", "cat"], candidates=["a cat", "a dog"])
    sample = source(tmp_path, [given], prompt="vqa/short_answer").sample(0, generator())
    assert [turn.text for turn in sample.turns] == ["<image>\nQuestion: What is it? Short answer:", "a cat"]
    assert [turn.role for turn in sample.turns] == ["user", "assistant"]
    assert (sample.id, sample.task, sample.references) == ("1", "vqa", ("a cat", "cat"))
    assert sample.candidates == ("a cat", "a dog")
    assert [image.name for image in sample.images] == [str(tmp_path / "images/a.jpg")]


def test_the_answer_is_the_reference_where_none_is_given(tmp_path: Path) -> None:
    assert source(tmp_path, [record()]).sample(0, generator()).references == ("a cat",)


def test_frames_and_no_image_at_all(tmp_path: Path) -> None:
    made = source(tmp_path, [record(images=["a.jpg", "b.jpg"]), record("2", images=[])], prompt="{question}")
    frames, text = (made.sample(index, generator()) for index in range(2))
    assert frames.turns[0].text == "<image><image>\nWhat is it?" and len(frames.images) == 2
    assert text.turns[0].text == "What is it?" and not text.images
    assert [made.has_image(index) for index in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("prompt", "changes", "text"),
    [
        (
            "multiple_choice/short_answer",
            {"options": ["a dog", "a cat"], "context": "Pets."},
            "Context: Pets. Question: What is it? Options: (a) a dog (b) a cat. Short answer:",
        ),
        (
            "ocr_vqa/short_answer",
            {"ocr": [f"t{k}" for k in range(40)]},
            "OCR tokens: " + ", ".join(f"t{k}" for k in range(30)) + ". Question: What is it? Short answer:",
        ),
        (
            "dialogue/short_answer",
            {"history": [["Is it big?", "no"], ["Is it red?", "yes"]], "context": "a pet"},
            "Caption: a pet Dialog history: Question: Is it big? Answer: no Question: Is it red? Answer: yes "
            "Question: What is it? Short answer:",
        ),
        (
            "yes_no/true_or_false",
            {},
            'Based on the image, is this statement true or false? "What is it?" Answer:',
        ),
    ],
)
def test_what_goes_with_a_question_stands_in_its_prompt(
    tmp_path: Path, prompt: str, changes: dict[str, Any], text: str
) -> None:
    made = source(tmp_path, [record(**changes)], prompt=prompt)
    assert made.sample(0, generator()).turns[0].text == "<image>\n" + text
    words = len(text.split()) + len(["a", "cat"])
    assert abs(made.length(0) - words) <= 6


def test_a_sample_is_a_function_of_epoch_and_index(tmp_path: Path) -> None:
    made = source(tmp_path, [record(str(k), references=["x", "y"]) for k in range(20)], answers="drawn")
    draw = lambda epoch: [made.sample(k, seeded(0, epoch, k)) for k in range(20)]  # noqa: E731
    assert draw(0) == draw(0) and draw(0) != draw(1)
    assert len({sample.turns[0].text for sample in draw(0)}) > 4


def test_answers_are_drawn_as_often_as_they_were_given(tmp_path: Path) -> None:
    given = record(references=["cat"] * 7 + ["dog"] * 3 + [" "])
    drawn, random = source(tmp_path, [given], answers="drawn"), generator()
    counts = Counter(drawn.sample(0, random).turns[1].text for _ in range(2000))
    assert set(counts) == {"cat", "dog"} and abs(counts["cat"] / 2000 - 0.7) < 0.04
    common = source(tmp_path, [given])
    assert {common.sample(0, random).turns[1].text for _ in range(20)} == {"a cat"}


def test_the_most_common_answer_is_the_first_of_equals() -> None:
    assert most_common(["b", "a", "a", "b", " "]) == "b" and most_common(["", " "]) == ""


def test_one_record_may_hold_no_question_or_several(tmp_path: Path) -> None:
    made = source(tmp_path, [{"split": "other"}, {"several": [record("1"), record("2")]}])
    assert [made.sample(index, generator()).id for index in range(2)] == ["1", "2"] and len(made) == 2


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"question": " "}, "the question is empty, expected a text"),
        ({"answer": ""}, "the answer is empty, expected a text"),
        ({"question": "See <image>?"}, "'See <image>\\?' has an <image> mark"),
        ({"ocr": ["<image>"]}, "has an <image> mark"),
        ({"history": [["a", "<image>"]]}, "has an <image> mark"),
        ({"images": ["c.jpg"]}, "image .*c.jpg not found"),
        ({"images": ["../q.json"]}, "a path inside"),
        ({"options": ["a cat"]}, "found 1 of options, expected at least 2"),
        ({"candidates": ["a dog", "a cow"]}, "the answer 'a cat' is none of the 2 candidates"),
        ({"context": "x" * 1_000_001}, "characters of text, expected at most 1000000"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused_or_skipped(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    records = [record("good"), {"question_id": "bad", "several": [record("bad", **changes)]}]
    with pytest.raises(ValueError, match=rf"q.json: record 1 \(question_id bad\): .*{rule}"):
        source(tmp_path, records)
    made = source(tmp_path, records, bad_records="skip")
    assert len(made) == 1 and len(made.skipped) == 1 and "record 1" in made.skipped[0]


def test_ids_are_unique_and_needed_fields_are_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="record 1: the id 1 occurs twice"):
        source(tmp_path, [record(), record()])
    with pytest.raises(ValueError, match="record 0: has no options, expected some for the template"):
        source(tmp_path, [record()], prompt="multiple_choice")
    with pytest.raises(ValueError, match=r"found no usable record, expected at least one \(1 left out, first: .*empty"):
        source(tmp_path, [record(answer="")], bad_records="skip")


def test_settings_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="answers: found 'all', expected 'common' or 'drawn'"):
        Plain("q.json", "images", answers="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bad_records: found 'keep'"):
        Plain("q.json", "images", bad_records="keep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prompt: found no \{question\} or \{statement\}"):
        Plain("q.json", "images", prompt="caption")


def test_a_list_of_records_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"q.json: found an object, expected a list of records"):
        source(tmp_path, {})  # type: ignore[arg-type]
