"""A recording through a live session of our own client port: what is said comes while it is said.

It is a client like any other: its session paces it by not reading on, survives a lost Deepgram, and ends when
the caller goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
import msgspec

from gateway.deepgram.errors import Refusal
from gateway.deepgram.headers import Pairs
from gateway.errors import UpstreamError

MESSAGE_BYTES: Final = 4096
"""Half a second of G.711, an eighth of 16 kHz linear PCM."""
CLOSE_STREAM: Final = '{"type":"CloseStream"}'
CLOSE_SECONDS: Final = 1.0
"""For the other side's part of a close, when the caller has left."""


class SessionRefused(UpstreamError):
    """The client port would not begin the session; `refusal` is its answer."""

    def __init__(self, refusal: Refusal, request_id: str) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.request_id = request_id


class Message(msgspec.Struct, frozen=True):
    """One text message of the session, and its type."""

    type: str
    text: str


class _Typed(msgspec.Struct):
    type: str = "message"


@contextlib.asynccontextmanager
async def session(
    url: str, chunks: AsyncIterator[bytes], headers: Pairs, message_bytes: int
) -> AsyncIterator[AsyncIterator[Message]]:
    """The messages of a session at `url` (ws://…) that is sent `chunks`, up to the one that ends it.

    `message_bytes` is the most that the port takes in one. Raises SessionRefused, and UpstreamError when the
    session breaks, whose text is the close frame's.
    """
    timeout = aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
        try:
            ws = await client.ws_connect(url, headers=headers, max_msg_size=0, timeout=timeout)
        except aiohttp.WSServerHandshakeError as exc:
            raise _refused(exc) from None
        except (aiohttp.ClientError, OSError) as exc:
            raise UpstreamError(f"the client port does not answer: {exc}") from exc
        sending = asyncio.create_task(_send(ws, chunks, min(message_bytes, MESSAGE_BYTES)))
        try:
            yield _messages(ws, sending)
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            await ws.close()


async def _send(
    ws: aiohttp.ClientWebSocketResponse, chunks: AsyncIterator[bytes], message_bytes: int
) -> None:
    async for chunk in chunks:
        for at in range(0, len(chunk), message_bytes):
            await ws.send_bytes(chunk[at : at + message_bytes])
    await ws.send_str(CLOSE_STREAM)


async def _messages(
    ws: aiohttp.ClientWebSocketResponse, sending: asyncio.Task[None]
) -> AsyncIterator[Message]:
    async for message in ws:
        if message.type is aiohttp.WSMsgType.TEXT:
            yield Message(msgspec.json.decode(message.data, type=_Typed).type, message.data)
    complete = sending.done() and not sending.cancelled() and sending.exception() is None
    if ws.close_code not in (1000, 1005) or not complete:
        raise UpstreamError(f"the session was closed with {ws.close_code}")


def _refused(exc: aiohttp.WSServerHandshakeError) -> SessionRefused:
    headers: Mapping[str, str] = exc.headers or {}
    status = exc.status if exc.status >= 400 else 502
    wait = headers.get("Retry-After", "")
    text = headers.get("dg-error", f"The session was refused with HTTP {exc.status}.")
    code = "INVALID_AUTH" if status == 401 else "SESSION_REFUSED"
    problem = Refusal(status, code, text, int(wait) if wait.isdecimal() else None)
    return SessionRefused(problem, headers.get("dg-request-id", ""))
