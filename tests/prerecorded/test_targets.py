"""Connections to addresses from outside, over real sockets; ids are of docs/security.md and faults.md."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.config import CallbackConfig
from gateway.errors import TargetBusy, TargetError
from gateway.policy.targets import NOT_FROM_HERE
from gateway.prerecorded import targets as module
from gateway.prerecorded.targets import MAX_ANSWER_BYTES, Targets
from tests.fakes.receiver import Receiver

PUBLIC = "93.184.215.14"


class Names:
    """A resolver that answers each question with the next of its answers, the last for ever."""

    def __init__(self, *answers: str) -> None:
        self.asked: list[str] = []
        self._answers = [answer.split() for answer in answers]

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if found == ["none"]:
            raise OSError("no such name")
        if found == ["hang"]:
            await asyncio.sleep(3600)
        return found


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


def reaching(
    *receivers: Receiver, names: Names | None = None, own: Sequence[int] = (), **keys: Any
) -> Targets:
    """Targets that may go to the ports of these receivers, on this machine unless `keys` say otherwise."""
    ports = tuple(one.port for one in receivers) or (443,)
    settings = {"allow_http": True, "ports": ports, "allow": ("127.0.0.0/8", "::1"), **keys}
    return Targets(CallbackConfig(**settings), lambda: own, names)


async def post(targets: Targets, url: str, seconds: float = 5.0) -> module.Reply:
    return await targets.post("p", url, b"{}", {"webhook-id": "1"}, seconds)


async def test_a_post_arrives(receiver: Receiver) -> None:
    """By name, resolved once; Host is what the URL says."""
    names = Names("127.0.0.1")
    reply = await post(reaching(receiver, names=names), receiver.url("/a?b=%2F", "hooks.example"))
    assert reply == (200, "", 0.0)
    (got,) = receiver.received
    assert (got.path, got.headers["host"], got.body) == ("/a", f"hooks.example:{receiver.port}", b"{}")
    assert names.asked == ["hooks.example"]


async def test_rebinding(receiver: Receiver) -> None:
    """S35: a name that is public when judged and 127.0.0.1 when connected to gets no connection."""
    names = Names(PUBLIC, "127.0.0.1")
    targets = reaching(receiver, names=names, allow=())
    url = receiver.url("/", "rebind.example")
    await targets.check("p", url)
    assert await post(targets, url) == (None, NOT_FROM_HERE, 0.0)
    assert (len(names.asked), receiver.connections) == (2, 0)


async def test_the_address_that_was_judged(receiver: Receiver) -> None:
    """S35: within one request the resolver is not asked again, so a second answer comes too late."""
    names = Names("127.0.0.1", "10.0.0.1")
    assert (await post(reaching(receiver, names=names), receiver.url("/", "hooks.example"))).status == 200
    assert len(names.asked) == 1


@pytest.mark.parametrize(
    "found", [f"{PUBLIC} 127.0.0.1", "127.0.0.1 ::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", ""]
)
async def test_every_address_is_judged(receiver: Receiver, found: str) -> None:
    """S35, S37: one bad address among good ones is enough; so is none."""
    targets = reaching(receiver, names=Names(found), allow=())
    assert await post(targets, receiver.url("/", "hooks.example")) == (None, NOT_FROM_HERE, 0.0)
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "2130706433", "127.1", "0"])
async def test_literals(receiver: Receiver, host: str) -> None:
    """S36, M6: no resolver is asked about them, and they are judged all the same."""
    targets = reaching(receiver, allow=())
    assert (await post(targets, receiver.url("/", host))).status is None
    assert receiver.connections == 0


async def test_another_address_at_the_socket(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """M6: were a connector to find an address by itself, the socket for it would not be made."""

    async def elsewhere(*_args: object, **_keys: object) -> list[dict[str, Any]]:
        return [
            {"hostname": "x", "host": "127.0.0.1", "port": receiver.port, "family": 2, "proto": 0, "flags": 0}
        ]

    monkeypatch.setattr(module._Pinned, "resolve", elsewhere)
    targets = reaching(receiver, names=Names("127.0.0.2"))
    assert await post(targets, receiver.url("/", "hooks.example")) == (None, NOT_FROM_HERE, 0.0)
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "hooks.example", "[::ffff:127.0.0.1]"])
async def test_ourselves(receiver: Receiver, host: str) -> None:
    """S44: our own listeners are no targets, however they are called and whatever is allowed."""
    targets = reaching(receiver, names=Names("127.0.0.1"), own=[receiver.port])
    assert (await post(targets, receiver.url("/", host))).error == NOT_FROM_HERE
    assert receiver.connections == 0
    assert (await post(reaching(receiver, names=Names("127.0.0.1")), receiver.url())).status == 200


async def test_our_port_elsewhere() -> None:
    """S44: another machine may listen on a port of the same number."""
    targets = Targets(CallbackConfig(), lambda: [443], Names(PUBLIC))
    assert (await targets.check("p", "https://hooks.example/")).host == "hooks.example"


@pytest.mark.parametrize("found", ["127.0.0.1", "none", "hang"])
async def test_refusals_look_alike(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """S40: at intake an internal name, an unknown one and one that hangs: same words, same time."""
    monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.3)
    targets = Targets(CallbackConfig(), tuple, Names(found))
    begun = time.monotonic()
    with pytest.raises(TargetError, match=NOT_FROM_HERE):
        await targets.check("p", "https://hooks.example/")
    assert 0.29 < time.monotonic() - begun < 0.9


async def test_failures_look_alike(receiver: Receiver) -> None:
    """S40: refused by us, refused by the port, unknown: one error."""
    async with Receiver() as gone:
        pass
    targets = reaching(receiver, gone, names=Names("127.0.0.1", "10.0.0.1", "none"))
    urls = [gone.url("/", "hooks.example"), *[receiver.url("/", "hooks.example")] * 2]
    assert {await post(targets, url) for url in urls} == {(None, NOT_FROM_HERE, 0.0)}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_callbacks_follow_no_redirect(receiver: Receiver, status: int) -> None:
    """S39, M6: least of all a 307, which would post the transcript again."""
    receiver.answers["/"] = [f"{status} {receiver.url('/loot')}"]
    assert await post(reaching(receiver), receiver.url("/")) == (status, "", 0.0)
    assert [got.path for got in receiver.received] == ["/"]


async def test_environment_proxies(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """S41: proxy variables and .netrc are not looked at."""
    async with Receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        assert (await post(reaching(receiver), receiver.url("/"))).status == 200
        assert proxy.connections == 0


@pytest.mark.parametrize(("answer", "status"), [("hang", None), ("half", None), ("drop", None)])
async def test_receivers_that_hang(receiver: Receiver, answer: str, status: int | None) -> None:
    """An attempt is over in its time, in the middle of an answer too (faults.md 71)."""
    receiver.answers["/"] = [answer]
    begun = time.monotonic()
    reply = await post(reaching(receiver), receiver.url(), 0.4)
    assert (reply.status, time.monotonic() - begun < 1.0) == (status, True)
    assert reply.error == (NOT_FROM_HERE if answer == "drop" else "no answer in time")


async def test_a_body_without_end(receiver: Receiver) -> None:
    """S40, fault 71: 64 KiB of an answer are read, then the connection is closed."""
    receiver.answers["/"] = ["endless"]
    assert (await post(reaching(receiver), receiver.url())).status == 200
    await asyncio.sleep(0.2)
    sent = receiver.bytes_sent
    await asyncio.sleep(0.2)
    assert receiver.bytes_sent == sent < 100 * MAX_ANSWER_BYTES  # what sockets on the way took


async def test_retry_after(receiver: Receiver) -> None:
    """Seconds are understood; anything else counts as nothing said."""
    receiver.answers["/"] = ["503 17", "503 Wed, 21 Oct 2026 07:28:00 GMT", "429 -5", "503 ٣"]
    found = [(await post(reaching(receiver), receiver.url())).retry_after for _ in range(4)]
    assert found == [17.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def tls_receiver(authority: trustme.CA, *names: str) -> Receiver:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return await Receiver().start(context)


async def test_tls_by_the_name(authority: trustme.CA, tmp_path: Path) -> None:
    """S35: the address is pinned, yet SNI and the certificate's check go by the name in the URL."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with await tls_receiver(authority, "hooks.example") as receiver:
        targets = reaching(receiver, names=Names("127.0.0.1"), ca_file=str(tmp_path / "ca.pem"))
        assert (await post(targets, receiver.url("/", "hooks.example.", "https"))).status == 200
        assert receiver.received[0].server_name == "hooks.example"
        assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
        reply = await post(targets, receiver.url("/", "other.example", "https"))
        assert reply == (None, "has a certificate that is not trusted", 0.0)


