"""Laws of the small world: true, balanced, repeatable, and never novel outside its novel part."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from data_modules.world import grounding
from data_modules.world.captions import captions, describe, plural
from data_modules.world.draw import draw, thing_box
from data_modules.world.questions import KINDS, Balance, ask
from data_modules.world.scene import COLOURS, NOVEL_PAIRS, SHAPES, Scene, Thing, draw_scene
from data_modules.world.write import SHARES, Settings, main, write_world

SETTINGS = Settings(images=600, seed=3, texts=300, words=0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, SETTINGS)
    return folder


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_another_seed_other_bytes(world: Path, tmp_path: Path):
    write_world(tmp_path / "again", SETTINGS)
    assert digest(tmp_path / "again") == digest(world)
    write_world(tmp_path / "other", Settings(images=20, seed=4, texts=4))
    write_world(tmp_path / "third", Settings(images=20, seed=5, texts=4))
    first, second = digest(tmp_path / "other"), digest(tmp_path / "third")
    assert first["images/train/000000000000.png"] != second["images/train/000000000000.png"]


def test_splits_have_the_promised_sizes_and_every_image_exists(world: Path):
    total = 0
    for split in SHARES:
        images = read(world, f"coco/captions_{split}.json")["images"]
        total += len(images)
        for image in images:
            with Image.open(world / "images" / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
    assert total == SETTINGS.images


def test_five_different_captions_an_image(world: Path):
    texts = defaultdict(set)
    for caption in read(world, "coco/captions_train.json")["annotations"]:
        texts[caption["image_id"]].add(caption["caption"])
    several = [len(different) for different in texts.values()]
    assert min(several) >= 4
    assert np.mean([number == 5 for number in several]) > 0.95


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_novel_pairs_never_appear_outside_the_novel_part(world: Path, split: str):
    texts = "".join(path.read_text() for path in world.rglob(f"*_{split}.json*"))
    assert all(f"{colour} " in texts for colour in COLOURS)
    assert not [pair for pair in NOVEL_PAIRS if " ".join(pair) in texts]


def test_every_novel_image_shows_a_novel_pair(world: Path):
    shown = defaultdict(bool)
    for instance in read(world, "coco/instances_test_novel.json")["annotations"]:
        pair = instance["attributes"]["colour"], SHAPES[instance["category_id"] - 1]
        shown[instance["image_id"]] |= pair in NOVEL_PAIRS
    assert len(shown) == 30
    assert all(shown.values())


def test_answers_are_balanced_within_each_kind(world: Path):
    answers = defaultdict(Counter)
    for answer in read(world, "vqa/annotations_train.json")["annotations"]:
        answers[answer["question_type"]][answer["multiple_choice_answer"]] += 1
        assert len(answer["answers"]) == 10
    assert set(answers) == set(KINDS)
    majority = sum(counter.most_common(1)[0][1] for counter in answers.values())
    total = sum(counter.total() for counter in answers.values())
    assert majority / total < 0.36
    for kind, counter in answers.items():
        fair = counter.total() / len(counter)
        assert counter.most_common(1)[0][1] < 2 * fair, (kind, counter)


def test_boxes_are_true():
    thing = Thing(colour="red", shape="square", size="large", column=2, row=0)
    image = np.asarray(draw(Scene(things=(thing,), tone="dark", pattern="plain"), 96, Random(0))).astype(int)
    red = (image[..., 0] > 150) & (image[..., 1] < 90)
    rows, columns = np.nonzero(red)
    x, y, width, height = thing_box(thing, 96)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.allclose(found, (x, y, x + width, y + height), atol=2.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_thing_is_visible_in_its_colour(shape: str, colour: str):
    thing = Thing(colour=colour, shape=shape, size="small", column=0, row=2)
    image = np.asarray(draw(Scene(things=(thing,), tone="grey", pattern="striped"), 64, Random(1))).astype(int)
    x, y, width, height = (round(value) for value in thing_box(thing, 64))
    distance = np.abs(image[y : y + height, x : x + width] - np.array(COLOURS[colour])).max(-1)
    assert (distance < 30).sum() > 0.15 * width * height


def test_a_scene_described_and_asked_about_by_hand():
    left = Thing(colour="red", shape="circle", size="large", column=0, row=1)
    right = Thing(colour="blue", shape="square", size="small", column=2, row=1)
    scene = Scene(things=(left, right), tone="white", pattern="plain")
    assert describe(scene, Random(0)) in (
        "a large red circle on the left and a small blue square on the right",
        "a small blue square on the right and a large red circle on the left",
    )
    assert all(caption.endswith(".") for caption in captions(scene, Random(0)))
    truth = {
        "What colour is the circle?": "red",
        "What shape is the blue thing?": "square",
        "How many things are there?": "two",
        "How many stars are there?": "zero",
        "Is there a red circle?": "yes",
        "Is there a red square?": "no",
        "Is the circle left of the square?": "yes",
        "Is the circle right of the square?": "no",
        "Is the circle larger than the square?": "yes",
        "Is the circle smaller than the square?": "no",
        "Where is the circle?": "left",
        "What size is the square?": "small",
    }
    found: dict[str, set[str]] = defaultdict(set)
    for seed in range(200):
        for kind in KINDS.values():
            for question in kind(scene, Random(seed)):
                found[question.text].add(question.answer)
    assert {text: found[text] for text in truth} == {text: {answer} for text, answer in truth.items()}


def test_a_crop_is_one_thing_at_its_place(tmp_path: Path):
    write_world(tmp_path / "crops", Settings(images=40, seed=0, texts=4, crops=True))
    assert not [path.name for path in (tmp_path / "crops").iterdir() if path.name in ("vqa", "llava", "text")]
    captions = read(tmp_path / "crops", "coco/captions_train.json")
    boxes = read(tmp_path / "crops", "coco/instances_train.json")
    assert len(captions["annotations"]) == len(boxes["annotations"]) == len(captions["images"])
    for caption, instance in zip(captions["annotations"], boxes["annotations"], strict=True):
        shown = instance["attributes"]
        name = f"{shown['size']} {shown['colour']} {SHAPES[instance['category_id'] - 1]}"
        assert caption["caption"].split(" ", 1)[1] == f"{name}."
        x, y, width, height = instance["bbox"]
        assert min(x, y) >= 0 and max(x + width, y + height) <= 24
        image = np.asarray(Image.open(tmp_path / f"crops/images/train/{caption['image_id']:012d}.png")).astype(int)
        assert image.shape == (24, 24, 3)
        inside = image[round(y) : round(y + height), round(x) : round(x + width)]
        assert (np.abs(inside - np.array(COLOURS[shown["colour"]])).max(-1) < 40).mean() > 0.15


@pytest.mark.parametrize("noun", ["circle", "cross", "red thing"])
def test_plurals(noun: str):
    assert plural(noun) == {"circle": "circles", "cross": "crosses", "red thing": "red things"}[noun]


def test_a_quarter_of_conversations_describes_and_all_ask(world: Path):
    conversations = read(world, "llava/conversations_train.json")
    questions = [turn["value"] for item in conversations for turn in item["conversations"][::2]]
    described = sum("Describe" in question for question in questions)
    assert 0.15 < described / len(conversations) < 0.35
    assert len(questions) - described > 6 * len(conversations)


def test_questions_about_one_scene_never_contradict_each_other():
    random = Random(0)
    for _ in range(100):
        scene, balance = draw_scene(random, novel=False, words=0.5), Balance()
        answers: dict[str, str] = {}
        for _ in range(5):
            for question in ask(scene, 6, balance, random):
                assert answers.setdefault(question.text, question.answer) == question.answer


def test_a_folder_with_something_else_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="holds something else: name an empty folder"):
        main([str(tmp_path), "--images", "8"])
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_the_same_world_is_not_written_twice(world: Path, capsys: pytest.CaptureFixture[str]):
    before = digest(world)
    write_world(world, SETTINGS)
    assert "already holds this world" in capsys.readouterr().out
    assert digest(world) == before


@pytest.mark.parametrize(
    "settings",
    [
        Settings(images=3, seed=0, texts=4),
        Settings(images=8, seed=0, texts=8, words=2),
        Settings(images=8, seed=0, texts=8, size=64, crops=True),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: Settings):
    with pytest.raises(ValueError, match="expected"):
        write_world(tmp_path / "world", settings)
    assert not (tmp_path / "world").exists()


def readings(world: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (world / f"text/readings_{split}.jsonl").read_text().splitlines()]


def test_readings_are_other_scenes_with_every_kind_of_question(world: Path):
    written = [reading for split in SHARES for reading in readings(world, split)]
    assert len(written) == SETTINGS.texts
    assert {len(reading["captions"]) for reading in written} == {5}
    assert {question["kind"] for reading in written for question in reading["questions"]} == set(KINDS)
    documents = (world / "text/corpus_train.jsonl").read_text()
    assert sum(reading["captions"][0] in documents for reading in readings(world, "train")) < 0.2 * SETTINGS.texts
    novel = readings(world, "test_novel")
    pairs = [" ".join(pair) for pair in NOVEL_PAIRS]
    assert all(any(pair in reading["captions"][0] for pair in pairs) for reading in novel)


def test_the_other_files_are_as_they_were_before_there_were_readings(world: Path):
    # The shipped backbones were trained on these bytes.
    parts = ("coco/captions", "coco/instances", "llava", "text/conversations", "text/corpus", "text/questions", "vqa")
    files = {name: hash for name, hash in digest(world).items() if name.startswith(parts)}
    total = hashlib.sha256("".join(f"{name} {hash}\n" for name, hash in sorted(files.items())).encode())
    assert total.hexdigest()[:16] == "5579937c86eb138a"


def text_boxes(world: Path, name: str) -> list[tuple[dict, list[dict]]]:
    """Of a file in MDETR's form each entry of `images` with its annotations."""
    content = read(world, f"grounding/{name}.json")
    boxes = defaultdict(list)
    for annotation in content["annotations"]:
        boxes[annotation["image_id"]].append(annotation)
    return [(image, boxes[image["id"]]) for image in content["images"]]


