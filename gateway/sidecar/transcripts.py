"""`/v1/transcripts`: what was said, to read, to search, as captions, to delete. And `/v1/usage`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal, get_args

import msgspec
from aiohttp import web

from gateway.auth import Authenticator, Principal
from gateway.deepgram.errors import Refusal
from gateway.prerecorded import captions
from gateway.prerecorded.request import BadField
from gateway.sidecar.api import Operation
from gateway.sidecar.errors import refusal
from gateway.sidecar.guard import Guard, json_answer
from gateway.sidecar.paging import asked_id, page_of, page_size, page_start, storable
from gateway.store import retention, transcripts, usage
from gateway.store.databases import Connection
from gateway.store.store import Store
from gateway.store.transcripts import FinalResult, Source, Summary, Transcript, Wanted

LONGEST_SEARCH: Final = 1000
"""Characters."""
DAYS: Final = 30
"""Of usage, where it is not said which."""
Format = Literal["json", "text", "srt", "vtt"]
MEDIA_TYPES: Final[dict[Format, str]] = {
    "json": "application/json",
    "text": "text/plain",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
}


class TranscriptDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A transcript as callers see it. `result` is Deepgram's response, or has its form (a call).

    Times are seconds since 1970 (UTC); `ended_at` is null while a call goes on.
    """

    id: str
    source: Source
    request_id: str
    query: str
    metadata: msgspec.Raw | None
    duration: float | None
    created_at: float
    ended_at: float | None
    result: msgspec.Raw


class TranscriptPage(msgspec.Struct, frozen=True):
    """The newest first. `next` is the cursor of the page after this one; null: there is none."""

    transcripts: list[Summary]
    next: str | None


class Deleted(msgspec.Struct, frozen=True):
    deleted: int


class UsageDay(msgspec.Struct, frozen=True):
    """Seconds of audio: taken from the caller, sent to Deepgram, and of that sent again after a break."""

    day: date
    accepted_seconds: float
    sent_seconds: float
    replayed_seconds: float


class UsageDocument(msgspec.Struct, frozen=True):
    """Days (UTC) without audio are left out; the sums are over all days."""

    days: list[UsageDay]
    accepted_seconds: float
    sent_seconds: float
    replayed_seconds: float


