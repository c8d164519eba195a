from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.mixture_sampler import seeded
from data_modules.sources import OkVqa, VqaV2
from data_modules.world.write import Settings, write_world
from tests.data_modules.files import SHARED, generator, touch, write


def question(id: int, image: int = 9, text: str = "Is it red?") -> dict[str, Any]:
    return {"image_id": image, "question": text, "question_id": id}


def annotation(id: int, image: int = 9, common: str = "yes", **changes: Any) -> dict[str, Any]:
    answers = [{"answer": common, "answer_confidence": "maybe", "answer_id": k + 1} for k in range(9)]
    answers += [{"answer": "no", "answer_confidence": "yes", "answer_id": 10}]
    return {
        "question_type": "is it",
        "multiple_choice_answer": common,
        "answers": answers,
        "image_id": image,
        "answer_type": "yes/no",
        "question_id": id,
        **changes,
    }


def vqa(folder: Path, questions: list[Any], annotations: list[Any], **settings: Any) -> VqaV2:
    images = touch(folder / "images", "000000000009.png", "COCO_val2014_000000000009.jpg")
    asked = write(folder / "questions.json", {"task_type": "Open-Ended", "questions": questions})
    answered = write(folder / "annotations.json", {"info": {}, "annotations": annotations})
    return VqaV2(asked, answered, images, **settings)


def test_vqa(tmp_path: Path) -> None:
    source = vqa(
        tmp_path,
        [question(91), question(92, text="Who {is} it?")],
        [annotation(92, common="net"), annotation(91)],
        image_pattern="COCO_val2014_{image_id:012d}.jpg",
        prompt="<image>\n{question}\nAnswer with one word.",
    )
    source.load()
    first, second = (source.sample(index, generator()) for index in range(len(source)))
    assert [t.text for t in first.turns] == ["<image>\nIs it red?\nAnswer with one word.", "yes"]
    assert first.references == ("yes",) * 9 + ("no",)
    assert (second.id, second.turns[1].text, second.task) == ("92", "net", "vqa")
    assert first.question_type == "is it"
    assert "Who {is} it?" in second.turns[0].text
    assert first.images[0].name == str(tmp_path / "images/COCO_val2014_000000000009.jpg")
    assert source.length(0) == 9 and source.has_image(0)
    assert source.image_key(0) == source.image_key(1) is not None


