"""One live call: a client leg, a session, and one upstream leg after another.

The session decides; here it is done. Every way in ends with `_turn`: perform what the session ordered, send
what it has for Deepgram, and set the one timer. Audio that is only relayed needs none of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from gateway.auth import Credential, Principal, upstream_authorization
from gateway.deepgram.errors import ABNORMAL, INTERNAL, TRY_LATER, Refusal, named_code
from gateway.deepgram.headers import forwarded
from gateway.deepgram.listen import ListenV1, ListenV2
from gateway.deepgram.query import ListenQuery
from gateway.deepgram.recogniser import FINAL, INTERIM, Recogniser
from gateway.dialects.deepgram_wire import END_OF_AUDIO, decode
from gateway.live.client import ClientLeg
from gateway.live.defects import contained
from gateway.live.exchange import Exchange
from gateway.live.handshake import refusal_headers
from gateway.live.head import LISTEN_PATHS, Head
from gateway.live.lines import Lines
from gateway.live.observers import Observer
from gateway.live.record import Record, may_store
from gateway.live.sinks import ClientSink
from gateway.live.slots import LONGEST_MS
from gateway.live.upstream import UpstreamLeg
from gateway.policy.backoff import Backoff
from gateway.policy.budget import Held
from gateway.session.backfill import wanted
from gateway.session.events import (
    Accept,
    Alert,
    Backfilled,
    Backfilling,
    Broke,
    Close,
    Deliver,
    Detached,
    Dial,
    Ended,
    Event,
    Flooded,
    Gap,
    GivenUp,
    HangUp,
    Recognised,
    Refuse,
    Restored,
    Resumed,
)
from gateway.session.protocol import SessionProtocol
from gateway.session.resume import SLOW, TAKEN, GatewayResume, Resumption, Verdict
from gateway.session.states import State
from gateway.session.stream import ROTATED
from gateway.session.watch import FELL_BEHIND
from gateway.store.sessions import Session
from gateway.store.transcripts import Transcript

CREDENTIAL_ALARMS: Final = {
    401: "upstream.credential_refused",
    402: "upstream.credit_exhausted",
    403: "upstream.model_forbidden",
}
"""What the operator must mend: the key, the account, or what the project may use."""
NO_CODE: Final = 1005
"""A close frame without a code (RFC 6455 §7.1.5)."""
BROKEN: Final = Refusal(500, "Internal Server Error", "The gateway made a mistake, and cannot go on.")
"""What a defect of ours is to the client."""
SLOW_REASON: Final = "results were not read in time"


class Call:
    __slots__ = (  # noqa: SIM905 (thirty names, one to a line, say no more)
        "_batch_ms _client _close_code _exchange _is_broken _latency _leg _lines _live _loop _max_lag "
        "_metrics _model _opened_at _paused_at _query _recogniser _record _relay _timer _timer_at "
        "_turn_is_due _watchers joins_audio principal session session_id"
    ).split()

    def __init__(
        self,
        exchange: Exchange,
        leg: ClientLeg,
        head: Head,
        principal: Principal,
        credential: Credential | None,
        *,
        resumable: bool = False,
        request_id: str = "",
    ) -> None:
        """`resumable`: the client may come back; `request_id`: it has had its 101, under this id."""
        self._is_broken = False  # a mistake of ours has come to light in it
        config, said = exchange.config, ListenQuery(head.query)
        query = said.for_deepgram()
        self._batch_ms = batch_window(head)
        self._query = head.query
        self._recogniser: Recogniser = ListenV1() if LISTEN_PATHS[head.path] == 1 else ListenV2()
        self.session_id = exchange.mint_session_id()
        self.principal = principal
        self._exchange = exchange
        self._metrics = exchange.metrics
        self._latency = exchange.metrics.latency_of(query.get("model"))
        self._model = query.get("model")
        self._leg = leg
        self._loop = asyncio.get_running_loop()
        target = self._target_of(query)
        authorization = upstream_authorization(config.auth.upstream, credential, exchange.api_key)
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._paused_at: float | None = None
        self._opened_at = self._loop.time()
        self._turn_is_due = True
        is_kept = config.store.live and may_store(said)
        self._record = Record(self.session_id, exchange.clock(), exchange.recorder if is_kept else None)
        self._watchers: tuple[Observer, ...] = ()
        self._close_code: int | None = None
        self._max_lag = 0.0
        self._client = self._sink_for(leg)
        self.session = SessionProtocol(
            config.session,
            query,
            self._recogniser,
            own_credential=config.auth.upstream == "gateway",
            backoff=Backoff(config.session.backoff_base, config.session.backoff_cap, exchange.random),
            mint_request_id=exchange.mint_request_id,
            now=self._opened_at,
            resumption=self._make_resumption() if resumable else None,
            request_id=request_id,
            catch_up=wanted(said, config.session),
        )
        self._live: UpstreamLeg | None = None  # takes audio as it comes in
        self._relay = self.session.relay
        self.joins_audio = self.session.joins_audio
        told = (self._turn, self._deliver, self.defect, self._logger)
        self._lines = Lines(exchange, self.session, target, forwarded(head.headers, authorization), *told)
        exchange.opened(self.session_id, self)
        self._metrics.sessions_active += 1

    # What the client leg says

    def client_audio(self, data: bytes) -> bool:
        now, live, metrics = self._loop.time(), self._live, self._metrics
        metrics.client_audio_bytes += len(data)
        if live is not None and live.writable and data and self._relay(data, now):
            metrics.upstream_audio_bytes += len(data)
            metrics.upstream_messages_sent += 1
            live.send_audio(data)
            return True
        if data:
            self.session.audio_received(data, now)
        else:
            metrics.empty_frames += 1
            self.session.client_said(END_OF_AUDIO, now)
        self._turn_is_due = True
        return False

    def client_text(self, text: str) -> None:
        self.session.client_said(decode(text, self._recogniser.controls), self._loop.time())
        self._turn_is_due = True

    def client_frames(self, count: int) -> None:
        if not self.session.frames_received(count, self._loop.time()):
            self._turn_is_due = True

    def client_turn(self) -> None:
        if self._turn_is_due:
            self._turn()

    def client_reads(self) -> None:
        self._client.resume()
        self._turn()

    def client_closed(self, code: int, sent: int | None) -> None:
        fault = sent if sent and code == ABNORMAL else code
        if fault in (1002, 1003, 1007, 1008, 1009):
            self._metrics.client_protocol_errors.add(str(fault))
        self._client.forget()
        self._close_code = self._close_code or code
        self.session.client_lost(self._loop.time(), None if code == ABNORMAL else code)
        self._turn()

    def client_overflowed(self) -> None:
        self._metrics.client_aborted.add("write_buffer")

    # What the server says

    @property
    def journal_bytes(self) -> int:
        return self.session.resumption.journal_bytes if self.session.resumption else 0

    @contained
    def start(self) -> None:
        self._turn()

    def take_over(self, leg: ClientLeg, request: GatewayResume) -> Verdict:
        """A client on another connection wants the session. Unless it is a stranger, the one before is out.

        Whoever is welcome has it from here on; for who comes too late for its results, it ends.
        """
        verdict, now = self.session.judge(request), self._loop.time()
        if verdict is Verdict.STRANGER:
            return verdict
        try:
            self._fence(now)
            if verdict is Verdict.WELCOME:
                self._seat(leg)
                self.session.client_returned(request, now)
            else:
                self.session.client_lost(now)
                self.session.let_go(now)
            self._turn()
        except Exception:
            self.defect()
        return verdict

    @contained
    def let_go(self) -> None:
        """Nobody can come back to this call any more."""
        self.session.let_go(self._loop.time())
        self._turn()

    @contained
    def shut_down(self, code: int, reason: str) -> None:
        self.session.shut_down(code, reason, self._loop.time())
        self._turn()

    @property
    def held(self) -> Held:
        return Held(self.session.held_bytes, self.session.can_shrink)

    @contained
    def shrink(self, limit: int) -> None:
        """Keeps `limit` bytes for replay at most."""
        self._logger().warning("call.shrunk", limit_bytes=limit)
        self.session.shrink(limit, self._loop.time())
        self._turn()

    @contained
    def cut_short(self, code: int, reason: str) -> None:
        """Ends here and now, with what is missing declared."""
        self._logger().warning("call.cut_short", reason=reason)
        if self.session.state is State.HELD:  # nothing is missing: it only waits to be told so
            self.session.client_lost(self._loop.time(), code)
        else:
            self.session.stream_failed(code, reason)
        self._turn()

    def defect(self, undone: Iterable[Event] = ()) -> None:
        """A mistake of ours came to light, and its exception is being handled: it costs this call alone.

        After `undone` what is missing is declared and the call ends, 1011; if not even that can be done, it
        is dropped.
        """
        self._logger().exception("call.defect")
        if self._is_broken:
            self._drop()
        else:
            self._is_broken = True
            self._break_off(undone)

    # Who else follows it

    @property
    def created_at(self) -> float:
        """Seconds since 1970."""
        return self._record.created_at

    @property
    def is_kept(self) -> bool:
        """Whether what is said is stored."""
        return self._record.keeper is not None

    def describe(self, outcome: str | None = None) -> Session:
        """How it goes, or how it went."""
        session, record = self.session, self._record
        given, again = session.given_seconds
        return Session(
            id=self.session_id,
            principal=self.principal.id,
            request_id=session.request_id,
            model=(self._model or "").replace("\0", ""),
            region=self._lines.region,
            state=session.state.value,
            outcome=outcome,
            continuity=session.continuity,
            close_code=self._close_code,
            stored=self.is_kept,
            accepted_seconds=session.stream.audio_seconds,
            sent_seconds=given,
            replayed_seconds=again,
            gap_seconds=record.gap_seconds,
            gaps=record.gaps,
            connections=session.dials,
            breaks=record.breaks,
            resumes=record.resumes,
            lag=0.0 if outcome else session.stream.behind,
            max_lag=self._max_lag,
            created_at=record.created_at,
            ended_at=self._exchange.clock() if outcome else None,
        )

    def watch(self) -> Observer:
        """Somebody who gets all results from now on, until `unwatch`."""
        observer = Observer(self._record.finals)
        self._watchers = (*self._watchers, observer)
        return observer

    def unwatch(self, observer: Observer) -> None:
        self._watchers = tuple(one for one in self._watchers if one is not observer)

    # Private

    def _logger(self) -> Any:
        """Made for each line: there are two in most calls."""
        known = {"session": self.session_id}
        if self.session.request_id:
            known["request"] = self.session.request_id
        return self._exchange.log.bind(**known)

    def _target_of(self, query: ListenQuery) -> str:
        """Path and query of the request to Deepgram."""
        asked = query.raw
        if self._exchange.config.session.force_interims and self._recogniser.has_windows:
            asked = query.with_value("interim_results", "true").raw
        return self._recogniser.path + (f"?{asked}" if asked else "")

    def _make_resumption(self) -> Resumption:
        exchange = self._exchange
        epoch = exchange.mint_request_id()
        return Resumption(
            exchange.config.resume, self.session_id, epoch, exchange.mint_token, self._opened_at
        )

    def _sink_for(self, leg: ClientLeg) -> ClientSink:
        limits = self._exchange.config.session
        return ClientSink(leg, limits.client_queue_bytes, limits.client_slow, self._client_is_slow)

    def _seat(self, leg: ClientLeg) -> None:
        """The client is on this connection from now on."""
        self._leg, leg.owner = leg, self
        leg.read_in_turns(self._exchange.slots, self._batch_ms)
        self._client = self._sink_for(leg)
        self._close_code = None

    def _fence(self, now: float) -> None:
        """Nothing that still comes from the connection that the client had has any effect."""
        leg = self._leg
        if leg.owner is self:
            leg.owner = None
            self._metrics.takeovers += not self.session.detached
        if self._paused_at is not None:
            self._pause(False, now)
        self._client.forget()
        leg.close(TAKEN, "another connection has taken the session")

    def _turn(self) -> None:
        self._turn_is_due = False
        session = self.session
        events = iter(session.events_received())
        try:
            for event in events:
                self._perform(event)
            now = self._loop.time()
            self._live = self._lines.send(now)
            self.joins_audio = session.joins_audio
            self._leg.flush()
            if session.reading is (self._paused_at is not None):
                self._pause(not session.reading, now)
            self._arm()
        except Exception:
            self.defect(events)

    def _perform(self, event: Event) -> None:
        match event:
            case Deliver():
                if event.kind <= FINAL:
                    self._lines.worked()
                self._deliver(event)
            case Dial(epoch):
                self._lines.dial(epoch)
            case HangUp(epoch):
                self._lines.hang_up(epoch)
            case Accept(request_id):
                self._accept(request_id)
            case Refuse(status, headers, body):
                self._logger().info("call.refused", status=status)
                self._leg.refuse(status, headers, body)
            case Close(code, reason):
                self._close_code = self._close_code or code or NO_CODE  # it may have closed before
                self._client.close(code, reason)
            case Recognised(container, continuity):
                self._logger().info("call.recognised", container=container, continuity=continuity)
            case Flooded(what):
                self._metrics.client_floods.add(what)
                self._logger().warning("client.floods", what=what)
            case Detached() | Resumed() | GivenUp():
                self._follow_client(event)
            case Broke() | Restored() | Backfilling() | Backfilled() | Gap() | Alert():
                self._note(event)
            case Ended(outcome):
                self._ended(outcome)

    def _deliver(self, event: Deliver) -> None:
        self._client.deliver(event)
        for watcher in self._watchers:
            watcher.deliver(event)
        kind, lag = event.kind, event.lag
        if kind is INTERIM:
            self._metrics.results["interim"] += 1
        elif kind is FINAL:
            self._metrics.results["final"] += 1
            self._record.final(event.raw)
        else:
            return
        self._latency.observe(lag)
        if lag > self._max_lag:
            self._max_lag = lag

    def _follow_client(self, event: Detached | Resumed | GivenUp) -> None:
        match event:
            case Detached():
                self._logger().info("client.detached")
                self._exchange.detached(self)
            case Resumed(away, audio_offset):
                self._record.resumes += 1
                self._exchange.attached(self)
                self._logger().info("client.resumed", away_seconds=round(away, 3), audio_offset=audio_offset)
            case GivenUp(away):
                self._exchange.attached(self)
                self._logger().info("client.given_up", away_seconds=round(away, 3))

    def _note(self, event: Broke | Restored | Backfilling | Backfilled | Gap | Alert) -> None:
        """What the operator should know of: a log line and a number."""
        match event:
            case Broke(epoch, code, reason, owed):
                self._record.breaks += 1
                cause = _break_cause(code, reason)
                self._metrics.breaks.add(cause)
                # What took audio and brought nothing may not work, unless the audio is at fault.
                is_fruitless = self.session.stream.is_fruitless and cause != "data_0000"
                self._lines.broke(epoch, cause, is_suspect=is_fruitless or reason == FELL_BEHIND)
                logger = self._logger()
                log = logger.info if reason == ROTATED else logger.warning
                log("upstream.broke", epoch=epoch, code=code, reason=reason, owed_seconds=owed)
            case Restored(epoch, replayed):
                self._metrics.replayed_audio_seconds += replayed
                self._logger().info("upstream.restored", epoch=epoch, replayed_seconds=replayed)
            case Backfilling(start, stop):
                self._logger().info("backfill.began", start=start, stop=stop)
            case Backfilled(outcome, seconds):
                self._metrics.backfills.add(outcome)
                self._metrics.backfilled_audio_seconds += seconds
                self._logger().info("backfill.ended", outcome=outcome, seconds=round(seconds, 3))
            case Gap(start, stop, reason):
                self._record.gap(event)
                self._metrics.gap_seconds.add(reason, stop - start)
                self._logger().error("call.gap", start=start, stop=stop, reason=reason)
            case Alert(status, text):
                name = CREDENTIAL_ALARMS[status]
                self._logger().critical(name, status=status, text=text, region=self._lines.region)

    def _accept(self, request_id: str) -> None:
        self._metrics.accept_wait.observe(self._loop.time() - self._opened_at)
        self._logger().info("call.accepted", principal=self.principal.id, model=self._model)
        if self._record.keeper is not None:
            self._record.keeper.began(
                Transcript(
                    id=self.session_id,
                    principal=self.principal.id,
                    source="live",
                    request_id=request_id,
                    query=self._query,
                    created_at=self._record.created_at,
                )
            )
        if not self._leg.accepted:
            headers = [("dg-request-id", request_id), ("gw-session-id", self.session_id)]
            self._leg.accept([*headers, ("gw-continuity", self.session.continuity)])
        self._leg.read_in_turns(self._exchange.slots, self._batch_ms)

    def _pause(self, paused: bool, now: float) -> None:
        self._leg.pause_reading(paused)
        if self._paused_at is not None:
            self._metrics.client_throttled_seconds += now - self._paused_at
        self._paused_at = now if paused else None

    def _arm(self) -> None:
        at = self.session.get_timer()
        if self._timer is not None:
            if at is not None and self._timer_at <= at:
                return  # it will fire, find nothing due, and be set again
            self._timer.cancel()
        if at is None:
            self._timer = None
        else:
            # The time is kept beside it: what uvloop gives for a time that has come has no `when`.
            self._timer, self._timer_at = self._loop.call_at(at, self._on_timer), at

    @contained
    def _on_timer(self) -> None:
        self._timer = None
        self.session.handle_timer(self._loop.time())
        self._turn()

    @contained
    def _client_is_slow(self) -> None:
        self._metrics.client_slow += 1
        self._logger().warning("call.client_slow")
        self._leg.close(SLOW if self.session.resumption else TRY_LATER, SLOW_REASON)

    def _ended(self, outcome: str) -> None:
        session, metrics = self.session, self._metrics
        seconds = session.stream.audio_seconds
        self._release(outcome)
        metrics.transcription_ended(outcome, self._model, self._lines.region)
        metrics.continuity.add(session.continuity)
        self._exchange.ended_seconds += seconds
        metrics.stale_results += session.stream.stale
        metrics.finalizes += session.stream.prompted
        metrics.upstream_bad_messages += session.stream.malformed
        metrics.upstream_implausible += session.stream.transcript.quarantined
        metrics.upstream_repeated += session.stream.transcript.repeated
        metrics.ignored_audio_bytes += session.ignored_bytes
        over = self.describe(outcome)
        if self._exchange.recorder is not None and session.request_id:
            self._exchange.recorder.over(over)
        for observer in self._watchers:
            observer.end(over)
        self._logger().info(
            "call.ended",
            outcome=outcome,
            audio_seconds=round(seconds, 3),
            continuity=session.continuity,
            connections=session.dials,
            upstream_requests=session.stream.request_ids,
        )

    @contained
    def _break_off(self, undone: Iterable[Event]) -> None:
        for event in undone:
            self._perform(event)
        if self.session.state is State.CONNECTING:
            request_id = self._exchange.mint_request_id()
            headers = refusal_headers(BROKEN, request_id)
            self.session.stream_refused(BROKEN.status, headers, BROKEN.body(request_id))
            self._turn()
        elif self._is_known:
            self.cut_short(INTERNAL, BROKEN.message)

    @property
    def _is_known(self) -> bool:
        """Whether the process knows of it, and waits for its end."""
        return self.session_id in self._exchange.calls

    def _release(self, outcome: str) -> None:
        """The process knows nothing more of it."""
        self._metrics.sessions_active -= 1
        self._metrics.sessions.add(outcome)
        self._exchange.attached(self)
        self._exchange.closed(self.session_id)

    def _drop(self) -> None:
        """Ends it without asking the session, which is not to be trusted any more."""
        if not self._is_known:
            return
        self._release("failed")
        if self._timer is not None:
            self._timer.cancel()
        self._client.forget()
        self._lines.abandon()
        self._leg.owner = None
        self._leg.close(INTERNAL, BROKEN.message)


def batch_window(head: Head) -> int | None:
    """What the client asks for by `gw_batch_ms`, in milliseconds. Raises ValueError for what cannot be."""
    asked = ListenQuery(head.query).get("gw_batch_ms")
    if asked is None:
        return None
    if not asked.isascii() or not asked.isdigit() or len(asked) > 3 or int(asked) > LONGEST_MS:
        raise ValueError(f"gw_batch_ms: a whole number from 0 to {LONGEST_MS} is needed, not {asked[:20]!r}")
    return int(asked)


def _break_cause(code: int, reason: str) -> str:
    if reason == ROTATED or reason.startswith("stalled"):
        return reason.partition(":")[0]
    named = named_code(reason).lower().replace("-", "_")
    return named or ("lost" if code == 1006 else "too_big" if code == 1009 else "closed")
