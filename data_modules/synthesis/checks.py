"""What an answer must not say: its sources, things that are not there, wrong numbers, the same twice, a refusal.

Each check is a function of the request, of its kind, and of the questions and answers that the parser made; it says
what is wrong in one sentence, or nothing. The expressions stand in `checks.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from data_modules.synthesis.grounding import counts, objects, pattern
from data_modules.synthesis.kinds import Kind
from data_modules.synthesis.parsers import Pairs, parse_text, parse_turn, parse_turns
from data_modules.synthesis.request import Rejected, Request
from data_modules.synthesis.words import sentences
from lightning_mllm.contracts import Turn

SAME_WORDS = 5
"""Shorter answers and sentences may occur twice: 'Yes.'"""
ENDS = 20
"""Words of an answer from which on it must end with a full stop or the like."""

Check = Callable[[Request, Kind, Pairs], Iterable[str]]


def source_named(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """Captions, boxes or descriptions as where the answer comes from; not where a caption itself says the word."""
    known = " ".join(request.context.captions).lower()
    for said in _said(kind, pairs):
        for found in pattern("source named").finditer(said):
            if found[0].lower() not in known:
                yield f"found '{found[0].strip()}', expected words of somebody who sees the picture"


def coordinates(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """Numbers of a box."""
    for said in _said(kind, pairs):
        if found := pattern("coordinates").search(said):
            yield f"found '{found[0]}', expected places in words"


def refusal(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """That the writer cannot see, or is a model."""
    for said in _said(kind, pairs):
        if found := pattern("refusal").search(said):
            yield f"found '{found[0]}', expected an answer of somebody who sees the picture"


def image_mark(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """A mark that would stand for a picture in training."""
    for said in _said(kind, pairs):
        if found := pattern("image mark").search(said):
            yield f"found the mark '{found[0]}', expected text alone"


def length(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """Too few or too many questions or words, or an answer that breaks off."""
    least, most = kind.turns
    if not least <= len(pairs) <= most:
        yield f"found {len(pairs)} question{'s' * (len(pairs) != 1)}, expected {least} to {most}"
    least, most = kind.words
    for _, answer in pairs:
        words = len(answer.split())
        if not least <= words <= most:
            yield f"an answer has {words} word{'s' * (words != 1)}, expected {least} to {most}"
        elif words >= ENDS and not re.search(r"[.!?:)\]*\"'\u201d\u2019]$", answer.strip()):
            yield f"an answer ends with '{' '.join(answer.split()[-4:])}', expected a whole sentence"


def repeated(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """The same question, the same answer of some length, or the same sentence in one answer, twice."""
    for name, texts in (("question", [q for q, _ in pairs]), ("answer", [a for _, a in pairs])):
        if twice := _twice(texts, least=SAME_WORDS if name == "answer" else 1):
            yield f"the {name} '{_short(twice)}' occurs twice, expected different ones"
    for _, answer in pairs:
        if twice := _twice(sentences(answer), least=SAME_WORDS):
            yield f"the sentence '{_short(twice)}' occurs twice in an answer, expected it once"


def unknown_object(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """A thing that neither captions nor boxes know; see `grounding.objects`."""
    if not kind.picture:
        for word in objects(request.context, pairs, supposing=kind.form == "turn"):
            yield f"found '{word}' in an answer, expected things that the picture is known to show"


def wrong_count(request: Request, kind: Kind, pairs: Pairs) -> Iterator[str]:
    """Another number than there are boxes; see `grounding.counts`."""
    yield from counts(request.context, pairs)


CHECKS: dict[str, Check] = {
    "image mark": image_mark,
    "refusal": refusal,
    "source named": source_named,
    "coordinates": coordinates,
    "length": length,
    "duplicate": repeated,
    "unknown object": unknown_object,
    "wrong count": wrong_count,
}
"""In the order in which they are asked: the first that finds something names the rejection."""


def parse(request: Request, kind: Kind, text: str) -> Pairs:
    """Questions and answers of a model's text by the kind's form; Rejected where it has another one."""
    if kind.form == "text":
        return parse_text(text, request.question)
    return (parse_turns if kind.form == "turns" else parse_turn)(text)


def checker(kinds: Iterable[Kind]) -> Callable[[Request, str], Sequence[Turn]]:
    """Who turns texts into turns, by the request's kind; raises `Rejected` with the first check that a text fails."""
    known = {kind.name: kind for kind in kinds}

    def check(request: Request, text: str) -> list[Turn]:
        kind = known[request.kind]
        try:
            pairs = parse(request, kind, text)
        except Rejected:
            if kind.form != "text" and (found := pattern("refusal").search(text)):
                raise Rejected("refusal", f"found '{found[0]}', expected questions and answers") from None
            raise
        for name, each in CHECKS.items():
            for sentence in each(request, kind, pairs):
                raise Rejected(name, sentence)
        return turns_of(pairs)

    return check


def turns_of(pairs: Pairs) -> list[Turn]:
    """Questions and answers as turns, the user's first."""
    return [turn for q, a in pairs for turn in (Turn(role="user", text=q), Turn(role="assistant", text=a))]


def _said(kind: Kind, pairs: Pairs) -> Iterator[str]:
    """Everything that the model wrote: the question of a text is from our own list."""
    for question, answer in pairs:
        if kind.form != "text":
            yield question
        yield answer


def plain(text: str) -> str:
    """A text by which two are compared: words in small letters."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def _twice(texts: Iterable[str], least: int) -> str:
    """The first text of at least so many words that was there before."""
    seen = set[str]()
    for text in texts:
        key = plain(text)
        if key in seen and len(key.split()) >= least:
            return text
        seen.add(key)
    return ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