class TranscriptRoutes:
    """The routes; each principal sees and deletes its own."""

    def __init__(
        self,
        store: Store,
        *,
        authenticator: Authenticator,
        new_id: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        """`clock` is `time.time`; `new_id` makes the ids of refusals."""
        self._store = store
        self._guarded = Guard(authenticator, new_id)
        self._new_id = new_id
        self._clock = clock

    def operations(self) -> list[Operation]:
        one = "/v1/transcripts/{id}"
        return [
            Operation(
                "GET",
                "/v1/transcripts",
                self._guarded(self._list),
                'Transcripts, the newest first; those with all words and "phrases" of q.',
                query={"q": str, "source": Source, "from": str, "to": str, "cursor": str, "limit": int},
                answers={200: TranscriptPage},
            ),
            Operation(
                "DELETE",
                "/v1/transcripts",
                self._guarded(self._delete_all),
                "Deletes all of the caller's transcripts, and jobs that are over; needs all=true.",
                query={"all": bool},
                answers={200: Deleted},
            ),
            Operation(
                "GET",
                one,
                self._guarded(self._show),
                "A transcript in the form that format, else Accept, asks for.",
                query={"format": Format},
                answers={200: TranscriptDocument},
            ),
            Operation(
                "DELETE", one, self._guarded(self._delete), "Deletes a transcript.", answers={200: Deleted}
            ),
            Operation(
                "GET",
                "/v1/usage",
                self._guarded(self._usage),
                "Seconds of audio by day, from and to a day; the last 30 where they are not said.",
                query={"from": date, "to": date},
                answers={200: UsageDocument},
            ),
        ]

    async def _list(self, request: web.Request, caller: Principal) -> web.Response:
        size, wanted = page_size(request.query), _wanted(request)
        found = await self._store.read(lambda c: transcripts.page(c, caller.id, wanted, size + 1))
        return json_answer(TranscriptPage(*page_of(found, size)))

    async def _show(self, request: web.Request, caller: Principal) -> web.Response:
        form, id = _form(request), asked_id(request)

        async def op(connection: Connection) -> tuple[Transcript | None, list[FinalResult]]:
            found = await transcripts.get(connection, caller.id, id)
            live = found is not None and found.result is None
            return found, await transcripts.finals(connection, id) if live else []

        found, finals = await self._store.read(op)
        if found is None:
            return self._not_found()
        # In a thread: ten hours of words are too many to be looked at between two frames of a call.
        body = await asyncio.to_thread(_rendered, found, finals, form)
        return web.Response(body=body, content_type=MEDIA_TYPES[form], charset="utf-8")

    async def _delete(self, request: web.Request, caller: Principal) -> web.Response:
        id = asked_id(request)
        gone = await self._store.write(lambda c: transcripts.remove(c, caller.id, id))
        return json_answer(Deleted(1)) if gone else self._not_found()

    async def _delete_all(self, request: web.Request, caller: Principal) -> web.Response:
        if request.query.get("all") != "true":
            raise BadField("all", "say all=true to delete all transcripts")
        return json_answer(Deleted(await retention.remove_all(self._store, caller.id, self._clock())))

    async def _usage(self, request: web.Request, caller: Principal) -> web.Response:
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        last = _day(request, "to") or today
        first = _day(request, "from") or max(last, date.min + timedelta(DAYS)) - timedelta(DAYS - 1)
        found = await self._store.read(lambda c: usage.of(c, caller.id, first, last))
        days = [UsageDay(u.day, u.accepted_seconds, u.sent_seconds, u.replayed_seconds) for u in found]
        return json_answer(
            UsageDocument(
                days,
                sum(day.accepted_seconds for day in days),
                sum(day.sent_seconds for day in days),
                sum(day.replayed_seconds for day in days),
            )
        )

    def _not_found(self) -> web.Response:
        return refusal(Refusal(404, "NOT_FOUND", "id: there is no such transcript."), self._new_id())


def _rendered(found: Transcript, finals: list[FinalResult], form: Format) -> bytes:
    response = captions.of_call(found, finals) if found.result is None else found.result
    if form != "json":
        return captions.render(response, form).encode()
    return msgspec.json.encode(
        TranscriptDocument(
            id=found.id,
            source=found.source,
            request_id=found.request_id,
            query=found.query,
            metadata=msgspec.Raw(found.metadata) if found.metadata is not None else None,
            duration=found.duration,
            created_at=found.created_at,
            ended_at=found.ended_at,
            result=msgspec.Raw(response),
        )
    )


def _wanted(request: web.Request) -> Wanted:
    q = _said(request, "q")
    terms = transcripts.terms(q or "")
    if q is not None and (not terms or len(q) > LONGEST_SEARCH):
        raise BadField("q", f"words to look for are needed, at most {LONGEST_SEARCH} characters")
    return Wanted(
        terms=terms,
        source=_one_of(request, "source", Source),
        start=_time(request, "from"),
        end=_time(request, "to"),
        before=page_start(request.query),
    )


def _form(request: web.Request) -> Format:
    form: Format | None = _one_of(request, "format", Format)
    if form is not None:
        return form
    accepted = [part.partition(";")[0].strip() for part in request.headers.get("Accept", "").split(",")]
    return next((name for one in accepted for name, kind in MEDIA_TYPES.items() if kind == one), "json")


def _one_of(request: web.Request, name: str, kind: Any) -> Any:
    """A value of the query that is one of the literals in `kind`."""
    text = _said(request, name)
    if text is not None and text not in get_args(kind):
        raise BadField(name, f"one of {', '.join(get_args(kind))} is needed")
    return text


def _time(request: web.Request, name: str) -> float | None:
    """Seconds since 1970, or ISO 8601, UTC where it names no zone."""
    text = _said(request, name)
    if text is None:
        return None
    try:
        at = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            at = math.nan
    if not math.isfinite(at):
        raise BadField(name, "a time is needed, as in 2026-01-31T12:00:00Z or in seconds since 1970")
    return at


def _day(request: web.Request, name: str) -> date | None:
    text = _said(request, name)
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise BadField(name, "a day is needed, as in 2026-01-31") from None


def _said(request: web.Request, name: str) -> str | None:
    """A value of the query; what cannot be in a text of the database is refused here."""
    text = request.query.get(name)
    if text is not None and not storable(text):
        raise BadField(name, "a text without NUL is needed")
    return text
