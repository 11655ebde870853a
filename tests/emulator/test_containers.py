"""The emulator opens containers by itself, and strictly: a stream that was cut badly is not audio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.emulator.containers import PACKET_MS, Garbage, opener, packets_of
from gateway.emulator.sound import sniff
from tests.emulator.conftest import Starter
from tests.emulator.wire import call, dial, heard, read, results, said, send, transcribe
from tests.fakes.muxer import OPUS_HEAD, block, cluster, element, ogg, ogg_header, page, webm, webm_header

SAMPLES = Path(__file__).parents[1] / "audio" / "samples"
DROPPED = 52  # samples at 8 kHz: what the header tells a decoder to leave out at the beginning
QUERY = "model=nova-3&interim_results=true"
MUX: dict[str, Callable[[list[bytes]], bytes]] = {"ogg": ogg, "webm": webm}


@pytest.mark.parametrize("name", MUX)
@pytest.mark.parametrize("size", [1, 97, 100_000])
def test_what_went_in_comes_out(name: str, size: int) -> None:
    """In pieces of any size, but for the samples that a decoder drops."""
    audio = bytes(range(256)) * 20
    stream, opening = MUX[name](packets_of(audio)), opener(name)
    out = b"".join(opening.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    assert out == audio[DROPPED:]


@pytest.mark.parametrize("name", ["tone.ogg", "tone.webm"])
def test_a_real_encoder(name: str) -> None:
    """Checksums are as others reckon them; real packets are silence, as long as they are."""
    stream = (SAMPLES / name).read_bytes()
    out = opener(name.rpartition(".")[2]).feed(stream)
    assert set(out) == {0xFF}
    assert 4.0 <= len(out) / 8000 < 4.06


@pytest.mark.parametrize("name", MUX)
def test_one_may_begin_again_with_the_header(name: str) -> None:
    """What follows it may be any page or cluster."""
    audio = bytes(range(256)) * 100
    stream = MUX[name](packets_of(audio))
    header, mark = {"ogg": (ogg_header(), b"OggS"), "webm": (webm_header(), b"\x1f\x43\xb6\x75")}[name]
    middle = stream.index(mark, len(stream) // 2)
    out = opener(name).feed(header + stream[middle:])
    assert out
    assert audio.endswith(out)


PACKETS = packets_of(bytes(range(256)) * 20)


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("ogg", ogg(PACKETS)[len(ogg_header()) :]),
        ("ogg", ogg_header() + ogg(PACKETS)[1000:]),
        ("ogg", page([OPUS_HEAD], flags=2) + page(PACKETS[:2])),
        ("ogg", ogg(PACKETS)[:-1] + b"?"),
        ("webm", webm(PACKETS)[len(webm_header()) :]),
        ("webm", webm_header() + webm(PACKETS)[1000:]),
        ("webm", webm_header(codec=b"A_VORBIS") + cluster(block(PACKETS[0]), 0)),
        ("webm", webm(PACKETS) + webm_header()),
        ("webm", webm_header() + element("1254c367", b"", b"\xff")),
    ],
)
def test_what_is_no_stream(name: str, stream: bytes) -> None:
    """No header, a cut in a page or element, a wrong checksum, a header where none belongs."""
    with pytest.raises(Garbage):
        opener(name).feed(stream)


def test_the_end_of_a_packet_without_its_beginning_is_dropped() -> None:
    """As decoders do with a page that goes on."""
    opening = opener("ogg")
    assert opening.feed(ogg_header() + page([bytes(10), *PACKETS[:1]], flags=1)) == bytes(range(DROPPED, 160))
    assert opening.feed(page([PACKETS[1][:100] + bytes(155)], open_ended=True)) == b""
    assert opening.feed(page([b"\0" * 45], flags=1))[:90] == PACKETS[1][7:97]


def test_sniffing() -> None:
    """Opus is told from other codecs; a stream that begins in the middle is nothing."""
    assert sniff(ogg(PACKETS)[:30], 1000) is None
    assert sniff(webm_header(), 1000) is None
    for name, stream in (("ogg", ogg(PACKETS)), ("webm", webm(PACKETS))):
        found = sniff(stream, 1000)
        assert found is not None
        assert (found.container, found.format is not None) == (name, True)
    for other in (page([b"\x01vorbis"], flags=2), webm_header(codec=b"A_VORBIS") + cluster(b"", 0)):
        found = sniff(other + bytes(50), 1000)
        assert found is not None
        assert found.format is not None
        assert found.format.encoding == "packets"
    for cut in (page(PACKETS), b"\x1aE\xdf\xa3" + bytes(65_536)):
        found = sniff(cut, 1000)
        assert found is not None
        assert found.format is None


@pytest.mark.parametrize("query", [QUERY, f"{QUERY}&encoding=ogg-opus&sample_rate=48000"])
@pytest.mark.parametrize("name", MUX)
async def test_words_in_a_container(start: Starter, name: str, query: str) -> None:
    """Token audio is heard in it, at its place in time."""
    emulator = await start()
    audio, tokens = call(12)
    got = await transcribe(emulator, MUX[name](packets_of(audio)), query)
    assert heard(got) == said(tokens)
    packets = -(-len(audio) // (PACKET_MS * 8))
    assert got[-1]["duration"] == pytest.approx(packets * PACKET_MS / 1000 - DROPPED / 8000, abs=1e-4)
    first = results(got, final=True)[0]["channel"]["alternatives"][0]["words"][0]
    assert first["start"] == pytest.approx((tokens[0].start_sample - DROPPED) / 8000, abs=1e-3)


async def test_a_stream_that_is_spoilt_ends_with_1008(start: Starter) -> None:
    """As any bytes that are no audio."""
    emulator = await start()
    async with dial(emulator, QUERY) as ws:
        await send(ws, webm(PACKETS) + bytes(100), 1000)
        await read(ws)
    assert ws.close_code == 1008
    assert "DATA-0000" in (ws.close_reason or "")
