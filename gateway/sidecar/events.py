"""Server-sent events to clients that may not read, or may be gone without a word."""

from __future__ import annotations

import socket
from typing import Final

from aiohttp import web
from aiohttp_sse import EventSourceResponse

SEND_BUFFER_BYTES: Final = 65_536
"""Of the socket: the kernel's own choice would hide for minutes that nobody reads."""
SEND_SECONDS: Final = 10.0
"""For one event, in which its reader must read something."""
PING_SECONDS: Final = 15.0


async def opened(request: web.Request) -> EventSourceResponse:
    """A stream whose head is sent. Sending raises ConnectionError or TimeoutError when nobody reads."""
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    response = EventSourceResponse(sep="\n", send_timeout=SEND_SECONDS, ping_interval=PING_SECONDS)
    await response.prepare(request)
    return response
