"""Sends what is pending in a journal to a backend, several calls at once, until everything has ended.

One thread decides and writes the journal; the others wait for answers. A call that fails waits its turn outside of
them, with exponential backoff and jitter, and what an endpoint asks to wait (`Retry-After`) holds all calls.
"""

from __future__ import annotations

import heapq
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from data_modules.synthesis.budget import Budget, Tokens, used
from data_modules.synthesis.display import Display
from data_modules.synthesis.journal import REPAIR, Journal, split_repair
from data_modules.synthesis.request import (
    Answer,
    Backend,
    Checker,
    Refused,
    Rejected,
    Repair,
    Request,
    Retry,
    Stop,
)

SHOWN_EVERY = 0.5
"""Seconds between two changes of the bar."""
IN_A_ROW = 30
"""First failures of so many calls, and no answer between them, after which the endpoint counts as down. Those where it
asks to wait count not, nor do those of calls that have failed before, which may be all that is left."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How calls are sent.

    Args:
        concurrency: Calls in flight.
        threads: That wait for their answers; None for one each.
        retries: Further calls where one brought no answer.
        repairs: Further calls where an answer was rejected.
        first_wait: Seconds after the first failure; doubled after each further one.
        longest_wait: Seconds that a call is ever put off, whatever the endpoint asks for.
    """

    concurrency: int = 8
    threads: int | None = None
    retries: int = 5
    repairs: int = 1
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("repairs", 0), ("longest_wait", 0)):
            if not (found := getattr(self, name)) >= least:
                raise ValueError(f"--{name.replace('_', '-')}: found {found}, expected at least {least}")

    def wait(self, failures: int, after: float | None) -> float:
        """Seconds until a call that has failed so often is sent again."""
        backoff = self.first_wait * 2.0 ** min(failures - 1, 30) * random.uniform(0.5, 1.0)
        return min(self.longest_wait, max(backoff, after or 0.0))


@dataclass(frozen=True)
class Content:
    """What requests ask, and what their answers must be."""

    requests: Sequence[Request]
    check: Checker
    repair: Repair

    def request(self, journal: Journal, id: str, known: Mapping[str, Request]) -> Request:
        """What a call of the journal sends: a request, or its repair, which quotes the answer that was rejected."""
        root, number = split_repair(id)
        if not number:
            return known[id]
        rejected = root if number == 1 else f"{root}{REPAIR}{number - 1}"
        return self.repairing(known[root], number, *journal.rejected(rejected))

    def repairing(self, request: Request, number: int, text: str, why: Rejected) -> Request:
        """The request that asks again for what `request` did, after `text` was rejected."""
        return replace(request, id=f"{request.id}{REPAIR}{number}", messages=self.repair(request, text, why))


def judge(journal: Journal, content: Content, root: Request, id: str, answer: Answer, repairs: int) -> str | None:
    """Stores a complete answer as accepted or as rejected.

    Returns:
        The id of the repair that was added, if there is one.
    """
    try:
        turns = content.check(root, answer.text)
    except Rejected as why:
        number = split_repair(id)[1] + 1
        again = content.repairing(root, number, answer.text, why) if number <= repairs else None
        journal.rejected_now(id, answer, why, again)
        return again.id if again else None
    journal.accepted(id, answer, turns)
    return None


def ask_again(journal: Journal, content: Content, repairs: int) -> None:
    """Adds the repairs that are allowed now and were not before."""
    known = {request.id: request for request in content.requests}
    for id in journal.last_rejected(repairs):
        root, number = split_repair(id)
        journal.repaired_by(id, content.repairing(known[root], number + 1, *journal.rejected(id)))


def run(
    journal: Journal, content: Content, backend: Backend, limits: Limits, budget: Budget, display: Display
) -> str | None:
    """Sends everything that is pending; what was sent before a stop is waited for and stored.

    Returns:
        Why it ended before everything had: one sentence of the backend, or of the budget. None where nothing is left.

    Raises:
        KeyboardInterrupt: Of Ctrl-C, after the answers in flight were stored; a second one drops them.
        SystemExit: 143 of SIGTERM, likewise.
    """
    ask_again(journal, content, limits.repairs)
    budget.spent, budget.reserved = journal.spent, journal.written
    return _Run(journal, content, backend, limits, budget, display).all()


