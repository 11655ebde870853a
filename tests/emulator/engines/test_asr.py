"""Real speech, with the recording that comes with the model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from websockets.exceptions import InvalidStatus

moonshine = pytest.importorskip("moonshine_voice")

from gateway.emulator.engines.asr import interpolated  # noqa: E402 - only with the extra
from tests.emulator.conftest import Starter  # noqa: E402 - only with the extra
from tests.emulator.wire import check_contiguous, check_strictly, dial, read, results, send, texts  # noqa: E402 - as above

QUERY = "model=nova-3&interim_results=true&smart_format=true"


def recording(seconds: float) -> bytes:
    """The beginning of ten seconds of Beckett, a WAV file at 16 kHz."""
    whole = Path(str(moonshine.get_assets_path()), "beckett.wav").read_bytes()
    return whole[: round(seconds * 32000)]


async def test_speech_is_heard_live_and_in_one_piece(start: Starter) -> None:
    """The words are in the finals, the windows are whole, and the name of the model says who listened."""
    emulator = await start("asr", asr_max_streams=1)
    audio = recording(4.5)
    async with dial(emulator, QUERY) as ws:
        with pytest.raises(InvalidStatus) as caught:
            await dial(emulator, QUERY)
        assert caught.value.response.status_code == 429
        await send(ws, audio, 8000)
        await ws.send('{"type":"Finalize"}')
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws, 15)
    check_strictly(got)
    check_contiguous(results(got, final=True))
    heard = texts(got)
    assert {"ever", "tried", "no", "matter"} <= set(heard)
    assert heard.count("matter") == 1
    assert results(got, final=False)
    info = results(got)[0]["metadata"]["model_info"]
    assert info["name"] == "moonshine-tiny-en (word times interpolated)"
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Token k"}) as http,
        http.post(
            f"{emulator.url}/v1/listen?model=nova-3&smart_format=true", data=recording(3.1)
        ) as response,
    ):
        body = json.loads(await response.read())
    assert "tried" in body["results"]["channels"][0]["alternatives"][0]["transcript"].lower()


async def test_an_ear_that_is_closed_early_frees_its_place(start: Starter) -> None:
    """A connection that dies in the middle leaves room for the next."""
    emulator = await start("asr", asr_max_streams=1)
    async with dial(emulator, QUERY) as ws:
        await send(ws, recording(2.0), 8000)
        emulator.act("reset")
        await read(ws)
    await asyncio.sleep(0.05)
    async with dial(emulator, QUERY) as ws:
        assert ws.response is not None
        assert ws.response.status_code == 101


def test_words_are_spread_by_their_letters() -> None:
    """Each word of a line gets time for its letters, within the line and without overlap."""
    words = interpolated("No matter.", 1000, 2000)
    assert [(word.text, word.written) for word in words] == [("no", "No"), ("matter", "matter.")]
    assert (words[0].start, words[0].end) == (1000, words[1].start)
    assert words[1].end == 2000
    assert interpolated("...", 0, 10) == []
