"""`/v1/sessions`: live calls, what became of them, and a seat beside one that goes on."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Final

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from gateway.auth import Authenticator, Principal
from gateway.deepgram.errors import POLICY, Refusal
from gateway.errors import StoreError
from gateway.live.call import Call
from gateway.live.observers import Observer
from gateway.live.record import Recorder, Said, said
from gateway.prerecorded.request import BadField
from gateway.sidecar import events
from gateway.sidecar.api import Operation
from gateway.sidecar.errors import refusal
from gateway.sidecar.guard import Guard, json_answer
from gateway.sidecar.paging import page_of, page_size, page_start
from gateway.store import sessions, transcripts
from gateway.store.sessions import Session
from gateway.store.store import Store

HISTORY_PAGE: Final = 500
"""Finals that are read from the store at once."""
END: Final = "end"
"""The id of the last event: who asks for what comes after it gets 204, which ends an EventSource."""
BUSY: Final = Refusal(503, "UNAVAILABLE", "There are as many observers as are let in.", retry_after=30)
DOWN: Final = Refusal(503, "UNAVAILABLE", "The store is down.", retry_after=5)
ENDED_HERE: Final = "ended by the operator"


class SessionPage(msgspec.Struct, frozen=True):
    """Live calls, the newest first. `next` is the cursor of the page after this one; null: there is none."""

    sessions: list[Session]
    next: str | None


class SessionRoutes:
    """The routes; each principal sees its own. `calls` are the live ones by id, the oldest first."""

    def __init__(
        self,
        calls: Mapping[str, Call],
        store: Store | None,
        recorder: Recorder | None,
        *,
        authenticator: Authenticator,
        new_id: Callable[[], str],
        most_observers: int,
    ) -> None:
        """`new_id` makes the ids of refusals."""
        self._calls = calls
        self._store = store
        self._recorder = recorder
        self._guarded = Guard(authenticator, new_id)
        self._new_id = new_id
        self._most = most_observers
        self._observers = 0

    def operations(self) -> list[Operation]:
        one = "/v1/sessions/{id}"
        return [
            Operation(
                "GET",
                "/v1/sessions",
                self._guarded(self._list),
                "Live calls, the newest first.",
                query={"cursor": str, "limit": int},
                answers={200: SessionPage},
            ),
            Operation(
                "GET",
                one,
                self._guarded(self._show),
                "A call: how it goes, or how it went.",
                answers={200: Session},
            ),
            Operation(
                "DELETE",
                one,
                self._guarded(self._end),
                "Ends a live call: Deepgram's last results, then close code 1008.",
                answers={202: Session},
            ),
            Operation(
                "GET",
                one + "/events",
                self._guarded(self._observe),
                "Server-sent events: what was said, what is being said, the end; Last-Event-ID goes on.",
                answers={200: None, 204: None},
            ),
        ]

    async def _list(self, request: web.Request, caller: Principal) -> web.Response:
        size, start = page_size(request.query), page_start(request.query)
        before = start[0] if start is not None else math.inf
        newest = reversed(list(self._calls.values()))
        own = (call for call in newest if call.principal == caller and call.created_at < before)
        found = [call.describe() for call in itertools.islice(own, size + 1)]
        return json_answer(SessionPage(*page_of(found, size)))

    async def _show(self, request: web.Request, caller: Principal) -> web.Response:
        found = await self._find(request, caller)
        if found is None:
            return self._not_found()
        return json_answer(found if isinstance(found, Session) else found.describe())

    async def _end(self, request: web.Request, caller: Principal) -> web.Response:
        found = await self._find(request, caller)
        if not isinstance(found, Call):
            return self._not_found()
        found.shut_down(POLICY, ENDED_HERE)
        return json_answer(found.describe(), 202)

    async def _find(self, request: web.Request, caller: Principal) -> Call | Session | None:
        """A call, or what is stored of it; None also for somebody else's."""
        id = request.match_info["id"]
        call = self._calls.get(id)
        if call is not None:
            return call if call.principal == caller else None
        over = self._recorder.ended(id) if self._recorder is not None else None
        if over is not None:
            return over if over.principal == caller.id else None
        if self._store is None or "\0" in id or not id.isascii():
            return None
        return await self._store.read(lambda connection: sessions.get(connection, caller.id, id))

    def _not_found(self) -> web.Response:
        return refusal(Refusal(404, "NOT_FOUND", "id: there is no such session."), self._new_id())

    # Observers

    async def _observe(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        after = _last_event(request)
        found = await self._find(request, caller)
        if found is None:
            return self._not_found()
        if after == END:
            return web.Response(status=204)
        if self._observers >= self._most:
            return refusal(BUSY, self._new_id())
        observer = found.watch() if isinstance(found, Call) else None
        self._observers += 1
        try:
            return await self._stream(request, found, observer, int(after))
        finally:
            self._observers -= 1
            if isinstance(found, Call) and observer is not None:
                found.unwatch(observer)

    async def _stream(
        self, request: web.Request, found: Call | Session, observer: Observer | None, after: int
    ) -> web.StreamResponse:
        response = await events.opened(request)
        # Whoever has left, or does not read, is gone: that is no failure.
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with response:
                async for number, one in self._history(found, after, observer):
                    if one is None:
                        await response.send('{"reason":"not stored, or the store is down"}', event="missing")
                    else:
                        await response.send(_encoded(one), id=str(number), event="final")
                if observer is None:
                    session = found if isinstance(found, Session) else None
                else:
                    session = await _follow(response, observer, after)
                if session is not None:
                    await response.send(_encoded(session), id=END, event=END)
                else:
                    await response.send('{"reason":"results were not read in time"}', event="slow")
        return response

    async def _history(
        self, found: Call | Session, after: int, observer: Observer | None
    ) -> AsyncIterator[tuple[int, Said | None]]:
        """What was said after number `after` and before `observer` came; None for what cannot be had."""
        id = found.id if isinstance(found, Session) else found.session_id
        stop = observer.first if observer is not None else sys.maxsize
        waiting = dict(self._recorder.pending(id)) if self._recorder is not None else {}
        stored = found.stored if isinstance(found, Session) else found.is_kept
        if self._store is None or not stored:
            if observer is not None and stop > after + 1:
                yield after, None
            return
        more = True
        while more:
            try:
                page = await self._store.read(
                    partial(transcripts.finals, call=id, after=after, limit=HISTORY_PAGE)
                )
            except StoreError:
                yield after, None
                break
            more = len(page) == HISTORY_PAGE
            for row in page:
                if row.number >= stop:
                    return
                waiting.pop(row.number, None)
                after = row.number
                yield after, Said(row.channel, row.start, row.duration, row.text, msgspec.Raw(row.words))
        for number, raw in waiting.items():
            one = said(raw)
            if after < number < stop and one is not None and one.text:
                yield number, one


async def _follow(response: EventSourceResponse, observer: Observer, after: int) -> Session | None:
    """Sends what is said from now on; how the call went, None for one that does not keep up."""
    async for number, raw in observer:
        one = said(raw)
        if one is None:
            continue
        if number is None:
            await response.send(_encoded(one), event="interim")
        elif number > after:
            await response.send(_encoded(one), id=str(number), event="final")
    return observer.session


def _last_event(request: web.Request) -> str:
    """`end`, or the number of a final, -1 for none."""
    text = request.headers.get("Last-Event-ID", "")
    if text in ("", END):
        return text or "-1"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadField("Last-Event-ID", "an id that an event had is needed")
    return text


def _encoded(one: msgspec.Struct) -> str:
    return msgspec.json.encode(one).decode()
