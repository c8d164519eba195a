"""Dense captions say all that a picture shows and nothing else, short ones name one thing of it."""

from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import Any

import pytest

from data_modules.world.captions import NUMBERS, at, captions, plural
from data_modules.world.dense_captions import dense, short
from data_modules.world.draw import thing_box
from data_modules.world.records import caption_records, instance_records
from data_modules.world.scene import SHAPES, Scene, Thing, draw_scene

SIDE, PICTURES = 72, 120
THING = re.compile(r"an? (small|large) (\w+) (\w+) ((?:at|on|in) the [a-z ]+?)(?=,| and |$)")
COUNT = re.compile(r"(\w+) (\w+)")

Json = dict[str, Any]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    random = Random(0)
    return [draw_scene(random, novel=False, words=0.3) for _ in range(PICTURES)]


def files(scenes: list[Scene]) -> tuple[Json, Json]:
    """COCO's instances and captions of the scenes."""
    images = [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(len(scenes))]
    boxes = [[thing_box(thing, SIDE) for thing in scene.things] for scene in scenes]
    instances = [record for n, scene in enumerate(scenes) for record in instance_records(n, scene.things, boxes[n])]
    texts = [record for n, scene in enumerate(scenes) for record in caption_records(n, captions(scene, Random(n)))]
    head: Json = {"info": {}, "images": images}
    return {**head, "annotations": instances}, {**head, "annotations": texts}


def of_scenes(content: Json) -> list[str]:
    """The captions in the order of the pictures, one each."""
    assert [each["image_id"] for each in content["annotations"]] == list(range(PICTURES))
    assert len({each["id"] for each in content["annotations"]}) == PICTURES
    return [each["caption"] for each in content["annotations"]]


def is_true(first: Thing, word: str, second: Thing) -> bool:
    return {
        "left of": first.column < second.column,
        "right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[word]


def test_a_dense_caption_says_everything_that_is_there_and_nothing_else(scenes: list[Scene]) -> None:
    relations: Counter[str] = Counter()
    for scene, text in zip(scenes, of_scenes(dense(*files(scenes), Random(1))), strict=True):
        background, listed, *related, counts = text.removesuffix(".").split(". ")
        if scene.word:
            *related, counts, word = [*related, counts]
            assert word == f'the word "{scene.word}" is written'
        assert background == f"the background is {scene.pattern} {scene.tone}"
        read = sorted(scene.things, key=lambda t: (t.row, t.column))
        assert THING.findall(listed) == [(t.size, t.colour, t.shape, at(t.place)) for t in read]
        named = {f"{t.colour} {t.shape}": t for t in scene.things}
        single = Counter(f"{t.colour} {t.shape}" for t in scene.things)
        for sentence in related:
            match = re.fullmatch(r"the (\w+ \w+) is (left of|right of|above|below) the (\w+ \w+)", sentence)
            assert match and single[match[1]] == single[match[3]] == 1
            assert is_true(named[match[1]], match[2], named[match[3]])
            relations[match[2]] += 1
        pairs = sum(number == 1 for number in single.values())
        assert len(related) == (2 if pairs > 1 else 0)
        total, shapes = counts.split(": ")
        numbers = Counter(t.shape for t in scene.things)
        expected = {(NUMBERS[n], shape if n == 1 else plural(shape)) for shape, n in numbers.items()}
        assert {pair for pair in COUNT.findall(shapes.replace(" and ", ", "))} == expected
        assert total == ("one thing" if len(scene.things) == 1 else f"{NUMBERS[len(scene.things)]} things")
    assert len(relations) == 4 and min(relations.values()) > 10


def test_a_short_caption_names_one_thing_that_is_there(scenes: list[Scene]) -> None:
    first = 0
    for scene, text in zip(scenes, of_scenes(short(files(scenes)[0], Random(1))), strict=True):
        article, size, colour, shape = text.removesuffix(".").split()
        assert article in ("a", "an") and shape in SHAPES
        assert (size, colour, shape) in {(t.size, t.colour, t.shape) for t in scene.things}
        first += (size, colour, shape) == (scene.things[0].size, scene.things[0].colour, scene.things[0].shape)
    assert first < 0.8 * PICTURES, "not always the first one"


def test_what_the_captions_do_not_tell_is_left_out(scenes: list[Scene]) -> None:
    instances, texts = files(scenes)
    silent = {**texts, "annotations": []}
    told, untold = of_scenes(dense(instances, texts, Random(1))), of_scenes(dense(instances, silent, Random(1)))
    for scene, full, less in zip(scenes, told, untold, strict=True):
        word = f' the word "{scene.word}" is written.' if scene.word else ""
        assert full == f"the background is {scene.pattern} {scene.tone}. {less}{word}"
