"""What the rule-based backend says is true: of scenes of the small world it is compared with what the world knows."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from data_modules.synthesis.backends.rule_based import RuleBased
from data_modules.synthesis.backends.rule_questions import FAMILIES, Asked
from data_modules.synthesis.backends.rule_questions import Scene as Known
from data_modules.synthesis.parsers import parse_turn, parse_turns
from data_modules.synthesis.request import Context, NamedBox, Refused, Stop
from data_modules.synthesis.things import things
from data_modules.world.questions import KINDS
from data_modules.world.scene import Scene
from tests.data_modules.synthesis.contexts import context, request, world_context

SCENES = 30


@cache
def world(seed: int) -> tuple[Scene, Context, Known]:
    """A scene, what is told of it, and what the backend knows of that."""
    scene, told = world_context(seed)
    return scene, told, Known(told)


def asked(family: str, known: Known) -> list[Asked]:
    """All that a family can ask, in both wordings."""
    return [each for seed in (0, 2) for each in FAMILIES[family](known, Random(seed))]


def test_attributes_of_boxes_are_those_that_were_drawn() -> None:
    for seed in range(SCENES):
        scene, told, _ = world(seed)
        found = [(thing.size, thing.colour, thing.name, thing.place) for thing in things(told)]
        assert found == [(thing.size, thing.colour, thing.shape, thing.place) for thing in scene.things]


@pytest.mark.parametrize("kind", ["colour", "shape", "count", "existence", "relation", "comparison", "size", "place"])
def test_answers_are_those_of_the_world(kind: str) -> None:
    compared = answers = 0
    for seed in range(SCENES):
        scene, _, known = world(seed)
        truth = {q.text: q.answer for draw in range(6) for q in KINDS[kind](scene, Random(draw))}
        for each in asked(kind, known):
            answers += 1
            if each.question in truth:
                compared += 1
                assert each.word == truth[each.question], (seed, each)
    # The world asks neither about pairs that it keeps for its novel part, nor in every wording of ours.
    assert compared > 0.5 * answers > 25, (compared, answers)


def test_conversations_are_full_and_balanced() -> None:
    backend, yes = RuleBased(questions=10, answers="words"), {"yes": 0, "no": 0}
    for seed in range(SCENES):
        _, told, _ = world(seed)
        pairs = parse_turns(backend.ask(request(told, "conversation", str(seed))).text)
        assert len({question for question, _ in pairs}) == len(pairs) == 10
        for _, answer in pairs:
            if answer in yes:
                yes[answer] += 1
    assert 0.4 < yes["yes"] / sum(yes.values()) < 0.6


def test_the_same_request_is_answered_alike_and_another_seed_differs() -> None:
    _, told, _ = world(3)
    each = request(told, "conversation")
    assert RuleBased().ask(each) == RuleBased().ask(each)
    assert RuleBased(seed=1).ask(each).text != RuleBased().ask(each).text


def test_a_unique_thing_of_a_photo_is_asked_about() -> None:
    told = context("A man riding a red bike past a dog.", "A man on a bicycle.", person=1, bicycle=1, dog=1, car=3)
    known = Known(told)
    assert Asked("What colour is the bicycle?", "red", "The bicycle is red.") in asked("colour", known)
    said = {each.question: each.sentence for each in asked("doing", known)}
    assert said == {"What is the man doing?": "The man is riding a red bike past a dog."}
    counts = {each.question: each.word for each in asked("count", known)}
    assert counts["How many cars are there?"] == "three"


def test_what_is_uncertain_is_not_asked_about() -> None:
    # Captions disagree on the colour, and on the number; a crowd is not counted; a table that is told is not denied.
    captions = "Two dogs by a white truck.", "A dog on a green truck at a picnic table."
    told = context(*captions, dog=1, truck=1, person=2, person_=1)
    known = Known(told)
    assert asked("colour", known) == []
    questions = {each.question for family in FAMILIES for each in asked(family, known)}
    assert not [each for each in questions if "dog" in each and "How many" in each]
    assert not [each for each in questions if "people" in each or "person" in each]
    assert not [each for each in questions if "table" in each]
    assert "Is there a cat?" in questions


def test_sides_are_told_by_boxes_that_are_clearly_apart() -> None:
    told = context("A dog.", dog=1, cat=1)
    assert asked("relation", Known(told)) == []
    apart = told.boxes[0], NamedBox("cat", (0.8, 0.0, 0.9, 0.1))
    moved = context("A dog.", dog=1)
    known = Known(type(moved)(captions=moved.captions, boxes=apart, width=640, height=480))
    said = {each.question: each.sentence for each in asked("relation", known)}
    assert said["Is the dog right of the cat?"] == "No, the dog is left of the cat."


def test_a_question_that_takes_steps_is_answered_with_them() -> None:
    for seed in range(SCENES):
        scene, told, _ = world(seed)
        if len(scene.things) > 1:
            ((question, answer),) = parse_turn(RuleBased().ask(request(told, "reasoning", str(seed))).text)
            if question.startswith("How many things would be left"):
                shape = question.split("every ")[1].split(" ")[0]
                left = sum(thing.shape != shape for thing in scene.things)
                word = ["no things", "one thing", "two things", "three things", "four things"][left]
                assert answer.endswith(f"{word} would be left.")


def test_a_description_says_where_every_thing_is() -> None:
    for seed in range(SCENES):
        scene, told, _ = world(seed)
        text = RuleBased().ask(request(told, "detail", str(seed))).text.lower()
        for thing in scene.things:
            assert f"{thing.size} {thing.colour} {thing.shape}" in text
            assert thing.place in text


def test_what_cannot_be_answered_is_refused() -> None:
    with pytest.raises(Refused, match="captions and boxes answer no question with certainty"):
        RuleBased().ask(request(context("Something."), "reasoning"))
    with pytest.raises(Refused, match="has no caption, expected"):
        RuleBased().ask(request(context(dog=1), "detail"))
    with pytest.raises(Stop, match="found 'poem', expected conversation"):
        RuleBased().ask(request(context("Something."), "poem"))
    with pytest.raises(ValueError, match="answers: found 'long'"):
        RuleBased(answers="long")  # pyright: ignore[reportArgumentType]
