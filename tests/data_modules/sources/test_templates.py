from __future__ import annotations

import pytest

from data_modules.sources.questions import OCR_TOKENS
from data_modules.sources.templates import FIELDS, Prompts, Template, bank, templates
from tests.data_modules.files import generator


def test_the_bank_has_the_families_of_the_paper() -> None:
    """InstructBLIP, appendix: 10 for VQA, 13 for captions, 6 for question generation."""
    assert {name: len(bank()[name]) for name in ("vqa", "caption", "question_generation")} == {
        "vqa": 10,
        "caption": 13,
        "question_generation": 6,
    }
    assert {"ocr_vqa", "ocr_caption", "multiple_choice", "dialogue", "yes_no"} < set(bank())
    assert OCR_TOKENS == 30
    for family in ("vqa", "caption", "question_generation"):
        assert {template.provenance for template in bank()[family]} == {"paper"}


@pytest.mark.parametrize(
    ("name", "text"),
    {
        # InstructBLIP, appendix.
        "vqa/three_words": "Given the image, answer the following question with no more than three words. Q",
        "question_generation/given": "Given the image, generate a question whose answer is: A. Question:",
        "caption/write_short": "Write a short description for the image.",
        # LLaMA2-Accessory, accessory/demos/multi_turn_mm_box.py.
        "referring/region": "Please provide the bounding box coordinate of the region this sentence describes: E.",
        "detection/detect_all": "Detect all people shown in the image.",
        "pose/keypoints": "Detect the key points of the person in the region [x1, y1, x2, y2].",
        "grounded_caption/concisely": "Describe the image concisely."
        " Include the bounding box for each mentioned object.",
    }.items(),
)
def test_known_wordings(name: str, text: str) -> None:
    (template,) = templates(name)
    box = "[x1, y1, x2, y2]"
    values = {"question": "Q", "answer": "A", "expression": "E", "plural": "people", "box": box}
    assert template.write(values) == text and template.provenance in ("paper", "released")


def test_every_template_is_sound() -> None:
    for family, each in bank().items():
        assert len({template.text for template in each}) == len(each)
        for template in each:
            assert template.provenance in ("paper", "released", "ours after the paper", "ours")
            assert template.name.startswith(family + "/") and templates(template.name) == (template,)
            assert template.fields <= set(FIELDS) and template.text.isascii()
            filled = template.write({name: f"<{name}>" for name in FIELDS})
            assert all(f"<{name}>" in filled for name in template.fields)
            assert not set("{}[]") & set(filled)


def test_what_is_filled_in_is_never_taken_for_a_field() -> None:
    template = Template(name="", text="{question} [{options}] [x]", provenance="")
    assert template.write({"question": "What is {options}?", "options": "[{question}]"}) == (
        "What is {options}? [{question}] [x]"
    )


def test_an_optional_part_goes_with_its_field() -> None:
    (template,) = templates("ocr_vqa/short_answer")
    assert template.write({"question": "Which?", "ocr": "a, b"}) == "OCR tokens: a, b. Question: Which? Short answer:"
    assert template.write({"question": "Which?", "ocr": ""}) == "Question: Which? Short answer:"
    assert template.needed == {"question"}


def test_a_family_is_drawn_from_uniformly_and_a_template_alone_draws_nothing() -> None:
    prompts, random = Prompts("vqa", ("question",), ("question",)), generator()
    drawn = [prompts.draw(random, {"question": "Q"}) for _ in range(2000)]
    counts = {text: drawn.count(text) for text in set(drawn)}
    assert len(counts) == 10 and min(counts.values()) > 140 and max(counts.values()) < 260
    state = random.get_state()
    assert Prompts("vqa/bare", ("question",), ("question",)).draw(random, {"question": "Q"}) == "<image>\nQ"
    assert random.get_state().equal(state)


@pytest.mark.parametrize(
    ("given", "images", "text"),
    [
        ("{question}", 0, "Q"),
        ("{question}", 1, "<image>\nQ"),
        ("{question}", 4, "<image><image><image><image>\nQ"),
        ("<image> {question}", 0, "Q"),
        ("See <image>: {question}", 2, "See <image><image>: Q"),
    ],
)
def test_images_stand_where_the_text_says_or_first(given: str, images: int, text: str) -> None:
    assert Prompts(given, ("question",), ("question",)).draw(generator(), {"question": "Q"}, images) == text


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("vqaa", r"prompt: found 'vqaa', expected a family \(caption, .*\(did you mean 'vqa'\?\)"),
        ("vqa/shortanswer", r"did you mean 'vqa/short_answer'"),
        ("<image> {query}", r"prompt: found \{query\} in .*, expected \{question\} or \{answer\}"),
        ("<image><image>{question}", "found 2 <image> marks"),
        ("caption", r"prompt: found no \{question\} in 'A short image caption:'"),
        ("multiple_choice", r"prompt: found \{context\} in .*, expected \{question\} of this source"),
    ],
)
def test_prompts_that_do_not_go_with_the_source(given: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Prompts(given, ("question",), ("question",))
