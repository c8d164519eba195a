"""Questions about a scene, balanced so that a model which cannot see scores near chance.

A `Balance` remembers how often each answer of a kind was given; the asker takes, of the answers that the scene allows,
the one given least often so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from random import Random

from data_modules.world.captions import NUMBERS, article, at, plural
from data_modules.world.scene import COLOURS, NOVEL_PAIRS, SHAPES, SIZES, Scene, Thing


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its only answer; `kind` is the VQAv2 `question_type`."""

    kind: str
    text: str
    answer: str


@dataclass
class Balance:
    """How often each answer was given, per kind and form of question."""

    given: Counter[tuple[str, str]] = field(default_factory=Counter)

    def choose(self, form: str, candidates: list[Question], random: Random) -> Question:
        """One of the candidates whose answer was given least often in this form."""
        fewest = min(self.given[form, c.answer] for c in candidates)
        choice = random.choice([c for c in candidates if self.given[form, c.answer] == fewest])
        self.given[form, choice.answer] += 1
        return choice


def _matches(thing: Thing, wanted: dict[str, str]) -> bool:
    return all(getattr(thing, name) == value for name, value in wanted.items())


def refer(things: Sequence[Thing], thing: Thing, hidden: frozenset[str]) -> list[str]:
    """The shortest phrases that mean this one of the things and do not tell the hidden attributes, as people refer."""
    visible = [name for name in ("size", "colour", "shape") if name not in hidden]
    for length in range(1, len(visible) + 1):
        phrases = []
        for names in combinations(visible, length):
            wanted = {name: getattr(thing, name) for name in names}
            if names != ("size",) and sum(_matches(other, wanted) for other in things) == 1:
                noun = thing.shape if "shape" in names else "thing"
                phrases.append(" ".join([wanted[n] for n in names if n != "shape"] + [noun]))
        if phrases:
            return phrases
    # In a fine grid several things may be in one third of the picture.
    alone = sum(other.place == thing.place for other in things) == 1
    return [f"thing {at(thing.place)}"] if alone and "place" not in hidden else []


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _attribute(scene: Scene, random: Random, name: str, ask: str) -> Iterator[Question]:
    for thing in scene.things:
        for phrase in refer(scene.things, thing, frozenset({name})):
            yield Question(kind=name, text=ask.format(phrase), answer=getattr(thing, name))


def _colour(scene: Scene, random: Random) -> Iterator[Question]:
    return _attribute(
        scene, random, "colour", random.choice(("What colour is the {}?", "What is the colour of the {}?"))
    )


def _shape(scene: Scene, random: Random) -> Iterator[Question]:
    return _attribute(scene, random, "shape", random.choice(("What shape is the {}?", "What is the shape of the {}?")))


def _size(scene: Scene, random: Random) -> Iterator[Question]:
    return _attribute(scene, random, "size", random.choice(("What size is the {}?", "What is the size of the {}?")))


def _place(scene: Scene, random: Random) -> Iterator[Question]:
    return _attribute(scene, random, "place", random.choice(("Where is the {}?", "In which place is the {}?")))


def _count(scene: Scene, random: Random) -> Iterator[Question]:
    ask = random.choice(("How many {} are there?", "What is the number of {}?"))
    wanted = [{"shape": shape} for shape in SHAPES] + [{"colour": colour} for colour in COLOURS]
    for attributes in wanted:
        number = sum(_matches(thing, attributes) for thing in scene.things)
        noun = attributes.get("shape") or f"{attributes['colour']} thing"
        yield Question(kind="count", text=ask.format(plural(noun)), answer=NUMBERS[number])
    yield Question(kind="count", text=ask.format(plural("thing")), answer=NUMBERS[len(scene.things)])


def _existence(scene: Scene, random: Random) -> Iterator[Question]:
    ask = random.choice(("Is there {}?", "Can you see {}?"))
    present = {(thing.colour, thing.shape) for thing in scene.things}
    novel = bool(present & NOVEL_PAIRS)
    near = {(colour, shape) for colour, _ in present for shape in SHAPES}
    near |= {(colour, shape) for _, shape in present for colour in COLOURS}
    for colour, shape in sorted(near):
        if novel or (colour, shape) not in NOVEL_PAIRS:
            text = ask.format(article(f"{colour} {shape}"))
            yield Question(kind="existence", text=text, answer=_yes((colour, shape) in present))


def _pairs(scene: Scene, hidden: frozenset[str], random: Random) -> Iterator[tuple[Thing, Thing, str, str]]:
    for first in scene.things:
        for second in scene.things:
            names = refer(scene.things, first, hidden), refer(scene.things, second, hidden)
            if first is not second and all(names):
                yield first, second, random.choice(names[0]), random.choice(names[1])


def _relation(scene: Scene, random: Random) -> Iterator[Question]:
    for first, second, a, b in _pairs(scene, frozenset({"place"}), random):
        for word, truth, clear in (
            ("left of", first.column < second.column, first.column != second.column),
            ("right of", first.column > second.column, first.column != second.column),
            ("above", first.row < second.row, first.row != second.row),
            ("below", first.row > second.row, first.row != second.row),
        ):
            if clear:
                yield Question(kind="relation", text=f"Is the {a} {word} the {b}?", answer=_yes(truth))


def _comparison(scene: Scene, random: Random) -> Iterator[Question]:
    for first, second, a, b in _pairs(scene, frozenset({"size"}), random):
        word = random.choice(("larger", "smaller"))
        larger = SIZES.index(first.size) - SIZES.index(second.size)
        truth = larger > 0 if word == "larger" else larger < 0
        yield Question(kind="comparison", text=f"Is the {a} {word} than the {b}?", answer=_yes(truth))
    numbers = Counter(thing.shape for thing in scene.things)
    for first, second in combinations(sorted(numbers), 2):
        for a, b in ((first, second), (second, first)):
            text = f"Are there more {plural(a)} than {plural(b)}?"
            yield Question(kind="comparison", text=text, answer=_yes(numbers[a] > numbers[b]))


def _word(scene: Scene, random: Random) -> Iterator[Question]:
    if scene.word:
        yield Question(kind="word", text="What word is written?", answer=scene.word)


KINDS: dict[str, Callable[[Scene, Random], Iterator[Question]]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "relation": _relation,
    "comparison": _comparison,
    "size": _size,
    "place": _place,
    "word": _word,
}


def ask(scene: Scene, number: int, balance: Balance, random: Random) -> list[Question]:
    """Up to `number` different questions of kinds that the scene allows, each kind at most once until all were used.

    In a scene with a novel pair, questions that name or mean a novel thing are preferred.
    """
    asked: dict[str, Question] = {}
    kinds = random.sample(list(KINDS), len(KINDS))
    for kind in kinds * 2:
        if len(asked) == number:
            break
        candidates = [q for q in KINDS[kind](scene, random) if q.text not in asked]
        candidates = [q for q in candidates if _is_novel(scene, q)] or candidates
        if candidates:
            form = f"{kind} {candidates[0].text.split()[0]}"
            choice = balance.choose(form, candidates, random)
            asked[choice.text] = choice
    return list(asked.values())


def _is_novel(scene: Scene, question: Question) -> bool:
    text = f"{question.text} {question.answer}"
    return any(colour in text and shape in text for colour, shape in NOVEL_PAIRS)
