"""`/v1/deliveries` of a whole gateway, and the receiver of docs/ against real deliveries."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.app import Gateway
from gateway.errors import ConfigError, TargetError
from gateway.policy.targets import NOT_FROM_HERE
from gateway.prerecorded.notify import Notifier
from tests.fakes.receiver import Receiver
from tests.fakes.stand import Stand, eventually, scrape

SECRET, OTHER = (f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
RECEIVER = Path(__file__).parents[2] / "docs" / "receiver.py"


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    made = Stand()
    yield made
    await made.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


async def gateway_for(stand: Stand, folder: Path, *ports: int, **keys: Any) -> Gateway:
    """A gateway that may call these ports of this machine."""
    (folder / "secrets").write_text(f"{keys.pop('secrets', SECRET)}\n")
    callback = {
        "secrets_file": str(folder / "secrets"),
        "allow_http": True,
        "allow": ["127.0.0.0/8"],
        "ports": ports,
        "backoff_seconds": 0.05,
        **keys,
    }
    store = {"url": f"sqlite:///{folder}/gateway.db"}
    return await stand.gateway("http://127.0.0.1:9", callback=callback, store=store)


def notifier_of(gateway: Gateway) -> Notifier:
    assert gateway.callbacks.notifier is not None
    return gateway.callbacks.notifier


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    async with ClientSession() as client:
        yield client


class Api:
    """The sidecar of one gateway."""

    def __init__(self, gateway: Gateway, http: ClientSession) -> None:
        host, port = gateway.sidecar_address
        self._base = f"http://{host}:{port}/v1/deliveries"
        self._http = http

    async def ask(self, path: str = "", method: str = "GET") -> tuple[int, Any]:
        async with self._http.request(method, self._base + path) as response:
            return response.status, await response.json() if response.status != 204 else None

    async def until(self, delivery_id: str, state: str) -> Any:
        async with asyncio.timeout(10):
            while True:
                status, found = await self.ask(f"/{delivery_id}")
                assert status == 200
                if found["state"] == state:
                    return found
                await asyncio.sleep(0.02)


async def test_a_delivery_is_shown(
    stand: Stand, tmp_path: Path, receiver: Receiver, http: ClientSession
) -> None:
    """With its body by its id, without it in the list; unknown ones are 404."""
    gateway = await gateway_for(stand, tmp_path, receiver.port)
    api = Api(gateway, http)
    assert await api.ask() == (200, {"deliveries": [], "next": None})
    url = receiver.url("/hook")
    delivery_id = await notifier_of(gateway).add("anonymous", url, "session.ended", b'{"id":"s1"}')
    found = await api.until(delivery_id, "delivered")
    assert (found["event"], found["url"], found["attempts"], found["last_status"]) == (
        "session.ended",
        url,
        1,
        200,
    )
    assert (found["body"]["type"], found["body"]["data"]) == ("session.ended", {"id": "s1"})
    assert "next_at" not in found
    status, page = await api.ask("?state=delivered")
    assert status == 200
    assert [(one["id"], "body" in one) for one in page["deliveries"]] == [(delivery_id, False)]
    assert (await api.ask("?state=failed"))[1]["deliveries"] == []
    assert (await api.ask("/nothing"))[0] == (await api.ask("/nothing/retry", "POST"))[0] == 404
    assert 'gw_callbacks_total{outcome="delivered"} 1.0' in await scrape(gateway)


async def test_a_delivery_is_deleted(
    stand: Stand, tmp_path: Path, receiver: Receiver, http: ClientSession
) -> None:
    """Once, by whose it is."""
    gateway = await gateway_for(stand, tmp_path, receiver.port)
    api = Api(gateway, http)
    mine, other = [
        await notifier_of(gateway).add(who, receiver.url(), "e", b"1") for who in ("anonymous", "x")
    ]
    await api.until(mine, "delivered")
    asked = [await api.ask(f"/{one}", "DELETE") for one in (mine, mine, other)]
    assert [status for status, _ in asked] == [204, 404, 404]
    assert (await api.ask(f"/{mine}"))[0] == 404
    assert await notifier_of(gateway).get("x", other) is not None


async def test_pages(stand: Stand, tmp_path: Path, receiver: Receiver, http: ClientSession) -> None:
    """A cursor leads through all of them, each once; another principal's are not there."""
    gateway = await gateway_for(stand, tmp_path, receiver.port)
    notifier = notifier_of(gateway)
    made = [await notifier.add("anonymous", receiver.url(), "e", b"1") for _ in range(5)]
    await notifier.add("somebody else", receiver.url(), "e", b"1")
    seen, cursor = [], ""
    for _ in range(3):
        _, page = await Api(gateway, http).ask(f"?limit=2{cursor}")
        seen += [one["id"] for one in page["deliveries"]]
        cursor = f"&cursor={page['next']}"
    assert (seen, page["next"]) == (made[::-1], None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=x", "state"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=1001", "limit"),
        ("cursor=x", "cursor"),
    ],
)
async def test_bad_queries(stand: Stand, tmp_path: Path, http: ClientSession, query: str, field: str) -> None:
    """400 in Deepgram's form, with the name of what is wrong."""
    gateway = await gateway_for(stand, tmp_path, 443)
    status, body = await Api(gateway, http).ask(f"?{query}")
    assert (status, body["err_msg"].partition(":")[0]) == (400, field)
    assert body["request_id"]


