"""Calls are limited, put off and stopped as asked; Ctrl-C keeps the answers that are in flight."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from data_modules.synthesis import journal, runner
from data_modules.synthesis.budget import Budget, Tokens
from data_modules.synthesis.display import bar
from data_modules.synthesis.request import Answer, Refused, Rejected, Request, Retry, Stop
from data_modules.synthesis.runner import Content, Limits, run
from lightning_mllm.contracts import Turn
from tests.data_modules.synthesis.faulty_server import content, text_of

FAST = Limits(concurrency=4, retries=2, repairs=1, first_wait=0.001, longest_wait=0.005)


class Asked:
    """A backend of a function, which counts its calls and how many there are at once."""

    def __init__(
        self, reply: Callable[[str, int], str | Exception], prompt_tokens: int = 10, completion_tokens: int = 5
    ) -> None:
        self.reply, self.used = reply, {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        self.calls: list[str] = []
        self.requests: list[Request] = []
        self.flying = self.most = 0
        self.lock = threading.Lock()

    def ask(self, request: Request) -> Answer:
        with self.lock:
            number = self.calls.count(request.id)
            self.calls.append(request.id)
            self.requests.append(request)
            self.flying += 1
            self.most = max(self.most, self.flying)
        time.sleep(0.002)
        with self.lock:
            self.flying -= 1
        found = self.reply(request.id, number)
        if isinstance(found, Exception):
            raise found
        return Answer(text=found, model="toy", **self.used)


class Told:
    """A display that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.counts: dict[str, int] = {}

    def show(self, counts: Mapping[str, int], spent: str) -> None:
        self.counts = dict(counts)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def good(id: str, number: int) -> str:
    return text_of(id.partition("#")[0])


def go(
    folder: Path,
    backend: Asked,
    limits: Limits = FAST,
    budget: Budget | None = None,
    count: int = 12,
    told: Told | None = None,
) -> str | None:
    with journal.opened(folder, {}, content(count).requests) as book:
        return run(book, content(count), backend, limits, budget or Budget(), told or Told())


def states(folder: Path) -> dict[str, int]:
    with journal.read(folder) as book:
        return book.counts()


def test_calls_are_limited_and_each_is_sent_once(tmp_path: Path) -> None:
    backend, told = Asked(good), Told()
    assert go(tmp_path, backend, told=told) is None
    assert sorted(backend.calls) == [request.id for request in content(12).requests]
    assert (
        1 < backend.most <= 4 and told.counts == {"pending": 0, "accepted": 12} and states(tmp_path) == {"accepted": 12}
    )
    assert go(tmp_path, backend) is None and len(backend.calls) == 12


def test_a_wrong_key_costs_one_call(tmp_path: Path) -> None:
    backend = Asked(lambda id, number: Stop("no such key"))
    assert go(tmp_path, backend) == "no such key"
    assert len(backend.calls) == 1 and states(tmp_path) == {"pending": 12}


def test_a_stop_sends_nothing_more_and_keeps_what_is_in_flight(tmp_path: Path) -> None:
    backend = Asked(lambda id, number: Stop("no quota") if id == "0005/detail" else good(id, number))
    assert go(tmp_path / "one", backend, Limits(concurrency=1)) == "no quota"
    assert len(backend.calls) == 6 and states(tmp_path / "one") == {"accepted": 5, "pending": 7}
    backend.calls.clear()
    assert go(tmp_path / "four", backend) == "no quota"
    found = states(tmp_path / "four")
    assert found["accepted"] == len(backend.calls) - 1 and found["accepted"] + found["pending"] == 12


def test_failures_are_retried_so_often_and_then_refused_with_the_reason(tmp_path: Path) -> None:
    backend = Asked(
        lambda id, number: Retry("busy") if id < "0002" and (number < 2 or id < "0001") else good(id, number)
    )
    assert go(tmp_path, backend, count=4) is None
    assert [backend.calls.count(f"000{number}/detail") for number in range(4)] == [3, 3, 1, 1]
    with journal.read(tmp_path) as book:
        first, second, *_ = book.outcomes(content(4).requests)
    assert first.last.reason == "3 calls brought no answer, the last: busy" and second.last.state == "accepted"


