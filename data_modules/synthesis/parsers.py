"""The text of a model's answer as questions and answers, or why it is none. One parser for each form of answer.

Harmless variants that models write are read: blank lines, CR LF, a fence of back-quotes around all, `**Question:**`,
`Question 2:`, `Q:`, a bar of more or fewer `=` or none where the labels say enough, one line before the first question
that ends with a colon ("Here is the conversation:"). Everything else is rejected with what was found.
"""

from __future__ import annotations

import re

from data_modules.synthesis.request import Rejected

Pairs = list[tuple[str, str]]
"""Questions with their answers."""

FORMAT = "format"
_BAR = re.compile(r"^[ \t]*(?:={2,}|-{3,})[ \t]*$", re.MULTILINE)
_LABEL = re.compile(
    r"^[ \t]*(?:#{1,4}[ \t]*)?(?:\*\*|__)?(question|answer|q|a)(?:[ \t]*#?\d+)?[ \t]*(?:\*\*|__)?[ \t]*:[ \t]*"
    r"(?:\*\*|__)?[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_FENCE = re.compile(r"^```\w*[ \t]*\n(.*?)\n?```$", re.DOTALL)


def parse_turns(text: str) -> Pairs:
    """Alternating blocks "Question:" and "Answer:" between lines of `===`.

    Raises:
        Rejected: it is empty, begins or ends otherwise, two blocks of a kind follow each other, or one is empty.
    """
    text = _plain(text)
    labels = list(_LABEL.finditer(text))
    if not labels:
        raise Rejected(FORMAT, f"found {_quoted(text)}, expected blocks that begin with 'Question:' and 'Answer:'")
    before = _BAR.sub("", text[: labels[0].start()]).strip()
    if before and ("\n" in before or not before.endswith(":")):
        raise Rejected(FORMAT, f"found {_quoted(before)} in front, expected 'Question:' at the beginning")
    pairs: Pairs = []
    question = ""
    for number, label in enumerate(labels):
        end = labels[number + 1].start() if number + 1 < len(labels) else len(text)
        kind = "Question" if label[1].lower().startswith("q") else "Answer"
        wanted = "Answer" if number % 2 else "Question"
        if kind != wanted:
            raise Rejected(FORMAT, f"block {number + 1} begins with '{kind}:', expected '{wanted}:'")
        said = _said(text[label.end() : end], f"block {number + 1} ({kind})")
        if kind == "Question":
            question = said
        else:
            pairs.append((question, said))
    if len(labels) % 2:
        raise Rejected(FORMAT, f"the last question ({_quoted(question)}) has no answer, expected one after each")
    return pairs


def parse_turn(text: str) -> Pairs:
    """One question and its answer, in the form of `parse_turns`; Rejected for others and for several."""
    pairs = parse_turns(text)
    if len(pairs) != 1:
        raise Rejected(FORMAT, f"found {len(pairs)} questions, expected one question and one answer")
    return pairs


def parse_text(text: str, question: str) -> Pairs:
    """A text alone, as the answer to `question`; a label "Answer:" or "Description:" in front of it is left out.

    Raises:
        Rejected: it is empty, or has blocks of questions, bars, headings or JSON in it.
    """
    plain = re.sub(
        r"^(?:\*\*)?(?:answer|description|caption)(?:\*\*)?\s*:(?:\*\*)?\s*", "", _plain(text), flags=re.IGNORECASE
    )
    if not plain:
        raise Rejected(FORMAT, "the answer is empty, expected a text")
    if label := _LABEL.search(plain):
        raise Rejected(FORMAT, f"found {label[0].strip()!r}, expected a text without questions and answers")
    if bar := _BAR.search(plain):
        raise Rejected(FORMAT, f"found the line {bar[0].strip()!r}, expected a text alone")
    if heading := re.search(r"^#{1,6} .*$", plain, re.MULTILINE):
        raise Rejected(FORMAT, f"found the heading {_quoted(heading[0])}, expected a text alone")
    if plain[0] in "{[" and plain[-1] in "}]":
        raise Rejected(FORMAT, f"found {_quoted(plain)}, expected a text and no JSON")
    return [(question, plain)]


def _plain(text: str) -> str:
    """A text without a fence around it, in lines that end with LF."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    fenced = _FENCE.match(plain)
    return (fenced[1] if fenced else plain).strip()


def _said(block: str, which: str) -> str:
    """What a block says between its label and the bar behind it."""
    parts = [part.strip() for part in _BAR.split(block)]
    said = [part for part in parts if part]
    if not said:
        raise Rejected(FORMAT, f"{which} is empty, expected a text")
    if len(said) > 1:
        raise Rejected(
            FORMAT, f"{which} is followed by {_quoted(said[1])} without a label, expected one in front of it"
        )
    return said[0]


def _quoted(text: str) -> str:
    """The beginning of a text in quotes, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