async def test_redelivery(stand: Stand, tmp_path: Path, receiver: Receiver, http: ClientSession) -> None:
    """A dead letter is found by its state, and sent again by hand under the same id."""
    receiver.answers["/hook"] = ["410", "200"]
    gateway = await gateway_for(stand, tmp_path, receiver.port)
    api = Api(gateway, http)
    delivery_id = await notifier_of(gateway).add("anonymous", receiver.url("/hook"), "e", b"1")
    await api.until(delivery_id, "failed")
    assert [one["id"] for one in (await api.ask("?state=failed"))[1]["deliveries"]] == [delivery_id]
    status, found = await api.ask(f"/{delivery_id}/retry", "POST")
    assert (status, found["state"]) == (202, "pending")
    assert (await api.until(delivery_id, "delivered"))["attempts"] == 2
    assert {got.headers["webhook-id"] for got in receiver.received} == {delivery_id}


async def test_no_store(stand: Stand, http: ClientSession) -> None:
    """Where nothing is stored there are no deliveries to show."""
    gateway = await stand.gateway("http://127.0.0.1:9", store={"url": "none"})
    assert (await Api(gateway, http).ask())[0] == 404
    assert gateway.callbacks.notifier is None


async def test_our_own_ports(stand: Stand, tmp_path: Path) -> None:
    """S44: neither of the gateway's ports can be called back, though loopback is allowed."""
    gateway = await gateway_for(stand, tmp_path, *range(1024, 65536))
    ports = (gateway.address[1], gateway.sidecar_address[1])
    urls = [f"http://{host}:{port}/" for port in ports for host in ("127.0.0.1", "127.1.2.3")]
    checks = [notifier_of(gateway).check("p", url) for url in urls]
    told = await asyncio.gather(*checks, return_exceptions=True)
    assert [(type(one), str(one)) for one in told] == [(TargetError, NOT_FROM_HERE)] * 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"session_url": "http://10.0.0.1/"}, "callback.session_url: that address"),
        ({"session_url": "ftp://hooks.example/"}, "callback.session_url: must begin with"),
        ({"secrets": ""}, "callback.secrets_file: .* is empty"),
        ({"secrets": "secret"}, "callback.secrets_file: each line must be"),
        ({"ca_file": __file__}, "callback.ca_file: "),
    ],
)
async def test_settings_that_cannot_be_used(
    stand: Stand, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    """The gateway does not start, and says why in one line."""
    with pytest.raises(ConfigError, match=said):
        await gateway_for(stand, tmp_path, 80, **keys)


async def test_a_session_url_needs_a_secret(stand: Stand) -> None:
    """S43: it would never be called."""
    with pytest.raises(ConfigError, match=r"callback\.session_url: callbacks are signed and stored"):
        await stand.gateway("http://127.0.0.1:9", callback={"session_url": "https://hooks.example/"})


class Sample:
    """docs/receiver.py as it stands, in a thread; `done` is what its work was asked to do."""

    def __init__(self, module: ModuleType, secret: str) -> None:
        self.done: list[dict[str, Any]] = []
        done = self.done

        class Watched(module.Receiver):  # type: ignore[name-defined, misc]  # loaded from a file
            def work(self, event: dict[str, Any]) -> None:
                done.append(event)

            def log_message(self, *_args: Any) -> None:
                pass

        Watched.secret = secret
        Watched.seen = type(module.Receiver.seen)()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Watched)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_receiver", RECEIVER)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def sample(module: ModuleType) -> Iterator[Sample]:
    made = Sample(module, SECRET)
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


