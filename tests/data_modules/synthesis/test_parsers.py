"""Answers in their forms: what is read, harmless variants, and why others are rejected."""

from __future__ import annotations

import pytest

from data_modules.synthesis.parsers import parse_text, parse_turn, parse_turns
from data_modules.synthesis.request import Rejected

PAIRS = [("What is it?", "A dog."), ("Where?", "On a bed.")]
PLAIN = "Question:\nWhat is it?\n===\nAnswer:\nA dog.\n===\nQuestion:\nWhere?\n===\nAnswer:\nOn a bed."

VARIANTS = {
    "as asked": PLAIN,
    "a bar behind": PLAIN + "\n===\n",
    "a bar in front": "===\n" + PLAIN,
    "blank lines and CR LF": PLAIN.replace("\n", "\r\n\r\n"),
    "bold labels": PLAIN.replace("Question:", "**Question:**").replace("Answer:", "**Answer**:"),
    "numbered": PLAIN.replace("Question:", "Question 1:").replace("Answer:", "Answer 1:"),
    "short labels": PLAIN.replace("Question:", "Q:").replace("Answer:", "A:"),
    "on one line": PLAIN.replace(":\n", ": "),
    "longer bars": PLAIN.replace("===", "======="),
    "no bars": PLAIN.replace("===\n", ""),
    "a fence": f"```\n{PLAIN}\n```",
    "headings": PLAIN.replace("Question:", "### Question:"),
    "an introduction": "Here is the conversation:\n\n" + PLAIN,
    "small letters": PLAIN.replace("Question", "question").replace("Answer", "answer"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_harmless_variants_are_read(variant: str) -> None:
    assert parse_turns(VARIANTS[variant]) == PAIRS


MALFORMED = {
    "": "found '', expected blocks",
    "A dog on a bed.": "found 'A dog on a bed.', expected blocks",
    PLAIN + "\n===\nQuestion:\nWhen?": "the last question ('When?') has no answer",
    "Answer:\nA dog.\n===\n" + PLAIN: "block 1 begins with 'Answer:', expected 'Question:'",
    PLAIN.replace("Answer:\nA dog.\n===\n", ""): "block 2 begins with 'Question:', expected 'Answer:'",
    PLAIN.replace("A dog.", ""): "block 2 (Answer) is empty",
    PLAIN.replace("Where?", " "): "block 3 (Question) is empty",
    "Sure, here it is. " + PLAIN: "in front, expected 'Question:' at the beginning",
    "Some words.\nAnd more:\n" + PLAIN: "in front, expected 'Question:' at the beginning",
    PLAIN.replace("A dog.\n===", "A dog.\n===\nIt is brown.\n==="): "is followed by 'It is brown.' without a label",
}


@pytest.mark.parametrize(("text", "sentence"), MALFORMED.items())
def test_malformed_conversations_are_rejected(text: str, sentence: str) -> None:
    with pytest.raises(Rejected) as found:
        parse_turns(text)
    assert found.value.kind == "format"
    assert sentence in found.value.sentence


def test_one_question_is_one() -> None:
    assert parse_turn("Question:\nWhy?\n===\nAnswer:\nBecause: a reason.") == [("Why?", "Because: a reason.")]
    with pytest.raises(Rejected, match="found 2 questions, expected one question and one answer"):
        parse_turn(PLAIN)


@pytest.mark.parametrize(
    "text", ["A dog.", "  A dog.\r\n", "Answer: A dog.", "**Description:** A dog.", "```text\nA dog.\n```"]
)
def test_a_text_is_the_answer_to_its_question(text: str) -> None:
    assert parse_text(text, "What is it?") == [("What is it?", "A dog.")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" \n", "the answer is empty"),
        ("```\n```", "the answer is empty"),
        ("A dog.\nQuestion: Where?", "found 'Question:', expected a text without questions and answers"),
        ("A dog.\n===\nA bed.", "found the line '===', expected a text alone"),
        ("# A dog\nIt is brown.", "found the heading '# A dog', expected a text alone"),
        ('{"caption": "A dog."}', "expected a text and no JSON"),
    ],
)
def test_malformed_texts_are_rejected(text: str, sentence: str) -> None:
    with pytest.raises(Rejected) as found:
        parse_text(text, "What is it?")
    assert sentence in found.value.sentence
