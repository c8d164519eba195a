"""Pictures in words for the tests of synthesis: scenes of the small world, and a kitchen."""

from __future__ import annotations

from random import Random

from data_modules.synthesis.request import Context, NamedBox, Request
from data_modules.world.captions import captions
from data_modules.world.draw import thing_box
from data_modules.world.scene import Scene, draw_scene


def world_context(seed: int, size: int = 72) -> tuple[Scene, Context]:
    """A scene, and what COCO's files of the small world say of it."""
    random = Random(seed)
    scene = draw_scene(random, novel=False)
    boxes = []
    for thing in scene.things:
        x, y, width, height = (each / size for each in thing_box(thing, size))
        boxes.append(NamedBox(thing.shape, (x, y, x + width, y + height)))
    told = tuple(captions(scene, random))
    return scene, Context(captions=told, boxes=tuple(boxes), width=size, height=size)


def context(*captions: str, **boxes: int) -> Context:
    """Captions, and so many boxes of each name side by side; `_` in a name is a blank, one that ends in it a crowd."""
    named = []
    for row, (name, count) in enumerate(boxes.items()):
        for column in range(count):
            box = (column / 20, row / 20, column / 20 + 0.04, row / 20 + 0.04)
            named.append(NamedBox(name.rstrip("_").replace("_", " "), box, crowd=name.endswith("_")))
    return Context(captions=captions, boxes=tuple(named), width=640, height=480)


def request(context: Context, kind: str, id: str = "7", question: str = "") -> Request:
    """A request without messages, for backends and checks that read the context alone."""
    return Request(
        id=f"{id}/{kind}",
        kind=kind,
        image="7.jpg",
        messages=(),
        context=context,
        max_tokens=100,
        temperature=0.0,
        question=question,
    )
