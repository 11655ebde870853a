"""A relay on picows, a WebSocket library made for speed: a listener on each leg, on uvloop.

python picows_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_connect, ws_create_server

Frame = tuple[WSMsgType, bytes]


class Leg(WSListener):
    """Forwards what comes to the other leg, or keeps it until there is one."""

    def __init__(self) -> None:
        self.transport: WSTransport | None = None
        self.other: Leg | None = None
        self.early: list[Frame] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif self.other and self.other.transport:
            self.other.transport.send(frame.msg_type, frame.get_payload_as_memoryview())
        else:
            self.early.append((frame.msg_type, frame.get_payload_as_bytes()))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self.other and self.other.transport:
            self.other.transport.disconnect()


class ClientLeg(Leg):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        self.dialling = asyncio.create_task(self.dial())

    async def dial(self) -> None:
        upstream = Leg()
        upstream.other = self
        await ws_connect(lambda: upstream, self.url)
        self.other = upstream
        assert upstream.transport
        for kind, payload in self.early:
            upstream.transport.send(kind, payload)


async def main(port: int, url: str) -> None:
    def leg(request: WSUpgradeRequest) -> Leg:
        return ClientLeg(url + request.path.decode())

    server = await ws_create_server(leg, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
