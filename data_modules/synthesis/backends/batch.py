"""OpenAI's batch files: requests in shards of JSONL to upload, and the result and error files that come back.

`write` puts what is pending into files and `read` takes results in any order, of some of the files or of all, as often
as one likes: an answer is stored once. Between the two a call is 'written' and no other backend asks it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_modules.synthesis.backends.completion import answer_of, body_of, failure_of
from data_modules.synthesis.budget import Budget, Tokens
from data_modules.synthesis.journal import Journal, split_repair
from data_modules.synthesis.request import Answer, Refused, Request, Retry, Stop
from data_modules.synthesis.runner import Content, Limits, ask_again, judge

MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
"""Of one file, as OpenAI's Batch API takes it."""
TOGETHER = 1000
"""Lines that are stored in one transaction."""
URL = "/v1/chat/completions"


def write(
    journal: Journal,
    content: Content,
    budget: Budget,
    model: str,
    limit: str,
    repairs: int,
    most_requests: int = MOST_REQUESTS,
    most_bytes: int = MOST_BYTES,
) -> tuple[list[Path], int]:
    """Writes what is pending into files of the folder `batches/`, as far as the budget reaches.

    A request whose picture cannot be sent is refused.

    Args:
        limit: As in `body_of`.
        repairs: As in `Limits`.

    Returns:
        The files, and how many calls the budget left out.

    Raises:
        ValueError: A request alone is larger than a file may be.
    """
    ask_again(journal, content, repairs)
    budget.spent, budget.reserved = journal.spent, journal.written
    known = {request.id: request for request in content.requests}
    number, pending = journal.batches + 1, journal.ids("pending")
    folder = journal.path.with_name("batches")
    folder.mkdir(exist_ok=True)
    shards = _Shards(folder, number, most_requests, most_bytes)
    with journal.together():
        left = len(pending)
        for id in pending:
            request = content.request(journal, id, known)
            tokens = budget.most(request)
            if not budget.fits(tokens):
                break
            left -= 1
            try:
                line = _line(request, model, limit)
            except ValueError as error:  # Of a picture; the others are written.
                journal.put_in_batch(id, Tokens(), number)
                journal.failed(id, str(error), last=True)
                continue
            budget.reserve(tokens)
            shards.add(line)
            journal.put_in_batch(id, tokens, number)
        # Before the journal says so: killed between the two, the same files are written again.
        paths = shards.close()
    return paths, left


class _Shards:
    """Lines in files below a size, which have their names once they are whole."""

    def __init__(self, folder: Path, number: int, most_requests: int, most_bytes: int) -> None:
        self.folder, self.number = folder, number
        self.most_requests, self.most_bytes = most_requests, most_bytes
        self.paths: list[Path] = []
        self.lines = self.bytes = 0

    def add(self, line: bytes) -> None:
        if len(line) > self.most_bytes:
            raise ValueError(
                f"batch: a request has {len(line)} bytes, expected at most the {self.most_bytes} of a file"
            )
        if not self.paths or self.lines == self.most_requests or self.bytes + len(line) > self.most_bytes:
            self.paths.append(self.folder / f"requests-{self.number}-{len(self.paths) + 1:04d}.jsonl")
            self.lines = self.bytes = 0
        with _partial(self.paths[-1]).open("ab" if self.lines else "wb") as file:
            file.write(line)
        self.lines, self.bytes = self.lines + 1, self.bytes + len(line)

    def close(self) -> list[Path]:
        """Their paths, under which they are found from now on."""
        for path in self.paths:
            _partial(path).replace(path)
        return self.paths


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _line(request: Request, model: str, limit: str) -> bytes:
    body = {"custom_id": request.id, "method": "POST", "url": URL, "body": body_of(request, model, limit)}
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def read(journal: Journal, content: Content, files: Sequence[Path], limits: Limits) -> Counter[str]:
    """Stores the results of batch files: result and error files, in any order.

    Returns:
        What lines brought: 'accepted', 'rejected', 'failed' (pending again), 'refused', 'known already', 'no JSON'
        (a line that is cut); and 'missing', calls in batch files of which no file of results has told so far.

    Raises:
        ValueError: A file is no result of this folder's requests; names file and line. Nothing is stored then.
    """
    known = {request.id: request for request in content.requests}
    asked = journal.every
    for path in files:
        for where, line in _lines(path):
            id = _id(where, line)
            if id is not None and id not in asked:
                raise ValueError(f"{where}: found custom_id '{id}', expected one of {journal.path.parent}")
    told: Counter[str] = Counter()
    lines = (each for path in files for each in _lines(path))
    done = False
    while not done:
        with journal.together():
            for _ in range(TOGETHER):
                if (found := next(lines, None)) is None:
                    done = True
                    break
                told[_store(journal, content, known, *found, limits)] += 1
    told["missing"] = len(journal.ids("written"))
    return told


def _lines(path: Path) -> Iterator[tuple[str, object]]:
    """Place and content of each line; None as content of one that is no JSON, as the last of a cut file."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except (ValueError, RecursionError):
                    yield f"{path}:{number}", None


def _id(where: str, line: object) -> str | None:
    if line is None:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str) or "response" not in line:
        raise ValueError(f"{where}: found no custom_id and response, expected a line of a batch's results")
    return line["custom_id"]


def _store(
    journal: Journal, content: Content, known: dict[str, Request], where: str, line: object, limits: Limits
) -> str:
    """Stores one line, and says what it brought."""
    id = _id(where, line)
    if id is None:
        return "no JSON"
    if journal.state(id) != "written":
        return "known already"
    assert isinstance(line, dict), "others have no id"
    try:
        judge(journal, content, known[split_repair(id)[0]], id, _answer(line), limits.repairs)
    except (Retry, Refused) as why:
        failures = journal.failures(id) + 1
        last = isinstance(why, Refused) or failures > limits.retries
        journal.failed(id, why.reason, paid=why.paid, last=last)
    state = journal.state(id)
    return "failed" if state == "pending" else state


def _answer(line: dict[str, Any]) -> Answer:
    """The answer of a line.

    Raises:
        Retry: It may be asked again: an error of the endpoint, no quota, an expired batch.
        Refused: It may not.
    """
    response, error = line["response"], line.get("error")
    if not isinstance(response, dict):
        told = error.get("message") or error.get("code") if isinstance(error, dict) else error
        raise Retry(f"found no response: {str(told)[:160]}")
    status, body = response.get("status_code"), json.dumps(response.get("body"))
    if status == 200:
        return answer_of(body)
    failure = failure_of(status if isinstance(status, int) else 500, body, {})
    if isinstance(failure, Stop):
        # Of a batch, a line tells of its own request alone; a key or a quota can be mended.
        failure = Refused(failure.reason) if status == 400 else Retry(failure.reason)
    raise failure