async def test_tls_from_nobody(authority: trustme.CA) -> None:
    """A certificate of an authority that nobody named."""
    async with await tls_receiver(authority, "hooks.example") as receiver:
        targets = reaching(receiver, names=Names("127.0.0.1"))
        reply = await post(targets, receiver.url("/", "hooks.example", "https"))
        assert reply == (None, "has a certificate that is not trusted", 0.0)
        assert receiver.received == []


async def fetched(
    targets: Targets, url: str, max_bytes: int = 1000, seconds: float = 3.0, **keys: Any
) -> bytes:
    async with targets.fetch("p", url, max_bytes=max_bytes, seconds=seconds, **keys) as recording:
        return b"".join([chunk async for chunk in recording.chunks])


async def test_a_fetch(receiver: Receiver) -> None:
    """What a recording's address gives, with what is said of it."""
    async with reaching(receiver).fetch("p", receiver.url("/a"), max_bytes=1000, seconds=3.0) as recording:
        assert (recording.media_type, recording.size) == ("audio/wav", 5)
        assert b"".join([chunk async for chunk in recording.chunks]) == b"audio"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_fetches_follow_three_redirects(receiver: Receiver, status: int) -> None:
    """S39: three, relative ones too; the fourth is one too many."""
    receiver.answers = {
        "/1": [f"{status} /2"],
        "/2": [f"{status} {receiver.url('/3')}"],
        "/3": [f"{status} 4"],
        "/0": [f"{status} /1"],
    }
    assert await fetched(reaching(receiver), receiver.url("/1")) == b"audio"
    with pytest.raises(TargetError, match="redirects too often"):
        await fetched(reaching(receiver), receiver.url("/0"))
    assert {got.method for got in receiver.received} == {"GET"}


