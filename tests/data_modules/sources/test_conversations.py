from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import LlavaConversations, LlavaPretrain
from lightning_mllm.processing.chat_template import count_marks
from tests.data_modules.files import SHARED, generator, touch, write


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": "human" if k % 2 == 0 else "gpt", "value": text} for k, text in enumerate(texts)]


GOOD = [
    {"id": "000000033471", "image": "train2017/000000033471.jpg", "conversations": turns("<image>\nColour?", "Blue.")},
    {
        "id": "000000033471",
        "image": "train2017/000000033471.jpg",
        "conversations": turns("What is <image> this?", "A bus.", "Where?", "In a\ncity."),
    },
    {"id": "wgByO4Y_0", "model": "", "conversations": turns("Hi", "Hello.")},
    {
        "id": 5,
        "image": ["train2017/000000033471.jpg", "b.jpg"],
        "conversations": [{"from": "system", "value": "Be kind."}, *turns("<image> or <image>?", "The first.")],
    },
]


def load(folder: Path, given: Any, name: str = "llava.json", **settings: Any) -> LlavaConversations:
    images = touch(folder / "images", "train2017/000000033471.jpg", "b.jpg")
    source = LlavaConversations(write(folder / name, given), images, **settings)
    source.load()
    return source


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_conversations(tmp_path: Path, name: str) -> None:
    source = load(tmp_path, GOOD, name)
    samples = [source.sample(index, generator()) for index in range(len(source))]
    assert [s.id for s in samples] == ["000000033471", "000000033471#2", "wgByO4Y_0", "5"]
    assert [source.has_image(k) for k in range(4)] == [True, True, False, True]
    assert [(t.role, t.text) for t in samples[1].turns] == [
        ("user", "What is <image> this?"),
        ("assistant", "A bus."),
        ("user", "Where?"),
        ("assistant", "In a\ncity."),
    ]
    assert samples[1].references == ("In a\ncity.",)
    assert samples[2].images == () and len(samples[3].images) == 2
    assert samples[3].turns[0].role == "system"
    assert source.length(2) == 2 and source.length(1) == 10


def test_no_two_records_have_one_id(tmp_path: Path) -> None:
    """`1#2` may be a record's own id."""
    given = ["1", "1", "1#2", 1, "1#2", "1#2#2"]
    source = load(tmp_path, [{"id": id, "conversations": turns("Hi", "Hello.")} for id in given])
    ids = [source.sample(index, generator()).id for index in range(len(source))]
    assert ids == ["1", "1#2", "1#2#2", "1#3", "1#2#3", "1#2#2#2"] and len(set(ids)) == len(given)


def test_documents_are_learned_whole(tmp_path: Path) -> None:
    source = load(tmp_path, [{"id": "a", "text": "Once upon\na time."}, *GOOD[2:3]], "corpus.jsonl")
    sample = source.sample(0, generator())
    assert [(t.role, t.text) for t in sample.turns] == [("assistant", "Once upon\na time.")]
    assert sample.references == () and not source.has_image(0) and source.length(0) == 4