@pytest.mark.parametrize(
    ("questions", "annotations", "rule"),
    [
        ([question(1), question(1)], [annotation(1)], r"questions\[1\] \(question_id 1\): the id 1 occurs twice"),
        ([question(1)], [annotation(1), annotation(1)], r"annotations\[1\] \(question_id 1\): the id occurs twice"),
        ([question(1), question(2)], [annotation(1)], r"questions\[1\] \(question_id 2\): has no annotation in"),
        ([question(1)], [annotation(1), annotation(2)], "question_id 2 is not in .*questions.json"),
        ([question(1, image=8)], [annotation(1, image=8)], r"\(question_id 1\): image .*000000000008.png not found"),
        ([question(1, image=9)], [annotation(1, image=8)], "image_id is 9, expected 8"),
        ([question(1, text=" ")], [annotation(1)], "'question' is empty"),
        ([question(1, text="<image>?")], [annotation(1)], "'<image>\\?' has an <image> mark"),
        ([question(1)], [annotation(1, answers=[])], "'answers' is empty"),
        ([question(1)], [annotation(1, answers=[{"answer": None}])], "'answer' is null, expected a text"),
        ([question(1)], [annotation(1, multiple_choice_answer=3)], "'multiple_choice_answer' is a number"),
        ([], [], "found no usable record"),
    ],
)
def test_vqa_refuses(tmp_path: Path, questions: list[Any], annotations: list[Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        vqa(tmp_path, questions, annotations).load()


def test_settings_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt: found no \{question\} or \{statement\} in '<image>'"):
        vqa(tmp_path, [], [], prompt="<image>")
    for pattern in ("{image}.png", "{}.png", "{image_id:zz}.png", "{image_id.x}.png"):
        with pytest.raises(ValueError, match="image_pattern: found"):
            vqa(tmp_path, [], [], image_pattern=pattern)
    swapped = vqa(tmp_path, [question(1)], [annotation(1)])
    with pytest.raises(ValueError, match=r"questions.json: found the keys .*expected the list 'annotations'"):
        VqaV2(swapped.annotations, swapped.questions, swapped.images).load()


@pytest.mark.skipif(not (SHARED / "format_samples").is_dir(), reason="excerpts of published files are not here")
@pytest.mark.parametrize("split", ["train2014", "val2014"])
def test_published_annotations(tmp_path: Path, split: str) -> None:
    file = SHARED / f"format_samples/v2_mscoco_{split}_annotations.json"
    records = json.loads(file.read_text())["annotations"]
    pattern = f"COCO_{split}_{{image_id:012d}}.jpg"
    touch(tmp_path / "images", *{pattern.format(image_id=record["image_id"]) for record in records})
    asked = {"questions": [question(record["question_id"], record["image_id"]) for record in records]}
    source = VqaV2(write(tmp_path / "q.json", asked), str(file), str(tmp_path / "images"), pattern)
    source.load()
    assert len(source) == len(records)
    assert all(len(source.sample(k, generator()).references) == 10 for k in range(len(source)))


def okvqa(folder: Path, annotations: list[Any], **settings: Any) -> OkVqa:
    images = touch(folder / "images", "COCO_train2014_000000000009.jpg")
    questions = [question(record["question_id"]) for record in annotations]
    asked = write(folder / "questions.json", {"questions": questions})
    made = OkVqa(asked, write(folder / "annotations.json", {"annotations": annotations}), images, **settings)
    made.load()
    return made


def knowledge(id: int, *answers: tuple[str, str]) -> dict[str, Any]:
    given = [
        {"answer_id": k + 1, "answer": stem, "raw_answer": raw, "answer_confidence": "yes"}
        for k, (stem, raw) in enumerate(answers)
    ]
    return {"image_id": 9, "question_id": id, "answer_type": "other", "question_type": "one", "answers": given}


def test_okvqa_names_no_common_answer(tmp_path: Path) -> None:
    given = knowledge(91, ("bike", "bikes"), ("race", "racing"), ("race", "race"), ("race", "racing"))
    made = okvqa(tmp_path, [given])
    sample = made.sample(0, generator())
    assert sample.turns[1].text == "race" and sample.references == ("bike", "race", "race", "race")
    assert "Is it red?" in sample.turns[0].text and sample.task == "vqa"
    assert okvqa(tmp_path, [given], spelling="raw_answer").sample(0, generator()).turns[1].text == "racing"


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (knowledge(92), "'answers' is empty, expected at least one"),
        (knowledge(92, ("", "")), "'answers' is empty, expected a text"),
        ({**knowledge(92), "answers": [{"raw_answer": "x"}]}, "has no 'answer', expected a text"),
    ],
)
def test_okvqa_refuses(tmp_path: Path, record: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"annotations\[1\] \(question_id 92\): {rule}"):
        okvqa(tmp_path, [knowledge(91, ("race", "race")), record])
    with pytest.raises(ValueError, match="spelling: found 'stem', expected 'answer' or 'raw_answer'"):
        OkVqa("q.json", "a.json", "images", spelling="stem")  # type: ignore[arg-type]


def test_answers_may_be_drawn_as_often_as_they_were_given(tmp_path: Path) -> None:
    source = vqa(tmp_path, [question(91)], [annotation(91)], answers="drawn")
    source.load()
    random = generator()
    drawn = [source.sample(0, random).turns[1].text for _ in range(1000)]
    assert set(drawn) == {"yes", "no"} and abs(drawn.count("no") - 100) < 35


def test_a_family_of_templates_on_the_small_world(tmp_path: Path) -> None:
    write_world(tmp_path / "world", Settings(images=20, seed=3, texts=4))
    asked, answered = (str(tmp_path / f"world/vqa/{name}_train.json") for name in ("questions", "annotations"))
    source = VqaV2(asked, answered, str(tmp_path / "world/images/train"), prompt="vqa", answers="drawn")
    source.load()
    samples = [source.sample(k, seeded(0, k)) for k in range(len(source))]
    assert all(sample.turns[0].text.startswith("<image>\n") and sample.references for sample in samples)
    assert len({sample.turns[0].text.split()[1] for sample in samples}) > 4
    assert samples == [source.sample(k, seeded(0, k)) for k in range(len(source))]
