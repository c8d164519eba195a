"""Where things are, in words and boxes: referring expressions, captions with the boxes of their phrases, relations, and
conversations in which a box is asked for.

The first two are written in MDETR's form of COCO's files (arXiv 2104.12763, released annotations): an entry of
`images` for each text, `caption` being the text, and its boxes in `annotations`, whose `tokens_positive` are the spans
of characters that a box is meant by. Relations are written in Visual Genome's (arXiv 1602.07332). All are made from
files that a split has, so that a world that was drawn before can be given them.

In a conversation (LLaVA's form) the place of the thing asked for is said before its box, from coarse to fine, so that
who reads the numbers has found it in words: "top left [[073,090,253,270]]".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from random import Random

from data_modules.world.captions import article, at, enumerate_things, name, relation
from data_modules.world.questions import refer
from data_modules.world.records import Json, talk
from data_modules.world.scene import GRID, NOVEL_PAIRS, SHAPES, Thing
from lightning_mllm.boxes import of_pixels, write

ASK_BOX = "Give the box of {expression}."
DIALECT = "cogvlm"
PLACE = frozenset({"place"})
RELATIONS = 2
"""Of a picture."""


def things_of(instances: Sequence[Json], side: int, grid: int = GRID) -> list[Thing]:
    """The things of a picture of `side` pixels from its instances; their places are those of the middles of boxes."""
    things = []
    for instance in instances:
        x, y, width, height = instance["bbox"]
        column, row = (int(middle * grid / side) for middle in (x + width / 2, y + height / 2))
        shape = SHAPES[instance["category_id"] - 1]
        things.append(Thing(**instance["attributes"], shape=shape, column=column, row=row, grid=grid))
    return things


def things_in(content: Json) -> Iterator[tuple[Json, list[Thing]]]:
    """Each picture of COCO's instances that shows something, and its things."""
    for image, instances in _pictures(content):
        yield image, things_of(instances, image["width"], _grid(content))


def expressions(content: Json, random: Random) -> Json:
    """For each thing that its colour, shape and size tell from the others one phrase that means it alone.

    Half of them are as short as can be, the others name colour and shape; those of a novel pair always do.

    Args:
        content: COCO's instances of a split.
        random: chooses the phrases.
    """
    texts = []
    for image, instances in _pictures(content):
        things = things_of(instances, image["width"], _grid(content))
        for instance, thing in zip(instances, things, strict=True):
            if phrases := refer(things, thing, PLACE):
                pair = thing.colour, thing.shape
                alone = sum((other.colour, other.shape) == pair for other in things) == 1
                named = alone and (pair in NOVEL_PAIRS or random.random() < 0.5)
                text = f"the {' '.join(pair) if named else random.choice(phrases)}"
                texts.append((image, text, [(instance, (0, len(text)))]))
    return _form(content, texts)


def captions(content: Json, random: Random) -> Json:
    """One caption a picture, that names every thing and its place in a random order."""
    texts = []
    for image, instances in _pictures(content):
        pairs = list(zip(instances, things_of(instances, image["width"], _grid(content)), strict=True))
        random.shuffle(pairs)
        phrases = [article(name(thing)) for _, thing in pairs]
        placed = [f"{phrase} {at(thing.place)}" for phrase, (_, thing) in zip(phrases, pairs, strict=True)]
        text, spans, end = f"{enumerate_things(placed)}.", [], 0
        for phrase, part in zip(phrases, placed, strict=True):
            start = text.index(part, end)
            spans.append((start, start + len(phrase)))
            end = start + len(part)
        texts.append((image, text, [(instance, span) for (instance, _), span in zip(pairs, spans, strict=True)]))
    return _form(content, texts)