def test_waiting_is_exponential_random_and_capped() -> None:
    limits = Limits(first_wait=1.0, longest_wait=60.0)
    for failures, most in ((1, 1.0), (2, 2.0), (4, 8.0)):
        waits = [limits.wait(failures, None) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most
    assert limits.wait(8, None) == limits.wait(1000, None) == limits.wait(1, 3600.0) == 60.0
    assert limits.wait(1, 30.0) == 30.0


def test_what_an_endpoint_asks_to_wait_holds_all_calls_and_is_capped_and_shown(tmp_path: Path) -> None:
    at: list[float] = []

    def reply(id: str, number: int) -> str | Exception:
        at.append(time.monotonic())
        return Retry("slow down", 1000.0) if id == "0000/detail" and number == 0 else good(id, number)

    told = Told()
    limits = Limits(concurrency=4, longest_wait=0.5)
    assert go(tmp_path, Asked(reply), limits, told=told, count=3) is None
    assert at[1] - at[0] >= 0.5
    assert told.said == ["0000/detail: the endpoint asks to wait 1000 s; waiting 0.5 s, the longest allowed"]


def test_an_endpoint_that_is_down_stops_the_run_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "IN_A_ROW", 5)
    limits = Limits(concurrency=2, retries=50, first_wait=0.001, longest_wait=0.002)
    assert go(tmp_path, Asked(lambda id, number: Retry("no route")), limits) == (
        "5 calls in a row brought no answer, the last: no route"
    )
    assert states(tmp_path) == {"pending": 12}
    busy = Asked(lambda id, number: Retry("busy", 0.0) if number < 3 else good(id, number))
    assert go(tmp_path, busy, limits) is None and states(tmp_path) == {"accepted": 12}


def test_one_refused_request_stops_nothing(tmp_path: Path) -> None:
    backend = Asked(lambda id, number: Refused("filtered", paid=True) if id == "0003/detail" else good(id, number))
    budget = Budget()
    assert go(tmp_path, backend, budget=budget) is None
    assert states(tmp_path) == {"accepted": 11, "refused": 1}
    most = budget.most(content(12).requests[3])
    assert budget.spent == Tokens(110 + most.prompt, 55 + most.completion) and budget.reserved == Tokens()


def test_rejected_answers_are_asked_again_with_the_reason_so_often(tmp_path: Path) -> None:
    backend = Asked(lambda id, number: good(id, number) if id.endswith(("#repair2", "1/detail")) else "Nonsense.")
    assert go(tmp_path, backend, count=2) is None
    assert sorted(backend.calls) == ["0000/detail", "0000/detail#repair1", "0001/detail"]
    (again,) = [request for request in backend.requests if request.id.endswith("#repair1")]
    assert [message.text for message in again.messages[-2:]] == ["Nonsense.", "found another answer; again"]
    assert states(tmp_path) == {"accepted": 1, "rejected": 1}
    more = Limits(repairs=2, first_wait=0.001)
    assert go(tmp_path, backend, more, count=2) is None
    assert backend.calls[3:] == ["0000/detail#repair2"] and states(tmp_path) == {"accepted": 2}


def test_a_repair_that_was_not_sent_is_sent_after_a_restart(tmp_path: Path) -> None:
    def reply(id: str, number: int) -> str | Exception:
        return Stop("off") if "#" in id and not number else good(id, number) if "#" in id else "Nonsense."

    backend = Asked(reply)
    assert go(tmp_path, backend, count=1) == "off"
    assert go(tmp_path, backend, count=1) is None
    assert backend.calls == ["0000/detail", "0000/detail#repair1", "0000/detail#repair1"]
    assert backend.requests[1] == backend.requests[2] and states(tmp_path) == {"accepted": 1}


