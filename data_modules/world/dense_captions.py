"""The same pictures in other captions: dense ones, which say all that is there, and short ones, which name one thing.

What captions say is then all that two runs differ in (ShareGPT4V, arXiv 2311.12793). Both are COCO's files, one caption
a picture, and made from files that a split has, so that a world that was drawn before can be given them. A dense
caption tells the background, every thing by size, colour, shape and place as one reads, two relations and the counts:

    the background is plain white. there are a small red circle at the top left and a large blue star in the middle. the
    red circle is left of the blue star. the blue star is below the red circle. two things: one circle and one star.

Backgrounds and written words are those that the picture's captions tell; of a textured world they tell no background.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from random import Random

from data_modules.world.captions import NUMBERS, article, at, enumerate_things, name, plural, relation
from data_modules.world.grounding import things_in
from data_modules.world.records import Json, caption_records
from data_modules.world.scene import PATTERNS, TONES, Thing

RELATIONS = 2
"""Of a caption."""
BACKGROUND = re.compile(rf"\b((?:{'|'.join(PATTERNS)}) (?:{'|'.join(TONES)})) background\b")
WORD = re.compile(r'with the word "(\w+)"')


def dense(content: Json, captions: Json, random: Random) -> Json:
    """One caption a picture, which says all of it.

    Args:
        content: COCO's instances of a split.
        captions: COCO's captions of the split, for what has no box.
        random: chooses which of the things are related.
    """
    told: dict[int, str] = {}
    for annotation in captions["annotations"]:
        told[annotation["image_id"]] = f"{told.get(annotation['image_id'], '')} {annotation['caption']}"
    records = []
    for image, things in things_in(content):
        read = sorted(things, key=lambda thing: (thing.row, thing.column))
        sentences = _sentences(read, told.get(image["id"], ""), random)
        records += caption_records(image["id"], [" ".join(f"{sentence}." for sentence in sentences)])
    return {"info": content["info"], "images": content["images"], "annotations": records}


def short(content: Json, random: Random) -> Json:
    """One caption a picture: one clause about one of its things, without the place."""
    records = []
    for image, things in things_in(content):
        records += caption_records(image["id"], [f"{article(name(random.choice(things)))}."])
    return {"info": content["info"], "images": content["images"], "annotations": records}


FILES = {
    "dense": (dense, ("coco/instances", "coco/captions")),
    "short": (short, ("coco/instances",)),
}
"""The start of a file's name -> what makes its content, and of which files of the same split, in this order."""


def _sentences(things: Sequence[Thing], told: str, random: Random) -> Iterator[str]:
    if background := BACKGROUND.search(told):
        yield f"the background is {background[1]}"
    placed = [f"{article(name(thing))} {at(thing.place)}" for thing in things]
    yield f"there {'is' if len(things) == 1 else 'are'} {enumerate_things(placed)}"
    named = Counter(_name(thing) for thing in things)
    single = [thing for thing in things if named[_name(thing)] == 1]
    pairs = list(permutations(single, 2))
    for first, second in random.sample(pairs, min(RELATIONS, len(pairs))):
        yield f"the {_name(first)} is {relation(first, second)} the {_name(second)}"
    counts = Counter(thing.shape for thing in things)
    shapes = enumerate_things([_counted(number, shape) for shape, number in counts.items()])
    yield f"{_counted(len(things), 'thing')}: {shapes}"
    if word := WORD.search(told):
        yield f'the word "{word[1]}" is written'


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _counted(number: int, noun: str) -> str:
    return f"{NUMBERS[number]} {noun if number == 1 else plural(noun)}"
