"""`/v1/transcripts` and `/v1/usage` over HTTP, on SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from sqlalchemy import make_url

from gateway.auth import Authenticator
from gateway.config import AuthConfig
from gateway.metrics import Metrics
from gateway.sidecar import HttpServer
from gateway.sidecar.api import add
from gateway.sidecar.errors import in_deepgrams_form
from gateway.sidecar.transcripts import TranscriptRoutes
from gateway.store import transcripts, usage
from gateway.store.store import Store
from gateway.store.transcripts import FinalResult, Transcript
from gateway.store.usage import Usage

RESPONSE = b"""{"metadata": {"request_id": "r"}, "results": {"channels": [{"alternatives": [{
    "transcript": "Hi there.",
    "words": [
        {"word": "hi", "punctuated_word": "Hi", "start": 0.5, "end": 1.0},
        {"word": "there", "punctuated_word": "there.", "start": 1.0, "end": 1.5}
    ]}]}]}}"""
NOON = 1_767_268_800.0
"""2026-01-01T12:00:00Z."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(make_url(f"sqlite:///{tmp_path}/x.db"), metrics=Metrics([], "0"))
    yield made
    await made.close()


@pytest.fixture
async def client(store: Store) -> AsyncIterator[ClientSession]:
    routes = TranscriptRoutes(
        store, authenticator=Authenticator(AuthConfig()), new_id=lambda: "id-1", clock=lambda: NOON
    )
    app = web.Application(middlewares=[in_deepgrams_form(lambda: "id-2")])
    add(app, routes.operations())
    async with HttpServer(app, 5.0) as server:
        host, port = await server.listen("127.0.0.1", 0)
        async with ClientSession(f"http://{host}:{port}") as session:
            yield session


def recording(id: str, text: str = "Hi there.", principal: str = "anonymous", at: float = NOON) -> Transcript:
    return Transcript(
        id=id, principal=principal, source="sync", text=text, result=RESPONSE, created_at=at, ended_at=at
    )


async def save(store: Store, *saved: Transcript) -> None:
    await store.write(partial(transcripts.save, recordings=saved))


