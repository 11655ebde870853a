"""The two HTTP applications: the operator's, and Deepgram's paths as the client port serves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.deepgram.errors import Refusal
from gateway.metrics import Metrics
from gateway.sidecar import openapi
from gateway.sidecar.api import Operation, add
from gateway.sidecar.errors import in_deepgrams_form, refusal

LISTEN_PATHS = ("/v1/listen", "/v2/listen")
MAX_BODY_BYTES = 64 * 1024
"""What is read for a route at once; recordings are read piece by piece, within limits of their own."""


class Status(Protocol):
    """What the process knows about itself."""

    def ready(self) -> tuple[bool, str]:
        """Whether new calls are taken and at least one region is usable; if not, why, in a few words."""


def build(
    status: Status,
    metrics: Metrics,
    *,
    version: str,
    new_request_id: Callable[[], str],
    pages: Middleware,
    operations: Iterable[Operation] = (),
) -> web.Application:
    """`/healthz` `/readyz` `/metrics` `/version`, and `operations`, which `/openapi.json` describes.

    `new_request_id` returns a fresh UUID for each refusal; `pages` keeps those of other sites out.
    """

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})  # that it is answered says that the event loop runs

    async def readyz(_request: web.Request) -> web.Response:
        ready, reason = status.ready()
        body = {"status": "ready"} if ready else {"status": "not ready", "reason": reason}
        return web.json_response(body, status=200 if ready else 503)

    async def scrape(request: web.Request) -> web.Response:
        body, content_type = metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def show_version(_request: web.Request) -> web.Response:
        return web.json_response({"name": "gateway", "version": version})

    app = _application(new_request_id, pages)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)
    app.router.add_get("/version", show_version)
    operations = list(operations)

    async def show_api(_request: web.Request) -> web.Response:
        return web.json_response(openapi.describe(operations, version))

    app.router.add_get("/openapi.json", show_api)
    add(app, operations)
    return app


def build_deepgram_paths(
    *, new_request_id: Callable[[], str], pages: Middleware, operations: Iterable[Operation] = ()
) -> web.Application:
    """What the client port answers to requests that are not WebSocket upgrades: `operations`, and refusals.

    A GET of a listen path is told to upgrade (426); the token route is 404 for now.
    """

    async def upgrade_required(request: web.Request) -> web.Response:
        problem = Refusal(426, "Bad Request", f"{request.path} needs a WebSocket upgrade.")
        return refusal(problem, new_request_id(), {"Upgrade": "websocket", "Connection": "Upgrade"})

    async def not_here(request: web.Request) -> web.Response:
        problem = Refusal(
            404, "NOT_FOUND", f"{request.method} {request.path} is not available in this version."
        )
        return refusal(problem, new_request_id())

    app = _application(new_request_id, pages)
    for path in LISTEN_PATHS:
        app.router.add_get(path, upgrade_required, allow_head=False)
    app.router.add_post("/v1/auth/grant", not_here)
    add(app, operations)
    return app


def _application(new_request_id: Callable[[], str], pages: Middleware) -> web.Application:
    middlewares = [pages, in_deepgrams_form(new_request_id)]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(_drop_server_name)
    return app


async def _drop_server_name(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.popall("Server", None)  # versions of Python and aiohttp are nobody's business
