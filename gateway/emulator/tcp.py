"""What is done to a socket below the WebSocket."""

from __future__ import annotations

import asyncio
import socket
import struct


def no_delay(transport: asyncio.BaseTransport) -> None:
    """Send small messages at once."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def reset(transport: asyncio.Transport) -> None:
    """An RST instead of a FIN: linger on, for no time."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
