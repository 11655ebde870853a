"""Keeps pages of other sites away from both HTTP applications (security.md S2).

A browser says in `Origin` whose page sends a request, but for what a page GETs from its own site. That may be
us without our doing: a page may let its own name point to this machine after it has come (DNS rebinding). The
name that it asked for stands in `Host` then; nobody can do that with an address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.deepgram.errors import Refusal
from gateway.live.front import FOREIGN_ORIGIN, origin_allowed
from gateway.sidecar.errors import refusal

FOREIGN_HOST: Final = Refusal(
    421, "MISDIRECTED_REQUEST", "Host: the gateway does not go by this name; see server.hosts."
)


def own_pages_only(
    origins: Sequence[str], hosts: Sequence[str], *, is_local: bool, new_request_id: Callable[[], str]
) -> Middleware:
    """`origins` and `hosts` as in `[server]`; `is_local`: the port is reached from this machine alone."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin, problem = request.headers.get("Origin"), None
        if not origin_allowed(origin, origins):
            problem = FOREIGN_ORIGIN
        elif origin is None and request.method in ("GET", "HEAD"):
            host = request.headers.get("Host", "")
            problem = None if host_allowed(host, hosts, is_local=is_local) else FOREIGN_HOST
        if problem is None:
            return await handler(request)
        refused = refusal(problem, new_request_id())
        if not request.content.at_eof():
            refused.force_close()  # what is left of the body must not be taken for a request
        return refused

    return answer


def host_allowed(host: str, allowed: Sequence[str], *, is_local: bool) -> bool:
    """Whether a `Host` header names us: an address, localhost, or what is `allowed`; "" is no browser's.

    Beyond this machine a name without a dot will do: a service of docker compose or Kubernetes, since no
    site has such a name. On this machine it will not: a stranger's network may resolve it as it likes.
    """
    if not host or "*" in allowed:
        return True
    try:
        name = _bare(urlsplit(f"//{host}").hostname or "")
    except ValueError:  # an address in brackets that is none
        return False
    if name == "localhost" or name.endswith(".localhost") or name in map(_bare, allowed):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return not is_local and "." not in name
    return True


def _bare(name: str) -> str:
    return name.lower().removesuffix(".")
