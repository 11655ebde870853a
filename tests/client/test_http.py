"""HTTP to a gateway: answers, and what goes wrong on the way to them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.client.http import HttpClient, Refused
from gateway.errors import UpstreamUnavailable, UsageError

TIMEOUT = aiohttp.ClientTimeout(total=10)


async def echo(request: web.Request) -> web.Response:
    return web.Response(text=request.headers.get("Authorization", "nobody"))


async def refuse(_request: web.Request) -> web.Response:
    body = {"err_code": "NOT_FOUND", "err_msg": "There is no such job.", "request_id": "r"}
    return web.json_response(body, status=404)


async def vanish(request: web.Request) -> web.Response:
    assert request.transport
    request.transport.abort()
    return web.Response()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    for path, handler in (("/echo", echo), ("/refuse", refuse), ("/vanish", vanish)):
        app.router.add_get(path, handler)
    async with TestServer(app) as server:
        yield str(server.make_url(""))


async def test_an_answer_is_its_body(url: str) -> None:
    """With the key where there is one, and no doubled slash."""
    async with HttpClient(url + "/", "k", TIMEOUT) as client:
        assert await client.request("GET", "/echo") == b"Token k"
    async with HttpClient(url, None, TIMEOUT) as client:
        assert await client.request("GET", "/echo") == b"nobody"


async def test_a_refusal_is_told_in_the_gateways_words(url: str) -> None:
    """The status and the text of the body."""
    async with HttpClient(url, None, TIMEOUT) as client:
        with pytest.raises(Refused, match=r"^HTTP 404: There is no such job\.$") as refused:
            await client.request("GET", "/refuse")
    assert refused.value.status == 404


async def test_an_answer_that_does_not_come(url: str) -> None:
    """Whoever was reached and left, and whoever was not, are told apart."""
    async with HttpClient(url, None, TIMEOUT) as client:
        with pytest.raises(UpstreamUnavailable, match=r"^no answer from 127\.0\.0\.1:\d+: "):
            await client.request("GET", "/vanish")
    async with HttpClient("http://127.0.0.1:1", None, TIMEOUT) as client:
        with pytest.raises(
            UpstreamUnavailable, match=r"^cannot connect to 127\.0\.0\.1:1: Connection refused$"
        ):
            await client.request("GET", "/")


@pytest.mark.parametrize("text", ["127.0.0.1:8080", "ws://h", "http://", "gateway"])
def test_what_is_no_url(text: str) -> None:
    """It is said before anything is asked."""
    with pytest.raises(UsageError, match=r"^--url .*: must be http:// or https:// and a host$"):
        HttpClient(text, None, TIMEOUT)
