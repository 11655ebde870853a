"""Callbacks to clients: signed, at least once, tried for a day. The row comes first, then the request.

The form is that of Standard Webhooks: webhook-id, webhook-timestamp, and webhook-signature, which holds one
HMAC-SHA256 over `id.timestamp.body` for each secret in use. The id stays the same over all attempts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from gateway import __version__
from gateway.config import CallbackConfig, Secret
from gateway.errors import StoreError, TargetError
from gateway.metrics import Metrics
from gateway.prerecorded.targets import LOOKUP_SECONDS, Reply, Targets
from gateway.store import deliveries
from gateway.store.deliveries import Delivery, DeliveryState
from gateway.store.store import Store

LONGEST_WAIT: Final = 3600.0
"""Seconds between two attempts, before jitter."""
GONE: Final = 410
"""The receiver wants no more of it."""
POLL_SECONDS: Final = 1.0
"""Between two looks for what other processes wrote, or what has come due."""
UPKEEP_SECONDS: Final = 10.0
LAST_ANSWERS: Final = 2.0
"""Seconds at the end for attempts that are under way."""
LEASE_SLACK: Final = 60.0
"""Seconds that an attempt may take beyond its own: for the store, and for a process that stands still."""
PURGED_AT_ONCE: Final = 1000
UNSIGNED: Final = "cannot be called: callbacks are signed, and callback.secrets_file is not set"


def signature(secrets: Sequence[Secret], delivery_id: str, timestamp: int, body: bytes) -> str:
    """The value of webhook-signature: `v1,` and base64 for each secret, the newest first."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    keys = (base64.b64decode(secret.reveal().removeprefix("whsec_")) for secret in secrets)
    found = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return " ".join(f"v1,{one}" for one in found)


def pause_after(attempts: int, base: float, random: Callable[[], float]) -> float:
    """Seconds to wait after so many attempts: `base`, doubling up to an hour; a quarter more or less."""
    ceiling = min(LONGEST_WAIT, base * 2.0 ** min(attempts - 1, 30))
    return ceiling * (0.75 + 0.5 * random())


