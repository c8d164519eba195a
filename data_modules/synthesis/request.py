"""What synthesis is made of: a request, its answer, who answers it and who checks the answer.

Plain data and protocols. The engine (journal, runner, backends) knows nothing of what a request asks; its content
(which requests, prompts, parsers, checks) knows nothing of how it is sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lightning_mllm.contracts import ImageRef, Turn


@dataclass(frozen=True)
class Message:
    """One message of a chat; images stand before its text."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True)
class NamedBox:
    """One object of a picture."""

    name: str
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 as shares of width and height, in 0..1."""
    crowd: bool = False
    """Whether the box is around several that were not told apart."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is known of a picture; answers are checked against it."""

    captions: tuple[str, ...]
    boxes: tuple[NamedBox, ...]
    width: int
    height: int
    """Pixels of the picture."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of a chat model."""

    id: str
    """Unique in a plan: 'IMAGE_ID/KIND', or with '#n' behind it."""
    kind: str
    image: str
    """The path of the picture as the written records name it."""
    messages: tuple[Message, ...]
    context: Context
    max_tokens: int
    """Most tokens of the answer."""
    temperature: float
    question: str = ""
    """What the user is made to ask in the written record, where the answer alone is asked for; it is not sent."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of everything that is sent; a picture by `image`, so that its folder may move."""
        messages = [[each.role, each.text, len(each.images)] for each in self.messages]
        sent = [self.id, self.kind, self.image, messages, self.max_tokens, self.temperature]
        return hashlib.sha256(json.dumps(sent).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A complete answer, and what it cost."""

    text: str
    model: str
    """As the endpoint names what answered."""
    prompt_tokens: int
    completion_tokens: int


class Retry(Exception):
    """No answer this time (429, 5xx, a broken connection, an incomplete body): the same request may be sent again."""

    def __init__(self, reason: str, after: float | None = None, *, paid: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after
        """Seconds that the endpoint asked to wait; None where it named none."""
        self.paid = paid
        """Whether the endpoint may have charged for it: then all that was reserved for the call counts as spent."""


class Refused(Exception):
    """This request alone cannot be answered (a content filter, a prompt that is too long)."""

    def __init__(self, reason: str, *, paid: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.paid = paid
        """As in `Retry`."""


class Stop(Exception):
    """No request can be answered any more (a wrong key or model, no quota): nothing more is sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Rejected(Exception):
    """A complete answer is malformed or says what its context does not."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind
        """A short name by which reports count ('format', 'names the captions', 'unknown object')."""
        self.sentence = sentence
        """What was found and what was expected; a repair request quotes it."""


State = Literal["pending", "written", "in flight", "accepted", "rejected", "refused"]
"""Of one call: not sent, in a batch file, sent, its answer stored, its answer malformed, never answered."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One call that the journal knows: of the request itself, or of one of its repairs."""

    id: str
    """The request's, or with '#repair1' behind it."""
    state: State
    answer: Answer | None = None
    """Complete; of 'accepted' and 'rejected' alone."""
    turns: tuple[Turn, ...] = ()
    """What the checker made of an accepted answer."""
    reason_kind: str = ""
    """As in `Rejected`; empty for 'refused'."""
    reason: str = ""
    """Why it was rejected or refused; of a pending one, the last failure."""
    failures: int = 0
    """Calls that brought no answer."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one request: what reports count and outputs are written from."""

    request: Request
    attempts: tuple[Attempt, ...]
    """The request's own, then its repairs in their order; never empty."""

    @property
    def last(self) -> Attempt:
        """The one that decides."""
        return self.attempts[-1]

    @property
    def repaired(self) -> bool:
        """Accepted, but not at first."""
        return self.last.state == "accepted" and len(self.attempts) > 1


class Backend(Protocol):
    """Who answers. `ask` is called from several threads at once."""

    def ask(self, request: Request) -> Answer:
        """A complete answer.

        Raises:
            Retry: None this time.
            Refused: None to this request.
            Stop: None to any request.
        """
        ...


Checker = Callable[[Request, str], Sequence[Turn]]
"""The turns of an answer's text, the user's first; raises `Rejected` for one that must not be stored."""

Repair = Callable[[Request, str, Rejected], tuple[Message, ...]]
"""The messages, whole, that ask again: of the request, the text that was rejected, and why."""
