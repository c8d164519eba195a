"""The journal keeps what was paid for, belongs to one plan and one process, and cannot hold half an answer."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from data_modules.synthesis import journal
from data_modules.synthesis.budget import Tokens
from data_modules.synthesis.journal import FILE, Journal, split_repair
from data_modules.synthesis.request import Answer, Message, Rejected
from lightning_mllm.contracts import Turn
from tests.data_modules.synthesis.faulty_server import requests

ASKED = requests(3)
IDS = [request.id for request in ASKED]
ANSWER = Answer(text="A cat.", model="toy-1", prompt_tokens=10, completion_tokens=4)
TURNS = [Turn(role="user", text="What?"), Turn(role="assistant", text="A cat.")]
PLAN = {"model": "toy", "captions": "abc"}


@contextmanager
def book(folder: Path) -> Iterator[Journal]:
    with journal.opened(folder, PLAN, ASKED) as opened:
        yield opened


def fill(folder: Path) -> None:
    """One accepted, one rejected and repaired, one in flight."""
    with book(folder) as opened:
        for id in IDS:
            opened.sent(id, Tokens(100, 50))
        opened.accepted(IDS[0], ANSWER, TURNS)
        again = replace(ASKED[1], id=f"{IDS[1]}#repair1")
        opened.rejected_now(IDS[1], ANSWER, Rejected("format", "found a cat"), again)
        opened.sent(again.id, Tokens(100, 50))
        opened.accepted(again.id, replace(ANSWER, text="A dog."), TURNS)


def test_what_was_in_flight_is_pending_again_and_counts_as_spent(tmp_path: Path) -> None:
    fill(tmp_path)
    with journal.read(tmp_path) as opened:
        assert opened.counts() == {"accepted": 2, "in flight": 1} and opened.spent == Tokens(30, 12)
    with book(tmp_path) as opened:
        assert opened.ids("pending") == [IDS[2]] and opened.interrupted == 1
        assert opened.spent == Tokens(130, 62) and opened.plan == PLAN
        first, second, third = opened.outcomes(ASKED)
    assert first.last.answer == ANSWER and first.last.turns == tuple(TURNS) and not first.repaired
    assert second.repaired and [each.state for each in second.attempts] == ["rejected", "accepted"]
    assert (second.attempts[0].reason_kind, second.attempts[0].reason) == ("format", "found a cat")
    assert third.last.state == "pending" and third.last.answer is None


def test_a_transaction_is_whole_or_not(tmp_path: Path) -> None:
    with book(tmp_path) as opened:
        with pytest.raises(KeyboardInterrupt), opened.together():
            opened.sent(IDS[0], Tokens())
            raise KeyboardInterrupt
        assert opened.ids("pending") == IDS


def test_an_answer_is_stored_once(tmp_path: Path) -> None:
    fill(tmp_path)
    with book(tmp_path) as opened:
        with pytest.raises(AssertionError, match="is not in flight or written"):
            opened.accepted(IDS[0], ANSWER, TURNS)
        with pytest.raises(AssertionError, match="is not in flight or written"):
            opened.failed(IDS[0], "late")
        with pytest.raises(AssertionError, match="is not pending"):
            opened.sent(IDS[0], Tokens())
        with pytest.raises(ValueError, match="UNIQUE constraint"), book_of(opened):
            opened.repaired_by(IDS[1], replace(ASKED[1], id=f"{IDS[1]}#repair1"))


@contextmanager
def book_of(opened: Journal) -> Iterator[None]:
    """sqlite3's errors as `opened` tells them."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise ValueError(str(error)) from error


@pytest.mark.parametrize(
    "change",
    [
        "state = 'accepted'",
        "state = 'rejected', reason = 'x'",
        "text = 'half'",
        "state = 'refused'",
        "state = 'accepted', text = 'x', turns = '[]'",
        "state = 'accepted', text = 'x', prompt_tokens = 1, completion_tokens = 1",
        "state = 'done'",
    ],
)
def test_the_database_itself_refuses_what_cannot_be(tmp_path: Path, change: str) -> None:
    with book(tmp_path):
        pass
    database = sqlite3.connect(tmp_path / FILE)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        database.execute(f"UPDATE calls SET {change} WHERE number = 1")
    database.close()


