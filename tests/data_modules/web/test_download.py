"""No list of pictures reaches a private machine, by whichever spelling or redirect, nor keeps a worker waiting."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from data_modules.web.addresses import is_public
from data_modules.web.download import Limits, Web, checked_url, download, shown
from tests.data_modules.web.servers import BODY, PUBLIC, Names, Standing, standing, web_of

BOTH = ("http", "https")
PRIVATE = {
    "loopback": "http://127.0.0.1:{p}/a.jpg",
    "its name": "http://localhost:{p}/a.jpg",
    "metadata of clouds": "http://169.254.169.254/latest/meta-data/",
    "10/8": "http://10.0.0.1/a.jpg",
    "172.16/12": "http://172.16.9.9/a.jpg",
    "192.168/16": "http://192.168.1.1/a.jpg",
    "100.64/10": "http://100.64.0.1/a.jpg",
    "IPv6 loopback": "http://[::1]:{p}/a.jpg",
    "mapped": "http://[::ffff:127.0.0.1]:{p}/a.jpg",
    "mapped, in hex": "http://[::ffff:7f00:1]:{p}/a.jpg",
    "compatible": "http://[::7f00:1]:{p}/a.jpg",
    "NAT64": "http://[64:ff9b::7f00:1]:{p}/a.jpg",
    "6to4": "http://[2002:7f00:1::]:{p}/a.jpg",
    "Teredo": "http://[2001:0:5db8:d822:0:0:80ff:fffe]:{p}/a.jpg",
    "link-local": "http://[fe80::1]:{p}/a.jpg",
    "unique local": "http://[fc00::1]:{p}/a.jpg",
    "decimal": "http://2130706433:{p}/a.jpg",
    "hex": "http://0x7f000001:{p}/a.jpg",
    "octal": "http://0177.0.0.1:{p}/a.jpg",
    "short": "http://127.1:{p}/a.jpg",
    "zero": "http://0:{p}/a.jpg",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:{p}/a",
    "a user in front": "http://public.test@127.0.0.1:{p}/a.jpg",
    "one of two addresses": "http://mixed.test:{p}/a.jpg",
    "rebound at the redirect": "http://rebound.test:{p}/to/http:~~rebound.test:{p}~a.jpg",
    "redirect to loopback": "http://public.test/to/http:~~127.0.0.1:{p}~a.jpg",
    "redirect to decimal": "http://public.test/to/http:~~2130706433:{p}~a.jpg",
    "redirect to a file": "http://public.test/to/file:~~~etc~passwd",
    "redirect to metadata": "http://public.test/to/http:~~169.254.169.254~latest",
    "two redirects": "http://public.test/to/http:~~public.test~to~http:~~127.0.0.1:{p}~a.jpg",
}
assert len(PRIVATE) >= 25


@pytest.fixture
def servers() -> Iterator[tuple[Standing, Standing, Web, list[str]]]:
    """The public server, the private one, the internet, and which addresses were dialled."""
    dialled: list[str] = []
    with ExitStack() as held:
        public, private = (held.enter_context(standing()) for _ in range(2))
        names = Names(
            public_test=[[PUBLIC]], mixed_test=[[PUBLIC, "127.0.0.1"]], rebound_test=[[PUBLIC], ["127.0.0.1"]]
        )
        yield public, private, web_of(public, names, dialled), dialled


@pytest.mark.fault
def test_no_private_machine_is_reached(servers: Any, fault_row: Callable[[str, str, str], None]) -> None:
    public, private, web, dialled = servers
    for name, url in PRIVATE.items():
        with pytest.raises(ValueError, match=r"^found an? (host at|address) |^found no host") as caught:
            download(url.format(p=private.port), Limits(seconds=5), web, BOTH)
        assert "\n" not in str(caught.value), name
    assert private.connections == 0 and set(dialled) == {PUBLIC} and public.connections == len(dialled)
    fault_row("T22", f"0 of {len(PRIVATE)}", "addresses of private machines that were dialled")


def test_what_is_public_is_dialled_at_the_address_that_was_checked(servers: Any) -> None:
    """A name that leads elsewhere when it is asked again: it is asked once. `Host:` is the name."""
    public, private, web, dialled = servers
    for path in ("picture", "chunked", "to/~picture", "to/http:~~public.test~picture"):
        assert download(f"http://public.test/{path}", web=web, schemes=BOTH) == BODY
    assert download(f"http://rebound.test:{private.port}/picture?a=b%20c", web=web, schemes=BOTH) == BODY
    assert set(dialled) == {PUBLIC} and private.connections == 0
    first, last = public.asked[0], public.asked[-1]
    assert b"\r\nHost: public.test\r\n" in first and b"\r\nAccept-Encoding: identity\r\n" in first
    assert last.startswith(b"GET /picture?a=b%20c HTTP/1.1\r\n") and f"rebound.test:{private.port}".encode() in last


ENDLESS = {
    "endless": "found more than 1000000 bytes, expected no more",
    "told": "found 99999999999 bytes, expected at most 1000000",
    "short": r"found .*bytes|found no answer of HTTP",
    "drip": "found no whole answer in 0.5 seconds",
    "drip-to-the-end": "found no whole answer in 0.5 seconds",
    "page": "found a page of HTML, expected a picture",
    "dripping-header": "found no whole answer in 0.5 seconds",
    "silent": "found no whole answer in 0.5 seconds",
    "huge-header": "found no answer of HTTP",
    "many-headers": "found no answer of HTTP",
    "gzip": "found a body packed as 'gzip', expected it as it is",
    "no-http": "found no answer of HTTP",
    "gone": "found the answer 404, expected 200",
}


@pytest.mark.fault
@pytest.mark.parametrize("path", ENDLESS)
def test_no_server_keeps_a_worker(path: str, servers: Any, fault_row: Callable[[str, str, str], None]) -> None:
    _, _, web, _ = servers
    began = time.monotonic()
    with pytest.raises(ValueError, match=ENDLESS[path]):
        download(f"http://public.test/{path}", Limits(max_bytes=1_000_000, seconds=0.5), web, BOTH)
    assert time.monotonic() - began < 5, "the time of a download has an end"
    fault_row("T22", "1 of 1", f"server '{path}': one sentence, in bounded time and bytes")


def test_redirects_resolvers_and_servers_without_an_end(servers: Any) -> None:
    _, _, web, dialled = servers
    circle = Web(resolve=web.resolve, dial=web.dial)
    with pytest.raises(ValueError, match=r"^found more than 5 redirects"):
        download("http://public.test/to/", web=circle, schemes=BOTH)
    assert len(dialled) == 6
    slow = Web(resolve=lambda host, port: time.sleep(3) or [PUBLIC], dial=web.dial)
    with pytest.raises(ValueError, match=r"^found no whole answer in 0.1 seconds"):
        download("http://public.test/", Limits(seconds=0.1), slow, BOTH)
    with pytest.raises(ValueError, match=r"^found no host or no trusted server \(gaierror"):
        download("http://nowhere.test/", web=web, schemes=BOTH)

    def refuses(address: str, port: int, seconds: float) -> socket.socket:
        raise ConnectionRefusedError("refused")

    with pytest.raises(ValueError, match=r"^found no connection \(ConnectionRefusedError refused\)$"):
        download("http://public.test/", web=Web(resolve=web.resolve, dial=refuses), schemes=BOTH)
    with pytest.raises(ValueError, match=r"trusted server \(SSL"):
        download("https://public.test/picture", Limits(seconds=5), web)
    with pytest.raises(ValueError, match=r"^found an address of 'http', expected https$"):
        download("http://public.test/picture", web=web)


@pytest.mark.parametrize(
    "url",
    (
        *("http://", "http://h/a b", "http://h/\n", "http://h:99999/", "http://[1", "h/a.jpg", "http://h\\a", "x" * 9),
        *("http://h:22/", "http://h/\ud800", "http://me:pa/ss@h/a", "http://h\u2100/a"),
    ),
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r"^found an address"):
        download(url, web=Web(resolve=lambda host, port: [], dial=lambda *_: pytest.fail("dialled")), schemes=BOTH)


def test_public_addresses() -> None:
    public = ["8.8.8.8", PUBLIC, "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    private = ["224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.0.1", "192.0.2.1", "::", "ff02::1", "fec0::1"]
    private += ["64:ff9b:1::1", "2001:db8::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1", "nonsense", "1.2"]
    private += ["192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16"]
    assert [each for each in public if not is_public(each)] == []
    assert [each for each in private if is_public(each)] == []


def test_no_secret_is_shown() -> None:
    assert shown("https://h.test/a.jpg") == "https://h.test/a.jpg"
    for url in ("https://[1/secret", "https://h\u2100/secret", "https://me:secret/secret@h.test/a.jpg"):
        assert shown(url).startswith("?("), "nothing of an address that cannot be read"
        with pytest.raises(ValueError, match=r"^found an address whose host or port cannot be read$"):
            checked_url(url, BOTH)
    one, other = (shown(f"https://me:pass@h.test/a.jpg?signature={secret}") for secret in ("abc", "abd"))
    assert one.startswith("https://h.test/a.jpg?(") and one != other and "abc" not in one and "pass" not in one
