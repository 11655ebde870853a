"""`/v1/deliveries`: callbacks to clients, looked at and sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, get_args

import msgspec
from aiohttp import web

from gateway.auth import Authenticator, Principal
from gateway.deepgram.errors import Refusal
from gateway.prerecorded.notify import Notifier
from gateway.prerecorded.request import BadField
from gateway.sidecar.api import Operation
from gateway.sidecar.guard import Guard, Refused, json_answer
from gateway.sidecar.paging import asked_id, page_of, page_size, page_start
from gateway.store.deliveries import Delivery, DeliveryState

NOT_FOUND: Final = Refusal(404, "NOT_FOUND", "There is no such delivery.")
UNAVAILABLE: Final = Refusal(503, "UNAVAILABLE", "Deliveries cannot be shown now.", retry_after=5)


class DeliveryDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A delivery as its principal sees it. Times are seconds since 1970 (UTC).

    `subject` is the id of the job or session that it tells of; `next_at` is when a pending one is due, or its
    attempt over; `body` is what is posted.
    """

    id: str
    event: str
    url: str
    state: DeliveryState
    attempts: int
    created_at: float
    next_at: float | None = None
    last_status: int | None = None
    last_error: str | None = None
    ended_at: float | None = None
    subject: str | None = None
    body: msgspec.Raw | None = None


class DeliveryPage(msgspec.Struct, frozen=True):
    """`next` is the cursor of the page after this one; null: there is none."""

    deliveries: list[DeliveryDocument]
    next: str | None = None


def document(delivery: Delivery) -> DeliveryDocument:
    """What a principal sees; the body where the row was read with it."""
    shared = {
        name: getattr(delivery, name)
        for name in DeliveryDocument.__struct_fields__
        if name not in ("next_at", "body")
    }
    return DeliveryDocument(
        next_at=delivery.next_at if delivery.state == "pending" else None,
        body=msgspec.Raw(delivery.body) if delivery.body else None,
        **shared,
    )


class DeliveryRoutes:
    """The routes."""

    def __init__(
        self, notifier: Notifier, *, authenticator: Authenticator, new_request_id: Callable[[], str]
    ) -> None:
        self._notifier = notifier
        self._guarded = Guard(authenticator, new_request_id, UNAVAILABLE)

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET",
                "/v1/deliveries",
                self._guarded(self._list),
                "Callbacks, the newest first, without their bodies; state=failed are the dead letters.",
                query={"state": DeliveryState, "cursor": str, "limit": int},
                answers={200: DeliveryPage},
            ),
            Operation(
                "GET",
                "/v1/deliveries/{id}",
                self._guarded(self._show),
                "One callback, with its body.",
                answers={200: DeliveryDocument},
            ),
            Operation(
                "DELETE",
                "/v1/deliveries/{id}",
                self._guarded(self._delete),
                "Deletes a callback, sent or not; one that is on its way may still arrive.",
                answers={204: None},
            ),
            Operation(
                "POST",
                "/v1/deliveries/{id}/retry",
                self._guarded(self._retry),
                "Sends a callback now, whatever became of it, under the same id.",
                answers={202: DeliveryDocument},
            ),
        ]

    async def _list(self, request: web.Request, caller: Principal) -> web.Response:
        state, size = _state(request.query.get("state")), page_size(request.query)
        found = await self._notifier.page(caller.id, state, page_start(request.query), size + 1)
        page, cursor = page_of(found, size)
        return json_answer(DeliveryPage([document(one) for one in page], cursor))

    async def _show(self, request: web.Request, caller: Principal) -> web.Response:
        found = await self._notifier.get(caller.id, asked_id(request))
        if found is None:
            raise Refused(NOT_FOUND)
        return json_answer(document(found))

    async def _delete(self, request: web.Request, caller: Principal) -> web.Response:
        if not await self._notifier.remove(caller.id, asked_id(request)):
            raise Refused(NOT_FOUND)
        return web.Response(status=204)

    async def _retry(self, request: web.Request, caller: Principal) -> web.Response:
        found = await self._notifier.retry(caller.id, asked_id(request))
        if found is None:
            raise Refused(NOT_FOUND)
        return json_answer(document(found), 202)


def _state(text: str | None) -> DeliveryState | None:
    for state in get_args(DeliveryState):
        if state == text:
            found: DeliveryState = state
            return found
    if text is not None:
        raise BadField("state", f"one of {', '.join(get_args(DeliveryState))} is needed")
    return None
