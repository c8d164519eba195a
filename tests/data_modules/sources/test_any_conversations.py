"""One conversation in every dialect and file is one sample; of records, what is wrong is said, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.containers.reading import RecordError, parse
from data_modules.convert import main as convert
from data_modules.dialects import DIALECTS
from data_modules.sources import Conversations, LlavaConversations
from data_modules.sources.checked import code_key
from lightning_mllm.contracts import Encoded, Sample
from tests.data_modules.dialects.samples import BY_HAND, PICTURES, encoded
from tests.data_modules.dialects.test_dialects import pictures
from tests.data_modules.files import generator, touch, write
from tests.processing.test_processor import processor

MANY = 10_000 if os.environ.get("MLLM_FULL") else 500


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if k % 2 else "human", "value": text} for k, text in enumerate(texts)]


def load(file: str | list[str], images: str = "", **settings: Any) -> Conversations:
    source = Conversations(file, images, **settings)
    source.load()
    return source


def samples(source: Conversations | LlavaConversations) -> list[Sample]:
    return [source.sample(index, generator()) for index in range(len(source))]


def same(one: Sequence[Encoded], other: Sequence[Encoded]) -> None:
    """Equal tokens, labels, kinds and pixels."""
    assert [each.id for each in one] == [each.id for each in other]
    for left, right in zip(one, other, strict=True):
        for name in ("tokens", "labels", "kinds", "images"):
            assert torch.equal(getattr(left, name), getattr(right, name)), (left.id, name)


GIVEN = [
    BY_HAND["llava"],
    {"id": "b", "image": "red.png", "conversations": turns("<image>\nWhat is it?", "A red picture.", "Sure?", "Yes.")},
    {"id": "c", "image": ["red.png"], "conversations": turns("a<image>b ", " c\n")},
    {"id": "d", "conversations": turns("Hi\n\u4e16\u754c", "Hello.")},
]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "tar"])
@pytest.mark.parametrize("name", DIALECTS)
def test_equal_batches(name: str, suffix: str, tmp_path: Path) -> None:
    """A conversation in every dialect and kind of file: equal tokens, labels and pixels."""
    images, used = pictures(tmp_path / "images"), processor()
    given = write(tmp_path / "given.json", GIVEN)
    lossy = [] if name in ("alpaca", "query_response", "pairs") else [masked(GIVEN[1])]
    given = write(tmp_path / "given.json", [*GIVEN, *lossy])
    out = tmp_path / f"out.{suffix}"
    convert([given, "--to", str(out), "--dialect", name, "--images", images])
    beside = "" if suffix in ("parquet", "tar") or name == "openai_parts" else images
    source = load(str(out), beside)
    expected = load(given, images)
    assert source.found.name == {"sharegpt": "llava"}.get(name, name)
    rows = [used.encode(sample) for sample in samples(expected)]
    same(rows, [used.encode(sample) for sample in samples(source)])
    batch = used.collate([used.encode(sample) for sample in samples(source)])
    assert torch.equal(batch.tokens, used.collate(rows).tokens) and torch.equal(batch.labels, used.collate(rows).labels)
    assert [each.images.shape[0] for each in rows][:4] == [2, 1, 1, 0]
    assert [source.has_image(k) for k in range(4)] == [True, True, True, False]
    assert [source.length(k) for k in range(4)] == [expected.length(k) for k in range(4)]


def masked(record: dict[str, Any]) -> dict[str, Any]:
    told = [dict(each) for each in record["conversations"]]
    told[1]["loss"] = False
    return {**record, "id": "e", "conversations": told}


def test_a_masked_turn_is_not_learned(tmp_path: Path) -> None:
    images, used = pictures(tmp_path / "images"), processor()
    both = load(write(tmp_path / "a.json", [GIVEN[1], masked(GIVEN[1])]), images)
    every, some = (used.encode(sample) for sample in samples(both))
    assert torch.equal(every.tokens, some.tokens)
    learned = [used.tokenizer.decode(each.labels[each.labels >= 0]) for each in (every, some)]
    assert "A red picture." in learned[0] and "A red picture." not in learned[1] and "Yes." in learned[1]


def test_the_general_source_reads_what_the_own_one_reads(tmp_path: Path) -> None:
    """Where there are no words that look like images, both give the same samples."""
    images = pictures(tmp_path / "images")
    file = write(tmp_path / "a.json", [*GIVEN[1:], GIVEN[1], {**GIVEN[3], "id": 5}, {"conversations": turns("a", "b")}])
    own = LlavaConversations(file, images)
    own.load()
    source = load(file, images)
    assert samples(source) == samples(own)
    assert [source.where(k) for k in range(len(source))] == [own.where(k) for k in range(len(own))]
    assert source.changed == {"id used again": 1}


def test_bytes_lines_and_blanks(tmp_path: Path) -> None:
    """A byte order mark, line ends of Windows, blank lines; fields of several types in one file."""
    records = [{"id": id, "conversations": turns("a", "b")} for id in (1, "1", 2.5, None)]
    file = tmp_path / "a.jsonl"
    lines = [json.dumps(record).encode() for record in records]
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n \r\n".join(lines) + b"\r\n")
    source = load(str(file))
    assert [sample.id for sample in samples(source)] == ["1", "1#2", "2.5", "10"]
    assert source.where(3) == f"{file}:10"


def test_several_files(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"{k}.jsonl", [{"id": k, "conversations": turns("a", "b")}])
    assert [s.id for s in samples(load(str(tmp_path / "*.jsonl")))] == ["0", "1", "2"]
    write(tmp_path / "1.jsonl", [{"id": 1, "conversations": turns("a")}])
    with pytest.raises(ValueError, match=r"/1\.jsonl:1 \(id 1\): read as llava: found 1 turns"):
        load(str(tmp_path / "*.jsonl"))


def test_file_urls(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images")
    image = {"type": "image_url", "image_url": {"url": Path(images, "red.png").absolute().as_uri()}}
    messages = [{"role": "user", "content": [image]}, {"role": "assistant", "content": "A."}]
    file = write(tmp_path / "a.jsonl", [{"messages": messages}])
    assert samples(load(file, images))[0].images[0].read(10_000) == PICTURES["red.png"]
    with pytest.raises(ValueError, match="expected none because no images folder is given"):
        load(file)
    with pytest.raises(ValueError, match="expected a path inside"):
        load(file, touch(tmp_path / "others", "red.png"))


def test_images_in_records_are_limited(tmp_path: Path) -> None:
    from base64 import b64encode

    record = {
        "image": f"data:image/png;base64,{b64encode(encoded('red')).decode()}",
        "conversations": turns("<image>", "b"),
    }
    (image,) = samples(load(write(tmp_path / "a.jsonl", [record])))[0].images
    assert image.name == f"{tmp_path}/a.jsonl:1, image 0"
    with pytest.raises(ValueError, match=r"a\.jsonl:1, image 0: found .* bytes, expected at most 10"):
        image.read(10)


def test_boxes(tmp_path: Path) -> None:
    objects = {"ref": ["the dog"], "bbox": [[10, 20, 30, 40]], "width": 100, "height": 50}
    record = {"id": 1, "objects": objects, "conversations": turns("Where is <ref-object>?", "<bbox>")}
    file = write(tmp_path / "a.jsonl", [record])
    source = load(file, frame="square", boxes="llava")
    assert source.frame == "square"
    assert [turn.text for turn in samples(source)[0].turns] == ["Where is the dog?", "[0.10, 0.45, 0.30, 0.65]"]
    with pytest.raises(ValueError, match=r":1 \(id 1\): read as llava: has boxes, expected the settings"):
        load(file)
    with pytest.raises(ValueError, match="dialect: found 'x', expected one of cogvlm"):
        Conversations(file, boxes="x")


def test_what_is_changed_is_counted(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images")
    given = [
        {"conversations": [*turns("a", "b"), *turns("c")]},
        {"image": "red.png", "conversations": turns("a", "b")},
        {"id": 3, "conversations": turns("a", "b")[::-1] + turns("c", "d")[1:]},
    ]
    every = ["join_same_roles", "drop_leading_assistant", "drop_trailing_user"]
    source = load(write(tmp_path / "a.jsonl", given), images, turns=every, marks="front")
    assert source.changed == {"trailing user dropped": 1, "marks put in front": 1, "leading assistant dropped": 1}
    assert [len(sample.turns) for sample in samples(source)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dialect": "x"}, "dialect: found 'x', expected one of llava"),
        ({"turns": "x"}, "turns: found 'x'"),
        ({"marks": "x"}, "marks: found 'x'"),
        ({"ids": "x"}, "ids: found 'x', expected 'numbered' or 'unique'"),
        ({"frame": "x"}, "frame: found 'x'"),
        ({"bad_records": "x"}, "bad_records: found 'x'"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Conversations("a.json", **settings)


def test_a_file_in_no_dialect_names_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(error.value) == (
        f"{file}: looked at 1 records, with the keys 'question', 'answer': found no dialect of "
        f"{', '.join(DIALECTS)}; name one with 'dialect' (--from-dialect)"
    )


# T19: each of 24 bad records is found by its line, id and rule, and no good one is.

GOOD: dict[str, Any] = {"id": "g", "image": "red.png", "conversations": turns("<image>\nWhat?", "Red.")}


def bad(**changes: Any) -> bytes:
    return json.dumps({"id": "x", **{key: value for key, value in {**GOOD, **changes}.items() if key != "id"}}).encode()


LINES: list[tuple[bytes, str]] = [
    (bad(conversations=[{"from": "robot", "value": "a"}, *turns("", "b")[1:]]), "turn 0 is from 'robot'"),
    (bad(conversations=[*turns("<image>"), *turns("a")]), "turn 1 is of user, expected assistant"),
    (bad(conversations=turns("<image>", "a")[::-1]), "turn 0 is of assistant, expected user"),
    (bad(conversations=turns("<image>", " ")), "turn 1 from gpt: 'value' is empty"),
    (bad(conversations=[]), "found 0 turns of user and assistant"),
    (bad(conversations=turns("What?", "Red.")), "found 0 <image> marks and 1 images"),
    (bad(conversations=turns("<image><image>", "Red.")), "found 2 <image> marks and 1 images"),
    (bad(conversations=turns("<image>", "<image>")), "turn 1 of assistant has an <image> mark"),
    (bad(image=["red.png", "red.png"]), "found 1 <image> marks and 2 images"),
    (bad(image=[["red.png"]]), "'image' holds a list, expected names of files"),
    (bad(image={"file": "red.png"}), "'image' is an object with the keys 'file', expected 'bytes' or 'path'"),
    (bad(image=None, Image="red.png"), "has the key 'Image', expected 'image'"),
    (b'{"id": "x", "conversation": []}', "has no 'conversations' but 'conversation'"),
    (b'{"id": "x", "conversations": "\xff"}', "found a byte that is not UTF-8 at offset 30"),
    (b'{"id": NaN, "conversations": []}', "found NaN, expected a finite number"),
    (bad()[:60], "line 1, column"),
    (b'{"id": "x", "id": "y"}', "found the key 'id' twice in an object"),
    (json.dumps({**GOOD}).encode(), "a.jsonl:1, and the same content, expected an id of its own"),
    (json.dumps({**GOOD, "conversations": turns("<image>", "b")}).encode(), "a.jsonl:1, and other content, expected"),
    (bad(image="/etc/passwd"), "image is '/etc/passwd', expected a path inside"),
    (bad(image="../red.png"), "image is '../red.png', expected a path inside"),
    (bad(conversations=[*turns("<image>"), {"from": "gpt", "value": None}]), "turn 1 from gpt: 'value' is null"),
    (bad(conversations=turns("<image>", "a" * 1_000_001)), "has 1000001 characters, expected at most 1000000"),
    (bad(conversations=turns("<image>", "\ud83d")), "found half of a character ('\\ud83d')"),
    (b'{"id": "x", "conversations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "lists in lists too deep to read"),
    (b'{"id": ' + b"1" * 5_000 + b"}", "found a number that is too long"),
]


@pytest.mark.fault
def test_every_bad_record_is_found_and_no_good_one(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """More than T19's 24: among many good records, at places spread over the file."""
    images = pictures(tmp_path / "images")
    lines = [json.dumps({**GOOD, "id": f"g{k}" if k else "g"}).encode() for k in range(MANY)]
    places = {}
    for k, (line, rule) in enumerate(LINES):
        at = 2 + k * (MANY // len(LINES))
        lines.insert(at, line)
        places[at + 1] = rule
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    source = load(str(file), images, ids="unique", bad_records="skip")
    assert len(source) == MANY and len(source.skipped) == len(LINES) >= 24
    said = sorted(
        source.skipped, key=lambda each: int(each.removeprefix(f"{file}:").partition(":")[0].partition(" ")[0])
    )
    for sentence, (line, rule) in zip(said, places.items(), strict=True):
        assert sentence.startswith((f"{file}:{line} (id ", f"{file}:{line}: ")) and rule in sentence, (line, sentence)
    for line, rule in LINES[::6]:
        file.write_bytes(lines[0] + b"\n" + line + b"\n" + lines[0].replace(b'"g"', b'"h"'))
        with pytest.raises(ValueError) as error:
            load(str(file), images, ids="unique", dialect="llava")
        assert str(error.value).startswith(f"{file}:2") and rule in str(error.value)
    fault_row(
        "T19", f"{len(LINES)} of {len(LINES)}", f"bad records found by line, id, rule; 0 false alarms of {MANY:,}"
    )


def test_half_of_a_character_in_json() -> None:
    """Two halves make a whole one; what is read whole may hold halves, whose records are named later."""
    assert parse(b'["\\ud83d\\ude00"]') == ["\U0001f600"]
    with pytest.raises(RecordError, match=r"found half of a character \('.ude00'\)"):
        parse(b'{"a": ["b \\uDE00"]}')
    assert parse(b'["\\ud83d"]', halves=True) == ["\ud83d"]


def test_an_index_is_known_by_the_code_of_the_dialects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that change are checked again."""
    read, original = set[str](), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.add(path.name), original(path))[1])
    code_key.__wrapped__(Conversations)
    assert {"rules.py", "llava.py", "any_conversations.py"} <= read