def means(phrase: str, instance: dict) -> bool:
    """Whether every word of 'the large red circle' or 'a blue thing' is true of an instance."""
    shown = instance["attributes"]
    true = {SHAPES[instance["category_id"] - 1], shown["colour"], shown["size"], "thing"}
    return set(phrase.split()[1:]) <= true


@pytest.mark.parametrize("split", ["train", "test_novel"])
def test_an_expression_means_one_thing_and_its_box_is_that_things(world: Path, split: str):
    instances = defaultdict(list)
    for instance in read(world, f"coco/instances_{split}.json")["annotations"]:
        instances[instance["image_id"]].append(instance)
    found = text_boxes(world, f"refs_{split}")
    for image, (box,) in found:
        assert (world / "images" / split / image["file_name"]).exists()
        (meant,) = [each for each in instances[image["original_id"]] if means(image["caption"], each)]
        assert (meant["id"], meant["bbox"]) == (box["original_id"], box["bbox"])
        assert box["tokens_positive"] == [[0, len(image["caption"])]]
    assert len(found) > 0.8 * sum(map(len, instances.values()))
    words = [image["caption"].split()[1:] for image, _ in found]
    assert {len(each) for each in words} == {1, 2, 3} and len({*map(tuple, words)}) > 20
    novel = [each for each in words if tuple(each[-2:]) in NOVEL_PAIRS]
    assert (len(novel) > 20) == (split == "test_novel")