def relationships(content: Json, random: Random) -> list[Json]:
    """Up to RELATIONS pairs of things of each picture, and how the first is related to the second."""
    records = []
    for image, instances in _pictures(content):
        pairs = list(permutations(zip(instances, things_of(instances, image["width"], _grid(content)), strict=True), 2))
        found = []
        for k, pair in enumerate(random.sample(pairs, min(RELATIONS, len(pairs)))):
            predicate = relation(pair[0][1], pair[1][1])
            subject, object = (
                {
                    "object_id": instance["id"],
                    "name": f"{thing.colour} {thing.shape}",
                    **dict(zip("xywh", instance["bbox"], strict=True)),
                }
                for instance, thing in pair
            )
            ids = {"relationship_id": image["id"] * 10 + k}
            found.append({**ids, "predicate": predicate, "subject": subject, "object": object})
        records.append({"image_id": image["id"], "relationships": found})
    return records


def image_data(content: Json, random: Random) -> list[Json]:
    """How large the pictures are."""
    return [{"image_id": each["id"], "width": each["width"], "height": each["height"]} for each in content["images"]]


def conversations(talks: Sequence[Json], content: Json, refs: Json, random: Random) -> list[Json]:
    """The conversations of a split, in each of which the boxes of the picture's expressions are asked for as well.

    Args:
        talks: LLaVA's conversations.
        content: COCO's instances of the split.
        refs: what `expressions` makes of them.
        random: chooses where in a conversation a box is asked for.
    """
    placed = {
        instance["id"]: thing.place
        for image, instances in _pictures(content)
        for instance, thing in zip(instances, things_of(instances, image["width"], _grid(content)), strict=True)
    }
    asked: dict[str, list[tuple[str, str]]] = {}
    for image, (annotation,) in _pictures(refs):
        left, top, width, height = annotation["bbox"]
        box = of_pixels(left, top, width, height, image["width"], image["height"])
        answer = f"{placed[annotation['original_id']]} {write([box], DIALECT)}"
        asked.setdefault(image["file_name"], []).append((ASK_BOX.format(expression=image["caption"]), answer))
    records = []
    for each in talks:
        values = [turn["value"] for turn in each["conversations"]]
        opening, values[0] = values[0].split("\n", 1)
        pairs = [*zip(values[::2], values[1::2], strict=True), *asked.get(each["image"], [])]
        random.shuffle(pairs)
        records.append({**each, "conversations": talk(opening, pairs)})
    return records


FILES = {
    "refs": (expressions, ("coco/instances",)),
    "captions": (captions, ("coco/instances",)),
    "relationships": (relationships, ("coco/instances",)),
    "image_data": (image_data, ("coco/instances",)),
    "conversations": (conversations, ("llava/conversations", "coco/instances", "grounding/refs")),
}
"""The start of a file's name -> what makes its content, and of which files of the same split, in this order."""


def _grid(content: Json) -> int:
    """Places in a row of a picture."""
    return content["info"].get("grid", GRID)


def _pictures(content: Json) -> list[tuple[Json, list[Json]]]:
    of: dict[int, list[Json]] = {}
    for instance in content["annotations"]:
        of.setdefault(instance["image_id"], []).append(instance)
    return [(image, of[image["id"]]) for image in content["images"] if image["id"] in of]


def _form(content: Json, texts: list[tuple[Json, str, list[tuple[Json, tuple[int, int]]]]]) -> Json:
    images: list[Json] = []
    annotations: list[Json] = []
    for id, (image, text, boxes) in enumerate(texts):
        entry = {**image, "id": id, "original_id": image["id"], "caption": text, "dataset_name": "world"}
        images.append({**entry, "tokens_negative": [[0, len(text)]]})
        for instance, span in boxes:
            kept = {key: value for key, value in instance.items() if key != "attributes"}
            own = {"id": len(annotations), "original_id": instance["id"], "image_id": id}
            annotations.append({**kept, **own, "tokens_positive": [list(span)]})
    return {
        "info": content["info"],
        "images": images,
        "annotations": annotations,
        "categories": content["categories"],
    }
