"""What the synchronous route transcribed is in the store; no client waits for it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import aiohttp
import msgspec
import pytest
import structlog
from sqlalchemy import make_url

from gateway.app import Gateway
from gateway.auth import ANONYMOUS
from gateway.deepgram.query import ListenQuery
from gateway.metrics import Metrics
from gateway.prerecorded.keep import Keeper, transcript
from gateway.prerecorded.sync import Order
from gateway.prerecorded.transcriber import Answer
from gateway.store import transcripts, usage
from gateway.store.store import Store
from gateway.store.transcripts import Summary, Wanted
from tests.fakes.stand import Stand, call, eventually


def body(*said: str) -> bytes:
    channels = [{"alternatives": [{"transcript": text}]} for text in said]
    return msgspec.json.encode({"metadata": {"duration": 2.5}, "results": {"channels": channels}})


def answer(text: bytes, id: str = "r") -> Answer:
    return Answer(200, [], text, id, "r0")


def order(query: str = "model=x") -> Order:
    return Order(ANONYMOUS, ListenQuery(query), [])


async def listed(store: Store) -> list[Summary]:
    return await store.read(lambda c: transcripts.page(c, "anonymous", Wanted(), 10))


def test_the_row_of_a_response() -> None:
    """Every channel's words can be found."""
    row = transcript("a", "p", "async", body("one", "", "two"), created_at=1.0, ended_at=2.0)
    assert (row.text, row.duration, row.result) == ("one\ntwo", 2.5, body("one", "", "two"))
    with pytest.raises(msgspec.DecodeError):
        transcript("a", "p", "async", b'{"request_id": "x"}', created_at=1.0, ended_at=2.0)


@pytest.fixture
async def store(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Store]:
    made = await Store.open(make_url(f"sqlite:///{tmp_path}/x.db"), metrics=metrics)
    yield made
    await made.close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics([], "0")


def made(store: Store, metrics: Metrics, *, stores: bool) -> Keeper:
    ids = map(str, itertools.count())
    log = structlog.get_logger()
    return Keeper(store, stores=stores, new_id=ids.__next__, clock=lambda: 7.0, metrics=metrics, log=log)


@pytest.fixture
def keeper(store: Store, metrics: Metrics) -> Keeper:
    return made(store, metrics, stores=True)


async def test_it_is_kept(store: Store, keeper: Keeper) -> None:
    """Under Deepgram's id of the request, and with what Deepgram was asked."""
    keeper.keep(order("model=x&gw_store=true"), answer(body("hello")))
    await keeper.close()
    kept = await store.read(lambda c: transcripts.get(c, "anonymous", "r"))
    assert kept is not None
    assert (kept.text, kept.query, kept.source, kept.created_at) == ("hello", "model=x", "sync", 7.0)


@pytest.mark.parametrize("query", ["gw_store=false", "gw_store=0"])
async def test_what_is_not_to_be_kept(store: Store, keeper: Keeper, query: str) -> None:
    """A caller may say so; how many seconds it took is known all the same."""
    for _ in range(2):
        keeper.keep(order(query), answer(body("x")))
        await keeper.close()
    assert await listed(store) == []
    (used,) = await store.read(lambda c: usage.of(c, "anonymous", date(1970, 1, 1), date(1970, 1, 1)))
    assert used.accepted_seconds == used.sent_seconds == 5.0


async def test_an_operator_who_keeps_nothing(store: Store, metrics: Metrics) -> None:
    """Switched off by `store.prerecorded`, no words are kept."""
    keeper = made(store, metrics, stores=False)
    keeper.keep(order(), answer(body("x")))
    await keeper.close()
    assert await listed(store) == []


async def test_an_accepted_callback(store: Store, metrics: Metrics, keeper: Keeper) -> None:
    """It is no transcript."""
    keeper.keep(order("callback=https://a"), answer(b'{"request_id": "r"}'))
    await keeper.close()
    assert await listed(store) == []
    assert metrics.store_dropped["recording"] == 0


async def test_what_cannot_be_kept_is_counted(store: Store, metrics: Metrics, keeper: Keeper) -> None:
    """A store that is down, an answer that is none; nobody hears of it but the operator."""
    keeper.keep(order(), answer(b"<html>"))
    await keeper.close()
    store.healthy = False
    keeper.keep(order(), answer(body("x")))
    await keeper.close()
    store.healthy = True
    assert (await listed(store), metrics.store_dropped["recording"]) == ([], 2)


@pytest.mark.parametrize("bad", [body("x").replace(b'"x"', b'"\xff"'), b'{"x":' + b"[" * 99_999])
async def test_an_answer_that_cannot_be_read(
    store: Store, metrics: Metrics, keeper: Keeper, bad: bytes
) -> None:
    """Neither bytes that are no text nor nesting without end break anything: it is not kept, and counted."""
    keeper.keep(order(), answer(bad))
    await keeper.close()
    assert (await listed(store), metrics.store_dropped["recording"]) == ([], 1)


async def test_ids_of_requests_without_a_header(store: Store, keeper: Keeper) -> None:
    """The answer's own id names the transcript; and an id of ours, where there is none at all."""
    named = msgspec.json.encode(msgspec.json.decode(body("x")) | {"metadata": {"request_id": "in-body"}})
    for text in (named, body("y"), body("z")):
        keeper.keep(order(), answer(text, id=""))
    await keeper.close()
    found = {one.preview: one.id for one in await listed(store)}
    assert found.keys() == {"x", "y", "z"}
    assert found["x"] == "in-body"
    assert all(found.values())


async def test_it_does_not_hold_without_end(
    monkeypatch: pytest.MonkeyPatch, store: Store, metrics: Metrics, keeper: Keeper
) -> None:
    """What waits for a slow store has a bound, and room is made when it is written."""
    monkeypatch.setattr("gateway.prerecorded.keep.MOST_BYTES", len(body("x")) + 10)
    for id in "ab":
        keeper.keep(order(), answer(body("x"), id))
    await keeper.close()
    keeper.keep(order(), answer(body("x"), "c"))
    await keeper.close()
    assert {one.id for one in await listed(store)} == {"a", "c"}
    assert metrics.store_dropped["recording"] == 1


async def recorded(gateway: Gateway, query: str) -> None:
    audio, _ = call(3)
    host, port = gateway.address
    url = f"http://{host}:{port}/v1/listen?model=nova-3&encoding=mulaw&sample_rate=8000{query}"
    async with aiohttp.ClientSession() as session, session.post(url, data=audio) as response:
        assert response.status == 200


async def test_through_a_gateway(stand: Stand, tmp_path: Path) -> None:
    """From an upload to the words that can be searched; switched off, nothing is kept."""
    emulator = await stand.emulator()
    url = f"sqlite:///{tmp_path}/gateway.db"
    gateway = await stand.gateway(emulator.url, store={"url": url})
    assert gateway.store is not None
    await recorded(gateway, "")
    await recorded(gateway, "&gw_store=false")
    await eventually(lambda: gateway.metrics.store_commit.sum)
    host, port = gateway.sidecar_address
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        async with session.get("/v1/transcripts?source=sync") as response:
            page = await response.json()
        async with session.get(f"/v1/transcripts/{page['transcripts'][0]['id']}?format=srt") as response:
            assert "-->" in await response.text()
    assert len(page["transcripts"]) == len(await listed(gateway.store)) == 1
