from __future__ import annotations

import random

import pytest

from data_modules.dialects.conversation import escaped, unescaped, words_only
from data_modules.dialects.parts import parts_of, text_of_parts
from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<image>\nWhat?", [None, "What?"]),
        ("What is <image> this?", ["What is ", None, " this?"]),
        ("a<image>b", ["a", "", None, "", "b"]),
        ("<image>\n<image>\nHi", [None, None, "Hi"]),
        ("<image><image>", [None, "", None]),
        (f"Is {LITERAL_MARK} a tag?", ["Is <image> a tag?"]),
    ],
)
def test_parts_of_a_text(text: str, parts: list[str | None]) -> None:
    assert parts_of(text) == parts


def test_every_text_can_be_written_as_parts_and_with_backslashes() -> None:
    drawn = random.Random(0)
    pieces = [IMAGE_MARK, LITERAL_MARK, "\n", " ", "\t", "a", "\\", "b"]
    for _ in range(3000):
        text = "".join(drawn.choice(pieces) for _ in range(drawn.randint(1, 9)))
        marked = [IMAGE_MARK if part is None else words_only(part) for part in parts_of(text)]
        assert text_of_parts(marked) == text
        assert unescaped(escaped(text)) == text


def test_a_backslash_in_front_of_a_mark() -> None:
    assert unescaped(r"\<image> \\<image> \\\<image> \n") == rf"{LITERAL_MARK} \<image> \{LITERAL_MARK} \n"
