"""One download from a public address: what is dialled is the address that was checked, at every redirect anew.

https://host/a.jpg --resolver--> addresses, all public? --> a connection to the first of them that answers
                                                             (TLS and `Host:` with the name of the host)
        redirect  --> the same again                         body: at most so many bytes in so many seconds
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from data_modules.web.addresses import is_public, resolved

REDIRECTS = 5
CHUNK = 1 << 16
HEADERS = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "lightning-mllm",
    "Connection": "close",
}
PORTS = {"http": 80, "https": 443}
LONGEST = 4096
"""Characters of an address."""
Result = TypeVar("Result")


def _dialled(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a download may be, and how long it may take in all."""

    max_bytes: int = 20 * 2**20
    seconds: float = 20.0


@dataclass(frozen=True, kw_only=True)
class Web:
    """The internet, as downloads see it.

    Args:
        resolve: host and port -> addresses.
        dial: address, port and seconds -> a connected socket.
        tls: whom `https` trusts.
    """

    resolve: Callable[[str, int], list[str]] = resolved
    dial: Callable[[str, int, float], socket.socket] = _dialled
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)


@cache
def _internet() -> Web:
    return Web()


def shown(url: str) -> str:
    """An address as messages may say it: no user, no query, which may hold a secret, but a digest of both."""
    known = url.encode(errors="replace")
    hidden = f"?({hashlib.blake2b(known, digest_size=4).hexdigest()})"
    try:
        parts = urlsplit(known.decode())
        parts.port  # noqa: B018  # a password with a slash would stand where a port does
    except ValueError:
        return hidden
    host = (parts.netloc.rpartition("@")[2] or parts.netloc)[:200]
    return f"{parts.scheme}://{host}{parts.path[:200]}{hidden if parts.query or '@' in parts.netloc else ''}"


def checked_url(url: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of an address.

    Raises:
        ValueError: it is none, or of another scheme.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("found an address whose host or port cannot be read") from None
    if parts.scheme not in schemes:
        raise ValueError(f"found an address of '{parts.scheme[:20]}', expected {' or '.join(schemes)}")
    if len(url) > LONGEST or not parts.hostname or parts.username is not None or port == 0:
        raise ValueError(f"found an address without a host, with a user or of more than {LONGEST} characters")
    if port is not None and port < 1024 and port not in PORTS.values():
        raise ValueError(f"found an address with port {port}, expected 80, 443 or one from 1024 on")
    if any(ord(letter) < 33 or ord(letter) == 127 or "\ud800" <= letter <= "\udfff" for letter in url) or "\\" in url:
        raise ValueError("found an address with a blank, a control character or a backslash, expected none")
    return parts


def download(
    url: str, limits: Limits = Limits(), web: Web | None = None, schemes: tuple[str, ...] = ("https",)
) -> bytes:
    """The body at an address.

    Raises:
        ValueError: the address, or one that it redirects to, is of another scheme or not public; the body is too large
            or packed, takes too long, or there is none. The sentence does not name the address.
    """
    web, end = web or _internet(), time.monotonic() + limits.seconds
    for _ in range(REDIRECTS + 1):
        parts = checked_url(url, schemes)
        connection = _connected(parts, web, end, limits)
        # Whatever waits for the server, be it for the next byte of a header: at the end the connection is shut.
        watch = threading.Timer(max(0.0, end - time.monotonic()), _shut, [connection.sock])
        watch.daemon = True
        watch.start()
        try:
            with closing(connection):
                found = _answer(connection, parts, limits.max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= end:
                raise _late(limits) from None
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"found no answer of HTTP ({_reason(error)})") from None
        finally:
            watch.cancel()
        if time.monotonic() >= end:
            raise _late(limits)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise ValueError(f"found more than {REDIRECTS} redirects, expected no more")


def _late(limits: Limits) -> ValueError:
    return ValueError(f"found no whole answer in {limits.seconds:g} seconds, expected one")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:120].strip()


def _connected(parts: SplitResult, web: Web, end: float, limits: Limits) -> http.client.HTTPConnection:
    """A connection to an address of the host; all that it has must be public."""
    host, port = _ascii(parts.hostname or ""), parts.port or PORTS[parts.scheme]
    addresses = _in_time(lambda: web.resolve(host, port), end, limits)
    if wrong := [each for each in addresses if not is_public(each)]:
        raise ValueError(f"found a host at {wrong[0]}, expected public addresses alone")
    if not addresses:
        raise ValueError("found a host without an address")
    problem: Exception = OSError("no address")
    for k, address in enumerate(addresses):
        left = end - time.monotonic()
        if left <= 0:
            raise _late(limits)
        try:
            dialled = web.dial(address, port, left / (len(addresses) - k))
        except OSError as error:
            problem = error
            continue
        dialled.settimeout(left)
        connection = http.client.HTTPConnection(host, port, timeout=left)
        connection.sock, connection.auto_open = dialled, 0
        connection.default_port = PORTS[parts.scheme]
        if parts.scheme == "https":
            try:
                connection.sock = _in_time(partial(_secured, web, dialled, host), end, limits)
            except BaseException:
                dialled.close()
                raise
        return connection
    raise ValueError(f"found no connection ({_reason(problem)})")


def _secured(web: Web, dialled: socket.socket, host: str) -> socket.socket:
    return web.tls.wrap_socket(dialled, server_hostname=host)


def _ascii(host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"found a host that is no name ({_reason(error)})") from None


def _in_time(work: Callable[[], Result], end: float, limits: Limits) -> Result:
    """`work()`, done in a thread of its own that is left alone when the time is up: a resolver has no time-out."""
    found: list[Result | Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    if not found:
        raise _late(limits)
    result = found[0]
    if isinstance(result, Exception):
        raise ValueError(f"found no host or no trusted server ({_reason(result)})") from None
    return result


def _shut(sock: socket.socket) -> None:
    """Ends what waits for a socket; `HTTPConnection` forgets its own while the body is still read from it."""
    with suppress(OSError):  # it is closed
        sock.shutdown(socket.SHUT_RDWR)


def _answer(connection: http.client.HTTPConnection, parts: SplitResult, max_bytes: int) -> bytes | str:
    """The body, or where a redirect leads."""
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
    sock = connection.sock
    connection.request("GET", path + query, headers=HEADERS)
    assert connection.sock is sock, "no other connection is made"
    answer = connection.getresponse()
    if answer.status in (301, 302, 303, 307, 308):
        if (to := answer.getheader("Location")) is None:
            raise ValueError(f"found a redirect ({answer.status}) to nowhere")
        return to
    if answer.status != 200:
        raise ValueError(f"found the answer {answer.status}, expected 200")
    if (packed := answer.getheader("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
        raise ValueError(f"found a body packed as {packed[:20]!r}, expected it as it is")
    if answer.headers.get_content_type() == "text/html":
        raise ValueError("found a page of HTML, expected a picture")
    if (told := answer.length) is not None and told > max_bytes:
        raise ValueError(f"found {told} bytes, expected at most {max_bytes}")
    body = bytearray()
    while piece := answer.read(CHUNK):
        body += piece
        if len(body) > max_bytes:
            raise ValueError(f"found more than {max_bytes} bytes, expected no more")
    if told is not None and len(body) < told:
        raise ValueError(f"found {len(body)} bytes of {told}, expected all of them")
    return bytes(body)
