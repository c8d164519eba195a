"""Each dialect by itself: what is read, what is written, what breaks a rule, and which one a file is in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_modules.containers.reading import RecordError
from data_modules.dialects import DIALECTS, detected, named
from data_modules.dialects.conversation import Conversation, Picture, Utterance
from data_modules.sources import Conversations
from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK
from tests.data_modules.dialects.samples import BAD, BY_HAND, NEUTRAL, PICTURES, changed
from tests.data_modules.files import write


def pictures(folder: Path) -> str:
    for name, data in PICTURES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("name", DIALECTS)
def test_what_is_written_by_hand_is_read(name: str) -> None:
    found = DIALECTS[name].read(BY_HAND[name])
    if name == "openai_parts":
        assert found.images == (Picture(data=PICTURES["red.png"]), Picture("sub/blue.jpg"))
        found = replace(found, images=NEUTRAL.images)
    assert found == NEUTRAL


@pytest.mark.parametrize("name", DIALECTS)
def test_what_is_written_is_read_again(name: str) -> None:
    """Also through JSON, with bytes for names, without an id, and with what no dialect reads beside it."""
    dialect = DIALECTS[name]
    held = tuple(Picture(None, data) for data in PICTURES.values())
    for conversation in (
        NEUTRAL,
        replace(
            NEUTRAL, id=None, images=(), turns=(Utterance("user", f"a {LITERAL_MARK}"), Utterance("assistant", "b"))
        ),
        replace(NEUTRAL, id=3, extra={"source": {"a": [1, None]}, "score": 0.5}),
        replace(NEUTRAL, objects={"ref": ["a"], "bbox": [[0, 0, 1, 1]]}),
        replace(NEUTRAL, turns=(*NEUTRAL.turns[1:4], Utterance("assistant", f"say \\{LITERAL_MARK}\\"))),
    ):
        assert dialect.read(json.loads(json.dumps(dialect.write(conversation)))) == conversation
    if name != "chat":
        assert dialect.read(dialect.write(replace(NEUTRAL, images=held))).images == held
    assert {key for key in dialect.write(NEUTRAL)} <= dialect.keys


@pytest.mark.parametrize("name", [name for name in DIALECTS if name not in ("alpaca", "query_response", "pairs")])
def test_turns_that_are_not_learned(name: str) -> None:
    dialect, turns = DIALECTS[name], list(NEUTRAL.turns)
    turns[2] = turns[2]._replace(learn=False)
    masked = replace(NEUTRAL, turns=tuple(turns))
    assert dialect.read(dialect.write(masked)) == masked
    key = "messages" if "messages" in BY_HAND[name] else "conversations"
    place = 1 if name == "sharegpt" else 2
    for way in ({"loss": False}, {"weight": 0}, {"loss": False, "weight": 0}, {"weight": 0.0, "loss": None}):
        record = changed(name, key, place, to={**BY_HAND[name][key][place], **way})
        assert [turn.learn for turn in dialect.read(record).turns] == [True, True, False, True, True]
    record = changed(name, key, place, to={**BY_HAND[name][key][place], "weight": 1, "loss": True})
    assert all(turn.learn for turn in dialect.read(record).turns)


@pytest.mark.parametrize("name", DIALECTS)
def test_bad_records_are_named(name: str, tmp_path: Path) -> None:
    """At least ten kinds: the file, the line and the id, and the rule; all are found, and the good ones kept."""
    images = pictures(tmp_path / "images")
    kinds = BAD[name]
    assert len({rule for _, rule in kinds}) >= 10
    for record, rule in kinds:
        file = write(tmp_path / "one.jsonl", [BY_HAND[name], record])
        source = Conversations(file, images, dialect=name)
        with pytest.raises(ValueError) as error:
            source.load()
        id = "(id [7])" if isinstance(record["id"], list) else "(id 7)"
        assert str(error.value).startswith(f"{file}:2 {id}: ") and rule in str(error.value), (rule, str(error.value))
    every = [BY_HAND[name], *(record for record, _ in kinds), BY_HAND[name]]
    for file, place in ((tmp_path / "all.jsonl", ":{}"), (tmp_path / "all.json", ": record {}")):
        source = Conversations(write(file, every), images, dialect=name, bad_records="skip")
        source.load()
        assert len(source) == 2 and len(source.skipped) == len(kinds)
        first = 2 if file.suffix == ".jsonl" else 1
        for number, (sentence, (_, rule)) in enumerate(zip(source.skipped, kinds, strict=True), first):
            assert sentence.startswith(f"{file}{place.format(number)} (id ") and rule in sentence


@pytest.mark.parametrize("name", DIALECTS)
def test_a_file_tells_its_dialect(name: str) -> None:
    assert detected([BY_HAND[name]] * 3).name == name
    assert detected([{"broken": 1}, BY_HAND[name], 3, None]).name == name
    written = "llava" if name == "sharegpt" else name  # its roles are those of LLaVA then
    assert detected([DIALECTS[name].write(NEUTRAL)]).name == written


def test_of_dialects_that_read_alike_the_narrowest_is_told() -> None:
    assert detected([BY_HAND["llava"], BY_HAND["user_assistant"]]).name == "sharegpt"
    texts = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert detected([texts]).name == "openai"


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (
            [{"question": "a", "answer": "b"}],
            "looked at 1 records, with the keys 'question', 'answer': found no dialect",
        ),
        ([], "looked at 0 records, with the keys of nothing"),
        ([BY_HAND["llava"], BY_HAND["alpaca"]], "found llava in 1, alpaca in 1, expected one dialect"),
        ([{**BY_HAND["alpaca"], **BY_HAND["openai"]}], "found openai in 1, alpaca in 1"),
        ([3, "a"], "with the keys 'a number', 'a text'"),
        (
            [{"conversations": [{"from": ["x"], "value": "a"}], "messages": [{"role": {}, "content": [3]}]}],
            "no dialect",
        ),
    ],
)
def test_a_file_in_none_or_several_is_refused(records: list[Any], found: str) -> None:
    with pytest.raises(ValueError) as error:
        detected(records)
    assert found in str(error.value)
    assert "name" in str(error.value) and all(name in str(error.value) for name in ("alpaca",) if "no dialect" in found)


def test_records_that_are_all_bad_are_told_by_their_key(tmp_path: Path) -> None:
    tool = {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}
    with pytest.raises(ValueError, match=r"a\.jsonl:1: read as openai: turn 1 is of 'tool', expected user, assistant"):
        Conversations(write(tmp_path / "a.jsonl", [tool])).load()
    assert detected([{"conversations": [{"from": "robot", "value": "a"}]}]).name == "sharegpt"


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="dialect: found 'llama', expected one of llava, user_assistant"):
        named("llama")


@pytest.mark.parametrize(
    ("key", "meant"),
    [("imgae", "image"), ("Image", "image"), ("imagess", "images"), ("sytem", "system"), ("object", "objects")],
)
def test_misspelled_keys(key: str, meant: str) -> None:
    record = changed("llava", "image", drop=True)
    with pytest.raises(RecordError, match=f"has the key '{key}', expected '{meant}'"):
        DIALECTS["llava"].read({**record, key: "a.png"})
    with pytest.raises(RecordError, match="has no 'conversations' but 'conversation', found the keys 'conversation'"):
        DIALECTS["llava"].read({"conversation": []})


def test_keys_that_mean_nothing_to_us_are_kept() -> None:
    extra = {"model": "gpt", "image_id": 3, "source": "a", "width": 2, "dataset": "x", "split": "train", "key": "k"}
    for name, dialect in DIALECTS.items():
        assert dialect.read({**BY_HAND[name], **extra}).extra == extra


def test_what_is_null_is_absent() -> None:
    """Parquet has the columns of all rows in each."""
    for name, dialect in DIALECTS.items():
        empty = {key: None for key in ("image", "images", "objects", "system", "history", "id", "source", "tools")}
        record = {**empty, **BY_HAND[name]}
        assert dialect.read(record).turns == NEUTRAL.turns and not dialect.read(record).extra


def test_alpaca_puts_the_input_under_the_instruction() -> None:
    record = {"instruction": "Sum up.", "input": "A text.", "output": "It."}
    assert DIALECTS["alpaca"].read(record).turns[0].text == "Sum up.\nA text."
    assert DIALECTS["alpaca"].read({**record, "instruction": ""}).turns[0].text == "A text."


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "red.png"},
        {"type": "image", "path": "red.png"},
        {"type": "image", "url": "red.png"},
        {"type": "input_image", "image_url": "red.png"},
        {"type": "image_url", "image_url": {"url": "red.png"}},
        {"type": "image", "source": {"type": "url", "url": "red.png"}},
    ],
)
def test_images_in_parts(part: dict[str, str]) -> None:
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A."},
    ]
    found = DIALECTS["chat"].read({"messages": messages})
    assert found.images == (Picture("red.png"),) and found.turns[0].text == f"{IMAGE_MARK}\nWhat?"


def test_bytes_in_parts() -> None:
    from base64 import b64encode

    data = b64encode(PICTURES["red.png"]).decode()
    for part in ({"type": "image", "base64": data}, {"type": "image", "source": {"type": "base64", "data": data}}):
        messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A."}]
        assert DIALECTS["chat"].read({"messages": messages}).images == (Picture(data=PICTURES["red.png"]),)


def test_marks_in_parts_are_words_where_images_are_parts() -> None:
    text = {"type": "text", "text": "<image> is a mark"}
    answer = {"role": "assistant", "content": "A."}
    shown = {"messages": [{"role": "user", "content": [{"type": "image"}, text]}, answer], "images": ["red.png"]}
    beside = {"messages": [{"role": "user", "content": [text]}, answer], "images": ["red.png"]}
    assert DIALECTS["chat"].read(shown).turns[0].text == f"{IMAGE_MARK}\n{LITERAL_MARK} is a mark"
    assert DIALECTS["chat"].read(beside).turns[0].text == f"{IMAGE_MARK} is a mark"


def test_no_round_can_say_other_turns() -> None:
    for name in ("alpaca", "query_response", "pairs"):
        for turns in (NEUTRAL.turns[:2], NEUTRAL.turns[2:], ()):
            with pytest.raises(RecordError, match="expected questions with their answers"):
                DIALECTS[name].write(Conversation(turns=turns))
