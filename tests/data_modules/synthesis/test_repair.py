"""Asking again for what was rejected."""

from __future__ import annotations

import pytest

from data_modules.synthesis.repair import repair
from data_modules.synthesis.request import Message, Rejected
from tests.data_modules.synthesis.outcomes import asked


@pytest.mark.parametrize("reason", ["format", "wrong count", "source named", "something of a user's own"])
def test_a_repair_quotes_the_answer_and_the_reason(reason: str) -> None:
    request = asked("detail")
    messages = repair(request, "A cat.", Rejected(reason, "found 'cat', expected a dog"))
    assert messages[:-2] == request.messages
    assert messages[-2] == Message("assistant", "A cat.")
    assert messages[-1].role == "user"
    assert messages[-1].text.startswith("This answer cannot be used: found 'cat', expected a dog. ")
    assert messages[-1].text.endswith("in the form that was asked for, and nothing besides it.")


def test_a_repair_of_nothing_and_of_too_much() -> None:
    request = asked("dense")
    nothing = repair(request, " \n", Rejected("format", "empty"))
    assert [message.role for message in nothing] == ["system", "user", "user"]
    assert nothing[1].images == request.messages[1].images != ()
    much = repair(request, "word " * 10_000, Rejected("length", "too long"))
    assert len(much[-2].text) == 4000
