"""Pages of other sites get nothing from either port, not even one whose own name leads here."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.sidecar.pages import host_allowed
from tests.fakes.stand import Stand, stand  # noqa: F401 - pytest finds fixtures by name
from tests.fakes.wire_client import exchange


@pytest.mark.parametrize(
    ("host", "here", "beyond"),
    [
        ("", True, True),
        ("127.0.0.1:8081", True, True),
        ("[::1]:8081", True, True),
        ("10.1.2.3", True, True),
        ("localhost:8081", True, True),
        ("LocalHost.", True, True),
        ("app.localhost:1", True, True),
        ("gw.example.com:8081", True, True),
        ("GW.Example.com", True, True),
        ("gateway:8081", False, True),
        ("dotted.example", True, True),
        ("evil.example", False, False),
        ("localhost.evil.example:8081", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("evil-gw.example.com", False, False),
        ("a.gw.example.com", False, False),
        ("gateway.evil", False, False),
        ("[::1", False, False),
        ("[evil]", False, False),
    ],
)
def test_hosts(host: str, here: bool, beyond: bool) -> None:
    """An address, localhost, a listed name; a name without a dot only where others reach the port."""
    allowed = ("gw.example.com", "Dotted.example.")
    assert host_allowed(host, allowed, is_local=True) is here
    assert host_allowed(host, allowed, is_local=False) is beyond
    assert host_allowed(host, ("*",), is_local=True)


async def ask(address: tuple[str, int], method: str, path: str, *headers: str) -> tuple[int, bytes]:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "Content-Length: 0", "Connection: close"])
    status, _, body = await exchange(address, f"{head}\r\n\r\n".encode())
    return status, body


async def test_a_page_whose_name_leads_here(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """S2: it can neither read, since its GET shows its Host, nor delete, since that shows its Origin."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
        server={"hosts": ["gw.example.com"]},
    )
    rebound = "Host: evil.example:8081"
    for address, path in (
        (gateway.sidecar_address, "/v1/transcripts"),
        (gateway.sidecar_address, "/metrics"),
        (gateway.sidecar_address, "/v1/jobs/x/events"),
        (gateway.address, "/v1/jobs"),
    ):
        status, body = await ask(address, "GET", path, rebound)
        assert (status, b"server.hosts" in body) == (421, True), path
        status, body = await ask(
            address, "DELETE", f"{path}?all=true", rebound, "Origin: http://evil.example"
        )
        assert (status, b"server.origins" in body) == (403, True), path
        for host in ("127.0.0.1", "gw.example.com:80", "localhost"):
            assert (await ask(address, "GET", path, f"Host: {host}"))[0] in (200, 404), path


async def test_programs_come_by_any_name(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """An SDK behind a proxy sends no Origin, with whatever Host; no browser leaves it out of a POST."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    status, body = await ask(gateway.address, "POST", "/v1/listen", "Host: gw.example.com")
    assert (status, b"empty" in body) == (400, True)


async def test_beyond_this_machine(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """The name of a service will do, as docker compose and Kubernetes give it; a site's will not."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"insecure": True}, sidecar={"host": "0.0.0.0"})  # noqa: S104 - for a moment
    address = ("127.0.0.1", gateway.sidecar_address[1])
    assert (await ask(address, "GET", "/metrics", "Host: gateway:8081"))[0] == 200
    assert (await ask(address, "GET", "/metrics", "Host: evil.example:8081"))[0] == 421