BAD = [
    (
        {"id": 1, "conversations": [{"from": "robot", "value": "x"}]},
        "turn 0 is from 'robot', expected human, gpt or syst",
    ),
    ({"id": 1, "conversations": turns("a", "b", "c")}, "found 3 turns of human and gpt, expected pairs"),
    ({"id": 1, "conversations": turns("a", "b")[::-1]}, "turn 0 is from gpt, expected human"),
    ({"id": 1, "conversations": [turns("a")[0], turns("b")[0]]}, "turn 1 is from human, expected gpt"),
    (
        {"id": 1, "conversations": [*turns("a", "b"), {"from": "system", "value": "c"}]},
        "turn 2 is from system, expected h",
    ),
    ({"id": 1, "conversations": turns("a", " ")}, "turn 1 from gpt: 'value' is empty"),
    ({"id": 1, "conversations": []}, "found 0 turns"),
    ({"id": 1, "conversations": None}, "'conversations' is null, expected a list"),
    ({"id": 1, "conversations": ["a"]}, "found a text, expected an object with 'from'"),
    ({"id": 1, "conversation": turns("a", "b")}, "has no 'conversations', expected a list"),
    ({"id": 1, "image": "b.jpg", "conversations": turns("a", "b")}, "found 0 <image> marks and 1 images"),
    ({"id": 1, "image": "b.jpg", "conversations": turns("<image><image>", "b")}, "found 2 <image> marks and 1 images"),
    ({"id": 1, "conversations": turns("<image>", "b")}, "found 1 <image> marks and 0 images"),
    ({"id": 1, "image": "b.jpg", "conversations": turns("a", "<image>")}, "turn 1 from gpt has an <image> mark"),
    ({"id": 1, "image": 3, "conversations": turns("<image>", "b")}, "'image' is a number, expected a text or a list"),
    ({"id": 1, "image": [3], "conversations": turns("<image>", "b")}, "'image' holds 3, expected names of files"),
    ({"id": 1, "image": "c.jpg", "conversations": turns("<image>", "b")}, "c.jpg not found"),
    ({"id": 1, "image": "../b.jpg", "conversations": turns("<image>", "b")}, "expected a path inside"),
    ({"id": 1, "image": "/b.jpg", "conversations": turns("<image>", "b")}, "expected a path inside"),
    ({"id": 1, "image": "", "conversations": turns("<image>", "b")}, "expected a path inside"),
    ({"id": 1, "text": ""}, "'text' is empty"),
    ({"id": 1, "text": "see <image>"}, "a document has 1 <image> marks"),
    ({"id": 1, "text": "a" * 1_100_000}, "has 1100000 characters"),
]


@pytest.mark.parametrize(("record", "rule"), BAD, ids=[rule for _, rule in BAD])
def test_bad_records_are_named(tmp_path: Path, record: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as error:
        load(tmp_path, [*GOOD, record])
    assert str(error.value).startswith(f"{tmp_path}/llava.json: record 4 (id 1): ")
    with pytest.raises(ValueError, match=rule) as error:
        load(tmp_path, [*GOOD, record], "llava.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/llava.jsonl:5 (id 1): ")


GPT_FIRST = [{"from": "gpt", "value": "Hello."}, *turns("Hi ", " Hello.\n")]
PUBLISHED = [
    ({"conversations": GPT_FIRST}, [("user", "Hi "), ("assistant", " Hello.\n")], "answer in front left out"),
    ({"conversations": turns("\nHi ", "Yo")}, [("user", "\nHi "), ("assistant", "Yo")], "blanks kept"),
    (
        {"conversations": turns("Write <image> and <video>.", "<image>")},
        [("user", "Write <image> and <video>."), ("assistant", "<image>")],
        "marks as words",
    ),
    (
        {"image": "b.jpg", "conversations": turns(" <image> or <image>? ", "a")},
        [("user", "<image>\nor ?"), ("assistant", "a")],
        "marks of a turn as one",
    ),
    (
        {"image": "b.jpg", "conversations": turns("Hi", "a")},
        [("user", "Hi"), ("assistant", "a")],
        "image without a mark",
    ),
    (
        {"conversations": turns("a", "b", "c")},
        [("user", "a"), ("assistant", "b"), ("user", "c")],
        "incomplete",
    ),
    ({"conversations": turns("a", "")}, [("user", "a"), ("assistant", "")], "incomplete"),
]


@pytest.mark.parametrize(("record", "expected", "change"), PUBLISHED, ids=[change for _, _, change in PUBLISHED])
def test_records_as_published(tmp_path: Path, record: Any, expected: Any, change: str) -> None:
    source = load(tmp_path, [*GOOD[2:3], record], records="published")
    sample = source.sample(1, generator())
    assert [(turn.role, turn.text) for turn in sample.turns] == expected
    assert source.changed[change] == 1
    assert len(sample.images) == (change == "marks of a turn as one")
    assert sum(map(count_marks, sample.turns)) == len(sample.images)
    with pytest.raises(ValueError, match=r"llava\.json: record 1: ") if change != "blanks kept" else nullcontext():
        load(tmp_path, [*GOOD[2:3], record])


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"id": 1, "conversations": [turns("a")[0], turns("b")[0]]}, "turn 1 is from human, expected gpt"),
        ({"id": 1, "conversations": [*turns("a", "b"), turns("", "c")[1]]}, "turn 2 is from gpt, expected human"),
        ({"id": 1, "conversations": [{"from": "robot", "value": "x"}]}, "turn 0 is from 'robot', expected human"),
        ({"id": 1, "image": "b.jpg", "conversations": turns("<image>", "a", "<image>", "b")}, "found 2 <image> marks"),
        ({"id": 1, "image": "b.jpg", "conversations": turns("<image>", "<image>")}, "turn 1 from gpt has an <image>"),
        ({"id": 1, "conversations": []}, "found 0 turns"),
    ],
)
def test_what_stops_published_code_is_bad(tmp_path: Path, record: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"record 4 \(id 1\): {rule}"):
        load(tmp_path, [*GOOD, record], records="published")
    assert len(load(tmp_path, [*GOOD, record], records="published", bad_records="skip").skipped) == 1


