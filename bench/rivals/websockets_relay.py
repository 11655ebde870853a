"""The relay that `websockets`' own documentation leads to: two tasks a call, `async for … send`, on uvloop.

python websockets_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def forward(
    source: ClientConnection | ServerConnection, sink: ClientConnection | ServerConnection
) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in source:
            await sink.send(message)
    await sink.close()


async def main(port: int, url: str) -> None:
    async def call(client: ServerConnection) -> None:
        assert client.request
        async with connect(url + client.request.path) as upstream:
            await asyncio.gather(forward(client, upstream), forward(upstream, client))

    async with serve(call, "127.0.0.1", port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
