"""Every rule on addresses from outside, by table; ids are those of docs/security.md and docs/faults.md."""

from __future__ import annotations

import ipaddress
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import TargetError
from gateway.policy.targets import DEFAULT_PORTS, NOT_FROM_HERE, Rules, Target, judge, permits, rules

PORTS = (443, 8443, 80, 8080)
STRICT = rules(False, PORTS, ())
PLAIN = rules(True, PORTS, ())


def refused(url: str, by: Rules = PLAIN) -> str:
    with pytest.raises(TargetError) as told:
        judge(url, by)
    return str(told.value)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("https://hooks.example.com", "https", "hooks.example.com", 443, "/"),
        ("HTTPS://Hooks.Example.COM/a?b=c%20d#e", "https", "hooks.example.com", 443, "/a?b=c%20d"),
        ("https://hooks.example.com.:8443/", "https", "hooks.example.com", 8443, "/"),
        ("http://a_b.example.com:8080/x", "http", "a_b.example.com", 8080, "/x"),
        ("https://xn--bcher-kva.example/", "https", "xn--bcher-kva.example", 443, "/"),
        ("https://93.184.215.14/x", "https", "93.184.215.14", 443, "/x"),
        ("https://[2606:4700::1111]:8443/x", "https", "2606:4700::1111", 8443, "/x"),
        ("https://hooks.example.com:/x", "https", "hooks.example.com", 443, "/x"),
        ("https://7up.example", "https", "7up.example", 443, "/"),
        ("https://example.0xyz", "https", "example.0xyz", 443, "/"),
    ],
)
def test_what_is_taken(url: str, scheme: str, host: str, port: int, path: str) -> None:
    """A URL comes back in parts, and the URL that is asked for is made of these parts alone."""
    target = judge(url, PLAIN)
    assert target == (scheme, host, port, path)
    assert judge(target.url, PLAIN) == target


@pytest.mark.parametrize("scheme", ["http", "ftp", "file", "gopher", "ws", "wss", "dict", ""])
def test_schemes(scheme: str) -> None:
    """S34: https only."""
    assert refused(f"{scheme}://example.com/", STRICT) == "must begin with https://"
    assert judge("https://example.com/", STRICT).scheme == "https"


def test_http_by_flag() -> None:
    """S34: http where the operator says so, and nothing else then either."""
    assert judge("http://example.com/", PLAIN).port == 80
    assert refused("ftp://example.com/") == "must begin with https:// or http://"


@pytest.mark.parametrize("port", [1, 22, 25, 81, 444, 3306, 6379, 8081, 9200, 65535])
def test_other_ports(port: int) -> None:
    """S34: ports come from the list."""
    assert refused(f"https://example.com:{port}/") == "must name one of the ports 80, 443, 8080, 8443"


@pytest.mark.parametrize("port", PORTS)
def test_the_ports(port: int) -> None:
    """S34: each port of the list, and none that the operator took off it."""
    assert judge(f"https://example.com:{port}/", STRICT).port == port
    assert "ports" in refused(f"https://example.com:{port}/", rules(False, {*PORTS} - {port}, ()))


@pytest.mark.parametrize("port", ["65536", "-1", "x", "443:443", "٤٤٣"])
def test_ports_that_are_none(port: str) -> None:
    """S34."""
    assert refused(f"https://example.com:{port}/")


@pytest.mark.parametrize("login", ["user@", "user:password@", "@", ":@", "good.com:443@", "%40@"])
def test_userinfo(login: str) -> None:
    """S34: no user, no password, nothing that looks like a host before the host."""
    assert refused(f"https://{login}example.com/") == "must not hold a user or password"


@pytest.mark.parametrize(
    "url",
    [
        "https://good.example\\@127.0.0.1/",
        "https://127.0.0.1\\.good.example/",
        "https://good.example/\r\nHost: evil",
        "https://good.example/ x",
        "https://good\t.example/",
        "https://127。0。0。1/",
        "https://①②⑦.0.0.1/",
        "https://ⓛocalhost/",
        "https://bücher.example/",
        "https://%31%32%37.0.0.1/",
        "https://ex%61mple.com/",
        "https:///x",
        "https://",
        "https:example.com",
        "https://-a.example/",
        "https://a..example/",
        "https://.example/",
        "https://example.com../",
        "https://[127.0.0.1]/",
        "https://[::1/",
        "https://[v1.x]/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 127}aa/",
        f"https://example.com/{'a' * 2048}",
        "",
    ],
)
def test_text_that_two_readers_read_differently(url: str) -> None:
    """S37: what is not a plain name or a plain address is refused, IDNA digits and percent signs included."""
    assert refused(url)


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "0", "0x", "1.2.3.4.5",
     "01.2.3.4", "017700000001", "127.0.0.0x1", "256.1.1.1", "4294967297", "1.1.1.01"],
)  # fmt: skip
def test_numbers_that_are_read_as_addresses(host: str) -> None:
    """S36: decimal, octal, hex and short forms, which getaddrinfo takes, even of public addresses."""
    assert "four decimal numbers" in refused(f"https://{host}/")
    assert "four decimal numbers" in refused(f"https://{host}./")


_INTERNAL: Final = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.0.1
    172.16.0.1 172.31.255.255 192.0.0.8 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1
    203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fec0::1 fc00::1
    fd00::1 ff02::1 ff0e::1 100::1 2001:db8::1 2001::1 2001:2::1 2001:10::1 3fff::1 5f00::1 4000::1
    64:ff9b:1::1 64:ff9b:1::808:808
