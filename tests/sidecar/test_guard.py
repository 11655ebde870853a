"""What a handler raises is one answer in Deepgram's form, and only whoever may call gets so far."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.auth import Authenticator, Principal
from gateway.config import AuthConfig
from gateway.deepgram.errors import Refusal
from gateway.errors import ClientError, StoreError
from gateway.prerecorded.request import BadField
from gateway.prerecorded.spool import SpoolFull
from gateway.prerecorded.upload import UploadRefused
from gateway.sidecar.guard import Guard, Refused, Wrong

GONE = Refusal(410, "GONE", "It is gone.")


@pytest.mark.parametrize(
    ("raised", "status", "code", "later"),
    [
        (Refused(GONE), 410, "GONE", None),
        (UploadRefused("x", Refusal(413, "LARGE", "Too large.", retry_after=7)), 413, "LARGE", "7"),
        (BadField("limit", "a number is needed"), 400, "INVALID_FIELD", None),
        (SpoolFull(), 503, "SPOOL_FULL", "30"),
        (StoreError("no"), 503, "UNAVAILABLE", "5"),
        (ClientError("Invalid credentials.", status=401, close_code=1008), 401, "INVALID_AUTH", None),
    ],
)
async def test_what_is_answered(raised: Exception, status: int, code: str, later: str | None) -> None:
    """Each by its own status and code, with the id of the request."""

    async def handle(_request: web.Request, caller: Principal) -> web.Response:
        assert caller.kind == "anonymous"
        raise raised

    app = web.Application()
    app.router.add_get("/", Guard(Authenticator(AuthConfig()), lambda: "id")(handle))
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        body = await response.json()
        assert (response.status, body["err_code"], body["request_id"]) == (status, code, "id")
        assert response.headers.get("Retry-After") == later


async def test_many_at_once() -> None:
    """Of many, each one's fault is named."""

    async def handle(_request: web.Request, _caller: Principal) -> web.Response:
        raise Refused(GONE, [Wrong(3, "mode", "no")])

    app = web.Application()
    app.router.add_get("/", Guard(Authenticator(AuthConfig()), lambda: "id")(handle))
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        assert (await response.json())["errors"] == [{"index": 3, "field": "mode", "message": "no"}]


async def test_a_defect_is_not_hidden() -> None:
    """What is nobody's mistake but ours goes on to whoever logs it."""

    async def handle(_request: web.Request, _caller: Principal) -> web.Response:
        raise LookupError("defect")

    guarded = Guard(Authenticator(AuthConfig()), lambda: "id")(handle)

    async def outer(request: web.Request) -> web.StreamResponse:
        with pytest.raises(LookupError, match="defect"):
            await guarded(request)
        return web.Response(status=299)

    app = web.Application()
    app.router.add_get("/", outer)
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        assert response.status == 299
