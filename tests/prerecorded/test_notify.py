"""Callbacks over real sockets: signed, at least once, nobody held up by somebody else's receiver."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import CallbackConfig, Secret
from gateway.errors import StoreError, TargetError
from gateway.metrics import Metrics
from gateway.policy.targets import NOT_FROM_HERE
from gateway.prerecorded.notify import Notifier, pause_after, signature
from gateway.prerecorded.targets import Targets
from gateway.store import deliveries
from gateway.store.databases import location
from gateway.store.deliveries import Delivery
from gateway.store.store import Store
from tests.fakes.receiver import Receiver
from tests.fakes.stand import eventually

NEW, OLD = (Secret(f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}") for n in (1, 2))
VECTOR = "v1,zxiIc4x0BxN3hes57hXpuK0IjR07r4ciCz2AHeJduRo="


def test_the_vector() -> None:
    """S43: the test vector of docs/prerecorded.md."""
    secret = Secret("whsec_Z2F0ZXdheS1kb2NzLWV4YW1wbGUtc2VjcmV0LTAwMQ==")
    body = b'{"type":"job.succeeded","timestamp":"2026-01-02T03:04:05.678Z","data":{"id":"a1"}}'
    found = signature([secret], "019b7c5e-0000-7000-8000-000000000000", 1767323045, body)
    assert found == VECTOR
    text = (Path(__file__).parents[2] / "docs" / "prerecorded.md").read_text()
    assert all(part in text for part in (secret.reveal(), body.decode(), found, "1767323045"))


def test_two_secrets_sign() -> None:
    """S43: while receivers change over, either of the two is enough."""
    both = signature([NEW, OLD], "d", 1, b"{}")
    assert both == f"{signature([NEW], 'd', 1, b'{}')} {signature([OLD], 'd', 1, b'{}')}"
    assert signature([NEW], "d", 1, b"{}") != signature([NEW], "d", 2, b"{}")


class Post:
    """A store, receivers, and notifiers on them, until the test is over."""

    def __init__(self, folder: Path) -> None:
        self.metrics = Metrics([], "0")
        self._folder = folder
        self._receivers: list[Receiver] = []
        self._notifiers: list[Notifier] = []
        self._numbers = itertools.count()
        self.store: Store

    async def open(self) -> None:
        place = location(f"sqlite:///{self._folder}/gateway.db", {})
        assert place is not None
        self.store = Store(place, metrics=self.metrics)
        await self.store.start()

    async def close(self) -> None:
        for notifier in self._notifiers:
            await notifier.close()
        for receiver in self._receivers:
            await receiver.stop()
        await self.store.close()

    async def receiver(self, **answers: list[str]) -> Receiver:
        made = await Receiver({f"/{path}": given for path, given in answers.items()}).start()
        self._receivers.append(made)
        return made

    def notifier(
        self, *, secrets: tuple[Secret, ...] = (NEW,), clock: Callable[[], float] = time.time, **keys: Any
    ) -> Notifier:
        ports = tuple(one.port for one in self._receivers)
        settings = {"allow_http": True, "ports": ports, "allow": ("127.0.0.0/8", "localhost"), "timeout": 5.0}
        config = CallbackConfig(**{**settings, "backoff_seconds": 0.05, **keys})
        made = Notifier(
            config,
            self.store,
            Targets(config, tuple),
            secrets,
            metrics=self.metrics,
            random=random.Random(1).random,
            clock=clock,
            new_id=lambda: f"d{next(self._numbers)}",
        )
        made.start()
        self._notifiers.append(made)
        return made

    async def row(self, delivery_id: str) -> Delivery:
        found = await self.store.read(lambda connection: deliveries.get(connection, "p", delivery_id))
        assert found is not None
        return found

    async def ended(self, delivery_id: str, seconds: float = 10.0) -> Delivery:
        end = time.monotonic() + seconds
        while (row := await self.row(delivery_id)).state == "pending":
            assert time.monotonic() < end, row
            await asyncio.sleep(0.02)
        return row


@pytest.fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    made = Post(tmp_path)
    await made.open()
    yield made
    await made.close()


async def test_a_callback(post: Post) -> None:
    """Arrives at once, signed with both secrets; its row says so."""
    receiver = await post.receiver()
    notifier = post.notifier(secrets=(NEW, OLD))
    delivery_id = await notifier.add("p", receiver.url("/hook?x=1"), "session.ended", b'{"id":"s"}')
    row = await post.ended(delivery_id)
    (got,) = receiver.received
    stamp = got.headers["webhook-timestamp"]
    assert abs(int(stamp) - time.time()) < 5
    assert got.headers["webhook-id"] == delivery_id
    assert got.headers["webhook-signature"] == signature([NEW, OLD], delivery_id, int(stamp), got.body)
    assert (got.method, got.headers["content-type"]) == ("POST", "application/json")
    body = json.loads(got.body)
    assert (body["type"], body["data"]) == ("session.ended", {"id": "s"})
    assert (row.state, row.attempts, row.last_status, row.last_error) == ("delivered", 1, 200, None)
    await eventually(lambda: post.metrics.callbacks["delivered"] == 1)  # counted once the row is written


async def test_failures_are_tried_again(post: Post) -> None:
    """500, a redirect, a hang, a dropped connection, then 200: one id, times that move on (faults.md 71)."""
    receiver = await post.receiver(hook=["500", "307 /loot", "hang", "drop", "404", "200"])
    notifier = post.notifier(timeout=0.3)
    delivery_id = await notifier.add("p", receiver.url("/hook"), "e", b"1")
    row = await post.ended(delivery_id)
    assert (row.state, row.attempts) == ("delivered", 6)
    assert {got.headers["webhook-id"] for got in receiver.received} == {delivery_id}
    assert {got.path for got in receiver.received} == {"/hook"}
    attempts = post.metrics.callback_attempts
    assert [attempts[name] for name in ("2xx", "3xx", "4xx", "5xx", "unanswered")] == [1, 1, 1, 1, 2]


async def test_gone(post: Post) -> None:
    """A receiver that says 410 is not asked again."""
    receiver = await post.receiver(hook=["410"])
    row = await post.ended(await post.notifier().add("p", receiver.url("/hook"), "e", b"1"))
    assert (row.state, row.attempts, row.last_status) == ("failed", 1, 410)
    await eventually(lambda: post.metrics.callbacks["failed"] == 1)  # counted once the row is written


async def test_dead_letters(post: Post) -> None:
    """Given up in the end, kept, and delivered when somebody asks for it, under the same id."""
    receiver = await post.receiver(hook=["500"])
    notifier = post.notifier(give_up=0.8)
    delivery_id = await notifier.add("p", receiver.url("/hook"), "e", b"1")
    row = await post.ended(delivery_id)
    assert (row.state, row.last_status) == ("failed", 500)
    assert row.attempts > 1
    receiver.answers["/hook"] = ["200"]
    await post.store.write(lambda connection: deliveries.retry(connection, "p", delivery_id, time.time()))
    notifier.wake()
    assert (await post.ended(delivery_id)).state == "delivered"
    assert {got.headers["webhook-id"] for got in receiver.received} == {delivery_id}


def test_pauses_double() -> None:
    """From five seconds to an hour, with jitter."""
    pauses = [pause_after(attempts, 5.0, lambda: 0.5) for attempts in range(1, 13)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert (pause_after(1000, 5.0, lambda: 0.0), pause_after(2, 5.0, lambda: 1.0)) == (2700, 12.5)


async def test_retry_after(post: Post) -> None:
    """A receiver that names a time is left alone until then, an hour at most."""
    receiver = await post.receiver(soon=["503 40"], late=["503 999999"])
    notifier = post.notifier()
    begun = time.time()
    ids = [await notifier.add("p", receiver.url(path), "e", b"1") for path in ("/soon", "/late")]
    await eventually(lambda: post.metrics.callback_attempts["5xx"] == 2)
    await asyncio.sleep(0.1)
    rows = [await post.row(one) for one in ids]
    assert [round(row.next_at - begun, -1) for row in rows] == [40, 3600]


async def test_a_restart_in_the_middle(post: Post) -> None:
    """What was under way is sent again at once by the next process, under the same id (faults.md 72)."""
    receiver = await post.receiver(hook=["500", "hang", "200"])
    first = post.notifier(timeout=30.0)
    delivery_id = await first.add("p", receiver.url("/hook"), "e", b"1")
    await eventually(lambda: receiver.under_way == 1 and len(receiver.received) == 2)
    begun = time.monotonic()
    await first.close()
    post.notifier()
    row = await post.ended(delivery_id)
    assert time.monotonic() - begun < 5
    assert (row.state, row.attempts) == ("delivered", 3)
    assert [got.headers["webhook-id"] for got in receiver.received] == [delivery_id] * 3


async def test_a_death_in_the_middle(post: Post) -> None:
    """A process that is killed says nothing; its lease runs out, and the next one sends (faults.md 72)."""
    receiver = await post.receiver(hook=["200"])
    now = [time.time()]
    delivery = deliveries.new("d", "p", receiver.url("/hook"), "e", b"1", now[0])
    await post.store.write(lambda connection: deliveries.insert(connection, delivery))
    await post.store.write(lambda connection: deliveries.claim(connection, now[0], now[0] + 90, 10, 10, ()))
    post.notifier(clock=lambda: now[0])
    await asyncio.sleep(1.3)
    assert receiver.received == []
    now[0] += 91
    assert (await post.ended("d")).attempts == 2


async def test_two_gateways_on_one_table(post: Post) -> None:
    """Leases keep them from sending the same thing twice."""
    receiver = await post.receiver()
    one, _other = post.notifier(), post.notifier()
    ids = [await one.add("p", receiver.url("/hook"), "e", b"1") for _ in range(40)]
    for delivery_id in ids:
        await post.ended(delivery_id)
    assert sorted(got.headers["webhook-id"] for got in receiver.received) == sorted(ids)


async def test_a_receiver_that_hangs(post: Post) -> None:
    """A thousand deliveries to one host that hangs; another's go out as before (faults.md 73)."""
    bad, good = await post.receiver(hook=["hang"]), await post.receiver()
    notifier = post.notifier(per_host=8, timeout=20.0)
    rows = [
        deliveries.new(f"bad{n}", "a", bad.url("/hook"), "e", b"1", time.time() - 60) for n in range(1000)
    ]

    async def insert(connection: Any) -> None:
        for row in rows:
            await deliveries.insert(connection, row)

    await post.store.write(insert)
    notifier.wake()
    await eventually(lambda: bad.under_way == 8)
    waits = []
    for _ in range(20):
        begun = time.monotonic()
        assert (await post.ended(await notifier.add("p", good.url(), "e", b"1"))).state == "delivered"
        waits.append(time.monotonic() - begun)
    assert max(waits) < 2.0
    assert bad.most_under_way == 8


