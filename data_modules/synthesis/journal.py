"""The journal of a synthesis: one SQLite file that knows every request, and every answer that was paid for.

A call is written down before it is sent and again when it ended, each time in a transaction that is on the disk before
the next step (`synchronous=FULL`): a process can be killed at any moment, and what it had in flight is asked again.
The rollback journal is used and not the write-ahead log: the folder holds one file that can be copied, network file
systems carry it (a log needs memory that processes share), and a call takes far longer than a commit.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from data_modules.synthesis.budget import Tokens
from data_modules.synthesis.database import TABLES, alone, connected, version
from data_modules.synthesis.request import Answer, Attempt, Outcome, Rejected, Request
from lightning_mllm.contracts import Turn

FILE = "journal.sqlite"
REPAIR = "#repair"
"""Between the id of a request and the number of its repair."""

OUT = ("in flight", "written")
"""States of calls that an answer may come to."""
LOSE = "lost_prompt = lost_prompt + reserved_prompt, lost_completion = lost_completion + reserved_completion"


class Journal:
    """The journal of one folder, open for as long as the block of `opened` runs; for one thread."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._database = database

    @contextmanager
    def together(self) -> Iterator[None]:
        """Several changes as one transaction: all are kept, or none."""
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._database.in_transaction:  # A full disk has rolled it back.
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    # What is known

    @property
    def plan(self) -> dict[str, str]:
        """What the journal was begun for, by name."""
        return dict(self._database.execute("SELECT name, value FROM plan"))

    @property
    def about(self) -> dict[str, str]:
        """What else is known of it, by name; may change."""
        return dict(self._database.execute("SELECT name, value FROM about"))

    def note(self, about: Mapping[str, str]) -> None:
        """Keeps what else is to be known of it."""
        with self.together():
            self._database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", about.items())

    def ids(self, state: str) -> list[str]:
        """Calls of one state, in their order."""
        return [
            row[0] for row in self._database.execute("SELECT id FROM calls WHERE state = ? ORDER BY number", [state])
        ]

    @property
    def every(self) -> set[str]:
        """The ids of all calls, repairs with them."""
        return {row[0] for row in self._database.execute("SELECT id FROM calls")}

    def counts(self) -> dict[str, int]:
        """Requests by what became of them at last, repairs not counted: state -> how many."""
        last = "SELECT state, max(repair) FROM calls GROUP BY request"
        return dict(self._database.execute(f"SELECT state, count(*) FROM ({last}) GROUP BY state"))

    @property
    def spent(self) -> Tokens:
        """Tokens of all answers, and those that were reserved for calls that may have been charged without one."""
        sums = "sum(lost_prompt) + total(prompt_tokens), sum(lost_completion) + total(completion_tokens)"
        prompt, completion = self._database.execute(f"SELECT {sums} FROM calls").fetchone()
        return Tokens(int(prompt or 0), int(completion or 0))

    @property
    def lost(self) -> Tokens:
        """Of `spent`, those without an answer."""
        return Tokens(*self._database.execute("SELECT sum(lost_prompt), sum(lost_completion) FROM calls").fetchone())

    @property
    def written(self) -> Tokens:
        """Tokens that are reserved for what stands in batch files."""
        sums = "total(reserved_prompt), total(reserved_completion)"
        prompt, completion = self._database.execute(f"SELECT {sums} FROM calls WHERE state = 'written'").fetchone()
        return Tokens(int(prompt), int(completion))

    @property
    def interrupted(self) -> int:
        """Calls that were in flight when a process died: at most so many were paid twice."""
        return self._database.execute("SELECT ifnull(sum(interrupted), 0) FROM calls").fetchone()[0]

    @property
    def batches(self) -> int:
        """How often batch files were written."""
        return self._database.execute("SELECT ifnull(max(batch), 0) FROM calls").fetchone()[0]

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """What became of requests, in the order of the journal; those that it does not know are left out."""
        known = {request.id: request for request in requests}
        columns = (
            "request, id, state, text, model, prompt_tokens, completion_tokens, turns, reason_kind, reason, failures"
        )
        rows = self._database.execute(
            f"SELECT {columns} FROM calls JOIN (SELECT request AS root, number AS place FROM calls WHERE repair = 0)"
            " ON request = root ORDER BY place, repair"
        )
        for request, group in groupby(rows, key=lambda row: row[0]):
            if request in known:
                yield Outcome(request=known[request], attempts=tuple(_attempt(row[1:]) for row in group))

    def state(self, id: str) -> str:
        """Of a call."""
        return self._database.execute("SELECT state FROM calls WHERE id = ?", [id]).fetchone()[0]

    def failures(self, id: str) -> int:
        """How often a call has brought no answer."""
        return self._database.execute("SELECT failures FROM calls WHERE id = ?", [id]).fetchone()[0]

    def rejected(self, id: str) -> tuple[str, Rejected]:
        """The text of a rejected answer, and why it was rejected."""
        found = self._database.execute("SELECT text, reason_kind, reason FROM calls WHERE id = ?", [id]).fetchone()
        return found[0], Rejected(found[1], found[2])

    def last_rejected(self, repairs: int) -> list[str]:
        """Calls whose answer was rejected and that were not asked again, though fewer than `repairs` were."""
        last = "SELECT id, state, max(repair) AS repair, number FROM calls GROUP BY request"
        select = f"SELECT id FROM ({last}) WHERE state = 'rejected' AND repair < ? ORDER BY number"
        return [row[0] for row in self._database.execute(select, [repairs])]

    # What changes

    def add(self, requests: Iterable[Request], request: str = "", repair: int = 0) -> None:
        """New calls, pending; `request` and `repair` where they repair one."""
        rows = [(each.id, request or each.id, repair, each.kind, each.fingerprint) for each in requests]
        with self.together():
            insert = "INSERT INTO calls (id, request, repair, kind, fingerprint) VALUES (?, ?, ?, ?, ?)"
            self._database.executemany(insert, rows)

    def sent(self, id: str, reserved: Tokens) -> None:
        """A call is about to be sent; at most `reserved` will be spent on it."""
        self._move(id, "in flight", ("pending",), _reserved(reserved))

    def put_in_batch(self, id: str, reserved: Tokens, batch: int) -> None:
        """A call stands in the files of a batch."""
        self._move(id, "written", ("pending",), {**_reserved(reserved), "batch": batch})

    def returned(self, id: str) -> None:
        """A call in flight is pending again, as if it had not been sent."""
        self._move(id, "pending", ("in flight",), {})

    def again(self, state: str) -> int:
        """All calls that are refused, or stand in batch files, are pending again, with as many tries as new ones.

        Returns:
            How many they are.
        """
        assert state in ("refused", "written")
        update = "UPDATE calls SET state = 'pending', failures = 0, reason = '' WHERE state = ?"
        with self.together():
            return self._database.execute(update, [state]).rowcount

    def failed(self, id: str, reason: str, *, paid: bool = False, last: bool = False) -> None:
        """A call brought no answer: it is pending again, or refused where this was the `last` try."""
        with self.together():
            values = {"failures": self.failures(id) + 1, "reason": reason}
            self._move(id, "refused" if last else "pending", OUT, values, paid=paid)

    def accepted(self, id: str, answer: Answer, turns: Sequence[Turn]) -> None:
        """A complete answer that its checker found good."""
        said = json.dumps([[turn.role, turn.text] for turn in turns])
        self._move(id, "accepted", OUT, {"turns": said, "reason": "", **_answered(answer)})

    def rejected_now(self, id: str, answer: Answer, why: Rejected, repair: Request | None) -> None:
        """A complete answer that its checker found wrong, and the request that asks again."""
        with self.together():
            reason = {"reason_kind": why.kind, "reason": why.sentence}
            self._move(id, "rejected", OUT, {**reason, **_answered(answer)})
            if repair is not None:
                self.repaired_by(id, repair)

    def repaired_by(self, id: str, repair: Request) -> None:
        """`repair` asks again for what a rejected call was to bring."""
        self.add([repair], *split_repair(repair.id))

    def _move(
        self, id: str, state: str, origins: Sequence[str], values: Mapping[str, object], *, paid: bool = False
    ) -> None:
        """One call to another state; `paid`: what was reserved for it counts as spent."""
        names = "".join(f", {name} = ?" for name in values) + (f", {LOSE}" if paid else "")
        allowed = ", ".join("?" * len(origins))
        with self.together():
            changed = self._database.execute(
                f"UPDATE calls SET state = ?{names} WHERE id = ? AND state IN ({allowed})",
                [state, *values.values(), id, *origins],
            ).rowcount
            assert changed == 1, f"{self.path}: {id} is not {' or '.join(origins)}, and cannot become {state}"

    def _recover(self) -> None:
        """What a process that died had in flight is pending again; it may have been charged."""
        with self.together():
            self._database.execute(
                f"UPDATE calls SET state = 'pending', interrupted = interrupted + 1, {LOSE} WHERE state = 'in flight'"
            )

    def check(self, plan: Mapping[str, str], requests: Sequence[Request]) -> None:
        """That plan and requests are those of the journal; there may be requests that it does not know.

        Raises:
            ValueError: Names what is another.
        """
        known = self.plan
        other = [name for name in dict.fromkeys([*known, *plan]) if known and known.get(name) != plan.get(name)]
        if other:
            found, expected = known.get(other[0], "nothing"), plan.get(other[0], "nothing")
            raise ValueError(
                f"{self.path}: {other[0]}: found '{found}' in the journal and '{expected}' now; a folder holds one"
                " plan, name another folder"
            )
        asked = {request.id: request.fingerprint for request in requests}
        if len(asked) < len(requests):
            count = len(requests)
            raise ValueError(f"{self.path}: found two requests of one id among {count}, expected ids to be unique")
        for id, fingerprint in self._database.execute("SELECT id, fingerprint FROM calls WHERE repair = 0"):
            if (now := asked.get(id)) != fingerprint:
                what = "other prompts or settings than" if now else "no such request now, expected that"
                raise ValueError(f"{self.path}: {id}: found {what} in the journal; name another folder")

    def _begin(self, plan: Mapping[str, str], requests: Sequence[Request]) -> None:
        """Begins the journal, or goes on with it."""
        self.check(plan, requests)
        known = {row[0] for row in self._database.execute("SELECT id FROM calls WHERE repair = 0")}
        with self.together():
            self._database.executemany("INSERT OR IGNORE INTO plan VALUES (?, ?)", plan.items())
            self.add([request for request in requests if request.id not in known])


