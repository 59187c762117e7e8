"""Where webhook messages may go.

The URL is a client's, and the server may reach what the client may not: the machines beside it, the metadata service of a cloud.
So targets are public addresses, and the hosts that the operator has listed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx2

from serve_app.errors import RequestError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_CHARS = 2048

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_MAX_NAME_CHARS = 253

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_SPECIAL = (
    # What some of the supported Pythons call global: IETF protocols, the 6to4 relays, documentation.
    *(IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("2001::/23"), IPv6Network("3fff::/20")),
    # On a machine at Azure, its host.
    IPv4Network("168.63.129.16/32"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that has the form of a target."""

    url: httpx2.URL
    host: str
    """An IP address, or a name in ASCII and lower case, without a final dot."""
    port: int

    @property
    def address(self) -> Address | None:
        """None: the host is a name."""
        return _address(self.host)


@dataclass(frozen=True, slots=True)
class WebhookTargets:
    """Tells what may be a target: what is public, and the hosts here."""

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    """With the leading dot."""
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, hosts: Iterable[str]) -> "WebhookTargets":
        """From host names, patterns `*.suffix` (any subdomain, not the name itself), IP addresses and networks. Raises
        ValueError."""
        names, suffixes, networks = set[str](), list[str](), list[Network]()
        for host in hosts:
            if "/" in host or _address(host) is not None:
                networks.append(ip_network(host))
            elif host.startswith("*."):
                suffixes.append("." + _listed_name(host[2:]))
            else:
                names.add(_listed_name(host))
        return cls(frozenset(names), tuple(suffixes), tuple(networks))

    def target(self, url: str) -> Target:
        """Raises RequestError if the URL cannot be a target, whatever the name in it stands for."""
        if len(url) > MAX_URL_CHARS:
            raise _refusal(f"`webhook_url` has more than {MAX_URL_CHARS} characters.")
        try:
            parsed = httpx2.URL(url)
            if parsed.scheme not in _DEFAULT_PORTS:
                raise _refusal("`webhook_url` must begin with `https://` or `http://`.")
            port = _DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
            target = Target(parsed, _host(parsed), port)
        except (httpx2.InvalidURL, ValueError):
            raise _refusal("`webhook_url` is not a valid URL.") from None
        if not 0 < port < 65536:
            raise _refusal("`webhook_url` has a port that does not exist.")
        if parsed.userinfo:
            raise _refusal("`webhook_url` may have no user name or password.")
        if target.address is not None:
            self.check(target, [target.address])
        return target

    def check(self, target: Target, addresses: Iterable[Address]) -> None:
        """Raises RequestError unless every one of the target's addresses may be connected to."""
        if target.host in self.names or target.host.endswith(self.suffixes):
            return
        if not all(is_public(address) or self._has(address) for address in addresses):
            # Not which one: the names of the inner network are nobody's business.
            raise _refusal("The host of `webhook_url` is not on the public internet, and not in `jobs.webhook_hosts`.")

    def _has(self, address: Address) -> bool:
        forms = [form for form in (address, embedded_ipv4(address)) if form is not None]
        return any(form in network for form in forms for network in self.networks)


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """Where packets to an IPv6 address go that stands for an IPv4 address: mapped, NAT64 or 6to4."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def is_public(address: Address) -> bool:
    """Whether it is the address of one host on the internet, in no network that has a special purpose."""
    if (inner := embedded_ipv4(address)) is not None:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    is_special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL)
    return address.is_global and not is_special


def _refusal(message: str) -> RequestError:
    return RequestError(message, param="webhook_url")


def _host(url: httpx2.URL) -> str:
    """As in `Target`. Raises ValueError."""
    host = url.raw_host.decode("ascii")
    if _address(host) is not None:
        return host
    host = host.removesuffix(".")
    if len(host) > _MAX_NAME_CHARS or not all(map(_LABEL.fullmatch, host.split("."))):
        raise ValueError(host)
    return host


def _listed_name(text: str) -> str:
    """As in `Target`. Raises ValueError."""
    try:
        return _host(httpx2.URL(scheme="https", host=text))
    except (httpx2.InvalidURL, ValueError):
        raise ValueError(f"{text!r} is no host name: names, `*.` and a name, IP addresses and networks are possible") from None


def _address(text: str) -> Address | None:
    """None as well for an address with a zone: it means something on one link only."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None
