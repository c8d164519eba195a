"""What a response is worth, by its body, status and headers."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from data_modules.synthesis.backends.completion import TOO_BUSY, answer_of, failure_of
from data_modules.synthesis.request import Refused, Retry, Stop
from tests.data_modules.synthesis.faulty_server import completion

GOOD = completion("A cat.")
CHOICE = GOOD["choices"][0]


def with_choice(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "choices": [{**CHOICE, **changes}]}


def test_a_complete_answer() -> None:
    answer = answer_of(json.dumps(GOOD))
    assert (answer.text, answer.model, answer.prompt_tokens, answer.completion_tokens) == ("A cat.", "toy-1", 12, 40)
    assert answer_of(json.dumps({**GOOD, "error": None})) == answer


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "a body that is no object"),
        (None, "a body that is no object"),
        ({**GOOD, "choices": [CHOICE, CHOICE]}, "as choices, expected one"),
        ({**GOOD, "choices": ["A cat."]}, "as choices, expected one"),
        (with_choice(message=None), "None as message"),
        (with_choice(message={"content": ""}), "as content, expected a text"),
        (with_choice(message={"content": " \n"}), "as content, expected a text"),
        (with_choice(message={"content": ["A cat."]}), "as content, expected a text"),
        (with_choice(finish_reason=None), "finish_reason None, expected 'stop'"),
        (with_choice(finish_reason="tool_calls"), "finish_reason tool_calls"),
        (with_choice(message={"content": "A cat \ud83d."}), r"half a character in A cat \?\., expected Unicode"),
        ({**GOOD, "usage": {"prompt_tokens": 10**30, "completion_tokens": 2}}, "as usage, expected counts"),
        ({**GOOD, "usage": None}, "None as usage, expected counts of tokens"),
        ({**GOOD, "usage": {"prompt_tokens": 3}}, "as usage, expected counts"),
        ({**GOOD, "usage": {"prompt_tokens": True, "completion_tokens": 2}}, "as usage, expected counts"),
        ({**GOOD, "usage": {"prompt_tokens": -1, "completion_tokens": 2}}, "as usage, expected counts"),
    ],
)
def test_what_is_incomplete_is_asked_again_and_may_have_been_charged(body: Any, told: str) -> None:
    with pytest.raises(Retry, match=told) as caught:
        answer_of(json.dumps(body))
    assert caught.value.paid


@pytest.mark.parametrize(
    "body",
    [with_choice(finish_reason="content_filter"), with_choice(message={"content": None, "refusal": "I cannot."})],
)
def test_a_model_that_will_not_answer_is_not_asked_again(body: Any) -> None:
    with pytest.raises(Refused, match=r"the model refused: (content_filter|I cannot\.)"):
        answer_of(json.dumps(body))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, None, Stop),
        (400, "content_filter", Refused),
        (400, "context_length_exceeded", Refused),
        (401, None, Stop),
        (402, None, Stop),
        (403, None, Stop),
        (404, "model_not_found", Stop),
        (301, None, Stop),
        (408, None, Retry),
        (409, None, Retry),
        (413, None, Refused),
        (422, None, Stop),
        (429, None, Retry),
        (429, "rate_limit_exceeded", Retry),
        (429, "insufficient_quota", Stop),
        (500, None, Retry),
        (503, None, Retry),
        (529, None, Retry),
    ],
)
def test_statuses(status: int, code: str | None, kind: type[Exception]) -> None:
    failure = failure_of(status, json.dumps({"error": {"message": "told so", "code": code}}), {})
    assert type(failure) is kind and failure.reason.startswith(f"status {status}: ")
    assert ("told so" in failure.reason) is (status not in (401, 403))


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({}, TOO_BUSY),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, TOO_BUSY),
        ({"retry-after": "-5"}, TOO_BUSY),
    ],
)
def test_retry_after(headers: dict[str, str], after: float) -> None:
    failure = failure_of(429, b"", headers)
    assert isinstance(failure, Retry) and failure.after == after
    assert getattr(failure_of(500, b"", {}), "after", 0) is None


def test_a_date_to_wait_for() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    failure = failure_of(503, b"", {"retry-after": date})
    assert isinstance(failure, Retry) and failure.after is not None and 60 < failure.after <= 90


def test_words_of_an_endpoint_can_be_written_down() -> None:
    assert failure_of(500, '{"error": "no \\ud83d"}', {}).reason == "status 500: no ?"


def test_long_words_of_an_endpoint_are_cut() -> None:
    failure = failure_of(500, b"<html>" + b"word " * 1000, {})
    assert len(failure.reason) < 200 and failure.reason.endswith("...")