def test_a_caption_names_every_thing_of_a_picture_with_its_box(world: Path):
    instances = {each["id"]: each for each in read(world, "coco/instances_val.json")["annotations"]}
    named = []
    for image, boxes in text_boxes(world, "captions_val"):
        for box in boxes:
            ((start, end),) = box["tokens_positive"]
            phrase, instance = image["caption"][start:end], instances[box["original_id"]]
            assert len(phrase.split()) == 4 and means(phrase, instance) and box["bbox"] == instance["bbox"]
            named.append(instance["id"])
            x, y, width, height = box["bbox"]
            after = image["caption"][end:].split(",")[0].split(" and ")[0]
            assert ("left" in after) == (x + width / 2 < 24) and ("top" in after) == (y + height / 2 < 24)
    assert sorted(named) == sorted(instances)


def test_relations_are_true_of_the_boxes_of_both_things(world: Path):
    sizes = {each["image_id"]: each["width"] for each in read(world, "grounding/image_data_val.json")}
    found = Counter()
    for record in read(world, "grounding/relationships_val.json"):
        assert sizes[record["image_id"]] == SETTINGS.size
        for each in record["relationships"]:
            (x, y), (other_x, other_y) = (
                (each[role]["x"] + each[role]["w"] / 2, each[role]["y"] + each[role]["h"] / 2)
                for role in ("subject", "object")
            )
            truth = {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}
            assert truth[each["predicate"]]
            found[each["predicate"]] += 1
    assert set(found) == {"left of", "right of", "above", "below"}