async def got(client: ClientSession, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, media type, body."""
    async with client.get(path, headers=headers) as response:
        return response.status, response.content_type, await response.text()


async def listed(client: ClientSession, query: str = "") -> list[str]:
    _, _, body = await got(client, f"/v1/transcripts{query}")
    return [one["id"] for one in msgspec.json.decode(body)["transcripts"]]


async def test_a_recording(store: Store, client: ClientSession) -> None:
    """Deepgram's response inside is what it was, byte for byte."""
    await save(store, msgspec.structs.replace(recording("a"), metadata=b'{"k": [1.0]}', duration=2.0))
    status, kind, body = await got(client, "/v1/transcripts/a")
    assert (status, kind) == (200, "application/json")
    assert RESPONSE.decode() in body
    assert msgspec.json.decode(body) == {
        "id": "a",
        "source": "sync",
        "request_id": "",
        "query": "",
        "metadata": {"k": [1.0]},
        "duration": 2.0,
        "created_at": NOON,
        "ended_at": NOON,
        "result": msgspec.json.decode(RESPONSE),
    }


@pytest.mark.parametrize(
    ("query", "accept", "kind", "begins"),
    [
        ("?format=text", "*/*", "text/plain", "Hi there.\n"),
        ("?format=srt", "*/*", "application/x-subrip", "1\n00:00:00,500 --> 00:00:01,500\nHi there."),
        ("?format=vtt", "application/json", "text/vtt", "WEBVTT\n"),
        ("", "text/vtt", "text/vtt", "WEBVTT\n"),
        ("", "image/png, text/plain;q=0.5", "text/plain", "Hi there.\n"),
        ("", "text/html", "application/json", '{"id":"a"'),
        ("?format=json", "text/plain", "application/json", '{"id":"a"'),
    ],
)
async def test_its_forms(
    store: Store, client: ClientSession, query: str, accept: str, kind: str, begins: str
) -> None:
    """What the query asks for, else the first form in Accept that there is."""
    await save(store, recording("a"))
    status, found, body = await got(client, f"/v1/transcripts/a{query}", Accept=accept)
    assert (status, found) == (200, kind)
    assert body.startswith(begins)


async def test_a_call_that_goes_on(store: Store, client: ClientSession) -> None:
    """What was said so far, in the same forms."""
    call = Transcript(id="c", principal="anonymous", source="live", created_at=NOON)
    words = b'[{"word": "yes", "start": 1.0, "end": 2.0, "confidence": 0.9}]'
    final = FinalResult(transcript="c", number=0, channel=0, start=1.0, duration=1.0, text="yes", words=words)
    await store.write(lambda c: transcripts.begin(c, [call]))
    await store.write(lambda c: transcripts.append(c, [final]))
    _, _, body = await got(client, "/v1/transcripts/c")
    document = msgspec.json.decode(body)
    assert (document["source"], document["ended_at"]) == ("live", None)
    assert document["result"]["results"]["channels"][0]["alternatives"][0]["transcript"] == "yes"
    assert (await got(client, "/v1/transcripts/c?format=text"))[2] == "yes\n"


async def test_nobody_sees_anothers(store: Store, client: ClientSession) -> None:
    """Another principal's transcript is not there: not to read, to list, to find or to delete."""
    await save(store, recording("theirs", principal="other"))
    assert (await got(client, "/v1/transcripts/theirs"))[0] == 404
    assert await listed(client, "?q=hi") == await listed(client) == []
    for path in ("/v1/transcripts/theirs", "/v1/transcripts?all=true"):
        async with client.delete(path) as response:
            assert response.status in (404, 200)
    assert await store.read(partial(transcripts.get, principal="other", id="theirs")) is not None


async def test_pages(store: Store, client: ClientSession) -> None:
    """Each once, by the cursor of the page before."""
    await save(store, *(recording(f"t{i}", at=NOON + i) for i in range(5)))
    found, cursor = [], ""
    for _ in range(3):
        page = msgspec.json.decode((await got(client, f"/v1/transcripts?limit=2{cursor}"))[2])
        found += [one["id"] for one in page["transcripts"]]
        cursor = f"&cursor={page['next']}"
    assert found == ["t4", "t3", "t2", "t1", "t0"]
    assert page["next"] is None


async def test_what_is_asked_for(store: Store, client: ClientSession) -> None:
    """By words, by source and by time, in either spelling."""
    await save(store, recording("a", "one refund", at=NOON), recording("b", "two", at=NOON + 3600))
    assert await listed(client, "?q=refund") == ["a"]
    assert await listed(client, "?source=live") == []
    assert await listed(client, "?from=2026-01-01T12:30:00Z") == ["b"]
    assert await listed(client, "?from=2026-01-01T13:30:00%2B01:00&to=2026-01-01T13:00:00") == []
    assert await listed(client, "?from=2026-01-01&to=2026-01-02") == ["b", "a"]
    assert await listed(client, f"?to={NOON + 1}") == ["a"]


@pytest.mark.parametrize(
    "query",
    [
        "q=",
        "q=%2D",
        "q=" + "x" * 1001,
        "q=a%00b",
        "source=dictaphone",
        "from=yesterday",
        "from=nan",
        "to=1e400",
        "limit=0",
        "limit=1001",
        "limit=ten",
        "cursor=x",
        "cursor=1",
        "cursor=inf~a",
    ],
)
async def test_what_cannot_be_asked_for(client: ClientSession, query: str) -> None:
    """400 with the name of the field, in Deepgram's form."""
    status, _, body = await got(client, f"/v1/transcripts?{query}")
    refused: dict[str, Any] = msgspec.json.decode(body)
    assert (status, refused["err_code"], refused["request_id"]) == (400, "INVALID_FIELD", "id-1")
    assert refused["err_msg"].startswith(f"{query.partition('=')[0]}: ")


@pytest.mark.parametrize("path", ["no", "a%00", "%0a", "%ff", "x" * 2000, "%F0%9F%98%80"])
async def test_what_is_not_there(client: ClientSession, path: str) -> None:
    """404, whatever it is called."""
    status, _, body = await got(client, f"/v1/transcripts/{path}")
    assert (status, msgspec.json.decode(body)["err_msg"]) == (404, "id: there is no such transcript.")


async def test_an_unknown_form(store: Store, client: ClientSession) -> None:
    await save(store, recording("a"))
    status, _, body = await got(client, "/v1/transcripts/a?format=pdf")
    assert status == 400
    assert msgspec.json.decode(body)["err_msg"] == "format: one of json, text, srt, vtt is needed"


async def test_deletion(store: Store, client: ClientSession) -> None:
    """One, or on an explicit word all."""
    await save(store, *(recording(id) for id in "abc"))
    answers = []
    for path in ("/a", "/a", "", "?all=true"):
        async with client.delete(f"/v1/transcripts{path}") as response:
            answers.append((response.status, (await response.json()).get("deleted")))
    assert answers == [(200, 1), (404, None), (400, None), (200, 2)]
    assert await listed(client) == []


async def test_usage(store: Store, client: ClientSession) -> None:
    """By day, and together; the last 30 days where nothing else is said."""
    used = [
        Usage(principal="anonymous", day=day, accepted_seconds=10.0, sent_seconds=12.0, replayed_seconds=2.0)
        for day in (date(2025, 12, 2), date(2025, 12, 3), date(2026, 1, 1))
    ]
    await store.write(lambda c: usage.add(c, [*used, Usage(principal="other", day=date(2026, 1, 1))]))
    found = msgspec.json.decode((await got(client, "/v1/usage"))[2])
    day = {"accepted_seconds": 10.0, "sent_seconds": 12.0, "replayed_seconds": 2.0}
    assert found["days"] == [{"day": "2025-12-03", **day}, {"day": "2026-01-01", **day}]
    assert (found["accepted_seconds"], found["sent_seconds"], found["replayed_seconds"]) == (20.0, 24.0, 4.0)
    found = msgspec.json.decode((await got(client, "/v1/usage?from=2025-12-02&to=2025-12-02"))[2])
    assert [one["day"] for one in found["days"]] == ["2025-12-02"]
    assert (await got(client, "/v1/usage?to=0001-01-01"))[0] == 200
    status, _, body = await got(client, "/v1/usage?from=monday")
    assert (status, msgspec.json.decode(body)["err_msg"][:6]) == (400, "from: ")


async def test_a_store_that_is_down(store: Store, client: ClientSession) -> None:
    """Later, and when."""
    store.healthy = False
    async with client.get("/v1/transcripts") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert (await response.json())["err_code"] == "UNAVAILABLE"
    store.healthy = True


async def test_who_may_not_call(store: Store) -> None:
    """A credential that is not known is 401, before anything is looked up."""
    routes = TranscriptRoutes(
        store, authenticator=Authenticator(AuthConfig(mode="keys")), new_id=lambda: "i", clock=lambda: NOON
    )
    app = web.Application()
    add(app, routes.operations())
    async with HttpServer(app, 5.0) as server:
        host, port = await server.listen("127.0.0.1", 0)
        async with ClientSession(f"http://{host}:{port}") as session:
            assert (await got(session, "/v1/transcripts"))[0] == 401
