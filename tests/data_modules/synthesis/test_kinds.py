"""Requests: what each kind shows, in which messages, of which pictures, and the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_modules.synthesis.checks import pattern
from data_modules.synthesis.kinds import KINDS, PROMPTS, Kind, plan, read_kind
from data_modules.synthesis.pictures import Picture, coco_pictures
from data_modules.synthesis.request import Context, NamedBox
from lightning_mllm.contracts import ImageFile
from tests.data_modules.synthesis.contexts import context

COCO = Path(__file__).resolve().parents[3] / "../shared/data/coco_mini"
KIND: dict[str, Kind] = {name: read_kind(name) for name in KINDS}


def picture(id: str, told: Context, image: str = "coco/1.jpg") -> Picture:
    return Picture(id=id, image=image, file=ImageFile(Path(image)), context=told)


TOLD = Context(
    captions=("A dog\nand  a cat.", "Pets."),
    boxes=(NamedBox("dog", (0.1, 0.25, 0.33333, 1.0)), NamedBox("person", (0.0, 0.0, 0.0004, 0.5), crowd=True)),
    width=100,
    height=100,
)


def test_published_numbers_and_shots() -> None:
    # LLaVA (arXiv 2304.08485, sec. 3 and released prompts): two exemplars of a conversation, three of the others.
    assert {
        name: (KIND[name].published, len(KIND[name].examples)) for name in ("conversation", "detail", "reasoning")
    } == {
        "conversation": (58_000, 2),
        "detail": (23_000, 3),
        "reasoning": (77_000, 3),
    }


@pytest.mark.parametrize("name", ["conversation", "detail", "reasoning"])
def test_messages_alternate_as_published(name: str) -> None:
    sent = KIND[name].request(picture("1", TOLD), 0)
    roles = [message.role for message in sent.messages]
    assert roles == ["system", *["user", "assistant"] * len(KIND[name].examples), "user"]
    assert not [message for message in sent.messages if message.images]
    assert sent.id == f"1/{name}"
    captions = "A dog and a cat.\nPets."
    boxes = "dog: [0.100, 0.250, 0.333, 1.000]\nperson (crowd): [0.000, 0.000, 0.000, 0.500]"
    assert sent.messages[-1].text == (captions if name == "conversation" else f"{captions}\n\n{boxes}")
    # Exemplars are written as the picture is, so a conversation never shows a box.
    assert all(
        (": [0." in message.text) == (name != "conversation") for message in sent.messages if message.role == "user"
    )


def test_the_question_of_a_description_is_drawn_and_not_sent() -> None:
    pictures = [picture(str(k), TOLD) for k in range(60)]
    sent = [KIND["detail"].request(each, 0) for each in pictures]
    assert {each.question for each in sent} == set(KIND["detail"].questions)
    assert not [each for each in sent for message in each.messages if each.question in message.text]
    assert sent == [KIND["detail"].request(each, 0) for each in pictures]
    assert [each.question for each in sent] != [KIND["detail"].request(each, 1).question for each in pictures]


def test_a_dense_request_shows_the_picture_with_a_prompt_for_its_source() -> None:
    prompts = {}
    for image in (
        "coco/train2017/1.jpg",
        "sam/images/1.jpg",
        "share_textvqa/images/1.jpg",
        "WikiArt/images/1.jpg",
        "my/1.jpg",
    ):
        sent = KIND["dense"].request(picture("1", TOLD, image), 0)
        asked = sent.messages[-1]
        assert [each.name for each in asked.images] == [image]
        assert "dog" not in asked.text
        assert sent.question in KIND["dense"].questions
        prompts[image] = asked.text
    assert len(set(prompts.values())) == 5
    assert "text" in prompts["share_textvqa/images/1.jpg"]


def test_pictures_that_lack_something_are_counted() -> None:
    pictures = [picture("1", TOLD), picture("2", context("A dog.")), picture("3", context(dog=1))]
    sent, left_out = plan(pictures, KIND.values(), {})
    assert {name: [each.id.split("/")[0] for each in sent if each.kind == name] for name in KIND} == {
        "brief": ["1", "2"],
        "conversation": ["1", "2"],
        "dense": ["1", "2", "3"],
        "detail": ["1"],
        "reasoning": ["1"],
    }
    assert left_out == {
        "brief: no captions": 1,
        "conversation: no captions": 1,
        "detail: no boxes": 1,
        "detail: no captions": 1,
        "reasoning: no boxes": 1,
        "reasoning: no captions": 1,
    }


def test_sampling_depends_on_seed_picture_and_kind_alone() -> None:
    pictures = [picture(str(k), TOLD) for k in range(40)]
    kinds = [KIND["conversation"], KIND["detail"]]
    sent, _ = plan(pictures, kinds, {"conversation": 10, "detail": 25})
    drawn = {each.id for each in sent}
    assert len(drawn) == 35
    assert [each.kind for each in sent] == ["conversation"] * 10 + ["detail"] * 25
    assert {each.id for each in plan(pictures[::-1], kinds[::-1], {"conversation": 10, "detail": 25})[0]} == drawn
    assert {each.id for each in plan(pictures, kinds[:1], {"conversation": 10})[0]} < drawn
    assert {each.id for each in plan(pictures, kinds, {"conversation": 10, "detail": 25}, seed=1)[0]} != drawn
    with pytest.raises(ValueError, match="detail: 41 are wanted, expected at most the 40 pictures for it"):
        plan(pictures, kinds, {"detail": 41})
    with pytest.raises(ValueError, match="counts: found 'details', expected conversation, detail"):
        plan(pictures, kinds, {"details": 1})


def test_ones_own_kind(tmp_path: Path) -> None:
    given = yaml.safe_load((PROMPTS / "detail.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**given, "kind": "mine"}))
    assert replace(KIND["detail"], name="mine") == read_kind(str(path))
    for change, told in (
        ({"form": "poem"}, "form 'poem'"),
        ({"questions": []}, "questions, which a text needs"),
        ({"picture": True, "prompts": {"a*": "b"}}, "no prompt '\\*'"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
    ):
        path.write_text(yaml.safe_dump({**given, **change}))
        with pytest.raises(ValueError, match=f"mine.yaml: found .*{told}"):
            read_kind(str(path))
    del given["words"]
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(ValueError, match="found no 'words', expected the keys"):
        read_kind(str(path))
    with pytest.raises(ValueError, match="kind: found 'poem', expected brief, conversation"):
        read_kind("poem")


def test_no_question_of_a_list_names_its_source() -> None:
    asked = [question for kind in KIND.values() for question in kind.questions]
    assert len(asked) == len(set(asked)) > 30
    assert not [each for each in asked if pattern("coordinates").search(each) or "<image>" in each]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_requests_about_coco_hold_all_captions_and_boxes(split: str) -> None:
    if not COCO.is_dir():
        pytest.skip("no shared sample of COCO")
    files = [COCO / f"annotations/{name}_{split}.json" for name in ("captions", "instances")]
    captions, instances = (json.loads(file.read_text()) for file in files)
    names = {each["id"]: each["name"] for each in instances["categories"]}
    found = coco_pictures(str(files[0]), str(files[1]), str(COCO / split))
    sent, left_out = plan(found.pictures, [KIND["conversation"], KIND["detail"], KIND["reasoning"]], {})
    last = {each.id: each.messages[-1].text for each in sent}
    lines = 0
    for image in captions["images"]:
        told = [
            " ".join(each["caption"].split()) for each in captions["annotations"] if each["image_id"] == image["id"]
        ]
        boxes = []
        for each in instances["annotations"]:
            if each["image_id"] == image["id"]:
                left, top, width, height = each["bbox"]
                shares = (left / image["width"], top / image["height"])
                shares += ((left + width) / image["width"], (top + height) / image["height"])
                crowd = " (crowd)" if each["iscrowd"] else ""
                boxes.append(f"{names[each['category_id']]}{crowd}: [{', '.join(f'{min(v, 1):.3f}' for v in shares)}]")
        lines += len(boxes)
        assert last[f"{image['id']}/conversation"].splitlines() == told
        for kind in ("detail", "reasoning"):
            assert last[f"{image['id']}/{kind}"].splitlines() == [*told, "", *boxes]
    assert lines == len(instances["annotations"]) > 300
    assert not left_out