async def test_a_hanging_half(post: Post) -> None:
    """No answer, half an answer and one without end at once; all are over in their time (faults.md 71)."""
    receiver = await post.receiver(hang=["hang", "200"], half=["half", "200"], endless=["endless"])
    notifier = post.notifier(timeout=0.5)
    ids = [await notifier.add("p", receiver.url(path), "e", b"1") for path in ("/hang", "/half", "/endless")]
    rows = [await post.ended(one) for one in ids]
    assert [(row.state, row.attempts) for row in rows] == [
        ("delivered", 2),
        ("delivered", 2),
        ("delivered", 1),
    ]


async def test_where_nobody_may_go(post: Post) -> None:
    """S36, S39: loopback is not called, by name or number, nor through a redirect."""
    inside, outside = await post.receiver(), await post.receiver(hook=[])
    outside.answers["/hook"] = [f"307 {inside.url('/loot')}"]
    strict = post.notifier(allow=(), give_up=0.3)
    with pytest.raises(TargetError, match=NOT_FROM_HERE):
        await strict.add("p", inside.url(), "e", b"1")
    with pytest.raises(TargetError, match=NOT_FROM_HERE):
        await strict.check("p", inside.url("/", "localhost"))
    await strict.close()
    open_one = post.notifier(give_up=0.3)
    row = await post.ended(await open_one.add("p", outside.url("/hook"), "e", b"1"))
    assert (row.state, row.last_status, inside.connections) == ("failed", 307, 0)


