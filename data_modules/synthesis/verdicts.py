"""What became of each request in the end, the answers of a picture compared with one another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from data_modules.synthesis.checks import SAME_WORDS, plain
from data_modules.synthesis.request import Outcome

State = Literal["accepted", "repaired", "rejected", "refused", "open"]
"""Good at first; good after it was asked again; never good; never answered; not at its end yet."""
STATES: tuple[State, ...] = ("accepted", "repaired", "rejected", "refused", "open")
GOOD = ("accepted", "repaired")


@dataclass(frozen=True)
class Verdict:
    """A request with what is to be done about its answer."""

    outcome: Outcome
    state: State
    reason_kind: str = ""
    """As in `Rejected`, of 'rejected'; 'refused' of that."""
    sentence: str = ""

    @property
    def good(self) -> bool:
        """Whether the answer is written out."""
        return self.state in GOOD

    @property
    def text(self) -> str:
        """Of the last answer; empty where there is none."""
        answers = [attempt.answer.text for attempt in self.outcome.attempts if attempt.answer]
        return answers[-1] if answers else ""


def verdicts(outcomes: Iterable[Outcome]) -> Iterator[Verdict]:
    """The verdict on each request, in order.

    An accepted answer is rejected as a duplicate if an earlier one of the same picture has the same question with the
    same answer, or an answer of the same words and some length. Which of two that is does not depend on when they were
    answered, but on the order of the requests.
    """
    known: dict[tuple[str, bytes], str] = {}
    for outcome in outcomes:
        last = outcome.last
        if last.state == "accepted":
            keys = [(outcome.request.image, key) for key in _said(outcome)]
            if twice := next((key for key in keys if key in known), None):
                sentence = f"an answer is that of {known[twice]}, expected different ones of a picture"
                yield Verdict(outcome, "rejected", "duplicate", sentence)
                continue
            known |= dict.fromkeys(keys, outcome.request.id)
            yield Verdict(outcome, "repaired" if outcome.repaired else "accepted")
        elif last.state == "rejected":
            yield Verdict(outcome, "rejected", last.reason_kind, last.reason)
        elif last.state == "refused":
            yield Verdict(outcome, "refused", "refused", last.reason)
        else:
            yield Verdict(outcome, "open", "", last.reason)


def _said(outcome: Outcome) -> Iterator[bytes]:
    """Digests of what must not be said of a picture twice."""
    turns = outcome.last.turns
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        answer = plain(answered.text)
        if len(answer.split()) >= SAME_WORDS:
            yield _digest(answer)
        yield _digest(f"{plain(asked.text)} / {answer}")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
