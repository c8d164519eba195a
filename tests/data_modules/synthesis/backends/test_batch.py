"""Batch files: shards below the limits, and results in any order, with what is missing, doubled, cut or wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_modules.synthesis import journal
from data_modules.synthesis.backends import batch
from data_modules.synthesis.budget import Budget
from data_modules.synthesis.journal import Journal
from data_modules.synthesis.runner import Limits
from tests.data_modules.synthesis.faulty_server import completion, content, text_of

LIMITS = Limits(retries=1, repairs=1)


@contextmanager
def book(folder: Path, count: int = 10) -> Iterator[Journal]:
    with journal.opened(folder, {"model": "toy"}, content(count).requests) as opened:
        yield opened


def write(folder: Path, count: int = 10, budget: Budget | None = None, **most: int) -> tuple[list[Path], int]:
    with book(folder, count) as opened:
        return batch.write(opened, content(count), budget or Budget(), "toy", "max_tokens", 1, **most)


def read(folder: Path, *lines: Any, count: int = 10) -> dict[str, int]:
    path = folder / "results.jsonl"
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))
    with book(folder, count) as opened:
        return {name: number for name, number in batch.read(opened, content(count), [path], LIMITS).items() if number}


def line(number: int, body: Any = None, status: int = 200, repair: str = "", **more: Any) -> dict[str, Any]:
    id = f"{number:04d}/detail"
    response = {"status_code": status, "request_id": "r", "body": completion(text_of(id)) if body is None else body}
    return {"id": "b", "custom_id": f"{id}{repair}", "response": response, "error": None, **more}


def test_shards_stay_below_the_limits_and_hold_every_request_once(tmp_path: Path) -> None:
    (whole,), left = write(tmp_path / "a")
    lines = whole.read_bytes().splitlines()
    assert left == 0 and len(lines) == 10
    first = json.loads(lines[0])
    assert (first["custom_id"], first["method"], first["url"]) == ("0000/detail", "POST", "/v1/chat/completions")
    assert first["body"]["model"] == "toy" and first["body"]["max_tokens"] == 200
    by_count, _ = write(tmp_path / "b", most_requests=4)
    most = 2 * len(lines[0]) + 2
    by_size, _ = write(tmp_path / "c", most_bytes=most)
    assert [len(path.read_bytes().splitlines()) for path in by_count] == [4, 4, 2]
    assert len(by_size) == 5 and all(path.stat().st_size <= most for path in by_size)
    for paths in (by_count, by_size):
        assert b"".join(path.read_bytes() for path in paths) == whole.read_bytes()
    with pytest.raises(ValueError, match=r"a request has \d+ bytes, expected at most the 100"):
        write(tmp_path / "d", most_bytes=100)
    with book(tmp_path / "d") as opened:
        assert opened.counts() == {"pending": 10}


def test_what_is_written_is_not_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    assert write(tmp_path) == ([], 0)
    with book(tmp_path) as opened:
        assert opened.counts() == {"written": 10}
        assert opened.again("written") == 10
    (path,), _ = write(tmp_path)
    assert path.name == "requests-2-0001.jsonl"


def test_results_are_read_in_any_order_and_stored_once(tmp_path: Path) -> None:
    write(tmp_path)
    lines = [line(number) for number in range(10)]
    random.Random(0).shuffle(lines)
    cut = json.dumps(lines[9])[:50]
    assert read(tmp_path, *lines[:6], lines[2], cut) == {"accepted": 6, "known already": 1, "no JSON": 1, "missing": 4}
    assert read(tmp_path, *lines) == {"accepted": 4, "known already": 6}
    with book(tmp_path) as opened:
        texts = {each.request.id: each.last.answer for each in opened.outcomes(content(10).requests)}
        assert all(answer and answer.text == text_of(id) for id, answer in texts.items()) and len(texts) == 10
        assert opened.spent.total == 520


def test_errors_are_asked_again_and_bad_answers_repaired(tmp_path: Path) -> None:
    write(tmp_path, 6)
    expired = {**line(3), "response": None, "error": {"code": "batch_expired", "message": "This batch is expired."}}
    wrong = completion("Something else.")
    filtered = {"error": {"message": "no", "code": "content_filter"}}
    told = read(
        tmp_path,
        line(0, completion("half", "length")),
        line(1, {"error": {"message": "oops"}}, 500),
        line(2, {"error": {"message": "bad"}}, 400),
        expired,
        line(4, wrong),
        line(5, filtered, 400),
        count=6,
    )
    assert told == {"failed": 3, "refused": 2, "rejected": 1}
    (path,), _ = write(tmp_path, 6)
    ids = [json.loads(each)["custom_id"] for each in path.read_bytes().splitlines()]
    assert ids == ["0000/detail", "0001/detail", "0003/detail", "0004/detail#repair1"]
    assert b"found another answer; again" in path.read_bytes()
    good = line(4, repair="#repair1")
    assert read(tmp_path, line(0), line(1, {}, 500), expired, good, count=6) == {"accepted": 2, "refused": 2}
    with book(tmp_path, 6) as opened:
        outcomes = {each.request.id[:4]: each for each in opened.outcomes(content(6).requests)}
    assert outcomes["0004"].repaired and [each.state for each in outcomes["0004"].attempts] == ["rejected", "accepted"]
    assert outcomes["0005"].last.reason == "status 400: no" and "expired" in outcomes["0003"].last.reason


def test_a_budget_holds_for_what_is_written(tmp_path: Path) -> None:
    asked = content(10).requests
    one = Budget().most(asked[0]).total
    assert write(tmp_path, budget=Budget(tokens=3 * one + 1))[1] == 7
    assert write(tmp_path, budget=Budget(tokens=4 * one))[1] == 6
    read(tmp_path, line(0), line(1), line(2))
    with book(tmp_path) as opened:
        assert opened.counts() == {"accepted": 3, "written": 1, "pending": 6}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({**line(0), "custom_id": "other/detail"}, "results.jsonl:2: found custom_id 'other/detail', expected one of"),
        (line(0, repair="#repair1"), "results.jsonl:2: found custom_id '0000/detail#repair1', expected one of"),
        ({"custom_id": "0000/detail"}, "results.jsonl:2: found no custom_id and response, expected a line"),
        ([1], "results.jsonl:2: found no custom_id and response"),
    ],
)
def test_results_of_another_batch_are_refused_before_any_is_stored(tmp_path: Path, wrong: Any, told: str) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=told):
        read(tmp_path, line(0), wrong)
    with book(tmp_path) as opened:
        assert opened.counts() == {"written": 10}