async def test_a_row_from_elsewhere_is_judged_too(post: Post) -> None:
    """Law 7: what stands in the table is no proof that anyone looked at it."""
    receiver = await post.receiver()
    notifier = post.notifier(allow=(), give_up=0.2)
    delivery = notifier.prepare("p", receiver.url(), "e", b"1")
    await post.store.write(lambda connection: deliveries.insert(connection, delivery))
    notifier.wake()
    row = await post.ended(delivery.id)
    assert (row.state, row.last_error, receiver.connections) == ("failed", NOT_FROM_HERE, 0)


async def test_without_a_secret(post: Post) -> None:
    """S43: nothing leaves unsigned; what was taken before waits for a secret."""
    receiver = await post.receiver()
    mute = post.notifier(secrets=())
    for refused in (mute.check("p", receiver.url()), mute.add("p", receiver.url(), "e", b"1")):
        with pytest.raises(TargetError, match=r"callback\.secrets_file is not set"):
            await refused
    delivery = mute.prepare("p", receiver.url(), "e", b"1")
    await post.store.write(lambda connection: deliveries.insert(connection, delivery))
    post.notifier()
    assert (await post.ended(delivery.id)).state == "delivered"


async def test_the_store_comes_back(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is down nothing is sent, and then everything is; the notifier outlives it."""
    receiver = await post.receiver()
    notifier = post.notifier()
    delivery_id = await notifier.add("p", receiver.url("/first"), "e", b"1")
    await post.ended(delivery_id)
    monkeypatch.setattr(post.store, "healthy", False)
    with pytest.raises(StoreError):
        await notifier.add("p", receiver.url(), "e", b"1")
    monkeypatch.setattr(post.store, "healthy", True)
    assert (await post.ended(await notifier.add("p", receiver.url(), "e", b"1"))).state == "delivered"


async def test_upkeep(post: Post) -> None:
    """What waits is counted, what is old is deleted."""
    receiver = await post.receiver(hook=["500"], fine=["200"])
    now = [time.time()]
    notifier = post.notifier(clock=lambda: now[0], keep=100.0, give_up=1000.0)
    done = await notifier.add("p", receiver.url("/fine"), "e", b"1")
    await post.ended(done)
    await notifier.add("p", receiver.url("/hook"), "e", b"1")
    now[0] += 101
    notifier.wake()
    await eventually(lambda: post.metrics.callback_age_seconds > 100)
    assert 100 < post.metrics.callback_age_seconds < 110
    now[0] += 11  # the numbers of the next look are there when this one's deletions are
    await eventually(lambda: post.metrics.callback_age_seconds > 111)
    assert await post.store.read(lambda connection: deliveries.get(connection, "p", done)) is None