class Notifier:
    """Sends what the table of deliveries holds, until closed; several may share one table.

    `random` gives floats in [0, 1), `clock` seconds since 1970.
    """

    def __init__(
        self,
        config: CallbackConfig,
        store: Store,
        targets: Targets,
        secrets: Sequence[Secret],
        *,
        metrics: Metrics,
        random: Callable[[], float],
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._config = config
        self._store = store
        self._targets = targets
        self._secrets = secrets
        self._metrics = metrics
        self._random = random
        self._clock = clock
        self._new_id = new_id
        self._log = structlog.get_logger()
        self._woken = asyncio.Event()
        self._sending: dict[asyncio.Task[None], Delivery] = {}
        self._claimed = Counter[str]()
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._running: asyncio.Task[None] | None = None
        self._upkeep_at = 0.0

    def start(self) -> None:
        """Begins to send, if there is a secret to sign with."""
        if self._secrets:
            self._running = asyncio.create_task(self._run(), name="notifier")

    async def close(self) -> None:
        """Ends what is under way; attempts without an answer are made again after a restart, at once."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._sending:
            await asyncio.wait(self._sending, timeout=LAST_ANSWERS)
        cut = dict(self._sending)
        for task in cut:
            task.cancel()
        if cut:
            await asyncio.wait(cut)
        for delivery in cut.values():
            with contextlib.suppress(StoreError):
                await self._settle(delivery, next_at=self._clock())

    def wake(self) -> None:
        """There are new rows, committed."""
        self._woken.set()

    async def check(self, principal: str, url: str) -> None:
        """Whether a callback to `url` would be taken. Raises TargetError."""
        if not self._secrets:
            raise TargetError(UNSIGNED)
        await self._targets.check(principal, url)

    def prepare(
        self, principal: str, url: str, event: str, data: bytes, subject: str | None = None
    ) -> Delivery:
        """A row for `deliveries.insert`, beside what it tells of; then `wake`. `data` is JSON."""
        return deliveries.new(self._new_id(), principal, url, event, data, self._clock(), subject)

    async def add(self, principal: str, url: str, event: str, data: bytes) -> str:
        """Has `data`, which is JSON, sent to `url`; the delivery's id. Raises TargetError, StoreError."""
        if not self._secrets:
            raise TargetError(UNSIGNED)
        self._targets.judge(url)
        delivery = self.prepare(principal, url, event, data)
        await self._store.write(lambda connection: deliveries.insert(connection, delivery))
        self.wake()
        return delivery.id

    # What became of them

    async def page(
        self, principal: str, state: DeliveryState | None, before: tuple[float, str] | None, limit: int
    ) -> list[Delivery]:
        """See `deliveries.page`. Raises StoreError."""
        return await self._store.read(
            lambda connection: deliveries.page(connection, principal, state, before, limit)
        )

    async def get(self, principal: str, delivery_id: str) -> Delivery | None:
        """With its body. Raises StoreError."""
        return await self._store.read(lambda connection: deliveries.get(connection, principal, delivery_id))

    async def retry(self, principal: str, delivery_id: str) -> Delivery | None:
        """Sends it again, whatever became of it; None if it is not there. Raises StoreError."""
        now = self._clock()
        found = await self._store.write(
            lambda connection: deliveries.retry(connection, principal, delivery_id, now)
        )
        self.wake()
        return found

    async def remove(self, principal: str, delivery_id: str) -> bool:
        """Deletes it, whatever became of it; whether it was there. Raises StoreError."""
        return await self._store.write(
            lambda connection: deliveries.remove(connection, principal, delivery_id)
        )

    # Sending

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            pause = POLL_SECONDS
            try:
                await self._upkeep()
                pause = await self._take()
            except StoreError:
                await asyncio.sleep(POLL_SECONDS)
            except Exception:  # a defect; what was claimed is due again when its lease is over
                self._log.exception("callback.failed")
                await asyncio.sleep(POLL_SECONDS)
            if pause:
                # Not wait_for: before 3.12 it forgets a cancellation that comes with what it waits for.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()

    async def _take(self) -> float:
        """Begins to send what is due and has room; seconds until there may be more."""
        now = self._clock()
        room = self._config.concurrency - len(self._sending)
        due = await self._store.read(deliveries.next_due)
        if room <= 0 or due is None or due > now:
            return POLL_SECONDS if due is None or due <= now else min(POLL_SECONDS, due - now)
        per_host = self._config.per_host
        full = [host for host, count in self._claimed.items() if count >= per_host]
        # A host's second handful may wait for its first, and then has its own time.
        lease_until = now + 2 * (self._config.timeout + LOOKUP_SECONDS) + LEASE_SLACK
        taken = await self._store.write(
            lambda connection: deliveries.claim(connection, now, lease_until, room, per_host, full)
        )
        for delivery in taken:
            self._claimed[delivery.host] += 1
            self._gates.setdefault(delivery.host, asyncio.Semaphore(per_host))
            task = asyncio.create_task(self._send(delivery), name="callback")
            self._sending[task] = delivery
            task.add_done_callback(self._sent)
        return 0.0 if taken else POLL_SECONDS

    def _sent(self, task: asyncio.Task[None]) -> None:
        host = self._sending.pop(task).host
        self._claimed[host] -= 1
        if not self._claimed[host]:
            del self._claimed[host], self._gates[host]
        if not task.cancelled() and task.exception() is not None:
            self._log.error("callback.failed", exc_info=task.exception())
        self.wake()

    async def _send(self, delivery: Delivery) -> None:
        """One attempt. While the store is down its outcome is not written, so that it is made again."""
        async with self._gates[delivery.host]:
            now = self._clock()
            if delivery.attempts == 1:
                self._metrics.callback_wait.observe(max(0.0, now - delivery.created_at))
            headers = {
                "Content-Type": "application/json",
                "User-Agent": f"gateway/{__version__}",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(int(now)),
                "webhook-signature": signature(self._secrets, delivery.id, int(now), delivery.body),
            }
            reply = await self._targets.post(
                delivery.principal, delivery.url, delivery.body, headers, self._config.timeout
            )
        self._metrics.callback_attempts.add(f"{reply.status // 100}xx" if reply.status else "unanswered")
        with contextlib.suppress(StoreError):
            await self._judge(delivery, reply)

    async def _judge(self, delivery: Delivery, reply: Reply) -> None:
        now = self._clock()
        said: dict[str, Any] = {"last_status": reply.status, "last_error": reply.error or None}
        if reply.status is not None and 200 <= reply.status < 300:
            outcome = "delivered"
            await self._settle(delivery, state="delivered", ended_at=now, **said)
        elif reply.status == GONE or now - (delivery.since or now) >= self._config.give_up:
            outcome = "failed"
            await self._settle(delivery, state="failed", ended_at=now, **said)
        else:
            wait = max(
                pause_after(delivery.attempts, self._config.backoff_seconds, self._random),
                min(reply.retry_after, LONGEST_WAIT),
            )
            left = (delivery.since or now) + self._config.give_up - now
            await self._settle(delivery, next_at=now + min(wait, max(left, 0.0)), **said)
            return
        self._metrics.callbacks.add(outcome)
        if outcome == "failed":
            self._log.warning("callback.dead", id=delivery.id, attempts=delivery.attempts, **said)

    async def _settle(self, delivery: Delivery, **changed: Any) -> None:
        settled = msgspec.structs.replace(delivery, **changed)
        await self._store.write(lambda connection: deliveries.settle(connection, settled))

    async def _upkeep(self) -> None:
        now = self._clock()
        if now < self._upkeep_at:
            return
        self._upkeep_at = now + UPKEEP_SECONDS
        count, oldest = await self._store.read(deliveries.waiting)
        self._metrics.callbacks_pending = count
        self._metrics.callback_age_seconds = 0.0 if oldest is None else max(0.0, now - oldest)
        before = now - self._config.keep
        await self._store.write(lambda connection: deliveries.purge(connection, before, PURGED_AT_ONCE))
