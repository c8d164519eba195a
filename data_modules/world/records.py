"""One scene in the published formats: COCO, VQAv2, LLaVA."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from data_modules.world.draw import Box
from data_modules.world.questions import Question
from data_modules.world.scene import SHAPES, Thing

DESCRIBED = 0.25
"""Share of conversations that also ask for a description: with one in each, half of the learned tokens would be its."""
DESCRIBE = "Describe the picture."

Json = dict[str, Any]


def turns(opening: str, questions: list[Question], description: str, random: Random) -> list[Json]:
    """A conversation of LLaVA that opens with `opening`."""
    pairs = [(question.text, question.answer) for question in questions]
    if random.random() < DESCRIBED:
        pairs.insert(random.randint(0, len(pairs)), (DESCRIBE, description))
    return talk(opening, pairs)


def talk(opening: str, pairs: Iterable[tuple[str, str]]) -> list[Json]:
    """Questions with their answers as turns of LLaVA, the first of which begins with `opening`."""
    turns: list[Json] = []
    for index, (question, answer) in enumerate(pairs):
        turns += [{"from": "human", "value": f"{opening}\n{question}" if index == 0 else question}]
        turns += [{"from": "gpt", "value": answer}]
    return turns


def caption_records(image: int, texts: list[str]) -> list[Json]:
    """COCO's captions of a picture."""
    return [{"id": image * 10 + k, "image_id": image, "caption": text} for k, text in enumerate(texts)]


def instance_records(image: int, things: Iterable[Thing], boxes: Iterable[Box]) -> list[Json]:
    """COCO's instances of a picture, with the attributes that its captions tell."""
    return [
        {
            "id": image * 10 + k,
            "image_id": image,
            "category_id": SHAPES.index(thing.shape) + 1,
            "bbox": [round(value, 2) for value in box],
            "area": round(box[2] * box[3], 2),
            "iscrowd": 0,
            "attributes": {"colour": thing.colour, "size": thing.size},
        }
        for k, (thing, box) in enumerate(zip(things, boxes, strict=True))
    ]


def vqa_records(image: int, questions: list[Question]) -> tuple[list[Json], list[Json]]:
    """VQAv2's questions and annotations about a picture: ten equal answers each."""
    asked, answered = [], []
    for k, question in enumerate(questions):
        ids = {"question_id": image * 10 + k, "image_id": image}
        asked.append({**ids, "question": question.text})
        yes_no = question.answer in ("yes", "no")
        answered.append(
            {
                **ids,
                "question_type": question.kind,
                "answer_type": "yes/no" if yes_no else "number" if question.kind == "count" else "other",
                "multiple_choice_answer": question.answer,
                "answers": [
                    {"answer": question.answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)
                ],
            }
        )
    return asked, answered
