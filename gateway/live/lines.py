"""The upstream side of a call: its dials and connections, by epoch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from gateway.deepgram.recogniser import FINAL
from gateway.errors import UpstreamError, UpstreamRejected, UpstreamTimeout
from gateway.live.exchange import Exchange
from gateway.live.upstream import UpstreamLeg
from gateway.metrics import handshake_label
from gateway.session.events import Deliver
from gateway.session.protocol import SessionProtocol

LET_DOWN: Final = ("stalled", "net_0000")
"""Causes of a break that are a region's doing when they come again."""


class Lines:
    """Does what a session orders upstream, and tells it what comes of that; `turn` is called after.

    `region` is the one that was dialled last.
    """

    __slots__ = (  # noqa: SIM905 (as in `WebSocketLeg`)
        "_broke _deliver _dials _exchange _headers _legs _logger _loop _metrics _proved _regions "
        "_session _speaking _target _turn _turn_is_due defect region"
    ).split()

    def __init__(
        self,
        exchange: Exchange,
        session: SessionProtocol,
        target: str,
        headers: list[tuple[str, str]],
        turn: Callable[[], None],
        deliver: Callable[[Deliver], None],
        defect: Callable[[], None],
        logger: Callable[[], Any],
    ) -> None:
        """`target`: path and query; `headers` of the upgrade request. `deliver`: a result needs no turn.

        `defect`: see `UpstreamOwner`.
        """
        self.region = ""
        self._exchange = exchange
        self._metrics = exchange.metrics
        self._session = session
        self._target = target
        self._headers = headers
        self._turn = turn
        self._deliver = deliver
        self._logger = logger
        self.defect = defect
        self._turn_is_due = False
        self._loop = asyncio.get_running_loop()
        self._legs: dict[int, UpstreamLeg] = {}
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._regions: dict[int, str] = {}
        self._speaking = 0  # the epoch that brought the latest message
        self._broke = ("", "")  # region and cause of the latest break
        self._proved = 0  # that of the latest result

    def dial(self, epoch: int) -> None:
        self._dials[epoch] = self._exchange.tasks.create_task(self._dial(epoch))

    def abandon(self) -> None:
        """Hangs up on all there is."""
        for epoch in [*self._dials, *self._legs]:
            self.hang_up(epoch)

    def hang_up(self, epoch: int) -> None:
        """Without effect where nothing is left of it."""
        dialling = self._dials.pop(epoch, None)
        if dialling is not None:
            dialling.cancel()
            self._metrics.dials.add("abandoned")
        leg = self._legs.pop(epoch, None)
        if leg is not None:
            self._metrics.deepgram_connections -= 1
            leg.close(1000)

    def send(self, now: float) -> UpstreamLeg | None:
        """What the session has for its connections. Whatever changes these, a turn follows, and this.

        Returns the live one: audio as it comes in may be sent on it, until the next turn.
        """
        for epoch, leg in self._legs.items():
            if leg.writable:
                for message in self._session.data_to_send(epoch, now):
                    self._send(leg, message)
                leg.flush()
        return self._legs.get(self._session.stream.epoch)

    def worked(self) -> None:
        """The latest message was a result: its region works."""
        epoch = self._speaking
        if self._proved != epoch and epoch in self._legs:
            self._proved = epoch
            self._exchange.regions.worked(self._regions[epoch])

    def broke(self, epoch: int, cause: str, *, is_suspect: bool) -> None:
        """A connection is lost. Its region may not work if that `is_suspect`, or if the call was let down
        there in the same way before."""
        before, self._broke = self._broke, (self._regions[epoch], cause)
        if is_suspect or (cause in LET_DOWN and self._broke == before):
            self._exchange.regions.failed(self._regions[epoch], self._loop.time())

    # What an upstream leg says

    def upstream_opened(self, leg: UpstreamLeg, request_id: str) -> None:
        if not self._session.upstream_opened(leg.epoch, request_id, self._loop.time()):
            leg.abort()
            return
        self._legs[leg.epoch] = leg
        self._metrics.deepgram_connections += 1
        self._turn()

    def upstream_text(self, leg: UpstreamLeg, data: bytes) -> bool:
        self._metrics.upstream_messages_received += 1
        self._speaking = leg.epoch
        result = self._session.upstream_message(leg.epoch, data, self._loop.time())
        if result is None:
            self._turn_is_due = True
            return False
        if self._proved != leg.epoch and result.kind <= FINAL:
            self.worked()
        self._deliver(result)
        return True

    def upstream_heard(self, leg: UpstreamLeg) -> None:
        if leg.epoch in self._legs:
            self._session.upstream_heard(leg.epoch, self._loop.time())
            if self._turn_is_due:
                self._turn_is_due = False
                self._turn()

    def upstream_blocked(self, leg: UpstreamLeg, blocked: bool) -> None:
        self._session.upstream_blocked(leg.epoch, blocked, self._loop.time())
        if leg.epoch in self._legs and not blocked:
            self._turn()

    def upstream_closed(self, leg: UpstreamLeg, code: int, reason: str) -> None:
        if self._legs.pop(leg.epoch, None) is None:
            return
        self._metrics.deepgram_connections -= 1
        self._session.upstream_lost(leg.epoch, code, reason, self._loop.time())
        self._turn()

    # Private

    def _send(self, leg: UpstreamLeg, message: bytes | str) -> None:
        if isinstance(message, str):
            leg.send_text(message.encode())
        elif message:
            self._metrics.upstream_audio_bytes += len(message)
            self._metrics.upstream_messages_sent += 1
            leg.send_binary(message)
        else:
            leg.send_ping()

    async def _dial(self, epoch: int) -> None:
        try:
            await self._try(epoch)
        except Exception:  # out of here it would end every call there is
            self.defect()
        finally:
            self._dials.pop(epoch, None)

    async def _try(self, epoch: int) -> None:
        exchange = self._exchange
        await exchange.gate.turn(is_new=epoch == 1)
        started = self._loop.time()
        region = exchange.config.deepgram.regions[exchange.regions.choose(started)]
        for over in self._regions.keys() - self._legs.keys() - self._dials.keys():
            del self._regions[over]
        self.region = self._regions[epoch] = region.name
        outcome = "opened"
        try:
            await exchange.dialer.dial(region, lambda base: self._make_leg(base, epoch))
        except UpstreamRejected as exc:
            outcome = "rejected"
            self._metrics.handshakes.add(handshake_label(exc.status))
            if exc.retryable and exc.status != 429:
                exchange.regions.failed(region.name, self._loop.time())
            self._logger().warning("upstream.rejected", status=exc.status, region=region.name)
            self._session.dial_refused(epoch, exc.status, exc.headers, exc.body, self._loop.time())
        except UpstreamError as exc:
            outcome = "timeout" if isinstance(exc, UpstreamTimeout) else "unavailable"
            exchange.regions.failed(region.name, self._loop.time())
            self._logger().warning("upstream.unreachable", error=str(exc), region=region.name)
            self._session.dial_failed(epoch, self._loop.time())
        except Exception:  # a mistake in how we dial costs this dial
            outcome = "unavailable"
            self._logger().exception("upstream.dial_defect", region=region.name)
            self._session.dial_failed(epoch, self._loop.time())
        else:  # the leg has said so itself
            self._metrics.handshakes.add("101")
            self._metrics.dial_seconds.observe(self._loop.time() - started)
        self._metrics.dials.add(outcome)
        if outcome != "opened":
            self._loop.call_soon(self._turn)

    def _make_leg(self, base: str, epoch: int) -> UpstreamLeg:
        config = self._exchange.config
        return UpstreamLeg(
            base + self._target,
            self._headers,
            self,
            epoch,
            max_message_bytes=config.deepgram.max_message_bytes,
            write_limit=config.session.buffer_bytes,
        )
