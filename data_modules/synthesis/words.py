"""Words for things, colours, sizes and numbers in a text, from `vocabulary.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Mention:
    """A thing that a text names."""

    categories: frozenset[str]
    """What the word may mean: a bike is a bicycle or a motorcycle."""
    word: str
    """As the vocabulary has it, of one thing."""
    plural: bool
    start: int
    end: int
    """Characters of the text."""


class Vocabulary:
    """Words of the categories that a data set names.

    Args:
        names: categories of the data set; those that `vocabulary.yaml` does not know are words for themselves. What
            else belongs to a group of the file, one of which is named, is known too; of no name, those of COCO.
    """

    def __init__(self, names: Iterable[str]) -> None:
        given = frozenset(names)
        groups = _file()["groups"]
        named = (group for group in groups if given & set(groups[group]))
        self.group: str = next(named, "") if given else next(iter(groups))
        known: dict[str, list[str]] = dict(groups[self.group]) if self.group else {}
        self.categories: tuple[str, ...] = (*known, *sorted(given - set(known)))
        self.generic: str = _file()["generic"].get(self.group, "object")
        """What anything may be called: 'object', 'thing'."""
        self._words: dict[str, tuple[str, bool, frozenset[str]]] = {}
        for category in self.categories:
            for word in (category, *known.get(category, ())):
                forms = ((word, False), (plural(word), True))
                for form, many in forms:
                    _, _, before = self._words.get(form, ("", False, frozenset[str]()))
                    self._words[form] = word, many and form != word, before | {category}

        for word in _file()["others"]:
            self._words |= {form: (word, form != word, frozenset[str]()) for form in (word, plural(word))}

    def mentions(self, text: str) -> list[Mention]:
        """The things that a text names, in order; words of several meanings only where they are nouns."""
        found = []
        for match in self._pattern.finditer(text):
            form = match[0].lower()
            word, many, categories = self._words[form]
            if categories and _is_noun(text, match.start(), match.end(), word, many):
                found.append(Mention(categories, word, many, match.start(), match.end()))
        return found

    def anywhere(self, text: str) -> frozenset[str]:
        """The categories of all words of a text, in any sense."""
        found = (self._words[match[0].lower()][2] for match in self._pattern.finditer(text))
        return frozenset(category for categories in found for category in categories)

    def could_be_in(self, category: str, text: str) -> bool:
        """Whether a text has any word of a category, in any sense."""
        forms = [form for form, (_, _, categories) in self._words.items() if category in categories]
        last = category.rpartition(" ")[2]
        return any(form in text.lower() for form in (*forms, last))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._words, key=len, reverse=True)
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])", re.IGNORECASE)


@cache
def vocabulary(names: frozenset[str]) -> Vocabulary:
    """The vocabulary of a data set's categories; made once."""
    return Vocabulary(names)


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text())


NUMBERS: tuple[str, ...] = tuple(_file()["numbers"])
COLOURS: tuple[str, ...] = tuple(_file()["colours"])
SIZES: tuple[str, ...] = tuple(_file()["sizes"])
ANIMATE: frozenset[str] = frozenset(_file()["animate"])
"""Categories of those who do something."""
FOLLOWING: frozenset[str] = frozenset(_file()["following"])
SIGNS: dict[str, list[str]] = _file()["signs"]
"""Words of captions that speak for a place."""
PLACES: dict[str, list[str]] = _file()["places"]
NUMBER = rf"(?:{'|'.join(NUMBERS)}|\d+)"
_DETERMINERS = frozenset({"a", "an", "the", "one", "this", "that", "another", "each", *NUMBERS, *COLOURS, *SIZES})


def plural(word: str) -> str:
    """Several of a thing: 'people', 'benches', 'fire hydrants'; the word itself where it has one form."""
    special, uncounted = _file()["plurals"], _file()["uncounted"]
    if word in special:
        return special[word]
    if word in uncounted:
        return word
    before, _, last = word.rpartition(" ")
    if before and last in special:
        return f"{before} {special[last]}"
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    return f"{word[:-1]}ies" if last.endswith("y") and last[-2:-1] not in "aeiou" else f"{word}s"


def article(noun: str) -> str:
    """'a red car', 'an orange'; no article before a word without a singular."""
    last = noun.rpartition(" ")[2]
    if last in _file()["uncounted"] and last != "sheep":
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def number_of(text: str) -> int | None:
    """What 'three' or '3' says; None for other texts."""
    if text.isdecimal():
        return int(text)
    return NUMBERS.index(text.lower()) if text.lower() in NUMBERS else None


def sentences(text: str) -> list[str]:
    """The sentences of a text, with their marks."""
    return [each.strip() for each in re.split(r"(?<=[.!?])\s+|\n+", text) if each.strip()]


def _is_noun(text: str, start: int, end: int, word: str, many: bool) -> bool:
    """Whether a word names a thing where it stands, and not a colour, an action or what another thing is for."""
    following = re.match(r"\s+([A-Za-z]+)", text[end:])
    if not many and following and following[1].lower() in _compounds():
        return False
    if word in COLOURS and not many and following and following[1].lower() not in FOLLOWING:
        return False
    if word not in _file()["ambiguous"] or many:
        return True
    before = re.search(r"([A-Za-z]+)\s+$", text[:start])
    return before is not None and before[1].lower() in _DETERMINERS


@cache
def _compounds() -> frozenset[str]:
    return frozenset(_file()["compounds"])
