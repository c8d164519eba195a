"""Whether W&B is asked for, and what is said of a server that is no help."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lightning_mllm.training.loggers.wandb_account import Account, account, trouble

KNOWN = b'{"data": {"viewer": {"id": "one"}}}'
KEY = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def server(*statuses: int | None, body: bytes = b"{}") -> Iterator[str]:
    """Answers with one status after the other, then ever with the last one; None never answers. Gives its address."""
    done, rest = threading.Event(), list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = rest.pop(0) if len(rest) > 1 else rest[0]
            if status is None:
                done.wait(20)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        done.set()
        running.shutdown()
        running.server_close()
        thread.join()


def of(address: str, key: str = KEY) -> Account:
    return Account(server=address, key=key, mode="online")


def test_a_server_that_answers_and_knows_the_key_is_no_trouble() -> None:
    with server(200, body=KNOWN) as address:
        assert trouble(of(address), 20) == ""
        assert trouble(of(address, key=""), 20) == f"found no key for {of(address).host}"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, b"{}", "refuses the key"),
        (403, b"{}", "refuses the key"),
        (500, b"{}", "answers with error 500"),
        (200, b'{"data": {"viewer": null}}', "does not know the key"),
        (200, b'{"data": ["viewer"]}', "does not know the key"),
        (200, b"<html>sign in to the network</html>", "no answer from"),
        (None, b"", "no answer from"),
    ],
)
def test_a_server_that_is_no_help(status: int | None, body: bytes, told: str) -> None:
    with server(status, body=body) as address:
        found = trouble(of(address), 0.3 if status is None else 20)
    assert told in found and of(address).host in found
    assert KEY not in found


def test_a_server_of_another_protocol(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail.example.org\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        assert "(BadStatusLine)" in trouble(of(f"http://127.0.0.1:{listening.getsockname()[1]}"), 20)
        thread.join()
    assert capfd.readouterr().err == "", "no traceback of a thread"


def test_the_key_does_not_go_where_a_server_redirects_to() -> None:
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(dict(self.headers))
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert "answers with error 404" in trouble(of(f"http://127.0.0.1:{running.server_address[1]}"), 20)
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
    assert ["Authorization" in each for each in asked] == [True, False]


def test_nobody_there() -> None:
    with server(500) as address:
        pass
    assert "no answer from" in trouble(of(address), 20)


def test_a_server_that_dawdles_costs_what_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    ever = threading.Event()

    def dawdle(*_: object, **__: object) -> None:
        ever.wait(20)
        raise OSError("no such name")

    monkeypatch.setattr("urllib.request.urlopen", dawdle)  # as a name that nobody knows
    began = time.monotonic()
    assert trouble(of("http://nowhere.invalid"), 0.2).startswith("no answer from nowhere.invalid in")
    assert time.monotonic() - began < 15
    ever.set()


def test_what_asks_for_it(tmp_path: Path) -> None:
    none = {"WANDB_CONFIG_DIR": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    assert not account(none).is_asked_for
    assert account({**none, "WANDB_API_KEY": KEY}).is_asked_for
    assert account({**none, "WANDB_MODE": "offline"}).is_asked_for
    assert not account({**none, "WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}).is_asked_for
    (tmp_path / "netrc").write_text(f"machine wandb.example login user password {KEY}\n")
    assert not account(none).is_asked_for
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
    found = account(none)
    assert found.is_asked_for and found.key == KEY and found.host == "wandb.example" and KEY not in repr(found)
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example\nmode = disabled\n")
    assert not account(none).is_asked_for
    with pytest.raises(ValueError, match="WANDB_MODE: found 'on', expected one of online"):
        account({**none, "WANDB_MODE": "on"})
