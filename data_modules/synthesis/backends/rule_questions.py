"""Questions about a picture that its captions and boxes answer with certainty, each with its answer in two lengths.

A family yields every question of one kind that the picture allows; `draw` takes one of them so that no answer of a
family is more frequent than the picture makes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from random import Random

from data_modules.synthesis.context import at
from data_modules.synthesis.request import Context
from data_modules.synthesis.things import Thing, crowds, things, words_of
from data_modules.synthesis.words import ANIMATE, COLOURS, NUMBER, NUMBERS, Vocabulary, article, number_of, plural

APART = 0.2
"""Of the width or height: so far apart are the middles of two boxes one of which is said to be left of, or above, the
other."""
MOST_COUNTED = 6
"""People who drew boxes miss some of many."""
PREFERRED = {"yes": 1.5}
"""Weight of an answer among those that a picture allows: many allow no "yes", so others give it more often."""
MOST_OF_A_FAMILY = 3
"""Questions of one kind about a picture."""


@dataclass(frozen=True)
class Asked:
    """A question with its answer as a word or phrase, and as a sentence."""

    question: str
    word: str
    sentence: str


@dataclass(frozen=True)
class Scene:
    """What captions and boxes say of a picture."""

    context: Context

    @cached_property
    def things(self) -> tuple[Thing, ...]:
        return things(self.context)

    @cached_property
    def words(self) -> Vocabulary:
        return words_of(self.context)

    @cached_property
    def crowds(self) -> frozenset[str]:
        return crowds(self.context)

    @property
    def closed(self) -> bool:
        """Whether the boxes are all there is in the picture, and their names shapes."""
        return self.words.group == "shapes"

    @cached_property
    def counts(self) -> dict[str, int]:
        """Name -> how many, where it is certain: no crowd, and no caption that says another number."""
        counts = Counter(thing.name for thing in self.things)
        said = {name: self._said(name) for name in counts}
        return {
            name: count
            for name, count in counts.items()
            if name not in self.crowds and said[name] <= {count} and (self.closed or count <= MOST_COUNTED)
        }

    def _said(self, name: str) -> set[int]:
        """The numbers of a thing that captions say; -1 for several where there is one box."""
        found = set[int]()
        for caption in self.context.captions:
            for mention in self.words.mentions(caption):
                if name in mention.categories and mention.plural:
                    number = re.search(rf"({NUMBER})\s+(?:\w+ )?$", caption[: mention.start].lower())
                    one = sum(thing.name == name for thing in self.things) == 1
                    found |= {number_of(number[1]) or -1} if number and name == mention.word else {-1} if one else set()
        return found

    def is_one(self, thing: Thing) -> bool:
        return self.counts.get(thing.name) == 1

    def refer(self, thing: Thing, hidden: frozenset[str] = frozenset()) -> list[str]:
        """The shortest phrases that mean this thing alone and do not tell what is hidden, without an article."""
        if "shape" not in hidden and self.is_one(thing):
            return [thing.name]
        if thing.name not in self.counts:
            return []
        told = [("size", thing.size), ("colour", thing.colour)]
        visible = [(key, value) for key, value in told if value and key not in hidden]
        nouns = [] if "shape" in hidden else [(thing.name, [t for t in self.things if t.name == thing.name])]
        nouns += [(self.words.generic, list(self.things))] if self.closed else []
        found: list[tuple[int, str]] = []
        for noun, others in nouns:
            for length in range(len(visible) + 1):
                for chosen in combinations(visible, length):
                    if noun == self.words.generic and [key for key, _ in chosen] in ([], ["size"]):
                        continue
                    if self._alone(thing, others, chosen):
                        found.append((length + (noun == thing.name), " ".join([*(v for _, v in chosen), noun])))
        if found:
            return [phrase for length, phrase in found if length == min(found)[0]]
        there = [t for t in self.things if t.place == thing.place]
        if self.closed and "place" not in hidden and len(there) == 1:
            return [f"{self.words.generic} {at(thing.place)}"]
        return []

    @staticmethod
    def _alone(thing: Thing, others: Sequence[Thing], chosen: Sequence[tuple[str, str]]) -> bool:
        """Whether each of the others is known to differ."""
        differs = [any(getattr(t, key) not in ("", value) for key, value in chosen) for t in others if t is not thing]
        return all(differs)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def count_of(count: int, noun: str) -> str:
    """'one car', 'three cars', 'zero cars'."""
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {noun if count == 1 else plural(noun)}"


def there_are(count: int, noun: str) -> str:
    """'There is one car', 'There are three cars', 'There are no cars'."""
    if count == 0:
        return f"There are no {plural(noun)}"
    return f"There {'is' if count == 1 else 'are'} {count_of(count, noun)}"


def _colour(scene: Scene, random: Random) -> Iterator[Asked]:
    ask = random.choice(("What colour is the {}?", "What is the colour of the {}?"))
    for thing in scene.things:
        for phrase in scene.refer(thing, frozenset({"colour"})) if thing.colour else ():
            yield Asked(ask.format(phrase), thing.colour, f"The {phrase} is {thing.colour}.")


def _shape(scene: Scene, random: Random) -> Iterator[Asked]:
    ask = random.choice(("What shape is the {}?", "What is the shape of the {}?"))
    for thing in scene.things if scene.closed else ():
        for phrase in scene.refer(thing, frozenset({"shape"})):
            yield Asked(ask.format(phrase), thing.name, f"The {phrase} is {article(thing.name)}.")


def _size(scene: Scene, random: Random) -> Iterator[Asked]:
    ask = random.choice(("What size is the {}?", "What is the size of the {}?"))
    for thing in scene.things:
        for phrase in scene.refer(thing, frozenset({"size"})) if thing.size else ():
            yield Asked(ask.format(phrase), thing.size, f"The {phrase} is {thing.size}.")


def _place(scene: Scene, random: Random) -> Iterator[Asked]:
    ask = random.choice(
        ("Where is the {}?", "In which place is the {}?" if scene.closed else "Where do you see the {}?")
    )
    for thing in scene.things:
        for phrase in scene.refer(thing, frozenset({"place"})):
            yield Asked(ask.format(phrase), thing.place, f"The {phrase} is {at(thing.place)} of the picture.")


def _count(scene: Scene, random: Random) -> Iterator[Asked]:
    ask = random.choice(("How many {} are there?", "What is the number of {}?"))
    numbers = dict(scene.counts)
    if scene.closed:
        numbers |= {name: 0 for name in scene.words.categories if name not in {t.name for t in scene.things}}
        numbers[scene.words.generic] = len(scene.things)
        if all(thing.colour for thing in scene.things):
            coloured = Counter(thing.colour for thing in scene.things)
            numbers |= {f"{colour} {scene.words.generic}": coloured[colour] for colour in COLOURS[:8]}
    for noun, number in numbers.items():
        if number < len(NUMBERS):
            yield Asked(ask.format(plural(noun)), NUMBERS[number], f"{there_are(number, noun)} in the picture.")


def _existence(scene: Scene, random: Random) -> Iterator[Asked]:
    ask = random.choice(("Is there {}?", "Can you see {}?"))
    for noun, truth in _attested(scene) if scene.closed else _named(scene):
        said = f"Yes, there is {article(noun)}" if truth else f"No, there is no {noun}"
        yield Asked(ask.format(article(noun)), _yes(truth), f"{said} in the picture.")


def _attested(scene: Scene) -> Iterator[tuple[str, bool]]:
    """Colour and shape of every thing, and of what differs from one in either."""
    if not all(thing.colour for thing in scene.things):
        return
    present = {(thing.colour, thing.name) for thing in scene.things}
    near = {(colour, name) for colour, _ in present for name in scene.words.categories}
    near |= {(colour, name) for _, name in present for colour in COLOURS[:8]}
    yield from ((f"{colour} {name}", (colour, name) in present) for colour, name in sorted(near))


def _named(scene: Scene) -> Iterator[tuple[str, bool]]:
    """Each category that is alone, or of which neither a box nor a word of a caption knows.

    Boxes are taken to be complete, as COCO's are of its categories; where there are none, nothing is denied.
    """
    boxed = {box.name for box in scene.context.boxes}
    said = " ".join(scene.context.captions).lower()
    for name in scene.words.categories:
        if scene.counts.get(name) == 1:
            yield name, True
        elif boxed and name not in boxed and not scene.words.could_be_in(name, said):
            yield name, False


def _pairs(scene: Scene, hidden: str, random: Random) -> Iterator[tuple[Thing, Thing, str, str]]:
    named = [(thing, scene.refer(thing, frozenset({hidden}))) for thing in scene.things]
    for (first, one), (second, other) in permutations([each for each in named if each[1]], 2):
        yield first, second, random.choice(one), random.choice(other)


def _relation(scene: Scene, random: Random) -> Iterator[Asked]:
    for first, second, a, b in _pairs(scene, "place", random):
        for axis, (less, more) in enumerate((("left of", "right of"), ("above", "below"))):
            difference = second.middle[axis] - first.middle[axis]
            if abs(difference) > APART:
                truth = less if difference > 0 else more
                for asked in (less, more):
                    said = f"{_yes(asked == truth).capitalize()}, the {a} is {truth} the {b}."
                    yield Asked(f"Is the {a} {asked} the {b}?", _yes(asked == truth), said)


def _comparison(scene: Scene, random: Random) -> Iterator[Asked]:
    for first, second, a, b in _pairs(scene, "size", random):
        word, opposite = random.choice((("larger", "smaller"), ("smaller", "larger")))
        if first.size and second.size and scene.closed:
            truth = first.size != second.size and (first.size == "large") == (word == "larger")
            other = "as large as" if first.size == second.size else f"{opposite} than"
            said = f"{_yes(truth).capitalize()}, the {a} is {f'{word} than' if truth else other} the {b}."
            yield Asked(f"Is the {a} {word} than the {b}?", _yes(truth), said)
    for (one, n), (other, m) in permutations(scene.counts.items(), 2):
        said = f"{_yes(n > m).capitalize()}: {there_are(n, one).lower()} and {count_of(m, other)}."
        yield Asked(f"Are there more {plural(one)} than {plural(other)}?", _yes(n > m), said)


def _doing(scene: Scene, random: Random) -> Iterator[Asked]:
    """What someone does: "A man is riding a wave" of a caption."""
    for caption in scene.context.captions if not scene.closed else ():
        text = " ".join(caption.split()).rstrip(" .")
        found = re.fullmatch(
            r"(?:an?|the) ([a-z]+(?: [a-z]+)?) (?:is |are )?([a-z]{2,}ing [a-z' -]+)", text, re.IGNORECASE
        )
        who = scene.words.mentions(found[1]) if found else []
        if found and len(who) == 1 and not who[0].plural and who[0].end == len(found[1]):
            subject, doing = found[1].lower(), found[2].lower()
            if who[0].categories <= ANIMATE - scene.crowds:
                yield Asked(f"What is the {subject} doing?", doing, f"The {subject} is {doing}.")


def _listed(scene: Scene, random: Random) -> Iterator[Asked]:
    if len(scene.counts) > 1 and not scene.crowds and not scene.closed:
        parts = [article(name) if n == 1 else count_of(n, name) for name, n in scene.counts.items()]
        listed = enumerate_parts(parts)
        yield Asked(f"Which {plural(scene.words.generic)} can be seen?", listed, f"The picture shows {listed}.")


def _background(scene: Scene, random: Random) -> Iterator[Asked]:
    if scene.closed and (found := background(scene.context)):
        yield Asked("What is the background like?", found, f"The background is {found}.")


def background(context: Context) -> str:
    """'striped grey' of a caption "... on a striped grey background"; empty where none says so."""
    found = re.search(r"\bon an? ((?:\w+ )+)background\b", " ".join(context.captions))
    return found[1].strip() if found else ""


def enumerate_parts(parts: Sequence[str]) -> str:
    """'x', 'x and y', 'x, y and z'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


FAMILIES: dict[str, Callable[[Scene, Random], Iterator[Asked]]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "relation": _relation,
    "comparison": _comparison,
    "size": _size,
    "place": _place,
    "doing": _doing,
    "listed": _listed,
    "background": _background,
}


def draw(scene: Scene, number: int, random: Random, words: int | None = None) -> list[Asked]:
    """Up to `number` different questions; each family once before any is used again, and at most `MOST_OF_A_FAMILY`
    times.

    Args:
        words: most words of the shorter answer; None for any number.
    """
    candidates = {
        name: [each for each in family(scene, random) if words is None or len(each.word.split()) <= words]
        for name, family in FAMILIES.items()
    }
    drawn: list[Asked] = []
    asked = set[str]()
    for _ in range(MOST_OF_A_FAMILY):
        for name in random.sample(list(candidates), len(candidates)):
            left = [each for each in candidates[name] if each.question not in asked]
            if left and len(drawn) < number:
                answers = sorted({each.word for each in left})
                (answer,) = random.choices(answers, [PREFERRED.get(answer, 1) for answer in answers])
                drawn.append(random.choice([each for each in left if each.word == answer]))
                asked.add(drawn[-1].question)
    return drawn
