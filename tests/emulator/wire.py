"""What the emulator's tests share: a client, a call of tokens, and strict reading of what comes back."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from deepgram.listen.v1 import types as v1
from deepgram.listen.v2 import types as v2
from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.emulator import Emulator
from gateway.emulator.sound import Format
from gateway.emulator.tokens import Manner, Token, id_for, ids, speech

Message = dict[str, Any]
MULAW = Format("mulaw", 8000)
LISTEN = "model=nova-3&encoding=mulaw&sample_rate=8000"
FLUX = "model=flux-general-en&encoding=mulaw&sample_rate=8000"

V1: dict[str, type[BaseModel]] = {
    "Results": v1.ListenV1Results,
    "Metadata": v1.ListenV1Metadata,
    "SpeechStarted": v1.ListenV1SpeechStarted,
    "UtteranceEnd": v1.ListenV1UtteranceEnd,
    "Error": v1.ListenV1Error,
    "ConfigureSuccess": v1.ListenV1ConfigureSuccess,
    "ConfigureFailure": v1.ListenV1ConfigureFailure,
}
V2: dict[str, type[BaseModel]] = {
    "Connected": v2.ListenV2Connected,
    "TurnInfo": v2.ListenV2TurnInfo,
    "ConfigureSuccess": v2.ListenV2ConfigureSuccess,
    "ConfigureFailure": v2.ListenV2ConfigureFailure,
    "Error": v2.ListenV2FatalError,
}


def call(
    count: int = 12, fmt: Format = MULAW, seed: int = 1, manner: Manner | None = None
) -> tuple[bytes, list[Token]]:
    """Token audio and what it says."""
    rng = random.Random(seed)
    return speech(ids(count, rng), fmt, rng, manner)


def dial(emulator: Emulator, query: str = LISTEN, path: str = "/v1/listen", key: str = "k") -> connect:
    """A WebSocket to the emulator."""
    url = f"{emulator.url.replace('http', 'ws')}{path}?{query}"
    headers = {"Authorization": f"Token {key}"} if key else {}
    return connect(url, additional_headers=headers)


async def send(ws: ClientConnection, audio: bytes, size_bytes: int = 1600) -> None:
    """Audio in messages, as fast as it goes."""
    for at in range(0, len(audio), size_bytes):
        await ws.send(audio[at : at + size_bytes])


async def read(ws: ClientConnection, seconds: float = 5.0) -> list[Message]:
    """Everything up to the close."""
    got: list[Message] = []
    try:
        async with asyncio.timeout(seconds):
            async for text in ws:
                got.append(json.loads(text))
    except ConnectionClosed:
        pass
    return got


async def read_for(ws: ClientConnection, seconds: float) -> list[Any]:
    """What comes within some time, undecoded."""
    got: list[Any] = []
    try:
        async with asyncio.timeout(seconds):
            while True:
                got.append(await ws.recv())
    except (TimeoutError, ConnectionClosed):
        return got


async def until(true: Callable[[], object], seconds: float = 2.0) -> None:
    """Wait for something that the emulator notices a little later than its client."""
    for _ in range(round(seconds / 0.005)):
        if true():
            return
        await asyncio.sleep(0.005)
    assert true()


async def transcribe(
    emulator: Emulator, audio: bytes, query: str = LISTEN, path: str = "/v1/listen"
) -> list[Message]:
    """A whole call: audio, CloseStream, everything that comes back."""
    async with dial(emulator, query, path) as ws:
        await send(ws, audio)
        await ws.send('{"type":"CloseStream"}')
        return await read(ws)


def results(
    messages: Sequence[Message], final: bool | None = None, channel: int | None = None
) -> list[Message]:
    """The Results among messages."""
    return [
        m
        for m in messages
        if m["type"] == "Results"
        and final in (None, m["is_final"])
        and channel in (None, m["channel_index"][0])
    ]


def texts(messages: Sequence[Message], channel: int | None = None) -> list[str]:
    """The words of the finals, in order."""
    finals = results(messages, final=True, channel=channel)
    return [word["word"] for m in finals for word in m["channel"]["alternatives"][0]["words"]]


def heard(messages: Sequence[Message], channel: int | None = None) -> list[int | None]:
    """The ids of the finals' words."""
    return [id_for(text) for text in texts(messages, channel)]


def said(tokens: Sequence[Token]) -> list[int]:
    """The ids of tokens."""
    return [token.id for token in tokens]


def check_contiguous(finals: Sequence[Message]) -> None:
    """Each final begins where the one before ended."""
    at = 0.0
    for message in finals:
        assert abs(message["start"] - at) < 1e-3, (message["start"], at)
        at = message["start"] + message["duration"]


def check_strictly(messages: Sequence[Message], models: dict[str, type[BaseModel]] = V1) -> None:
    """Every message is valid for the SDK's models without any coercion."""
    for message in messages:
        models[message["type"]].model_validate_json(json.dumps(message), strict=True)
