"""A chat endpoint on loopback that answers, or fails in every way that was seen of endpoints; and a plan to ask it.

The text of an answer is a function of the request's id, so that one that is cut or of another request is seen.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from data_modules.synthesis.request import Context, Message, Rejected, Request
from data_modules.synthesis.runner import Content
from lightning_mllm.contracts import Turn

KEY = "sk-canary-0123456789abcdef"
STOPS = ("401", "400", "quota 429")
"""Faults after which no call can succeed."""
FAULTS = (
    "401",
    "429 short",
    "429 long",
    "500",
    "reset",
    "timeout",
    "400",
    "truncated JSON",
    "HTML",
    "{}",
    "error in 200",
    "null content",
    "quota 429",
    "no choices",
    "length",
    "cut stream",
    "cut events",
)
PASSING = tuple(fault for fault in FAULTS if fault not in STOPS)
LONG = 120
"""Seconds of the long Retry-After."""


def text_of(id: str) -> str:
    """The one complete answer of a request."""
    digest = hashlib.sha256(id.encode()).hexdigest()
    return f"A picture of {id}: " + " ".join([digest[:9]] * 20) + f" {digest}."


def requests(count: int) -> list[Request]:
    """A plan of so many requests."""
    return [
        Request(
            id=f"{number:04d}/detail",
            kind="detail",
            image=f"{number:04d}.jpg",
            messages=(Message("system", "Describe the picture."), Message("user", f"request {number:04d}/detail")),
            context=Context(captions=(f"A picture {number}.",), boxes=(), width=4, height=3),
            max_tokens=200,
            temperature=0.7,
        )
        for number in range(count)
    ]


def check(request: Request, text: str) -> Sequence[Turn]:
    """Takes what is whole."""
    if text != text_of(request.id):
        raise Rejected("format", "found another answer")
    return [Turn(role="user", text="What is it?"), Turn(role="assistant", text=text)]


def repair(request: Request, text: str, why: Rejected) -> tuple[Message, ...]:
    """The whole talk and the reason."""
    return (*request.messages, Message("assistant", text), Message("user", f"{why.sentence}; again"))


def content(count: int) -> Content:
    """A plan whose checker takes whole answers alone."""
    return Content(requests(count), check, repair)


def planned(id: str, attempt: int) -> str | None:
    """What the faulty server does to the n-th call of a request: the first calls of every second one fail in turn, of
    the further ones some; every fifteenth request fails for ever; keys and quotas fail once and are mended."""
    number = int(id[:4])
    own = random.Random(f"{id}/{attempt}")
    if number % 15 == 14:
        return own.choice(PASSING)
    if attempt == 0 and number < 4 * len(FAULTS):
        return FAULTS[number // 2 % len(FAULTS)] if number % 2 == 0 else None
    return own.choice(PASSING) if own.random() < 0.3 else None


def mended(id: str, attempt: int) -> str | None:
    """As `planned`, but every request is answered at last."""
    return None if attempt > 3 or int(id[:4]) % 15 == 14 else planned(id, attempt)


class Server(ThreadingHTTPServer):
    """Counts what it was asked and what it answered."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fault: Callable[[str, int], str | None], seconds: float, hang: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.seconds, self.hang = fault, seconds, hang
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        """Calls by id."""
        self.paid: Counter[str] = Counter()
        """Complete answers by id."""
        self.faults: Counter[str] = Counter()
        self.flying = self.most_flying = 0
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients leave in tests."""

    def counted(self) -> dict[str, Any]:
        return {"asked": sum(self.asked.values()), "paid": dict(self.paid), "faults": dict(self.faults)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.answer(200, self.server.counted())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server, user = self.server, body["messages"][1]["content"]
        id = (user if isinstance(user, str) else user[-1]["text"]).removeprefix("request ")
        with server.lock:
            server.bodies.append(body)
            fault = server.fault(id, server.asked[id])
            server.asked[id] += 1
            server.faults[fault or "none"] += 1
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
        time.sleep(server.seconds)
        with server.lock:
            server.flying -= 1
        if fault is None:
            with server.lock:
                server.paid[id] += 1
            self.answer(200, completion(text_of(id)))
        else:
            self.fail(fault, text_of(id))

    def fail(self, fault: str, text: str) -> None:
        """Answers in one of the ways of `FAULTS`."""
        error = {"message": f"fault, for key {KEY}", "type": "server_error", "code": None}
        quota = {"error": {**error, "code": "insufficient_quota"}}
        half = json.dumps(completion(text))[:150].encode()
        match fault:
            case "429 short":
                self.answer(429, {"error": error}, {"Retry-After": "0.01"})
            case "429 long":
                self.answer(429, {"error": error}, {"Retry-After": str(LONG)})
            case "quota 429":
                self.answer(429, quota, {"Retry-After": "1"})
            case "500" | "401" | "400":
                self.answer(int(fault), {"error": error})
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            case "timeout":
                time.sleep(self.server.hang)
                self.answer(200, completion(text))
            case "truncated JSON":
                self.answer(200, half)
            case "HTML":
                self.answer(200, b"<html><body>Please log in.</body></html>", {"Content-Type": "text/html"})
            case "{}":
                self.answer(200, {})
            case "error in 200":
                self.answer(200, {"error": error})
            case "null content":
                self.answer(200, completion(None))
            case "no choices":
                self.answer(200, {**completion(text), "choices": []})
            case "length":
                self.answer(200, completion(text[:60], "length"))
            case "cut stream":
                self.answer(200, half, {"Content-Length": str(len(half) + 400)})
                self.close_connection = True
            case "cut events":
                events = b"data: " + json.dumps({"choices": [{"delta": {"content": text[:60]}}]}).encode() + b"\n\n"
                self.answer(200, events, {"Content-Type": "text/event-stream"})
            case _:
                raise AssertionError(fault)

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def completion(text: str | None, reason: str = "stop") -> dict[str, Any]:
    """A body as OpenAI's."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "toy-1", "choices": [choice], "usage": usage}


@contextmanager
def served(
    fault: Callable[[str, int], str | None] = planned, seconds: float = 0.002, hang: float = 0.5
) -> Iterator[Server]:
    """A server in threads of this process.

    Args:
        fault: What it does to the n-th call of an id; None for a complete answer.
        seconds: Until it answers.
        hang: Seconds of a timeout; longer than the client's.
    """
    server = Server(fault, seconds, hang)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