@pytest.mark.parametrize(
    "there",
    ["http://10.0.0.1/", "http://localhost/", "//169.254.169.254/", "file:///etc/passwd", "http://[", ""],
)
async def test_each_redirect_is_judged(receiver: Receiver, there: str) -> None:
    """S39: a redirect is an address from outside like any other."""
    receiver.answers["/"] = [f"302 {there}"]
    with pytest.raises(TargetError):
        await fetched(reaching(receiver, ports=(receiver.port, 80)), receiver.url("/"), seconds=1.0)
    assert len(receiver.received) <= 4


async def test_a_redirect_to_a_name_that_rebinds(receiver: Receiver) -> None:
    """S35, S39: the second name is resolved and judged like the first."""
    receiver.answers["/"] = [f"302 {receiver.url('/', 'inside.example')}"]
    names = Names("127.0.0.1", "10.0.0.1")
    with pytest.raises(TargetError, match=NOT_FROM_HERE):
        await fetched(reaching(receiver, names=names), receiver.url("/", "outside.example"))
    assert names.asked == ["outside.example", "inside.example"]


async def test_never_down_to_http(authority: trustme.CA, tmp_path: Path, receiver: Receiver) -> None:
    """S39: not from https to http, even where http is taken."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with await tls_receiver(authority, "hooks.example") as secure:
        secure.answers["/"] = [f"302 {receiver.url('/')}"]
        targets = reaching(secure, receiver, names=Names("127.0.0.1"), ca_file=str(tmp_path / "ca.pem"))
        with pytest.raises(TargetError, match="redirects from https to http"):
            await fetched(targets, secure.url("/", "hooks.example", "https"))
        assert receiver.received == []


async def test_credentials_stay_at_their_origin(receiver: Receiver) -> None:
    """S39: a header that was given for one origin is not sent to another; within one it is."""
    async with Receiver() as other:
        receiver.answers = {"/1": ["302 /2"], "/2": [f"302 {other.url('/3')}"]}
        targets = reaching(receiver, other)
        assert await fetched(targets, receiver.url("/1"), headers={"Authorization": "Token x"}) == b"audio"
        assert [got.headers.get("authorization") for got in receiver.received] == ["Token x"] * 2
        assert other.received[0].headers.get("authorization") is None


@pytest.mark.parametrize(("answer", "why"), [("404", "answered 404"), ("half", "took too long")])
async def test_fetches_that_fail(receiver: Receiver, answer: str, why: str) -> None:
    """In words that name no more than the caller may know."""
    receiver.answers["/"] = [answer]
    with pytest.raises(TargetError, match=why):
        await fetched(reaching(receiver), receiver.url(), seconds=0.4)


async def test_fetches_are_capped(receiver: Receiver) -> None:
    """S40: by what is announced, and by what comes."""
    with pytest.raises(TargetError, match="larger than 4 bytes"):
        await fetched(reaching(receiver), receiver.url(), max_bytes=4)
    receiver.answers["/"] = ["endless"]
    with pytest.raises(TargetError, match="larger than 100000 bytes"):
        await fetched(reaching(receiver), receiver.url(), max_bytes=100_000)


async def test_the_system_resolver() -> None:
    """A name is resolved beside the loop; one that is none is refused."""
    assert set(await module._resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"."):
        await module._resolve("a" * 64 + ".invalid", 80)


class Hanging:
    """A resolver for which names of evil.example hang until they are let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.over = asyncio.Event()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host.endswith("evil.example"):
            await self.over.wait()
        return [PUBLIC]


