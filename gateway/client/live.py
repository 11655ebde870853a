"""A streaming client for Deepgram's live API, at the pace of speech.

stream = LiveStream(listen_url("http://127.0.0.1:8080", {"model": "nova-3"}, source), source, key=None)
async for message in stream.messages():
    ...
print(stream.close_code)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
from websockets.exceptions import ConnectionClosed

from gateway.client.connection import Connection, deepgrams, dial
from gateway.client.messages import Event, Reader, Result
from gateway.client.source import Source
from gateway.errors import UsageError

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class LiveStream:
    """One connection: sends `source` in frames of `frame` seconds, then CloseStream, reads until the close.

    `audio_seconds` counts what was sent, `complete` says that it was all of it; `close_code` and
    `close_reason` are the server's, 1006 without any.
    """

    def __init__(self, url: str, source: Source, *, key: str | None, frame: float = 0.05) -> None:
        self.audio_seconds = 0.0
        self.complete = False
        self.close_code = 1006
        self.close_reason = ""
        self._url = url
        self._source = source
        self._key = key
        self._frame = frame
        self._reader = Reader(0.0)
        self._failure: UsageError | None = None

    async def messages(self) -> AsyncGenerator[Result | Event, None]:
        """Connect and stream. Raises `UpstreamError` without a connection, `UsageError` for bad audio."""
        socket = await dial(self._url, self._key)
        self._reader = Reader(asyncio.get_running_loop().time())
        sending = asyncio.create_task(self._send(socket))
        try:
            while True:
                yield self._message(await socket.recv(decode=False))
        except ConnectionClosed as closed:
            if closed.rcvd:
                self.close_code, self.close_reason = closed.rcvd.code, closed.rcvd.reason
        finally:
            await socket.close()
            sending.cancel()
            await asyncio.wait([sending])
        if self._failure:
            raise self._failure

    async def _send(self, socket: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with aclosing(self._source.frames(self._frame)) as frames:
                async for data in frames:
                    await socket.send(data)
                    self.audio_seconds += self._source.seconds(len(data))
                    self._reader.sent(self.audio_seconds, loop.time())
            await socket.send('{"type":"CloseStream"}')
            self.complete = True
        except ConnectionClosed:
            return  # the reader sees it too, and knows the code
        except UsageError as error:
            self._failure = error
            await socket.close(1001)  # ends the reader, which raises it

    def _message(self, raw: bytes) -> Result | Event:
        with deepgrams(self._url):
            body = msgspec.json.decode(raw, type=dict[str, Any])
            return self._reader.read(body, asyncio.get_running_loop().time())


def listen_url(url: str, parameters: Mapping[str, str | None], source: Source | None = None) -> str:
    """The WebSocket URL for a base URL (http, https, ws, wss; its path is kept). Raises `UsageError`.

    Without a `source`, `parameters` say what the audio is: encoding, sample_rate, channels.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise UsageError(f"--url {url}: must be http://, https://, ws:// or wss:// and a host")
    flux = (parameters.get("model") or "").startswith("flux")
    path = parts.path.rstrip("/") or ("/v2/listen" if flux else "/v1/listen")
    query = (dict(source.parameters) if source else {}) | {
        name: value for name, value in parameters.items() if value
    }
    if flux:  # Flux is mono, always reports as it goes, and refuses parameters that it does not know
        query = {name: value for name, value in query.items() if name not in ("channels", "interim_results")}
    tail = "&".join(filter(None, (parts.query, urlencode(query))))
    return f"{_SCHEMES[parts.scheme]}://{parts.netloc}{path}?{tail}"