@pytest.mark.parametrize(
    ("plan", "asked", "told"),
    [
        ({**PLAN, "model": "gpt"}, ASKED, "model: found 'toy' in the journal and 'gpt' now; a folder holds one plan"),
        ({"model": "toy"}, ASKED, "captions: found 'abc' in the journal and 'nothing' now"),
        ({**PLAN, "seed": "1"}, ASKED, "seed: found 'nothing' in the journal and '1' now"),
        (PLAN, ASKED[:2], f"{IDS[2]}: found no such request now, expected that in the journal"),
        (PLAN, [*ASKED[:2], replace(ASKED[2], messages=(Message("user", "New."),))], "found other prompts or settings"),
        (PLAN, [*ASKED, ASKED[0]], "found two requests of one id among 4, expected ids to be unique"),
        (PLAN, [*ASKED, replace(ASKED[0], id="7#repair2")], "found '#repair' in an id"),
    ],
)
def test_another_plan_is_refused_by_name(tmp_path: Path, plan: dict, asked: list, told: str) -> None:
    fill(tmp_path)
    with pytest.raises(ValueError, match=told), journal.opened(tmp_path, plan, asked):
        pass
    with book(tmp_path) as opened:
        assert len(list(opened.outcomes(ASKED))) == 3


def test_requests_may_be_added(tmp_path: Path) -> None:
    fill(tmp_path)
    with journal.opened(tmp_path, PLAN, requests(5)) as opened:
        assert opened.ids("pending") == [IDS[2], "0003/detail", "0004/detail"]
        assert [each.request.id for each in opened.outcomes(requests(5))] == [each.id for each in requests(5)]


def _try(folder: Path, told: object) -> None:
    try:
        with book(folder):
            told.send("opened")  # pyright: ignore[reportAttributeAccessIssue]
    except ValueError as error:
        told.send(str(error))  # pyright: ignore[reportAttributeAccessIssue]


def test_a_second_process_is_refused_and_may_read(tmp_path: Path) -> None:
    fork = get_context("fork")
    here, there = fork.Pipe()
    with book(tmp_path) as opened:
        opened.sent(IDS[0], Tokens())
        other = fork.Process(target=_try, args=(tmp_path, there))
        other.start()
        expected = f"{tmp_path}: found process {os.getpid()} at work there, expected one process a folder"
        assert here.recv() == expected
        other.join()
        with journal.read(tmp_path) as read:
            assert read.counts() == {"pending": 2, "in flight": 1}
    with book(tmp_path) as opened:
        assert opened.ids("pending") == IDS


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no journal.sqlite, expected a folder that"), journal.read(tmp_path):
        pass
    (tmp_path / FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(ValueError, match=r"journal.sqlite: found no journal that can be used"), book(tmp_path):
        pass
    (tmp_path / FILE).unlink()
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("CREATE TABLE mine (x)")
    database.close()
    with pytest.raises(ValueError, match="found format 0, expected a journal of format 1"), book(tmp_path):
        pass


def test_refused_requests_may_be_asked_again(tmp_path: Path) -> None:
    with book(tmp_path) as opened:
        for id in IDS[:2]:
            opened.sent(id, Tokens(9, 1))
            opened.failed(id, "no", paid=id == IDS[1], last=True)
        assert opened.counts() == {"refused": 2, "pending": 1} and opened.spent == Tokens(9, 1)
        assert opened.again("refused") == 2
        assert opened.ids("pending") == IDS and opened.failures(IDS[0]) == 0


def test_ids_of_repairs() -> None:
    assert split_repair("7/detail") == ("7/detail", 0)
    assert split_repair("7/detail#2#repair12") == ("7/detail#2", 12)


def test_only_the_last_rejected_answers_are_repaired(tmp_path: Path) -> None:
    fill(tmp_path)
    with book(tmp_path) as opened:
        opened.sent(IDS[2], Tokens())
        opened.rejected_now(IDS[2], ANSWER, Rejected("format", "wrong"), None)
        assert (opened.last_rejected(0), opened.last_rejected(1)) == ([], [IDS[2]])
        assert str(opened.rejected(IDS[2])[1]) == "wrong"