def test_conversations_ask_for_every_box_once_and_say_its_place_first(world: Path):
    expressions = {
        (image["file_name"], f"Give the box of {image['caption']}."): box["bbox"]
        for image, (box,) in text_boxes(world, "refs_val")
    }
    told, kept = {}, []
    for record in read(world, "grounding/conversations_val.json"):
        values = [turn["value"] for turn in record["conversations"]]
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (len(values) // 2)
        assert values[0].startswith("<image>\n") and sum("<image>" in value for value in values) == 1
        values[0] = values[0].removeprefix("<image>\n")
        pairs = list(zip(values[::2], values[1::2], strict=True))
        told |= {(record["image"], question): answer for question, answer in pairs if "box of" in question}
        kept.append(sorted(pair for pair in pairs if "box of" not in pair[0]))
    assert set(told) == set(expressions)
    for (file, question), answer in told.items():
        x, y, width, height = expressions[file, question]
        place, box = answer.split(" [[")
        across = ("left", "", "right")[int((x + width / 2) * 3 / SETTINGS.size)]
        down = ("top", "", "bottom")[int((y + height / 2) * 3 / SETTINGS.size)]
        assert place == (f"{down} {across}".strip() or "middle")
        edges = (float(edge) / 1000 * SETTINGS.size for edge in box.removesuffix("]]").split(","))
        assert list(edges) == pytest.approx([x, y, x + width, y + height], abs=0.1)
    for record, pairs in zip(read(world, "llava/conversations_val.json"), kept, strict=True):
        values = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        assert sorted(zip(values[::2], values[1::2], strict=True)) == pairs


def test_a_world_drawn_before_is_given_what_it_lacks(tmp_path: Path):
    settings = Settings(images=20, seed=4, texts=4)
    write_world(tmp_path / "world", settings)
    before = digest(tmp_path / "world")
    assert sum(name.startswith("grounding/") for name in before) == 5 * len(SHARES)
    for path in (tmp_path / "world/grounding").iterdir():
        path.unlink()
    (tmp_path / "world/grounding").rmdir()
    write_world(tmp_path / "world", settings)
    assert digest(tmp_path / "world") == before


def test_of_two_equal_things_each_phrase_has_its_own_box():
    """ "at the top" also begins "at the top left": a phrase is looked for behind the one before it."""
    seen = {"category_id": 1, "attributes": {"colour": "red", "size": "small"}, "image_id": 0}
    instances = [{**seen, "id": 1, "bbox": [4, 4, 13, 13]}, {**seen, "id": 2, "bbox": [28, 4, 13, 13]}]
    image = {"id": 0, "file_name": "0.png", "width": 72, "height": 72}
    content = {"info": {}, "images": [image], "annotations": instances, "categories": []}
    for seed in range(8):
        found = grounding.captions(content, Random(seed))
        spans = {each["original_id"]: each["tokens_positive"][0] for each in found["annotations"]}
        text = found["images"][0]["caption"]
        assert {text[end:].split(" and ")[0].rstrip(".") for _, end in spans.values()} == {
            " at the top left",
            " at the top",
        }
        assert text[spans[1][1] :].startswith(" at the top left")
