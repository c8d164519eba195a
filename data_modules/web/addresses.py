"""Which addresses are public: a list of pictures from outside must not reach machines of our own network."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
COMPATIBLE = ipaddress.IPv6Network("::/96")
LOCAL = (ipaddress.IPv6Network("64:ff9b:1::/48"), ipaddress.IPv6Network("fec0::/10"))
"""NAT64 of a network's own, and addresses of a site: older versions of `ipaddress` take them for global."""
SERVICES = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("168.63.129.16/32"))
"""Protocol assignments, which older versions take for global in part, and what Azure gives its machines data by."""


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a host by the machine's resolver; also of those written as numbers (`127.1`, `0x7f000001`).

    Raises:
        OSError: there is none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def is_public(text: str) -> bool:
    """Whether a resolved address is one of the public internet, and every IPv4 address that it stands for."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    inside = list(_inside(address))
    return all(map(_is_global, inside)) and (_written_otherwise(address) or _is_global(address))


def _is_global(address: Address) -> bool:
    refused = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    refused = (
        refused or address.is_reserved or address.is_unspecified or any(address in each for each in (*LOCAL, *SERVICES))
    )
    return address.is_global and not refused


def _written_otherwise(address: Address) -> bool:
    """Whether an IPv6 address is but another way to write an IPv4 address, which is asked for itself."""
    return isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or address in NAT64)


def _inside(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses inside of an IPv6 one: mapped, compatible, NAT64, 6to4, Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address in NAT64 or address in COMPATIBLE:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
