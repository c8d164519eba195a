"""A stand-in for the internet: names and public addresses that lead to a server on this machine, and a private one."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from data_modules.web.addresses import resolved
from data_modules.web.download import Web

PUBLIC = "93.184.216.34"
BODY = b"the picture"


@dataclass
class Standing:
    """A listening socket; each connection is answered by its path, and counted."""

    listening: socket.socket
    connections: int = 0
    asked: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listening.getsockname()[1]


def answer(path: str) -> Iterator[bytes]:
    """What the public server says to a path, piece by piece."""
    ok = b"HTTP/1.1 200 OK\r\n"
    name, _, rest = path.partition("?")[0].strip("/").partition("/")
    if name == "to":
        yield f"HTTP/1.1 302 Found\r\nLocation: {rest.replace('~', '/')}\r\n\r\n".encode()
    elif name == "picture":
        yield ok + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    elif name == "chunked":
        yield ok + b"Transfer-Encoding: chunked\r\n\r\n4\r\nthe \r\n7\r\npicture\r\n0\r\n\r\n"
    elif name == "endless":
        yield ok + b"\r\n"
        while True:
            yield bytes(1 << 16)
    elif name == "told":
        yield ok + b"Content-Length: 99999999999\r\n\r\n"
    elif name == "short":
        yield ok + b"Content-Length: 50\r\n\r\nno"
    elif name == "drip":
        yield ok + b"Content-Length: 50\r\n\r\n"
        while True:
            yield b"."
    elif name == "drip-to-the-end":
        yield ok + b"Connection: close\r\n\r\n"
        while True:
            yield b"."
    elif name == "page":
        yield ok + b"Content-Type: text/html; charset=utf-8\r\nContent-Length: 4\r\n\r\nsoon"
    elif name == "dripping-header":
        yield ok
        while True:
            yield b"X"
    elif name == "huge-header":
        yield ok + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n"
    elif name == "many-headers":
        yield ok + b"X-A: a\r\n" * 100_000 + b"\r\n"
    elif name == "gzip":
        packed = gzip.compress(bytes(50_000_000), 1)
        yield ok + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    elif name == "silent":
        while True:
            yield b""
    elif name == "no-http":
        yield b"SSH-2.0-OpenSSH\r\n"
    else:
        yield b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def _serve(standing: Standing, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            connection, _ = standing.listening.accept()
        except OSError:
            return
        standing.connections += 1
        threading.Thread(target=_say, args=(standing, connection, stop), daemon=True).start()


def _say(standing: Standing, connection: socket.socket, stop: threading.Event) -> None:
    with connection, suppress(OSError, IndexError, ValueError):
        asked = connection.recv(1 << 16)
        standing.asked.append(asked)
        for piece in answer(asked.split()[1].decode()):
            connection.sendall(piece)
            if len(piece) < 2 and stop.wait(0.05):
                return


@contextmanager
def standing(host: str = "127.0.0.1") -> Iterator[Standing]:
    stop = threading.Event()
    with socket.create_server((host, 0)) as listening:
        server = Standing(listening)
        threading.Thread(target=_serve, args=(server, stop), daemon=True).start()
        yield server
        stop.set()
        listening.shutdown(socket.SHUT_RDWR)


class Names:
    """A resolver of made-up names; the others must be numbers, so that no name is asked outside."""

    def __init__(self, **names: list[list[str]]) -> None:
        self.names = {name.replace("_", "."): list(answers) for name, answers in names.items()}

    def __call__(self, host: str, port: int) -> list[str]:
        if host in self.names:
            answers = self.names[host]
            return answers.pop(0) if len(answers) > 1 else answers[0]
        if host == "localhost" or not any(letter in "ghijklmnopqrstuvwyz" for letter in host):
            return resolved(host, port)
        raise socket.gaierror(f"no host {host}")


def web_of(server: Standing, names: Names, dialled: list[str]) -> Web:
    """The made-up internet: the public address leads to the server, every other one where it says."""

    def dial(address: str, port: int, seconds: float) -> socket.socket:
        dialled.append(address)
        there = ("127.0.0.1", server.port) if address == PUBLIC else (address, port)
        return socket.create_connection(there, timeout=seconds)

    return Web(resolve=names, dial=dial)