async def refusal(targets: Targets, host: str, principal: str = "p") -> type[TargetError] | None:
    try:
        await targets.check(principal, f"https://{host}/")
    except TargetError as exc:
        return type(exc)
    return None


async def test_names_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """S35: those of one domain leave places for others, and have their own back when they are done."""
    monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.2)
    hanging = Hanging()
    targets = Targets(CallbackConfig(), tuple, hanging)
    evil = [f"a{n}.evil.example" for n in range(module.LOOKUPS_OF_DOMAIN + 4)]
    found = await asyncio.gather(*(refusal(targets, host) for host in evil), refusal(targets, "good.example"))
    assert found == [TargetError] * module.LOOKUPS_OF_DOMAIN + [TargetBusy] * 4 + [None]
    assert await refusal(targets, "more.evil.example") is TargetBusy
    hanging.over.set()
    await asyncio.sleep(0)
    assert await refusal(targets, "more.evil.example") is None


async def test_many_domains_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """S35: whoever has names that hang in many domains takes its own places, and nobody else's."""
    monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.2)
    hanging = Hanging()
    targets = Targets(CallbackConfig(), tuple, hanging)
    evil = [f"a{n}.d{n}evil.example" for n in range(2 * module.LOOKUPS)]
    asking = asyncio.gather(*(refusal(targets, host, "mallory") for host in evil))
    await asyncio.sleep(0)
    others = [refusal(targets, f"good{n}.example", "alice") for n in range(8)]
    assert await asyncio.gather(*others, refusal(targets, evil[-1], "bob")) == [None] * 8 + [TargetError]
    assert (await asyncio.wait_for(asking, 5)).count(TargetError) == module.LOOKUPS_OF_PRINCIPAL
    assert await refusal(targets, "good.example", "mallory") is TargetBusy
    hanging.over.set()
    await asyncio.sleep(0)
    assert await refusal(targets, "good.example", "mallory") is None


async def test_no_place_is_not_the_names_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all places are taken, a good name is not called a bad one; and its time begins with its place."""
    monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.2)
    monkeypatch.setattr(module, "LOOKUPS", 1)
    hanging = Hanging()
    targets = Targets(CallbackConfig(), tuple, hanging)
    assert await refusal(targets, "evil.example") is TargetError
    assert await refusal(targets, "good.example") is TargetBusy
    waiting = asyncio.create_task(refusal(targets, "good.example"))
    await asyncio.sleep(0.1)
    hanging.over.set()
    assert await waiting is None


async def test_one_name_is_asked_for_once() -> None:
    """By however many at the same time."""
    hanging = Hanging()
    targets = Targets(CallbackConfig(), tuple, hanging)
    assert await asyncio.gather(*(refusal(targets, "good.example") for _ in range(100))) == [None] * 100
    assert hanging.asked == ["good.example"]
