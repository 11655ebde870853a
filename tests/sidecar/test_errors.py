"""Refusals in Deepgram's form, over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count

import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

from gateway.deepgram.errors import Refusal
from gateway.sidecar import HttpServer
from gateway.sidecar.errors import in_deepgrams_form, refusal


@pytest.fixture
async def client() -> AsyncIterator[ClientSession]:
    """A server with one good route, one that refuses and one that fails; ids count from 1."""
    ids = count(1)
    app = web.Application(middlewares=[in_deepgrams_form(lambda: f"id-{next(ids)}")], client_max_size=100)

    async def good(request: web.Request) -> web.Response:
        return web.Response(text=await request.text())

    async def refuse(_request: web.Request) -> web.Response:
        return refusal(Refusal(401, "INVALID_AUTH", "Invalid credentials."), "mine", {"X-More": "1"})

    async def fail(_request: web.Request) -> web.Response:
        raise ValueError("the key is abc123")

    app.router.add_post("/good", good)
    app.router.add_get("/refuse", refuse)
    app.router.add_get("/fail", fail)
    async with HttpServer(app, 5.0) as server:
        host, port = await server.listen("127.0.0.1", 0)
        async with ClientSession(f"http://{host}:{port}") as session:
            yield session


async def test_a_handlers_own_refusal(client: ClientSession) -> None:
    """Body and headers carry the same id and text."""
    async with client.get("/refuse") as response:
        assert (response.status, response.headers["X-More"]) == (401, "1")
        assert response.headers["dg-request-id"] == "mine"
        assert response.headers["dg-error"] == "Invalid credentials."
        assert response.content_type == "application/json"
        assert await response.json() == {
            "err_code": "INVALID_AUTH",
            "err_msg": "Invalid credentials.",
            "request_id": "mine",
        }


@pytest.mark.parametrize("path", ["/", "/good/", "/%0d%0aX-Evil:%201"])
async def test_unknown_path(client: ClientSession, path: str) -> None:
    """An unknown path is 404, and nothing of it is repeated."""
    async with client.get(path) as response:
        assert response.status == 404
        text = "Not Found: the sidecar's /openapi.json has all paths of both ports."
        assert (response.headers["dg-request-id"], response.headers["dg-error"]) == ("id-1", text)
        assert "X-Evil" not in response.headers
        assert await response.json() == {
            "err_code": "NOT_FOUND",
            "err_msg": text,
            "request_id": "id-1",
        }


async def test_each_refusal_has_its_own_id(client: ClientSession) -> None:
    """The id is new for each request, so that a log line can be found by it."""
    ids = []
    for _ in range(2):
        async with client.get("/none") as response:
            ids.append(response.headers["dg-request-id"])
    assert ids == ["id-1", "id-2"]


async def test_wrong_method(client: ClientSession) -> None:
    """A wrong method is told the right ones."""
    async with client.delete("/good") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        body = await response.json()
        assert (body["err_code"], body["err_msg"]) == ("METHOD_NOT_ALLOWED", "Method Not Allowed: use POST.")


async def test_too_large(client: ClientSession) -> None:
    """A body beyond the limit is refused in the same form."""
    async with client.post("/good", data=b"x" * 200) as response:
        assert response.status == 413
        assert (await response.json())["request_id"] == "id-1"


async def test_failure(client: ClientSession) -> None:
    """A handler's failure is a 500 that shows nothing of it; the log has it under the same id."""
    with capture_logs() as logs:
        async with client.get("/fail") as response:
            assert response.status == 500
            body = await response.text()
    assert json.loads(body)["request_id"] == "id-1"
    assert "abc123" not in body
    (event,) = logs
    assert (event["event"], event["request_id"], event["exc_info"]) == ("http.failed", "id-1", True)
