from __future__ import annotations

from pathlib import Path

import pytest

from data_modules.sources import AOkVqa, QuestionGeneration
from data_modules.sources.templates import bank
from tests.data_modules.files import generator
from tests.data_modules.sources import test_aokvqa, test_vqa


def test_question_and_answer_change_roles(tmp_path: Path) -> None:
    asked = test_vqa.vqa(tmp_path, [test_vqa.question(91)], [test_vqa.annotation(91)])
    made = QuestionGeneration(asked, prompt="question_generation/given")
    made.load()
    sample = made.sample(0, generator())
    assert [turn.text for turn in sample.turns] == [
        "<image>\nGiven the image, generate a question whose answer is: yes. Question:",
        "Is it red?",
    ]
    assert sample.references == ("Is it red?",) and sample.task == "caption" and not sample.candidates
    assert sample.images == asked.sample(0, generator()).images
    assert (len(made), made.length(0), made.has_image(0)) == (1, asked.length(0), True)


def test_each_template_is_drawn_and_holds_the_answer(tmp_path: Path) -> None:
    file = test_aokvqa.source(tmp_path, [test_aokvqa.record()])
    made = QuestionGeneration(AOkVqa(file.annotations, file.images, answers="drawn"))
    made.load()
    samples = [made.sample(0, generator(k)) for k in range(200)]
    texts = {sample.turns[0].text for sample in samples}
    answers = {"ride", "bus", "taxi", "cab"}
    assert texts <= {
        f"<image>\n{template.write({'answer': answer})}"
        for template in bank()["question_generation"]
        for answer in answers
    }
    assert len(texts) > 6
    assert made.sample(0, generator(3)) == made.sample(0, generator(3))


def test_the_answer_must_stand_in_the_prompt(tmp_path: Path) -> None:
    asked = test_aokvqa.source(tmp_path, [test_aokvqa.record()])
    with pytest.raises(ValueError, match=r"prompt: found no \{answer\} in"):
        QuestionGeneration(asked, prompt="caption")
    with pytest.raises(ValueError, match=r"prompt: found no \{answer\} in"):
        QuestionGeneration(asked, prompt="vqa")