"""
INTERNAL: Final = _INTERNAL.split()
_WRAPPED: Final = """
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:0 ::127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1
    64:ff9b::a9fe:a9fe 64:ff9b::a00:1 2002:7f00:1:: 2002:a9fe:a9fe::1
    2001:0:4136:e378:8000:63bf:f5ff:fffe 2001:0:7f00:1::1 2606:4700::5efe:127.0.0.1
    2606:4700::200:5efe:10.0.0.1 2606:4700::5efe:a9fe:a9fe
"""
WRAPPED: Final = _WRAPPED.split()
_METADATA: Final = """
    169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254
    fd00:ec2::23 fd20:ce::254 ::ffff:169.254.169.254 64:ff9b::a83f:8110
"""
METADATA: Final = _METADATA.split()
_PUBLIC: Final = """
    1.1.1.1 93.184.215.14 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 168.63.129.17
    191.255.255.255 223.255.255.255 2606:4700::1111 2a00:1450::1 ::ffff:1.1.1.1 64:ff9b::1.1.1.1
    2606:4700::5efe:1.1.1.1
"""
PUBLIC: Final = _PUBLIC.split()

HOSTLESS: Final = ("0.0.0.1", "0" + ".0" * 3, "::", "224.0.0.1", "ff02::1", "255.255.255.255")


def shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("address", [*INTERNAL, *WRAPPED, *METADATA])
def test_addresses_that_are_not_public(address: str) -> None:
    """S36-S38, M6, M7: as a literal in the URL, and as what a name resolves to; the same words for all."""
    assert refused(f"https://{shown(address)}/") == NOT_FROM_HERE
    assert not permits(STRICT, judge("https://example.com/", STRICT), address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are(address: str) -> None:
    """The neighbours of those above; NAT64 of a public address is what IPv6-only hosts see."""
    assert judge(f"https://{shown(address)}/", STRICT).literal == ipaddress.ip_address(address)
    assert permits(STRICT, judge("https://example.com/", STRICT), address)


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2606:4700::1111%1", "fe80::1%25eth0", "::1%lo"])
def test_zones(address: str) -> None:
    """S37: an address with a zone is one of this link."""
    assert refused(f"https://[{address}]/")
    assert not permits(STRICT, judge("https://example.com/", STRICT), address)


@pytest.mark.parametrize("text", ["", "localhost", "1.1.1", "1.1.1.1/32", "1.1.1.1 "])
def test_what_is_no_address(text: str) -> None:
    """A resolver that answers nonsense is not believed."""
    assert not permits(STRICT, judge("https://example.com/", STRICT), text)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "a.localhost", "ip6-localhost",
     "ip6-loopback", "metadata.google.internal", "metadata.google.internal.", "metadata", "metadata.goog",
     "instance-data", "instance-data.ec2.internal"],
)  # fmt: skip
def test_names_that_are_known(host: str) -> None:
    """S37, S38: whatever a resolver might say of them."""
    assert refused(f"https://{host}/") == NOT_FROM_HERE


@pytest.mark.parametrize("entry", ["10.0.0.0/8", "10.1.2.3", "hooks.internal", "Hooks.Internal."])
def test_allowed_by_the_operator(entry: str) -> None:
    """A network, an address or a name; nothing next to it."""
    by = rules(False, PORTS, [entry])
    assert permits(by, judge("https://hooks.internal/", by), "10.1.2.3")
    assert not permits(by, judge("https://other.internal/", by), "192.168.0.1")
    assert permits(by, judge("https://hooks.internal/", by), "::ffff:10.1.2.3")


def test_localhost_can_be_allowed() -> None:
    """By its name and its network: for receivers on the same machine."""
    by = rules(True, PORTS, ["127.0.0.0/8", "::1", "localhost"])
    assert permits(by, judge("http://localhost:8080/", by), "127.0.0.1")
    assert judge("http://[::1]:8080/", by).literal == ipaddress.ip_address("::1")


@pytest.mark.parametrize("address", [*METADATA, *HOSTLESS])
def test_never_allowed(address: str) -> None:
    """S38: no network however wide, and no name, opens metadata services or what is no host's address."""
    by = rules(True, PORTS, ["0.0.0.0/0", "::/0", "hooks.internal"])
    assert not permits(by, judge("https://hooks.internal/", by), address)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_stricter_than_ipaddress(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Nothing is taken that the standard library calls private, reserved, multicast or local."""
    if permits(STRICT, Target("https", "example.com", 443, "/"), str(address)):
        found = getattr(address, "ipv4_mapped", None) or address
        nat64 = address in ipaddress.ip_network("64:ff9b::/96") if address.version == 6 else False
        assert nat64 or (found.is_global and not found.is_multicast and not found.is_reserved)


@given(st.text(alphabet="htps:/.@[]%\\?#0127ax-_é\t ", max_size=40))
def test_any_text(text: str) -> None:
    """A judgement or a refusal, and what is taken is taken again word for word."""
    for url in (text, f"https://{text}"):
        try:
            target = judge(url, STRICT)
        except TargetError:
            continue
        assert judge(target.url, STRICT) == target
        assert target.port == DEFAULT_PORTS["https"] or target.port in PORTS