@pytest.mark.parametrize("secrets", [SECRET, f"{OTHER}\n{SECRET}", f"{SECRET}\n{OTHER}"])
async def test_the_sample_receiver(
    stand: Stand, tmp_path: Path, sample: Sample, http: ClientSession, secrets: str
) -> None:
    """S43: takes what is signed with its secret, whichever of the two that is; does nothing twice."""
    gateway = await gateway_for(stand, tmp_path, sample.port, secrets=secrets)
    url = f"http://127.0.0.1:{sample.port}/"
    delivery_id = await notifier_of(gateway).add("anonymous", url, "job.succeeded", b'{"id":"a"}')
    api = Api(gateway, http)
    assert (await api.until(delivery_id, "delivered"))["last_status"] == 204
    await api.ask(f"/{delivery_id}/retry", "POST")
    assert (await api.until(delivery_id, "delivered"))["attempts"] >= 1
    await eventually(lambda: gateway.metrics.callbacks["delivered"] == 2)
    assert [(event["type"], event["data"]) for event in sample.done] == [("job.succeeded", {"id": "a"})]


async def test_the_sample_receiver_refuses(
    stand: Stand, tmp_path: Path, sample: Sample, http: ClientSession
) -> None:
    """S43: another's signature is 401, and nothing is done."""
    gateway = await gateway_for(stand, tmp_path, sample.port, secrets=OTHER, give_up=0.2)
    url = f"http://127.0.0.1:{sample.port}/"
    delivery_id = await notifier_of(gateway).add("anonymous", url, "e", b"{}")
    assert (await Api(gateway, http).until(delivery_id, "failed"))["last_status"] == 401
    assert sample.done == []


def test_what_the_sample_verifies(module: ModuleType) -> None:
    """S43: time, id, body and signature are all needed; five minutes either way."""
    headers = {
        "webhook-id": "019b7c5e-0000-7000-8000-000000000000",
        "webhook-timestamp": "1767323045",
        "webhook-signature": "v1,bm90IHRoaXM= v1,zxiIc4x0BxN3hes57hXpuK0IjR07r4ciCz2AHeJduRo=",
    }
    secret = "whsec_Z2F0ZXdheS1kb2NzLWV4YW1wbGUtc2VjcmV0LTAwMQ=="
    body = b'{"type":"job.succeeded","timestamp":"2026-01-02T03:04:05.678Z","data":{"id":"a1"}}'
    now = 1767323045.0
    assert module.verify(secret, headers, body, now + 299)
    assert not module.verify(secret, headers, body, now + 301)
    assert not module.verify(secret, headers, body, now - 301)
    assert not module.verify(secret, headers, body + b" ", now)
    assert not module.verify(OTHER, headers, body, now)
    for name in headers:
        assert not module.verify(secret, {**headers, name: "v1,ü"}, body, now)
        assert not module.verify(
            secret, {key: value for key, value in headers.items() if key != name}, body, now
        )
