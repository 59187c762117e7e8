"""The address of a client, behind trusted proxies too."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice

from starlette.datastructures import Headers
from starlette.types import Scope

MAX_PROXIES = 16
"""Maximum proxies in a row; a header of a client may name thousands."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

IPV6_PREFIX_BITS = 64
"""Length of the prefix that one client has; it may use any address in it."""


def client_address(scope: Scope, trusted: Sequence[Network]) -> str:
    """The address that limits count: an IPv4 address, the /64 network of an IPv6 address, or "" if it is unknown.

    That of the peer, or, where `trusted` names the peer, the last one of `X-Forwarded-For` that `trusted` does not name. What
    comes before that one could be invented by the client.
    """
    peer = scope.get("client")
    address = _parsed(peer[0]) if peer else None
    if address is None:
        return ""
    for hop in islice(_hops(Headers(scope=scope)), MAX_PROXIES):
        if not any(address in network for network in trusted):
            break
        before = _parsed(hop)
        if before is None:
            break
        address = before
    return str(address) if address.version == 4 else str(ip_network((int(address), IPV6_PREFIX_BITS), strict=False))


def _hops(headers: Headers) -> Iterator[str]:
    """The addresses in `X-Forwarded-For`, the last one first."""
    for value in reversed(headers.getlist("x-forwarded-for")):
        yield from reversed(value.split(","))


def _parsed(text: str) -> Address | None:
    """An address, with a port or without; IPv4 written as IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
