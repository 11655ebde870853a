"""Opening a connection, and what is said when that fails."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from gateway.client.connection import deepgrams, dial
from gateway.errors import UpstreamError, UpstreamRejected, UpstreamTimeout, UpstreamUnavailable
from tests.fakes.stand import eventually


async def test_signs_of_life() -> None:
    """Whatever the server sends is counted, also what no user of the library sees."""

    async def behave(socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.headers["Authorization"] == "Token k"
        await socket.recv()
        await socket.ping()
        await socket.wait_closed()

    async with serve(behave, "127.0.0.1", 0) as listener:
        connection = await dial(f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/x", "k")
        before = connection.heard
        await connection.send(b"?")
        await eventually(lambda: connection.heard > before)
        await connection.close()


async def test_refusal_in_words() -> None:
    """A refused handshake tells the status, Deepgram's text and the request id."""

    def refuse(socket: ServerConnection, _request: Request) -> Response:
        body = '{"err_code":"INVALID_AUTH","err_msg":"Invalid credentials.","request_id":"r-1"}'
        response = socket.respond(HTTPStatus.UNAUTHORIZED, body)
        response.headers["dg-request-id"] = "r-1"
        return response

    async with serve(ServerConnection.wait_closed, "127.0.0.1", 0, process_request=refuse) as listener:
        url = f"ws://u:secret@127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/listen?x=1"
        with pytest.raises(UpstreamRejected) as caught:
            await dial(url, None)
    text = str(caught.value)
    assert text.endswith("refused /v1/listen with HTTP 401: Invalid credentials. (request id r-1)")
    assert "secret" not in text


async def test_nobody_listens() -> None:
    """A port without a server is said in one plain line."""
    with pytest.raises(UpstreamUnavailable, match=r"^cannot connect to 127\.0\.0\.1:1: Connection refused$"):
        await dial("ws://127.0.0.1:1/", None)


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing is given up."""
    monkeypatch.setattr("gateway.client.connection.OPEN_TIMEOUT", 0.2)

    over = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as listener:
        url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.2 s"):
            await dial(url, None)
        over.set()


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ValueError("x")])
def test_another_language(error: Exception) -> None:
    """What cannot be read is the server's fault, by name."""
    with (
        pytest.raises(UpstreamError, match=r"^h:1 sent a message that is not Deepgram's"),
        deepgrams("ws://h:1/"),
    ):
        raise error