class _Run:
    """The state of `run`."""

    def __init__(
        self, journal: Journal, content: Content, backend: Backend, limits: Limits, budget: Budget, display: Display
    ) -> None:
        self.journal, self.content, self.backend = journal, content, backend
        self.limits, self.budget, self.display = limits, budget, display
        self.known = {request.id: request for request in content.requests}
        self.waiting = [(0.0, number, id) for number, id in enumerate(journal.ids("pending"))]
        """A heap: when it may be sent, its turn, its id."""
        self.turns = len(self.waiting)
        self.flying: dict[str, Tokens] = {}
        """What is reserved for each call in flight."""
        self.tasks: SimpleQueue[Request | None] = SimpleQueue()
        self.ended: SimpleQueue[tuple[str, Answer | Exception] | None] = SimpleQueue()
        self.held_until = 0.0
        self.answered = False
        """Whether the endpoint has answered once; until then one call is in flight, which finds a wrong key."""
        self.stop: str | None = None
        self.bug: Exception | None = None
        self.signal = 0
        self.shown = 0.0
        self.counts = journal.counts()
        self.in_a_row = 0

    def all(self) -> str | None:
        workers = self.limits.threads or self.limits.concurrency
        for _ in range(workers):
            # Daemons: a second Ctrl-C waits for none of them.
            threading.Thread(target=self._work, daemon=True).start()
        with self._signals():
            ended: list[tuple[str, Answer | Exception]] = []
            while ended or self.flying or (self.waiting and not self._ending):
                with self.journal.together():
                    for each in ended:
                        self._settle(*each)
                    sent = self._to_send()
                # None is sent before all are written down.
                for request in sent:
                    self.tasks.put(request)
                self._show()
                ended = self._wait_for_ended() if self.flying or self.waiting else []
        for _ in range(workers):
            self.tasks.put(None)
        self._show(now=True)
        if self.bug:
            raise self.bug
        if self.signal:
            raise KeyboardInterrupt if self.signal == signal.SIGINT else SystemExit(128 + self.signal)
        return self.stop

    def _work(self) -> None:
        """A thread that waits for answers."""
        while (request := self.tasks.get()) is not None:
            try:
                self.ended.put((request.id, self.backend.ask(request)))
            except Exception as error:
                self.ended.put((request.id, error))

    @property
    def _ending(self) -> bool:
        """Whether nothing more is sent."""
        return bool(self.stop or self.signal or self.bug)

    def _to_send(self) -> list[Request]:
        """As many calls as may be in flight beside those that are, written down."""
        most, sent = self.limits.concurrency if self.answered else 1, []
        while self.waiting and len(self.flying) < most and not self._ending:
            if max(self.waiting[0][0], self.held_until) > time.monotonic():
                break
            request = self.content.request(self.journal, self.waiting[0][2], self.known)
            tokens = self.budget.most(request)
            if not self.budget.fits(tokens):
                if not self.flying:
                    self.stop = f"the budget is reached: spent {self.budget}, {len(self.waiting)} calls are left"
                break
            heapq.heappop(self.waiting)
            self.journal.sent(request.id, tokens)
            self.budget.reserve(tokens)
            self.flying[request.id] = tokens
            sent.append(request)
        return sent

    def _wait_for_ended(self) -> list[tuple[str, Answer | Exception]]:
        """All calls that have ended, waiting for one, or for the time when another may be sent."""
        until = SHOWN_EVERY
        if self.waiting and not self._ending:
            ready = max(self.waiting[0][0], self.held_until) - time.monotonic()
            until = min(until, ready) if ready > 0 else until
        ended = []
        try:
            ended.append(self.ended.get(timeout=until))
            while True:
                ended.append(self.ended.get_nowait())
        except Empty:
            return [each for each in ended if each is not None]

    def _settle(self, id: str, ended: Answer | Exception) -> None:
        """Stores how a call ended."""
        reserved, spent = self.flying.pop(id), Tokens()
        if not isinstance(ended, Retry):
            self.in_a_row = 0
        if isinstance(ended, Answer):
            spent, self.answered = used(ended), True
            self._judge(id, ended)
        elif isinstance(ended, Retry):
            spent = reserved if ended.paid else spent
            self._failed(id, ended)
        elif isinstance(ended, Refused):
            spent = reserved if ended.paid else spent
            self.journal.failed(id, ended.reason, paid=ended.paid, last=True)
            self._count(id)
        else:
            self.journal.returned(id)
            if isinstance(ended, Stop):
                self.stop = self.stop or ended.reason
            else:
                self.bug = self.bug or ended
        self.budget.settle(reserved, spent)

    def _judge(self, id: str, answer: Answer) -> None:
        root = self.known[split_repair(id)[0]]
        try:
            again = judge(self.journal, self.content, root, id, answer, self.limits.repairs)
        except Exception as error:  # Of the checker; told after what else is in flight was stored.
            self.bug = self.bug or error
            self.journal.returned(id)
            return
        if again:
            self._wait(again, 0.0)
        else:
            self._count(id)

    def _failed(self, id: str, why: Retry) -> None:
        failures = self.journal.failures(id) + 1
        last = failures > self.limits.retries
        reason = f"{failures} calls brought no answer, the last: {why.reason}" if last else why.reason
        self.journal.failed(id, reason, paid=why.paid, last=last)
        wait = self.limits.wait(failures, why.after)
        if why.after is not None:
            held = time.monotonic() < self.held_until
            self.held_until = max(self.held_until, time.monotonic() + min(why.after, self.limits.longest_wait))
            if why.after > self.limits.longest_wait and not held:
                longest = f"waiting {self.limits.longest_wait:g} s, the longest allowed"
                self.display.say(f"{id}: the endpoint asks to wait {why.after:g} s; {longest}")
        elif failures == 1:
            self.in_a_row += 1
        if self.in_a_row >= IN_A_ROW and not self.stop:
            self.stop = f"{self.in_a_row} calls in a row brought no answer, the last: {why.reason}"
        if last:
            self._count(id)
        else:
            self._wait(id, wait)

    def _count(self, id: str) -> None:
        """A request has ended."""
        state = self.journal.state(id)
        self.counts[state] = self.counts.get(state, 0) + 1
        self.counts["pending"] -= 1

    def _wait(self, id: str, seconds: float) -> None:
        heapq.heappush(self.waiting, (time.monotonic() + seconds, self.turns, id))
        self.turns += 1

    def _show(self, *, now: bool = False) -> None:
        if now or time.monotonic() >= self.shown:
            self.display.show(self.counts, str(self.budget))
            self.shown = time.monotonic() + SHOWN_EVERY

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the sending, not the process; the second one ends that too."""

        def received(number: int, frame: object) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number
            self.ended.put(None)  # Wakes `_wait_for_ended`; this queue may be used in a handler.
            told = f"stopping: {len(self.flying)} calls in flight are waited for; Ctrl-C again drops them"
            self.display.say(told)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, received) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
