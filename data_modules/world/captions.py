"""Scenes in words: five captions that each say it differently."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from data_modules.world.scene import Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five")


def article(noun: str) -> str:
    """'a red circle', 'an orange ring'."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def at(place: str) -> str:
    """'at the top left', 'in the middle', 'on the left'."""
    if place == "middle":
        return "in the middle"
    return f"{'on' if place in ('left', 'right') else 'at'} the {place}"


def name(thing: Thing) -> str:
    """'small red circle'."""
    return f"{thing.size} {thing.colour} {thing.shape}"


def plural(noun: str) -> str:
    """'circles', 'crosses', 'red things'."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def enumerate_things(parts: Sequence[str]) -> str:
    """'x', 'x and y', 'x, y and z'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def relation(first: Thing, second: Thing) -> str:
    """One true relation of two things in different places."""
    if first.column != second.column:
        return "left of" if first.column < second.column else "right of"
    return "above" if first.row < second.row else "below"


def _count(things: Sequence[Thing], noun: str) -> str:
    return f"{NUMBERS[len(things)]} {noun if len(things) == 1 else plural(noun)}"


def _background(scene: Scene) -> str:
    return f"on {article(f'{scene.pattern} {scene.tone} background')}"


def _word(scene: Scene) -> str:
    return f', with the word "{scene.word}"' if scene.word else ""


def describe(scene: Scene, random: Random) -> str:
    """The whole scene: size, colour, shape and place of every thing, in a random order."""
    things = random.sample(scene.things, len(scene.things))
    return enumerate_things([f"{article(name(t))} {at(t.place)}" for t in things])


def captions(scene: Scene, random: Random) -> list[str]:
    """Five true captions of the scene, differently worded, lower case, each one sentence.

    Some leave colours or places out: only of shapes can all of them be told.
    """
    things = random.sample(scene.things, len(scene.things))
    shapes = [article(t.shape) for t in things]
    sized = [article(name(t)) for t in things]
    placed = [f"{at(t.place)} is {article(t.shape)}" for t in things]
    if len(things) > 1:
        first, second, *rest = things
        related = f"{article(f'{first.colour} {first.shape}')} {relation(first, second)} "
        related += article(f"{second.colour} {second.shape}")
        related += f", and also {enumerate_things([article(f'{t.colour} {t.shape}') for t in rest])}" if rest else ""
    else:
        related = f"only {article(f'{things[0].colour} {things[0].shape}')}"
    return [
        f"{describe(scene, random)}{_word(scene)}.",
        f"a picture of {_count(things, 'thing')}: {enumerate_things(shapes)}{_word(scene)}.",
        f"{related}.",
        f"{enumerate_things(sized)} {_background(scene)}{_word(scene)}.",
        f"{', '.join(placed)}.",
    ]
