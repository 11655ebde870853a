"""HTTP to a gateway: one session, and what goes wrong with it as our errors."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from gateway.client.connection import host_of
from gateway.deepgram.errors import error_text
from gateway.errors import UpstreamRejected, UpstreamUnavailable, UsageError, reason


class Refused(UpstreamRejected):
    """The gateway's own words for what it will not do."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, [], body)
        self.args = (f"HTTP {status}: {error_text(body) or 'no reason given'}",)


class HttpClient:
    """`async with HttpClient(url, key, timeout)`, then `request` any number of times."""

    def __init__(self, url: str, key: str | None, timeout: aiohttp.ClientTimeout) -> None:
        """Raises UsageError for a `url` that is none."""
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UsageError(f"--url {url}: must be http:// or https:// and a host")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Token {key}"} if key else {}
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(self, method: str, path: str, **options: Any) -> bytes:
        """The answer's body. Raises UpstreamError; `options` are aiohttp's."""
        assert self._session is not None, "use `async with` first"
        try:
            async with self._session.request(method, self._url + path, **options) as response:
                body = await response.read()
        except aiohttp.InvalidURL:
            raise UsageError(f"--url {self._url}: is no URL") from None
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            what = "cannot connect to" if isinstance(exc, aiohttp.ClientConnectorError) else "no answer from"
            raise UpstreamUnavailable(f"{what} {host_of(self._url)}: {reason(exc)}") from exc
        if response.status >= 300:
            raise Refused(response.status, body)
        return body
