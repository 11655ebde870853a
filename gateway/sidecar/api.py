"""A route of the HTTP API with the types that it takes and gives; `openapi.py` describes them all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

IDEMPOTENCY: Final = {"Idempotency-Key": str}
"""Of operations that do the same request once."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`path` is aiohttp's pattern; `query` and `headers` map each parameter to its type.

    `body` is the type of the JSON that is taken, `media` are the other media types that are.
    `answers` has the type of each status's JSON, None where it is none.
    `expect` answers `Expect: 100-continue`: a response that refuses, or None.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    media: tuple[str, ...] = ()
    answers: Mapping[int, Any] = field(default_factory=dict)
    expect: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None


def add(app: web.Application, operations: Iterable[Operation]) -> None:
    """Routes each operation to its handler."""
    for operation in operations:
        app.router.add_route(
            operation.method, operation.path, operation.handler, expect_handler=operation.expect
        )
