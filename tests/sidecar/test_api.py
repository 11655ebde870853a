"""Operations become routes."""

from __future__ import annotations

from aiohttp import web

from gateway.sidecar.api import Operation, add


async def test_an_operation_is_routed() -> None:
    """Each operation is reached by its method and path."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    add(app, [Operation("GET", "/v1/things/{id}", handler, "One thing.")])
    found = [(route.method, route.resource.canonical) for route in app.router.routes() if route.resource]
    assert found == [("GET", "/v1/things/{id}")]
