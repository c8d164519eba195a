"""What became of each request, and which answers of a picture are the same."""

from __future__ import annotations

from data_modules.synthesis.verdicts import verdicts
from tests.data_modules.synthesis.outcomes import DETAIL, TALK, asked, ends, tried


def test_the_end_of_each_request() -> None:
    found = [(each.outcome.request.id, each.state, each.reason_kind) for each in verdicts(ends())]
    assert found == [
        ("1/conversation", "accepted", ""),
        ("2/conversation", "repaired", ""),
        ("1/detail", "accepted", ""),
        ("2/detail", "rejected", "wrong count"),
        ("3/detail", "refused", "refused"),
        ("1/dense", "rejected", "duplicate"),
        ("2/dense", "open", ""),
    ]


def test_a_picture_is_told_the_same_only_once() -> None:
    """The order of the requests decides; short answers and other pictures do not count."""
    again = TALK.replace("How many dogs are there?", "What is going on?")
    outcomes = [tried(asked("detail"), DETAIL), tried(asked("conversation"), TALK), tried(asked("conversation"), again)]
    twice = list(verdicts(outcomes))
    assert [each.state for each in twice] == ["accepted", "accepted", "rejected"]
    assert twice[2].sentence == "an answer is that of 1/conversation, expected different ones of a picture"
    other = [outcomes[1], tried(asked("conversation", 2), TALK)]
    assert [each.state for each in verdicts(other)] == ["accepted", "accepted"]
    short = TALK.replace("Two dogs run on the beach.", "Two.").replace("Is there a cat?", "Is there a bird?")
    assert [
        each.good for each in verdicts([tried(asked("conversation"), short.replace("many", "few")), outcomes[1]])
    ] == [
        True,
        True,
    ]
