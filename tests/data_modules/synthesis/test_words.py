"""Words for things in texts: forms, meanings, and where a word names no thing."""

from __future__ import annotations

import pytest

from data_modules.synthesis.words import article, number_of, plural, sentences, vocabulary

COCO = vocabulary(frozenset({"person"}))


def named(text: str) -> list[tuple[str, bool]]:
    return [(mention.word, mention.plural) for mention in COCO.mentions(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Three men ride bikes past a bus stop.", [("man", True), ("bike", True)]),
        ("Two wine glasses and a fire hydrant.", [("wine glass", True), ("fire hydrant", False)]),
        ("An orange bus beside an orange.", [("bus", False), ("orange", False)]),
        ("Dogs train in a park; a train waits.", [("dog", True), ("train", False)]),
        ("A hot dog and a teddy bear on a dog bed in a truck bed.", [("hot dog", False), ("teddy bear", False)]),
        ("Sheep, scissors and SKIS", [("sheep", False), ("scissors", False), ("skis", False)]),
        ("A carpet with a category", []),
    ],
)
def test_things_are_found(text: str, found: list[tuple[str, bool]]) -> None:
    assert named(text) == found


def test_a_word_may_mean_several_categories() -> None:
    (bike,) = COCO.mentions("A bike.")
    assert bike.categories == {"bicycle", "motorcycle"}


def test_names_of_a_data_set_are_words() -> None:
    own = vocabulary(frozenset({"gecko", "leaf frog"}))
    assert [each.word for each in own.mentions("Two geckos and a leaf frog near a dog.")] == ["gecko", "leaf frog"]
    assert own.generic == "object"


def test_the_small_world_has_its_own_group() -> None:
    world = vocabulary(frozenset({"circle", "ring"}))
    assert world.categories == ("circle", "square", "triangle", "star", "cross", "ring")
    assert [each.word for each in world.mentions("a ring and two crosses near a dog")] == ["ring", "cross"]


def test_forms() -> None:
    names = ["bench", "person", "wine glass", "sheep", "knife", "bus", "policeman", "toothbrush", "baby"]
    many = ["benches", "people", "wine glasses", "sheep", "knives", "buses", "policemen", "toothbrushes", "babies"]
    assert [plural(name) for name in names] == many
    assert [article(name) for name in ("umbrella", "dog", "skis", "sheep")] == [
        "an umbrella",
        "a dog",
        "skis",
        "a sheep",
    ]
    assert [number_of(text) for text in ("Three", "12", "none")] == [3, 12, None]
    assert sentences("One. Two!\n\nThree") == ["One.", "Two!", "Three"]
