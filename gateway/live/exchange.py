"""What all calls of a process share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gateway.auth import Authenticator, Principal
from gateway.config import Config
from gateway.deepgram.errors import TRY_LATER
from gateway.live.dialer import Dialer
from gateway.live.gate import DialGate
from gateway.live.record import Recorder
from gateway.live.slots import Slots
from gateway.metrics import Metrics
from gateway.policy.batching import Batching
from gateway.policy.budget import relief
from gateway.policy.regions import Regions

if TYPE_CHECKING:
    from gateway.live.call import Call

SWEEP_INTERVAL: Final = 1.0
"""Seconds between two looks at the replay buffers; in one second 4000 calls of G.711 bring 32 MB."""
SWEPT_AT_ONCE: Final = 32
"""Calls that are looked at before the loop goes on: frames and results wait for no more than that."""
NO_ROOM: Final = "the gateway has no memory left for this call"


class Exchange:
    """Made once by the application; `calls` are the live ones by session id, `empty` is set without any.

    Those of them that wait for their client are also in `waiting`, by principal, the longest waiting first.
    """

    def __init__(
        self,
        config: Config,
        *,
        api_key: str | None,
        metrics: Metrics,
        log: Any,
        tasks: asyncio.TaskGroup,
        random: Callable[[], float],
        mint_request_id: Callable[[], str],
        mint_session_id: Callable[[], str],
        mint_token: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        """`random` gives floats in [0, 1), `clock` seconds since 1970; `tasks` owns a call's every task."""
        self.config = config
        self.api_key = api_key
        self.metrics = metrics
        self.log = log
        self.tasks = tasks
        self.random = random
        self.mint_request_id = mint_request_id
        self.mint_session_id = mint_session_id
        self.mint_token = mint_token
        self.clock = clock
        self.recorder: Recorder | None = None
        """None where nothing is stored."""
        self.authenticator = Authenticator(config.auth)
        self.dialer = Dialer(config.deepgram)
        self.gate = DialGate(config.deepgram.max_dials_per_second, metrics)
        self.regions = Regions([region.name for region in config.deepgram.regions])
        fixed = config.server.batch_ms
        self.batching = Batching(fixed if isinstance(fixed, int) else None)
        self.slots = Slots(self.batching.window_ms)
        self.calls: dict[str, Call] = {}
        self.waiting: dict[Principal, dict[str, Call]] = {}
        self.empty = asyncio.Event()
        self.empty.set()
        self.ended_seconds = 0.0
        """Audio of the calls that are over."""
        self.is_full = False
        """The replay buffers leave no room for another session; see `gateway.policy.budget`."""

    def opened(self, session_id: str, call: Call) -> None:
        self.calls[session_id] = call
        self.empty.clear()

    def closed(self, session_id: str) -> None:
        self.calls.pop(session_id, None)
        if not self.calls:
            self.empty.set()

    def detached(self, call: Call) -> None:
        """`call` waits for its client; too many of one principal do not."""
        waiting = self.waiting.setdefault(call.principal, {})
        waiting[call.session_id] = call
        self.metrics.sessions_detached += 1
        if len(waiting) > self.config.resume.max_detached:
            next(iter(waiting.values())).let_go()

    def attached(self, call: Call) -> None:
        """`call` waits no longer, if it did."""
        waiting = self.waiting.get(call.principal, {})
        if waiting.pop(call.session_id, None) is not None:
            self.metrics.sessions_detached -= 1
            if not waiting:
                del self.waiting[call.principal]

    def measure(self) -> None:
        """Sets what is read from the sessions rather than counted."""
        self.metrics.journal_bytes = sum(call.journal_bytes for call in self.calls.values())
        streams = [call.session.stream for call in self.calls.values()]
        live = sum(stream.audio_seconds for stream in streams if stream.clock.exact)
        self.metrics.client_audio_seconds = self.ended_seconds + live
        self.metrics.session_lag_seconds = max((stream.behind for stream in streams), default=0.0)
        self.metrics.batch_window_seconds = self.slots.window_ms / 1000
        self.metrics.sessions_catching_up = sum(stream.uplink.catching_up for stream in streams)

    async def watch(self) -> None:
        """Keeps the replay buffers within `server.buffer_memory` and batches by load, until cancelled."""
        while True:
            looked_at, spent = time.monotonic(), time.thread_time()
            try:
                await self._make_room()
            except Exception:
                self.log.exception("sweep.defect")  # it comes again
            await asyncio.sleep(SWEEP_INTERVAL)
            busy = (time.thread_time() - spent) / (time.monotonic() - looked_at)
            self.slots.window_ms = self.batching.observe(busy)

    async def _make_room(self) -> None:
        """One look at what the sessions hold, and what must be done about it."""
        calls, held = list(self.calls.values()), []
        for call in calls:
            held.append(call.held)
            if not len(held) % SWEPT_AT_ONCE:
                await asyncio.sleep(0)
        self.metrics.replay_buffer_bytes = sum(one.size for one in held)
        found = relief(self.config.server.buffer_memory, held)
        self.is_full = found.refuse
        for index in found.close:
            if calls[index].session_id in self.calls:  # it may have ended meanwhile
                self.metrics.shed.add("closed")
                calls[index].cut_short(TRY_LATER, NO_ROOM)
        if found.limit is not None:
            for call, one in zip(calls, held, strict=True):
                if one.can_shrink and one.size > found.limit and call.session_id in self.calls:
                    self.metrics.shed.add("shrunk")
                    call.shrink(found.limit)
