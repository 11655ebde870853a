"""The relay that aiohttp's own documentation leads to: two tasks a call, on uvloop.

python aiohttp_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector, WSMsgType, web


async def forward(
    source: ClientWebSocketResponse | web.WebSocketResponse,
    sink: ClientWebSocketResponse | web.WebSocketResponse,
) -> None:
    async for message in source:
        if message.type is WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type is WSMsgType.TEXT:
            await sink.send_str(message.data)
    await sink.close()


async def main(port: int, url: str) -> None:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:

        async def call(request: web.Request) -> web.WebSocketResponse:
            client = web.WebSocketResponse()
            await client.prepare(request)
            async with session.ws_connect(url + request.path_qs) as upstream:
                await asyncio.gather(forward(client, upstream), forward(upstream, client))
            return client

        app = web.Application()
        app.router.add_get("/v1/listen", call)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
