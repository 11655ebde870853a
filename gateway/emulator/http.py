"""The HTTP side of the port: Deepgram's other paths, and the control routes under `/emulator`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from gateway.emulator.batch import Batch, refused
from gateway.emulator.control import control_routes, json_response
from gateway.emulator.flux import FluxStream
from gateway.emulator.host import Host
from gateway.emulator.query import FLUX_MODELS, LISTEN_MODELS, model_uuid
from gateway.emulator.refusals import Refusal, standard
from gateway.emulator.wire import MODEL_VERSION

if TYPE_CHECKING:
    from gateway.emulator.emulator import Emulator


class GrantRequest(msgspec.Struct):
    """The body of `/v1/auth/grant`."""

    ttl_seconds: int = 30


class Paths:
    """Deepgram's small HTTP paths."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def grant(self, request: web.Request) -> web.Response:
        """POST /v1/auth/grant: a token that opens live connections until it expires."""
        request_id = self._host.request_id()
        denial = self._host.denial(list(request.headers.items()))
        if denial is None and request.headers.get("authorization", "").lower().startswith("bearer "):
            denial = Refusal(403, "FORBIDDEN", "Insufficient permissions.")
        if denial is not None:
            return refused(denial, request_id)
        try:
            wanted = msgspec.json.decode(await request.read() or b"{}", type=GrantRequest)
        except msgspec.DecodeError as error:
            return refused(Refusal(400, "INVALID_JSON", str(error)), request_id)
        if not 1 <= wanted.ttl_seconds <= 3600:
            return refused(Refusal(400, "Bad Request", "ttl_seconds must be from 1 to 3600."), request_id)
        token = self._host.credentials.grant(wanted.ttl_seconds, time.time())
        headers = {"dg-request-id": request_id}
        return json_response({"access_token": token, "expires_in": wanted.ttl_seconds}, headers=headers)

    async def status(self, request: web.Request) -> web.Response:
        """GET /v1/status, as a self-hosted server answers it."""
        flux = sum(isinstance(connection.stream, FluxStream) for connection in self._host.live.values())
        return json_response(
            {
                "system_health": "Healthy" if self._host.records.attempts else "Ready",
                "active_batch_requests": self._host.batches,
                "active_stream_requests": len(self._host.live) - flux,
                "active_listen_v2_stream_requests": flux,
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        names = sorted(LISTEN_MODELS | FLUX_MODELS)
        return json_response({"stt": [_model(name) for name in names], "tts": []})

    async def unknown(self, request: web.Request) -> web.Response:
        """Any other path."""
        return refused(standard(404), self._host.request_id())


def _model(name: str) -> dict[str, object]:
    return {
        "name": name,
        "canonical_name": name,
        "architecture": name,
        "languages": ["en"],
        "version": MODEL_VERSION,
        "uuid": model_uuid(name),
        "batch": not name.startswith("flux"),
        "streaming": True,
        "formatted_output": False,
    }


def application(host: Host, emulator: Emulator) -> web.Application:
    """Every route that is not a WebSocket."""
    app = web.Application(client_max_size=host.knobs.batch_max_bytes)
    batch, paths = Batch(host), Paths(host)

    async def lifetime(_: web.Application) -> AsyncIterator[None]:
        yield
        await batch.close()

    app.cleanup_ctx.append(lifetime)
    app.add_routes(control_routes(host, emulator))
    app.add_routes(
        [
            web.post("/v1/listen", batch.listen),
            web.post("//v1/listen", batch.listen),
            web.post("/v1/auth/grant", paths.grant),
            web.get("/v1/status", paths.status),
            web.get("/v1/models", paths.models),
            web.route("*", "/{any:.*}", paths.unknown),
        ]
    )
    return app
