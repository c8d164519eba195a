"""The things of a picture with what its captions say of each: colour, size and place.

A caption's noun phrase ("a large red ring at the top left") is taken to be about a box where no other box can be meant:
the only one of its name, the only one of its name in that third of the picture, or any of them where all are called so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_modules.synthesis.context import COLUMNS, ROWS, place
from data_modules.synthesis.request import Context, NamedBox
from data_modules.synthesis.words import COLOURS, FOLLOWING, SIZES, Vocabulary, vocabulary

EXCLUDED = frozenset({"person"})
"""Captions say the colours of clothes there, not of the thing."""
SHAPED = frozenset({"small", "large"})
"""The sizes that a thing is said to have; 'long' or 'little' are ways to speak."""


@dataclass(frozen=True)
class Thing:
    """One box and what is known of it; nothing is known where `colour` or `size` is empty."""

    box: NamedBox
    colour: str = ""
    size: str = ""

    @property
    def name(self) -> str:
        return self.box.name

    @property
    def place(self) -> str:
        return place(self.box)

    @property
    def area(self) -> float:
        """As a share of the picture."""
        x0, y0, x1, y1 = self.box.box
        return (x1 - x0) * (y1 - y0)

    @property
    def middle(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of a caption."""

    name: str
    colour: str
    size: str
    place: str
    plural: bool


def words_of(context: Context) -> Vocabulary:
    """The vocabulary of a picture."""
    return vocabulary(frozenset(box.name for box in context.boxes))


def crowds(context: Context) -> frozenset[str]:
    """Names of which not every one has a box of its own."""
    return frozenset(box.name for box in context.boxes if box.crowd)


def things(context: Context) -> tuple[Thing, ...]:
    """The boxes of a picture that are not crowds, in their order, with what captions say of each and none denies."""
    found = [Thing(box) for box in context.boxes if not box.crowd]
    names = frozenset(box.name for box in context.boxes)
    said: list[tuple[set[str], set[str]]] = [(set(), set()) for _ in found]
    for caption in context.captions:
        for phrase, about in _about(phrases(caption, words_of(context), names), found, crowds(context)):
            for k in about:
                said[k][0].add(phrase.colour)
                said[k][1].add(phrase.size if phrase.size in SHAPED else "")
    return tuple(
        replace(thing, colour=_agreed(colours), size=_agreed(sizes))
        for thing, (colours, sizes) in zip(found, said, strict=True)
    )


def phrases(caption: str, words: Vocabulary, names: frozenset[str]) -> list[Phrase]:
    """The things of a caption with the adjectives before them and the third of the picture said after, or before.

    Of a word that may mean several categories it is the one of `names`, if there is one alone.
    """
    text = " ".join(caption.lower().split())
    found = []
    for mention in words.mentions(text):
        meant = mention.categories if len(mention.categories) == 1 else mention.categories & names
        if len(meant) != 1 or not _ends(text[mention.end :]):
            continue
        (name,) = meant
        before = re.search(r"((?:[a-z-]+ )*)$", text[: mention.start])
        adjectives = before[1].split()[-3:] if before else []
        colours, sizes = _attributes(adjectives)
        found.append(Phrase(name, colours, sizes, _said_place(text, mention.start, mention.end), mention.plural))
    return found


_PLACE = (
    rf"(?:{'|'.join(row for row in ROWS if row)})?(?: ?(?:{'|'.join(column for column in COLUMNS if column)}))?|middle"
)
_AFTER = re.compile(rf"^ (?:at|on|in) the ({_PLACE})(?=[,.]| and|$)")
_BEFORE = re.compile(rf"(?:^|, |and )(?:at|on|in) the ({_PLACE}) is an? (?:[a-z]+ )*$")


def _ends(after: str) -> bool:
    """Whether a noun phrase ends here: what follows is no other noun."""
    following = re.match(r" ([a-z]+)", after)
    return following is None or following[1] in FOLLOWING


def _attributes(adjectives: Sequence[str]) -> tuple[str, str]:
    """The colour and the size that adjectives say; none where two colours are said, or a hand's breadth away."""
    colours = [each for each in adjectives if each in COLOURS]
    sizes = [each for each in adjectives if each in SIZES]
    sure = len(colours) == 1 and "and" not in adjectives and adjectives[-1] == colours[0]
    sized = sizes[0] if len(sizes) == 1 and set(adjectives[adjectives.index(sizes[0]) :]) <= {*sizes, *colours} else ""
    return colours[0] if sure else "", sized


def _said_place(text: str, start: int, end: int) -> str:
    after, before = _AFTER.search(text[end:]), _BEFORE.search(text[:start])
    return after[1] if after else before[1] if before else ""


def _about(
    said: Sequence[Phrase], found: Sequence[Thing], crowds: frozenset[str]
) -> Iterator[tuple[Phrase, list[int]]]:
    """The phrases of a caption, each with the boxes that it is about for certain."""
    for name in {phrase.name for phrase in said} - EXCLUDED - crowds:
        called = [phrase for phrase in said if phrase.name == name]
        boxes = [k for k, thing in enumerate(found) if thing.name == name]
        alike = len({(phrase.colour, phrase.size) for phrase in called}) == 1 and len(called) == len(boxes)
        for phrase in called:
            if phrase.plural:
                continue
            placed = [k for k in boxes if found[k].place == phrase.place] if phrase.place else boxes
            if len(placed) == 1 or alike:
                yield phrase, placed if len(placed) == 1 else boxes


def _agreed(said: set[str]) -> str:
    """What all say who say anything."""
    told = said - {""}
    return told.pop() if len(told) == 1 else ""
