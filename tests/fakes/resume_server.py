"""The gateway's half of docs/resume.md in its smallest form, with faults on request.

Its audio is linear32 whose samples are numbers, and what it hears in a sample is that number: a result for
samples 3 to 6 reads "3 4 5". So every final says which audio it was made of. `ResumeModel` is pure;
`ResumeServer` puts it behind a socket.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

RATE: Final = 8000
SAMPLE: Final = 4


def audio(numbers: Iterable[int]) -> bytes:
    """Samples that say these numbers; of several channels, one after the other."""
    return b"".join(struct.pack("<I", number) for number in numbers)


class Session:
    """`heard`: per frame of all channels, its numbers, or None inside a declared gap."""

    def __init__(self, name: int, channels: int) -> None:
        self.id = f"session-{name}"
        self.epoch = f"epoch-{name}"
        self.tokens = {f"token-{name}.0"}
        self.heard: list[tuple[int, ...] | None] = []
        self.finals = [0] * channels
        self.journal: list[str] = []
        self.finished = False
        self.leg: Leg | None = None
        self._part = b""
        self._channels = channels
        self._acked: dict[str, int] = {}

    @property
    def frame(self) -> int:
        return SAMPLE * self._channels

    @property
    def received(self) -> int:
        return len(self.heard) * self.frame + len(self._part)

    def take(self, data: bytes) -> None:
        data = self._part + data
        whole = len(data) - len(data) % self.frame
        self.heard += struct.iter_unpack(f"<{self._channels}I", data[:whole])
        self._part = data[whole:]

    def skip(self, length: int) -> None:
        assert length % self.frame == 0, "a gap is whole samples"
        self.heard += [None] * (length // self.frame)

    def result(self, channel: int, until: int, *, final: bool = True) -> None:
        """What was said on a channel since its last final, up to a sample."""
        start, until = self.finals[channel], min(until, len(self.heard))
        spans = [(at, said) for at, said in enumerate(self.heard[start:until], start) if said is not None]
        words = [
            {"word": str(said[channel]), "start": at / RATE, "end": (at + 1) / RATE, "confidence": 1.0}
            for at, said in spans
        ]
        text = " ".join(str(said[channel]) for _, said in spans)
        message: dict[str, Any] = {
            "type": "Results",
            "channel_index": [channel, self._channels],
            "start": start / RATE,
            "duration": (until - start) / RATE,
            "is_final": final,
            "channel": {"alternatives": [{"transcript": text, "confidence": 1.0, "words": words}]},
        }
        if final:
            self.finals[channel] = until
        self.say(message, numbered=final)

    def finish(self) -> None:
        if self.finished:
            return
        self.finished = True
        for channel in range(self._channels):
            if self.finals[channel] < len(self.heard):
                self.result(channel, len(self.heard))
        self.say({"type": "Metadata", "request_id": "r", "duration": len(self.heard) / RATE})

    def say(self, message: dict[str, Any], *, numbered: bool = True) -> None:
        if numbered:
            message["gateway"] = {"seq": len(self.journal) + 1}
            self.journal.append(json.dumps(message))
        if self.leg:
            self.leg.out.append(json.dumps(message))

    def ack(self) -> None:
        at = {"received": self.received, "final": min(self.finals) * self.frame, "seq": len(self.journal)}
        if at != self._acked and self.leg:
            self._acked = at
            self.leg.out.append(json.dumps({"type": "GatewayAck", "durable": 0, **at}))

    def rotate(self, used: str) -> str:
        fresh = f"{used.partition('.')[0]}.{int(used.partition('.')[2]) + 1}"
        self.tokens = {used, fresh}
        return fresh


class Leg:
    """One connection: `take` what comes, `out` is what goes; `close` is (code, reason) once it is over."""

    def __init__(self, model: ResumeModel, wanted: str) -> None:
        self.out: deque[str] = deque()
        self.close: tuple[int, str] | None = None
        self.session: Session | None = None
        self._model = model
        self._wanted = wanted
        if wanted == "1":
            self._begin("GatewaySession")

    def take(self, message: bytes | str) -> None:
        session = self.session
        if self.close or (session and session.leg is not self):
            return
        if session is None:
            self._resume(message)
        elif isinstance(message, bytes):
            if not session.finished:
                session.take(message)
        else:
            self._control(session, json.loads(message))

    def _control(self, session: Session, said: dict[str, Any]) -> None:
        match said["type"]:
            case "GatewayGap":
                if said["from"] != session.received:
                    self.close = (4500, "a gap elsewhere")
                    return
                session.skip(said["to"] - said["from"])
            case "CloseStream":
                session.finish()
                self.close = (1000, "")
            case "KeepAlive":
                self._model.keepalives += 1
            case other:
                raise AssertionError(other)

    def _resume(self, message: bytes | str) -> None:
        said = json.loads(message) if isinstance(message, str) else {}
        if said.get("type") != "GatewayResume":
            self.close = (4500, "no GatewayResume")
            return
        self._model.requests.append(said)
        session = self._model.sessions.get(self._wanted)
        if session is None or session.epoch != said["epoch"] or said["have_seq"] > len(session.journal):
            self._begin("GatewayResumed")
            return
        if said["token"] not in session.tokens:
            self.close = (4501, "")
            return
        if session.leg:
            session.leg.close = session.leg.close or (4409, "")
        self.session, session.leg = session, self
        answer = {"recovered": True, "audio_offset": session.received, "next_seq": said["have_seq"] + 1}
        self._welcome("GatewayResumed", session.rotate(said["token"]), answer)
        self.out += session.journal[said["have_seq"] :]

    def _begin(self, kind: str) -> None:
        self.session = session = self._model.begin()
        session.leg = self
        (token,) = session.tokens
        answer = {"recovered": False, "audio_offset": 0, "next_seq": 1}
        self._welcome(kind, token, answer if kind == "GatewayResumed" else {})

    def _welcome(self, kind: str, token: str, more: dict[str, Any]) -> None:
        assert self.session
        said = {
            "type": kind,
            "session": self.session.id,
            "epoch": self.session.epoch,
            "token": token,
            "window_s": 120,
            "ack_every_ms": 1000,
            "bytes_per_second": RATE * self.session.frame,
            **more,
        }
        self.out.append(json.dumps(said))


class ResumeModel:
    """All sessions; `requests` are the GatewayResume messages that came."""

    def __init__(self, channels: int = 1) -> None:
        self.sessions: dict[str, Session] = {}
        self.requests: list[dict[str, Any]] = []
        self.keepalives = 0
        self._channels = channels
        self._begun = 0

    def begin(self) -> Session:
        self._begun += 1
        session = Session(self._begun, self._channels)
        self.sessions[session.id] = session
        return session

    def forget(self) -> None:
        """The process was restarted."""
        self.sessions.clear()


FaultKind = Literal[
    "cut", "torn", "mute", "close", "refuse", "before_answer", "lost_answer", "hole", "nonsense"
]


@dataclass
class Fault:
    """What goes wrong on one connection, once `after` bytes of audio have come on it.

    cut: TCP ends. torn: it ends inside a frame. mute: nothing is read or said any more, TCP stands. close:
    with `code`. refuse: the upgrade is answered with HTTP `code`. before_answer, lost_answer: cut with
    GatewayResume unread, or taken. hole: a number is left out. nonsense: the first message is no welcome.
    `forget`: the sessions are gone with it.
    """

    kind: FaultKind
    after: int = 0
    code: int = 0
    forget: bool = False


@dataclass
class ResumeServer:
    """A `ResumeModel` on a port of its own. The nth connection gets the nth fault, None for none.

    A final every `window` samples, an ack every `ack_every` messages. `paths` and `opened` tell of each
    connection, `closes` are the codes with which clients took their leave.
    """

    faults: list[Fault | None] = field(default_factory=list)
    window: int = 400
    ack_every: int = 3
    model: ResumeModel = field(default_factory=ResumeModel)
    paths: list[str] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    url: str = ""
    _server: Server | None = None

    async def __aenter__(self) -> ResumeServer:
        self._server = await serve(
            self._serve, "127.0.0.1", 0, process_request=self._admit, ping_interval=None, close_timeout=0.5
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server
        for connection in list(self._server.connections):
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.paths.append(request.path)
        self.opened.append(asyncio.get_running_loop().time())
        fault = self._fault(connection)
        if fault and fault.kind == "refuse":
            self._forget(fault)
            response = connection.respond(HTTPStatus(fault.code), "no")
            response.headers["Retry-After"] = "0"
            return response
        return None

    def _fault(self, connection: ServerConnection) -> Fault | None:
        number = len(self.paths) - 1
        connection.number = getattr(connection, "number", number)  # type: ignore[attr-defined]  # our own note
        return self.faults[connection.number] if connection.number < len(self.faults) else None  # type: ignore[attr-defined]  # our own note

    def _forget(self, fault: Fault) -> None:
        if fault.forget:
            self.model.forget()

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request
        (wanted,) = parse_qs(urlsplit(socket.request.path).query)["gw_resume"]
        fault = self._fault(socket)
        if fault and fault.kind == "nonsense":
            await socket.send('{"type":"Connected"}')
            await socket.wait_closed()
        try:
            await self._converse(socket, wanted, fault)
        except ConnectionClosed as closed:
            if closed.rcvd and closed.rcvd_then_sent:
                self.closes.append(closed.rcvd.code)

    async def _converse(self, socket: ServerConnection, wanted: str, fault: Fault | None) -> None:
        leg, heard, count = Leg(self.model, wanted), 0, 0
        if wanted != "1":
            if fault and fault.kind == "before_answer":
                return self._end(socket, fault)
            leg.take(await socket.recv())
            if fault and fault.kind == "lost_answer":
                return self._end(socket, fault)
        while not await self._flush(socket, leg):
            if fault and heard >= fault.after:
                return await self._break(socket, leg, fault)
            message = await socket.recv()
            count += 1
            heard += len(message) if isinstance(message, bytes) else 0
            leg.take(message)
            self._hear(leg.session, count)

    def _hear(self, session: Session | None, count: int) -> None:
        if session is None:
            return
        for channel, final in enumerate(session.finals):
            if len(session.heard) >= final + self.window:
                session.result(channel, final + self.window // 2, final=False)
                session.result(channel, final + self.window)
        if count % self.ack_every == 0:
            session.ack()

    async def _flush(self, socket: ServerConnection, leg: Leg) -> bool:
        """Says what is to be said; True when that was all."""
        while leg.out:
            await socket.send(leg.out.popleft())
        if leg.close:
            await socket.close(*leg.close)
        return leg.close is not None

    async def _break(self, socket: ServerConnection, leg: Leg, fault: Fault) -> None:
        match fault.kind:
            case "close":
                self._forget(fault)
                await socket.close(fault.code, "")
            case "mute":
                socket.transport.pause_reading()
                await socket.wait_closed()
            case "hole":
                await socket.send(json.dumps({"type": "SpeechStarted", "gateway": {"seq": 999}}))
                await socket.wait_closed()
            case "torn":
                socket.transport.write(b"\x81\x7e\x01\x00{")
                await asyncio.sleep(0.01)
                self._end(socket, fault)
            case _:
                self._end(socket, fault)

    def _end(self, socket: ServerConnection, fault: Fault) -> None:
        self._forget(fault)
        socket.transport.abort()