def split_repair(id: str) -> tuple[str, int]:
    """The id of the request that a call belongs to, and which repair it is; 0 for the request's own call."""
    request, found, number = id.rpartition(REPAIR)
    return (request, int(number)) if found and number.isdigit() else (id, 0)


@contextmanager
def opened(folder: Path, plan: Mapping[str, str], requests: Sequence[Request]) -> Iterator[Journal]:
    """The journal of a folder, to be changed by this process alone; begun where there is none.

    Args:
        plan: What makes answers comparable (the model, digests of the sources), by name.
        requests: All of them; the journal gets those that it does not know.

    Raises:
        ValueError: Another process holds it, it was begun for another plan, or is no journal.
    """
    for request in requests:
        if REPAIR in request.id:
            raise ValueError(f"{request.id}: found '{REPAIR}' in an id, expected it of repairs alone")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder), connected(folder / FILE, "rwc") as database:
        if not version(database):
            database.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
        journal = Journal(folder / FILE, database)
        journal._begin(plan, requests)
        journal._recover()
        yield journal


@contextmanager
def read(folder: Path) -> Iterator[Journal]:
    """The journal of a folder as it stands, while another process may add to it.

    Raises:
        ValueError: There is none.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder}: found no {FILE}, expected a folder that mllm synthesize wrote")
    with connected(path, "rw") as database:
        if not version(database):
            raise ValueError(f"{path}: found an empty file, expected a journal")
        yield Journal(path, database)


def _reserved(tokens: Tokens) -> dict[str, int]:
    return {"reserved_prompt": tokens.prompt, "reserved_completion": tokens.completion}


def _answered(answer: Answer) -> dict[str, object]:
    used = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    return {"text": answer.text, "model": answer.model, **used}


def _attempt(row: Sequence[Any]) -> Attempt:
    id, state, text, model, prompt, completion, turns, reason_kind, reason, failures = row
    used = {"prompt_tokens": prompt, "completion_tokens": completion}
    return Attempt(
        id=id,
        state=state,
        answer=None if text is None else Answer(text=text, model=model, **used),
        turns=tuple(Turn(role=role, text=said) for role, said in cast(Any, json.loads(turns or "[]"))),
        reason_kind=reason_kind,
        reason=reason,
        failures=failures,
    )
