"""May the gateway connect to an address that somebody outside named? Pure.

Public is what the IANA special-purpose registries leave over (RFC 6890). The table is our own because
`ipaddress` differs between versions of Python and takes wrapped addresses at face value (faults.md M7).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from gateway.errors import TargetError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NOT_FROM_HERE: Final = "that address cannot be reached from here"
"""The one answer to everything that depends on addresses: whether it was refused, does not exist or did not
answer is not told, since that would map our network (security.md S40)."""
MAX_URL: Final = 2048
DEFAULT_PORTS: Final = {"https": 443, "http": 80}

_SPECIAL: Final = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    2001::/23 2001:db8::/32 2002::/16 3fff::/20
"""
_UNPUBLIC: Final = tuple(map(ip_network, _SPECIAL.split()))
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NEVER: Final = tuple(
    map(ip_network, ("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8"))
)
_SERVICES: Final = """
    169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 168.63.129.16 192.0.0.192
    fd00:ec2::254 fd00:ec2::23 fd20:ce::254
"""
"""Metadata of AWS and most others, ECS, EKS, Alibaba, Azure, Oracle; by IPv6 of AWS, EKS, Google."""
_METADATA: Final = frozenset(map(ip_address, _SERVICES.split()))
_METADATA_NAMES: Final = frozenset(
    ("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal")
)
_CARRIES_IPV4: Final = tuple(map(IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96")))
"""The last 32 bits are an IPv4 address: RFC 6052 §2.1, RFC 4291 §2.5.5 (compatible, mapped), 2765 §2.1."""
_ISATAP: Final = frozenset((0x0000_5EFE, 0x0200_5EFE))
"""The first half of such an interface identifier; the second is an IPv4 address (RFC 5214 §6.1)."""

_NAME: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Rules(NamedTuple):
    """What `[callback]` permits; `networks` and `names` may be reached though they are not public."""

    allow_http: bool
    ports: frozenset[int]
    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()


class Target(NamedTuple):
    """A URL as it was judged, and as it is asked for: `host` in lower case without a dot at its end."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query; begins with a slash."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def literal(self) -> Address | None:
        """The address, where one stands in the URL itself."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def rules(allow_http: bool, ports: Iterable[int], allow: Iterable[str]) -> Rules:
    """`allow` names networks, addresses and hosts."""
    networks: list[Network] = []
    names: list[str] = []
    for entry in allow:
        try:
            networks.append(ip_network(entry))
        except ValueError:
            names.append(entry.lower().removesuffix("."))
    return Rules(allow_http, frozenset(ports), tuple(networks), frozenset(names))


def judge(url: str, rules: Rules) -> Target:
    """The parts of `url`, if it may be asked for as far as its text can tell (S34, S36-S38).

    Raises TargetError, whose message is a clause without a subject: "must begin with https://".
    """
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or set(url) & set(' "<>\\^`{|}'):
        raise TargetError(
            f"must be a URL of at most {MAX_URL} ASCII characters; write others as %XX, in hosts as xn--"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise TargetError("is not a URL") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and rules.allow_http):
        raise TargetError("must begin with https://" + (" or http://" if rules.allow_http else ""))
    if "@" in parts.netloc:
        raise TargetError("must not hold a user or password")
    port = DEFAULT_PORTS[parts.scheme] if port is None else port
    if port not in rules.ports:
        raise TargetError(f"must name one of the ports {', '.join(map(str, sorted(rules.ports)))}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    target = Target(parts.scheme, host.removesuffix("."), port, path)
    literal = target.literal
    if literal is not None:
        if not permits(rules, target, str(literal)):
            raise TargetError(NOT_FROM_HERE)
    elif "[" in parts.netloc or not _NAME.fullmatch(target.host):
        raise TargetError("must name a host")
    elif _NUMBER.fullmatch(
        target.host.rpartition(".")[2]
    ):  # decimal, octal, hex, short: getaddrinfo takes them
        raise TargetError("must write an IPv4 address as four decimal numbers")
    elif target.host in _METADATA_NAMES or (_is_local(target.host) and target.host not in rules.names):
        raise TargetError(NOT_FROM_HERE)
    return target


def permits(rules: Rules, target: Target, address: str) -> bool:
    """Whether a connection for `target` may go to `address`, which it names or which its name has."""
    try:
        literal = ip_address(address)
    except ValueError:
        return False
    if "%" in address:  # a zone: by its nature an address of this very link
        return False
    found = [*_reached(literal)]
    if any(one in _METADATA or _within(one, _NEVER) for one in found):
        return False
    return target.host in rules.names or all(_is_public(one) or _within(one, rules.networks) for one in found)


def _reached(address: Address) -> Iterator[Address]:
    """Every address that a packet to `address` may end up at: itself unless it only wraps, what it wraps."""
    if isinstance(address, IPv4Address):
        yield address
        return
    low = IPv4Address(int(address) & 0xFFFF_FFFF)
    if _within(address, _CARRIES_IPV4) and int(address) > 1:  # :: and ::1 are no wrappings
        yield low
        return
    yield address
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        yield low
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _is_public(address: Address) -> bool:
    return (address.version == 4 or address in _GLOBAL_UNICAST) and not _within(address, _UNPUBLIC)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _is_local(host: str) -> bool:
    """Names that mean this machine wherever they are asked (RFC 6761 §6.3), whatever a resolver says."""
    name = host.removesuffix(".localdomain")
    return name in ("localhost", "ip6-localhost", "ip6-loopback") or host.endswith(".localhost")