def test_a_budget_is_never_exceeded_by_calls_in_flight(tmp_path: Path) -> None:
    """The endpoint spends all that a call may."""
    most = Budget().most(content(1).requests[0])
    one, backend = most.total, Asked(good, most.prompt, most.completion)
    budget = Budget(tokens=5 * one + one // 2)
    stop = go(tmp_path, backend, budget=budget)
    assert stop == f"the budget is reached: spent {5 * one:,} tokens, 7 calls are left"
    assert states(tmp_path) == {"accepted": 5, "pending": 7}
    assert go(tmp_path, backend, budget=Budget(tokens=5 * one + one // 2)) is not None and len(backend.calls) == 5
    assert go(tmp_path, backend, budget=Budget(tokens=12 * one)) is None and states(tmp_path) == {"accepted": 12}


def test_a_budget_lets_in_what_cheap_answers_leave(tmp_path: Path) -> None:
    one = Budget().most(content(1).requests[0]).total
    assert go(tmp_path, Asked(good), budget=Budget(tokens=one + 11 * 15)) is None
    assert states(tmp_path) == {"accepted": 12}


def test_what_stands_in_batch_files_is_left_alone_and_counts_in_the_budget(tmp_path: Path) -> None:
    asked = content(3)
    most = Budget().most(asked.requests[0])
    with journal.opened(tmp_path, {}, asked.requests) as book:
        book.put_in_batch("0000/detail", most, 1)
    backend = Asked(good)
    assert go(tmp_path, backend, budget=Budget(tokens=2 * most.total - 1), count=3) is not None and backend.calls == []
    assert go(tmp_path, backend, budget=Budget(tokens=2 * most.total + 15), count=3) is None
    assert states(tmp_path) == {"accepted": 2, "written": 1} and "0000/detail" not in backend.calls


def test_an_error_of_the_checker_is_told_after_the_others_are_stored(tmp_path: Path) -> None:
    def check(request: Request, text: str) -> list[Turn]:
        if request.id == "0004/detail":
            raise KeyError("a defect")
        return [Turn(role="user", text="?"), Turn(role="assistant", text=text)]

    asked = Content(content(12).requests, check, content(12).repair)
    with journal.opened(tmp_path, {}, asked.requests) as book:
        with pytest.raises(KeyError, match="a defect"):
            run(book, asked, Asked(good), FAST, Budget(), Told())
        assert book.counts()["accepted"] >= 4 and "in flight" not in book.counts()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_after_the_answers_in_flight(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    def reply(id: str, times: int) -> str:
        if id == "0004/detail":
            os.kill(os.getpid(), number)
        time.sleep(0.02)
        return good(id, times)

    backend, told = Asked(reply), Told()
    before = signal.getsignal(number)
    with pytest.raises(error) as caught:
        go(tmp_path, backend, told=told)
    assert number == signal.SIGINT or caught.value.args == (143,)
    assert signal.getsignal(number) is before
    found = states(tmp_path)
    assert found["accepted"] == len(backend.calls) < 12 and set(found) == {"accepted", "pending"}
    assert told.said[0].endswith("calls in flight are waited for; Ctrl-C again drops them")
    assert go(tmp_path, backend) is None or states(tmp_path) == {"accepted": 12}


def test_a_second_ctrl_c_drops_what_is_in_flight(tmp_path: Path) -> None:
    leave, told = threading.Event(), Told()

    def reply(id: str, times: int) -> str:
        if id == "0002/detail" and not times:
            os.kill(os.getpid(), signal.SIGINT)
            while not told.said:  # Two signals at once are one.
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGINT)
            leave.wait(10)
        return good(id, times)

    backend = Asked(reply)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, backend, told=told)
    leave.set()
    assert "in flight" in states(tmp_path)
    assert go(tmp_path, backend) is None and states(tmp_path) == {"accepted": 12}


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="--concurrency: found 0, expected at least 1"):
        Limits(concurrency=0)
    with pytest.raises(ValueError, match="--repairs: found -1, expected at least 0"):
        Limits(repairs=-1)


def test_the_bar_counts_what_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bar() as display:
        display.say("the endpoint asks [to] wait")
        display.show({"accepted": 5, "refused": 1, "pending": 4, "written": 2}, "70 tokens")
    told = capsys.readouterr().err
    assert "the endpoint asks [to] wait" in told and "6/10" in told and "5 accepted, 1 refused, 70 tokens" in told


def test_rejected_is_told_by_its_sentence() -> None:
    assert str(Rejected("format", "found nothing")) == "found nothing"