@pytest.mark.parametrize("records", ["strict", "published"])
def test_missing_marks_in_front(tmp_path: Path, records: Any) -> None:
    record = {"id": 1, "image": "b.jpg", "conversations": [{"from": "system", "value": "s"}, *turns("Hi", "a")]}
    with pytest.raises(ValueError, match="write <image> where an image stands, or set marks: front"):
        load(tmp_path, [record])
    source = load(tmp_path, [record], marks="front", records=records)
    sample = source.sample(0, generator())
    assert [turn.text for turn in sample.turns] == ["s", "<image>\nHi", "a"] and len(sample.images) == 1
    assert source.changed["marks put in front"] == 1 and source.has_image(0)
    two = {**record, "image": ["b.jpg", "b.jpg"]}
    assert load(tmp_path, [two], marks="front").sample(0, generator()).turns[1].text == "<image>\n<image>\nHi"
    one_of_two = {**two, "conversations": turns("<image> Hi", "a")}
    with pytest.raises(ValueError, match="found 1 <image> marks and 2 images"):
        load(tmp_path, [one_of_two], marks="front")


def test_half_a_character_names_its_record(tmp_path: Path) -> None:
    half = {"id": 7, "conversations": turns("a", "b \ud83d")}
    with pytest.raises(ValueError, match=r"llava\.json: record 1 \(id 7\): found half of a character \('.ud83d'\)"):
        load(tmp_path, [GOOD[2], half])
    source = load(tmp_path, [GOOD[2], half, GOOD[2]], "llava.jsonl", bad_records="skip")
    assert len(source) == 2 and "llava.jsonl:2 (id 7): found half of a character" in source.skipped[0]
    assert [source.where(index) for index in range(2)] == [f"{tmp_path}/llava.jsonl:1", f"{tmp_path}/llava.jsonl:3"]


def test_names_in_another_case_or_form_are_pointed_out(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "A/caf\u00e9.JPG")
    for name, found in (
        ("a/caf\u00e9.jpg", "not found, but A/caf\u00e9.JPG is: the names differ in case"),
        ("A/cafe\u0301.JPG", "not found, but A/caf\u00e9.JPG is: the names differ in their Unicode form"),
        ("A/b.jpg", "b.jpg not found$"),
    ):
        record = {"image": name, "conversations": turns("<image>", "b")}
        with pytest.raises(ValueError, match=found):
            LlavaConversations(write(tmp_path / "a.json", [record]), images).load()


def test_bad_records_may_be_left_out(tmp_path: Path) -> None:
    records = [record for record, _ in BAD]
    source = load(tmp_path, [*records[:9], *GOOD, *records[9:]], bad_records="skip")
    assert len(source) == len(GOOD)
    assert len(source.skipped) == len(BAD)
    assert all(str(tmp_path) in sentence and "(id 1)" in sentence for sentence in source.skipped)
    with pytest.raises(ValueError, match="no usable record"):
        load(tmp_path, records, bad_records="skip")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b'{"id": 1, "conv', ":2: line 1, column 11: expected JSON"),
        (b'{"id": NaN, "text": "a"}', ":2: found NaN, expected a finite number"),
        (b'{"id": 1, "text": "\xff"}', ":2: found a byte that is not UTF-8 at offset 19"),
        (b"[]", ":2: found a list, expected an object"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: bytes, rule: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(GOOD[2]).encode() + b"\n" + line + b"\n\n" + json.dumps(GOOD[2]).encode())
    with pytest.raises(ValueError, match=rule):
        LlavaConversations(str(file)).load()
    source = LlavaConversations(str(file), bad_records="skip")
    source.load()
    assert len(source) == 2 and rule.split(": ")[1] in source.skipped[0]


