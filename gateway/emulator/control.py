"""The control routes: read and turn the knobs, read the records, act on connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from gateway.emulator import knobs as knobs_module
from gateway.emulator.host import Host
from gateway.emulator.records import ConnectionRecord
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.emulator.emulator import Emulator

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer on one line."""
    body = msgspec.json.encode(value) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _mistake(handler: Handler) -> Handler:
    """Answer what the caller got wrong with 400 and one line of JSON."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ConfigError as error:
            return json_response({"error": str(error)}, 400)

    return answer


class Control:
    """Handlers of the control routes."""

    def __init__(self, host: Host, emulator: Emulator) -> None:
        self._host = host
        self._emulator = emulator

    async def knobs(self, request: web.Request) -> web.Response:
        """GET: all knobs."""
        return json_response(self._host.knobs)

    async def set(self, request: web.Request) -> web.Response:
        """PUT: replace all knobs; what is not given takes its default."""
        self._emulator.set(knobs_module.parse(await request.read()))
        return json_response(self._host.knobs)

    async def patch(self, request: web.Request) -> web.Response:
        """PATCH: change the knobs that are given."""
        self._emulator.patch(**_object(await request.read()))
        return json_response(self._host.knobs)

    async def schema(self, request: web.Request) -> web.Response:
        """GET: the JSON Schema of the knobs."""
        return json_response(knobs_module.schema())

    async def connections(self, request: web.Request) -> web.Response:
        """GET: all records without their contents, oldest first, refused attempts included."""
        return json_response([record.summary() for record in self._host.records.all()])

    async def forget(self, request: web.Request) -> web.Response:
        """DELETE: forget closed records."""
        return json_response({"forgotten": self._host.records.clear()})

    async def connection(self, request: web.Request) -> web.Response:
        """GET: one record with its messages."""
        return json_response(self._record(request).detail())

    async def audio(self, request: web.Request) -> web.Response:
        """GET: the audio of one record, raw as it came."""
        return web.Response(body=self._record(request).audio, content_type="application/octet-stream")

    async def act(self, request: web.Request) -> web.Response:
        """POST: do something to one open connection, or to all."""
        connection = request.match_info.get("id")
        if connection is not None:
            self._record(request)
        options = _object(await request.read())
        return json_response(
            {"done": self._emulator.act(request.match_info["action"], connection, **options)}
        )

    def _record(self, request: web.Request) -> ConnectionRecord:
        record = self._host.records.get(request.match_info["id"])
        if record is None:
            raise web.HTTPNotFound(text='{"error":"no such connection"}\n', content_type="application/json")
        return record


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(f"body: {error}") from error


def control_routes(host: Host, emulator: Emulator) -> list[web.RouteDef]:
    """The routes under `/emulator`."""
    control = Control(host, emulator)
    table: list[tuple[str, str, Handler]] = [
        ("GET", "/emulator/knobs", control.knobs),
        ("PUT", "/emulator/knobs", control.set),
        ("PATCH", "/emulator/knobs", control.patch),
        ("GET", "/emulator/schema", control.schema),
        ("GET", "/emulator/connections", control.connections),
        ("DELETE", "/emulator/connections", control.forget),
        ("GET", "/emulator/connections/{id}", control.connection),
        ("GET", "/emulator/connections/{id}/audio", control.audio),
        ("POST", "/emulator/connections/{id}/{action}", control.act),
        ("POST", "/emulator/actions/{action}", control.act),
    ]
    return [web.route(method, path, _mistake(handler)) for method, path, handler in table]
