"""Whether things and numbers that answers state are those of captions and boxes.

Both are made to spare what is true: an answer may name what no vocabulary knows, suppose, deny, and speak of a part.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from data_modules.synthesis.parsers import Pairs
from data_modules.synthesis.request import Context
from data_modules.synthesis.things import crowds, words_of
from data_modules.synthesis.words import ANIMATE, NUMBER, Mention, Vocabulary, number_of, plural, sentences


@cache
def pattern(name: str) -> re.Pattern[str]:
    """One of the lists of `checks.yaml` as one expression."""
    lists = yaml.safe_load(Path(__file__).with_name("checks.yaml").read_text())
    return re.compile("|".join(f"(?:{each})" for each in lists[name]), re.IGNORECASE)


_ALL = re.compile(
    r"^(?:(?:yes|so|overall|altogether|in total|in all)[,:]? )?there (?:is|are) "
    rf"(?:exactly |only |a total of |in total |in all )?{NUMBER} $",
    re.IGNORECASE,
)
_WHETHER = re.compile(r"(?:is|are|does|do|can|could|has|have|was|were)\b", re.IGNORECASE)
_HOW_MANY = re.compile(r"(?:how many|what is the (?:total )?number of) ", re.IGNORECASE)
_OF_ALL = re.compile(
    r"(?: (?:are|is|can|do)\b)?(?: there| you)?(?: be)?(?: see| seen| visible| present| shown| depicted)?"
    r"(?: (?:in|within) (?:the|this) (?:image|picture|photo|scene))?\s*[?]?",
    re.IGNORECASE,
)
_NO = re.compile(r"(?:no|none|neither|zero)\b", re.IGNORECASE)
_DEFINITE = re.compile(r"\b(?:the|this|that|its|his|her|their) (?:[a-z]+ )?$", re.IGNORECASE)
_TELLS = re.compile(r"\b(?:in|on) the (?:image|picture|photo|scene)\b|\bthere (?:is|are)\b", re.IGNORECASE)
_TOTAL = re.compile(
    r"^ ?(?:$|[.!;]|,? (?:visible|present|shown|seen|depicted|displayed|altogether|in total|in all)\b"
    r"|,? (?:in|within) (?:the|this) (?:image|picture|photo|scene|frame)\b)",
    re.IGNORECASE,
)
_PARTS = re.compile(r"\bof the\b|\bone of\b|\banother\b|\bother\b|\bmore\b|\badditional\b|\bextra\b", re.IGNORECASE)


def objects(context: Context, pairs: Pairs, *, supposing: bool) -> Iterator[str]:
    """Words for things that answers, and questions, say are there, of which captions and boxes know nothing.

    Of a question that is "the dog", unless it asks whether there is one, or "No" is the answer.

    Let pass are things that no word list has; whatever a sentence denies, and what an answer "No" is about; people in
    the plural ("visitors" come anywhere) and where the captions name anybody; and, in sentences that suppose ("may",
    "if", "such as", "known for"), everything.

    Args:
        supposing: whether the answer argues, so that only what it says "is" somewhere counts.
    """
    words = words_of(context)
    known = _known(context, words)
    for question, answer in pairs:
        if _NO.match(answer):
            continue
        named = [(text, mention) for text in _asserted(answer, supposing) for mention in words.mentions(text)]
        named += [(question, mention) for mention in words.mentions(question) if _presupposed(question, mention)]
        for text, mention in named:
            if not mention.categories & known and not (mention.plural and "person" in mention.categories):
                yield text[mention.start : mention.end]


def _asserted(answer: str, supposing: bool) -> Iterator[str]:
    """The sentences of an answer that neither deny nor suppose; where it argues, those that tell what is to be seen."""
    for sentence in sentences(answer):
        told = not supposing or _TELLS.search(sentence)
        if told and not pattern("denied").search(sentence) and not pattern("supposed").search(sentence):
            yield sentence


def _presupposed(question: str, mention: Mention) -> bool:
    """Whether a question is about "the dog" and does not ask whether there is one."""
    if _WHETHER.match(question) or pattern("supposed").search(question):
        return False
    return _DEFINITE.search(question[: mention.start]) is not None


def _known(context: Context, words: Vocabulary) -> frozenset[str]:
    """Categories of boxes and of what captions name, in any sense of a word."""
    said = frozenset(category for caption in context.captions for category in words.anywhere(caption))
    return said | frozenset(box.name for box in context.boxes)


def counts(context: Context, pairs: Pairs) -> Iterator[str]:
    """Numbers of things that do not agree with the boxes, where the thing is boxed and has no crowd.

    A number that a caption says of the thing is right. More than there are boxes is wrong, if the words are the
    category's own; fewer is wrong only where all are meant: "There are three dogs in the picture", and the answer to
    "How many dogs are there?". "Two more dogs" and "three of the dogs" are parts.
    """
    words, boxed = words_of(context), Counter(box.name for box in context.boxes)
    certain = boxed.keys() - crowds(context)
    for question, answer in pairs:
        stated = [(each, number, total) for text in sentences(answer) for each, number, total in _numbered(text, words)]
        for mention, number, total in [*stated, *_asked_for(question, answer, words)]:
            (name,) = mention.categories
            if name not in certain or number == boxed[name]:
                continue
            if (total or (number > boxed[name] and mention.word == name)) and not _told(context, words, name, number):
                yield f"found {number} for '{mention.word}', expected {boxed[name]} as in the picture"


def _told(context: Context, words: Vocabulary, name: str, number: int) -> bool:
    """Whether a caption says this number of a thing."""
    said = (each for caption in context.captions for each in _numbered(caption, words))
    return any(name in mention.categories and number == found for mention, found, _ in said)


def _numbered(sentence: str, words: Vocabulary) -> Iterator[tuple[Mention, int, bool]]:
    """Each thing of one category that has a number, the number, and whether it is that of all."""
    if pattern("denied").search(sentence):
        return
    for mention in words.mentions(sentence):
        before = sentence[: mention.start]
        found = re.search(rf"\b({NUMBER}) ((?:[a-z]+ ){{0,2}}?)$", before, re.IGNORECASE)
        number = number_of(found[1]) if found else None
        if found is None or number is None or len(mention.categories) != 1:
            continue
        alike = plural(mention.word) == mention.word
        if (
            mention.plural != (number != 1 and not alike)
            or _PARTS.search(before[max(0, found.start() - 12) :])
            or _unit(found[2])
        ):
            continue
        whole = _ALL.search(before) is not None and mention.word in mention.categories
        yield mention, number, whole and _TOTAL.match(sentence[mention.end :]) is not None


def _unit(between: str) -> bool:
    """Whether the number counts something else: 'three slices of', 'two piles of'."""
    return " of " in f" {between}" or "and " in between


def _asked_for(question: str, answer: str, words: Vocabulary) -> Iterator[tuple[Mention, int, bool]]:
    """The thing of a question for the number of all of a kind, and the number that the answer begins with."""
    found, number = _HOW_MANY.match(question), _first_number(answer)
    if found is None or number is None:
        return
    rest = question[found.end() :]
    for mention in words.mentions(rest)[:1]:
        # "How many men" are no more than the people, "how many sofas" are the couches.
        whole = mention.word in mention.categories or not mention.categories & ANIMATE
        if whole and mention.start == 0 and len(mention.categories) == 1 and _OF_ALL.fullmatch(rest[mention.end :]):
            yield mention, number, True


def _first_number(answer: str) -> int | None:
    if _NO.match(answer):
        return 0
    found = re.search(rf"\b({NUMBER})\b", answer, re.IGNORECASE)
    return number_of(found[1]) if found else None