def test_broken_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content, rule in (
        (b'[\n{"id": 1,]', "a.json: record 0: line 2, column 10: expected JSON"),
        (b'["\xff"]', "a.json: record 0: found a byte that is not UTF-8 at offset 1"),
        (b"{}", "a.json: found an object, expected a list of records"),
        (b"[]", "a.json: found no usable record"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rule):
            LlavaConversations(str(file)).load()
    with pytest.raises(ValueError, match=r"b\.json not found$"):
        LlavaConversations(str(tmp_path / "b.json")).load()
    for name, command in {"world": "world", "textured": "textured --style textured"}.items():
        with pytest.raises(ValueError, match=f"not found; make it with: mllm world some/data/{command}$"):
            LlavaConversations(f"some/data/{name}/llava/conversations_train.json").load()
    with pytest.raises(ValueError, match="found a folder, expected files of records"):
        LlavaConversations(str(tmp_path)).load()


def test_an_image_without_an_images_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names the image 'train2017/.*', expected none because no images folder"):
        LlavaConversations(write(tmp_path / "a.json", GOOD[:1])).load()
    with pytest.raises(ValueError, match="pictures not found"):
        LlavaConversations(str(tmp_path / "a.json"), str(tmp_path / "pictures")).load()


def test_folders_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    listed: list[str] = []
    original = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(str(path)), original(path))[1])
    load(tmp_path, GOOD * 20)
    assert len([path for path in listed if "images" in path]) == 2


def test_no_false_alarm(tmp_path: Path) -> None:
    records = [
        {
            "id": str(k),
            "image": "b.jpg",
            "conversations": turns(f"<image>\nq {k} \u4e16\u754c {{}}", "a", "b", f"c {k}"),
        }
        for k in range(10_000)
    ]
    source = load(tmp_path, records)
    assert len(source) == 10_000
    assert source.sample(9_999, generator()).turns[0].text == "<image>\nq 9999 \u4e16\u754c {}"


def test_pretrain(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "00453/004539375.jpg")
    record = {
        "id": "004539375",
        "image": "00453/004539375.jpg",
        "conversations": turns("Render a clear summary of the photo.\n<image>", "select luxury furniture "),
    }
    source = LlavaPretrain(write(tmp_path / "blip.json", [record]), images)
    source.load()
    sample = source.sample(0, generator())
    assert [t.text for t in sample.turns] == [
        "Render a clear summary of the photo.\n<image>",
        "select luxury furniture",
    ]
    assert (sample.references, sample.task) == (("select luxury furniture",), "caption")
    long = {**record, "conversations": turns("<image>", "a", "b", "c")}
    with pytest.raises(ValueError, match=r"record 1 .*found 1 images and 4 turns"):
        LlavaPretrain(write(tmp_path / "blip.json", [record, long]), images).load()


@pytest.mark.skipif(not (SHARED / "format_samples").is_dir(), reason="excerpts of published files are not here")
def test_published_answers_as_conversations(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SHARED / "format_samples/llava_coco2014_val_gpt4_qa_30x3.jsonl").open()]
    touch(tmp_path / "images", *{row["image"] for row in rows})
    records = [
        {
            "id": row["id"],
            "image": row["image"],
            "conversations": turns(f"<image>\n{row['instruction']}", row["output"]),
        }
        for row in rows
    ]
    source = LlavaConversations(write(tmp_path / "qa.json", records), str(tmp_path / "images"))
    source.load()
    assert len(source) == len(rows) == 90
    assert len({source.sample(k, generator()).id for k in range(90)}) == 90


def test_conversations_about_the_same_images_have_one_key(tmp_path: Path) -> None:
    source = load(tmp_path, GOOD)
    one, again, text, two = (source.image_key(index) for index in range(4))
    assert one == again and one is not None and text is None and two not in (one, None)
