"""Descriptions of a picture, and questions that take some thought, from its captions and boxes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from math import dist
from random import Random

from data_modules.synthesis.backends.rule_questions import (
    APART,
    Asked,
    Scene,
    background,
    count_of,
    enumerate_parts,
    there_are,
)
from data_modules.synthesis.context import at
from data_modules.synthesis.things import Thing
from data_modules.synthesis.words import NUMBERS, PLACES, SIGNS, article, plural

MOST_PLACED = 10
"""Things of a description of which it says where they are."""


def as_sentence(caption: str) -> str:
    """A caption with a capital in front and one full stop behind."""
    text = " ".join(caption.split()).rstrip(" .")
    text = text.capitalize() if text.isupper() else text[:1].upper() + text[1:]
    return f"{text}."


def brief(scene: Scene, random: Random) -> str:
    """One of the captions."""
    return as_sentence(random.choice(scene.context.captions))


def detail(scene: Scene, random: Random) -> str:
    """All that is known: captions, how many of what, where, and on which side of one another."""
    told = [random.choice(scene.context.captions)] if scene.context.captions else []
    if told:
        told.append(min(scene.context.captions, key=lambda caption: _common(caption, told[0])))
    parts = list(dict.fromkeys(map(as_sentence, told)))
    parts += [f"The background is {found}." for found in [background(scene.context)] if found and scene.closed]
    parts += _numbers(scene)
    parts += _places(scene, random)
    parts += [relation for relation, _ in zip(_relations(scene, random), range(2), strict=False)]
    return " ".join(dict.fromkeys(parts))


def _common(one: str, other: str) -> float:
    """The words that two captions share, as a share of all of theirs."""
    a, b = set(one.lower().split()), set(other.lower().split())
    return len(a & b) / len(a | b)


def _numbers(scene: Scene) -> Iterator[str]:
    counted = [article(name) if n == 1 else count_of(n, name) for name, n in scene.counts.items()]
    if counted:
        first = next(iter(scene.counts.values()))
        yield f"In all there {'is' if first == 1 else 'are'} {enumerate_parts(counted)} to be seen."
    many = sorted(scene.crowds)
    if many:
        yield f"There are also several {enumerate_parts([plural(name) for name in many])} close together."


def described(thing: Thing) -> str:
    """'large red ring'."""
    return " ".join(part for part in (thing.size, thing.colour, thing.name) if part)


def _places(scene: Scene, random: Random) -> Iterator[str]:
    """Where the largest things are, those that are called and placed alike together."""
    largest = sorted((t for t in scene.things if t.name in scene.counts), key=lambda t: -t.area)[:MOST_PLACED]
    for (name, where), count in Counter((described(thing), thing.place) for thing in largest).items():
        said = article(name) if count == 1 else count_of(count, name)
        verb = "is" if count == 1 else "are"
        placed = random.choice(
            (f"{said} {verb} {at(where)}", f"{at(where)} {'there ' if count > 1 else ''}{verb} {said}")
        )
        yield as_sentence(placed)


def _relations(scene: Scene, random: Random) -> Iterator[str]:
    """How pairs of things that can be told from all others stand to one another."""
    named = [(thing, scene.refer(thing, frozenset({"place"}))) for thing in scene.things]
    pairs = list(combinations([each for each in named if each[1]], 2))
    for (first, one), (second, other) in random.sample(pairs, len(pairs)):
        sides = _sides(first, second)
        if sides:
            yield f"The {random.choice(one)} is {' and '.join(sides)} the {random.choice(other)}."


def _sides(first: Thing, second: Thing) -> list[str]:
    found = []
    for axis, (less, more) in enumerate((("left of", "right of"), ("above", "below"))):
        difference = second.middle[axis] - first.middle[axis]
        found += [less if difference > 0 else more] if abs(difference) > APART else []
    return found


def _order(scene: Scene, random: Random) -> Iterator[Asked]:
    named = [(thing, phrases[0]) for thing in scene.things if (phrases := scene.refer(thing, frozenset({"place"})))]
    ordered = sorted(named, key=lambda each: each[0].middle[0])
    clear = all(later[0].middle[0] - sooner[0].middle[0] > APART / 2 for sooner, later in pairwise(ordered))
    if clear and 2 < len(ordered) == len(scene.things):
        listed = enumerate_parts([f"the {phrase}" for _, phrase in ordered])
        said = f"Ordered by their middles from left to right, one would come to {listed}."
        ask = "If one went through the picture from left to right, in which order would one come to the {}?"
        yield Asked(ask.format(plural(scene.words.generic)), listed, f"{said} {_extent(ordered)}")


def _extent(ordered: Sequence[tuple[Thing, str]]) -> str:
    first, last = ordered[0][1], ordered[-1][1]
    return f"So the {first} comes first, and the {last} comes last."


def _majority(scene: Scene, random: Random) -> Iterator[Asked]:
    ranked = Counter(scene.counts).most_common()
    if len(ranked) > 1 and not scene.crowds and set(scene.counts) == {thing.name for thing in scene.things}:
        (most, n), (second, m) = ranked[0], ranked[1]
        word, top = scene.words.generic, [plural(name) for name, count in ranked if count == n]
        if len(top) == 1:
            more = NUMBERS[n - m] if n - m < len(NUMBERS) else str(n - m)
            verdict = f"the picture has more {plural(most)} than anything else, {more} more than {plural(second)}"
        else:
            verdict = f"no kind alone is the most frequent: at the top are {enumerate_parts(top)} alike"
        listed = enumerate_parts([count_of(count, name) for name, count in ranked])
        said = f"To find out, one counts each kind: there {'is' if n == 1 else 'are'} {listed}. Therefore {verdict}."
        yield Asked(f"Which kind of {word} is the most frequent, and by how many?", most, said)


def _removed(scene: Scene, random: Random) -> Iterator[Asked]:
    if scene.closed and (names := [n for n in scene.counts if scene.counts[n]]):
        name = random.choice(names)
        left = len(scene.things) - scene.counts[name]
        generic = scene.words.generic
        said = f"{there_are(len(scene.things), generic)} in all, and {count_of(scene.counts[name], name)} among them. "
        said += f"Without {'it' if scene.counts[name] == 1 else 'them'}, {count_of(left, generic)} would be left."
        ask = f"How many {plural(generic)} would be left if every {name} were taken away?"
        yield Asked(ask, count_of(left, generic), said.replace("zero", "no"))


def _balance(scene: Scene, random: Random) -> Iterator[Asked]:
    """On which side there is more."""
    if len(scene.things) < 2 or scene.crowds:
        return
    sides = Counter("left" if thing.middle[0] < 0.5 else "right" for thing in scene.things)
    generic = scene.words.generic
    left, right = (count_of(sides[side], generic) if sides[side] else f"no {generic}" for side in ("left", "right"))
    verdict = "both halves hold as many"
    if sides["left"] != sides["right"]:
        verdict = f"the {max(sides, key=lambda side: sides[side])} half holds more"
    said = (
        f"Counted by where their middles are, there {_are(sides['left'])} {left} in the left half of the picture and "
    )
    said += f"{right} in the right half, so {verdict}."
    yield Asked("Is the picture evenly filled, or does one half hold more than the other?", verdict, said)


def _are(count: int) -> str:
    return "are" if count > 1 else "is"


def _nearest(scene: Scene, random: Random) -> Iterator[Asked]:
    """Which two are closest, by their middles."""
    named = [(thing, phrases[0]) for thing in scene.things if (phrases := scene.refer(thing, frozenset({"place"})))]
    if len(named) != len(scene.things) or len(named) < 3 or scene.crowds:
        return
    ranked = sorted(combinations(named, 2), key=lambda pair: dist(pair[0][0].middle, pair[1][0].middle))
    nearest, second = (dist(one.middle, other.middle) for (one, _), (other, _) in ranked[:2])
    if second - nearest > APART / 2:
        (_, one), (_, other) = ranked[0]
        said = f"The {one} and the {other} are. Their middles are closer together than those of any other two "
        said += (
            f"{plural(scene.words.generic)}: {ranked[0][0][0].place} and {ranked[0][1][0].place} are where they stand."
        )
        yield Asked(f"Which two {plural(scene.words.generic)} are closest to each other?", f"{one} and {other}", said)


def _where(scene: Scene, random: Random) -> Iterator[Asked]:
    """Indoors or outdoors, by what is rarely found elsewhere."""
    names, said = {thing.name for thing in scene.things}, " ".join(scene.context.captions).lower()
    for here, there in (("indoors", "outdoors"), ("outdoors", "indoors")):
        signs = [name for name in PLACES[here] if name in names]
        if signs and not names & set(PLACES[there]) and not any(word in said for word in SIGNS[there]):
            signs = signs[:3]
            listed = enumerate_parts([article(name) for name in signs])
            answer = f"It was most likely taken {here}. The sign of it is {listed}: "
            answer += f"such things are mostly found {here}, and nothing in the picture speaks for the contrary."
            yield Asked("Was this picture more likely taken indoors or outdoors, and why?", here, answer)


def _largest(scene: Scene, random: Random) -> Iterator[Asked]:
    """What takes up most of a photo."""
    ranked = sorted(scene.things, key=lambda thing: -thing.area)
    if scene.closed or not ranked or (len(ranked) > 1 and ranked[0].area < 2 * ranked[1].area):
        return
    tenths = round(10 * ranked[0].area)
    if (phrases := scene.refer(ranked[0])) and 3 <= tenths <= 10:
        share = "all" if tenths == 10 else f"about {NUMBERS[tenths]} tenths"
        said = f"Judged by size, it is mostly about the {phrases[0]}. Of the area of the picture it takes up {share}"
        said += (
            ", more than twice as much as anything else."
            if len(ranked) > 1
            else ", and nothing else stands out so much."
        )
        yield Asked("What is this picture mostly about, judged by size?", phrases[0], said)


def _crowded(scene: Scene, random: Random) -> Iterator[Asked]:
    """Few or many, where some were not told apart."""
    for name in sorted(scene.crowds)[:1]:
        alone = sum(thing.name == name for thing in scene.things)
        said = f"There are many: several {plural(name)} are so close together that they can hardly be told apart"
        said += ", and more of them stand apart from the others." if alone > 1 else "."
        yield Asked(f"Are there few or many {plural(name)}, and how can one tell?", "many", said)


PUZZLES: tuple[Callable[[Scene, Random], Iterator[Asked]], ...] = (
    _order,
    _majority,
    _removed,
    _nearest,
    _where,
    _largest,
    _crowded,
)


def reasoning(scene: Scene, random: Random) -> Asked | None:
    """A question that takes several steps, and its answer with them; None where the picture allows none."""
    for puzzle in (*random.sample(PUZZLES, len(PUZZLES)), _balance):
        for asked in puzzle(scene, random):
            return asked
    return None
