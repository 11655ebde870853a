"""The two HTTP applications, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession
from aiohttp.typedefs import Middleware

from gateway.metrics import Metrics
from gateway.sidecar import HttpServer
from gateway.sidecar.pages import own_pages_only
from gateway.sidecar.routes import build, build_deepgram_paths


class FakeStatus:
    def __init__(self) -> None:
        self.answer = (True, "")

    def ready(self) -> tuple[bool, str]:
        return self.answer


def pages(request_id: str) -> Middleware:
    return own_pages_only((), (), is_local=True, new_request_id=lambda: request_id)


@pytest.fixture
def status() -> FakeStatus:
    return FakeStatus()


@pytest.fixture
async def operator(status: FakeStatus) -> AsyncIterator[ClientSession]:
    metrics = Metrics(["global"], "1.2.3")
    app = build(status, metrics, version="1.2.3", new_request_id=lambda: "id-1", pages=pages("id-1"))
    async with HttpServer(app, 5.0) as server:
        host, port = await server.listen("127.0.0.1", 0)
        async with ClientSession(f"http://{host}:{port}") as client:
            yield client


@pytest.fixture
async def client_port() -> AsyncIterator[ClientSession]:
    async with HttpServer(
        build_deepgram_paths(new_request_id=lambda: "id-7", pages=pages("id-7")), 5.0
    ) as server:
        host, port = await server.listen("127.0.0.1", 0)
        async with ClientSession(f"http://{host}:{port}") as client:
            yield client


async def test_health(operator: ClientSession) -> None:
    """An answer at all says that the loop runs."""
    async with operator.get("/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
        assert "Server" not in response.headers


async def test_ready(operator: ClientSession, status: FakeStatus) -> None:
    """Readiness follows the status object, and says why not."""
    async with operator.get("/readyz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ready"})
    status.answer = (False, "draining")
    async with operator.get("/readyz") as response:
        assert (response.status, await response.json()) == (
            503,
            {"status": "not ready", "reason": "draining"},
        )


async def test_metrics_in_both_formats(operator: ClientSession) -> None:
    """A scraper that asks for OpenMetrics gets it, every other one the text format."""
    async with operator.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "gw_sessions_active 0.0" in await response.text()
    async with operator.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await response.text()).endswith("# EOF\n")


async def test_version(operator: ClientSession) -> None:
    """The version is the one that was passed in."""
    async with operator.get("/version") as response:
        assert await response.json() == {"name": "gateway", "version": "1.2.3"}


@pytest.mark.parametrize("path", ["/v1/listen", "/v2/listen?model=flux-general-en"])
async def test_listen_without_upgrade(client_port: ClientSession, path: str) -> None:
    """A listen path that is not asked to upgrade says that it must be."""
    async with client_port.get(path) as response:
        assert response.status == 426
        assert response.headers["Upgrade"] == "websocket"
        assert response.headers["dg-request-id"] == "id-7"
        body = await response.json()
        assert body["err_code"] == "Bad Request"
        assert "WebSocket upgrade" in body["err_msg"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/listen", 405),
        ("POST", "/v1/auth/grant", 404),
        ("GET", "/v1/projects", 404),
        ("GET", "/v1/auth/grant", 405),
        ("DELETE", "/v1/listen", 405),
        ("HEAD", "/v2/listen", 405),
    ],
)
async def test_what_does_not_exist(client_port: ClientSession, method: str, path: str, status: int) -> None:
    """Deepgram's other HTTP paths are refused in its form."""
    async with client_port.request(method, path) as response:
        assert response.status == status
        assert response.headers["dg-request-id"] == "id-7"
        assert ("Allow" in response.headers) == (status == 405)
        if method != "HEAD":
            assert (await response.json())["request_id"] == "id-7"
