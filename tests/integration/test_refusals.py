"""Deepgram's refusals reach the client as they are, and the gateway's own look the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.app import Gateway
from gateway.emulator import Emulator, Fault
from gateway.emulator.refusals import standard
from tests.fakes.deepgrams import Answering
from tests.fakes.stand import LISTEN, Stand, eventually
from tests.fakes.wire_client import WireClient

TARGET = f"/v1/listen?{LISTEN}"
OWN = [("Authorization", "Token clients-key")]


async def knock(gateway: Gateway, target: str = TARGET) -> WireClient:
    """One attempt; its answer is on the client that comes back, which is closed."""
    async with await WireClient.open(gateway.address, target, OWN) as client:
        return client


def denied(client: WireClient) -> dict[str, Any]:
    """The body of a refusal in Deepgram's form, its headers checked."""
    body: dict[str, Any] = json.loads(client.body)
    assert client.header("content-type") == "application/json"
    assert client.header("dg-error") == body["err_msg"]
    assert client.header("dg-request-id") == body["request_id"]
    assert client.header("connection") == "close"
    return body


async def both(stand: Stand, **knobs: Any) -> tuple[Emulator, Gateway]:
    """A gateway that passes its clients' credentials on, and an emulator with these knobs."""
    emulator = await stand.emulator(**knobs)
    return emulator, await stand.gateway(emulator.url, auth={"upstream": "client"})


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 414, 429])
async def test_4xx_before_the_101_is_relayed(stand: Stand, status: int) -> None:
    """Status, body and headers are Deepgram's; the dg-error comes once."""
    emulator, gateway = await both(stand, deny_status=status, retry_after=7 if status == 429 else None)
    client = await knock(gateway)
    assert client.status == status
    assert denied(client)["request_id"] == emulator.refusals[0].request_id
    assert client.header("retry-after") == ("7" if status == 429 else None)
    assert len(emulator.refusals) == 1
    await eventually(lambda: gateway.door.connections == 0)


@pytest.mark.parametrize("body", ["", "<html>no</html>", "[1,2]", "{}"])
async def test_odd_bodies_are_relayed_as_they_are(stand: Stand, body: str) -> None:
    """Some refusals have no JSON and some no body at all."""
    _, gateway = await both(stand, deny_status=400, deny_body=body)
    client = await knock(gateway)
    assert (client.status, client.body.decode()) == (400, body)


@pytest.mark.parametrize("query", ["model=nova-99", "model=nova-3&sample_rate=x&encoding=mulaw"])
async def test_parameters_are_deepgrams_to_judge(stand: Stand, query: str) -> None:
    """Nothing in the query is checked here; its answer is the answer."""
    _, gateway = await both(stand)
    client = await knock(gateway, f"/v1/listen?{query}")
    assert client.status == 400
    assert denied(client)["err_code"] in ("Bad Request", "INVALID_QUERY_PARAMETER")


@pytest.mark.parametrize("header", [("Content-Length", "2"), ("Transfer-Encoding", "chunked")])
async def test_an_upgrade_with_a_body(stand: Stand, header: tuple[str, str]) -> None:
    """What two readers could end at different places is nobody's call, and costs no dial."""
    emulator, gateway = await both(stand)
    async with await WireClient.open(gateway.address, TARGET, [*OWN, header]) as client:
        pass  # its answer is read
    assert client.status == 400
    assert "no body" in denied(client)["err_msg"]
    assert not emulator.connections


@pytest.mark.parametrize(
    ("status", "alarm"),
    [
        (401, "upstream.credential_refused"),
        (402, "upstream.credit_exhausted"),
        (403, "upstream.model_forbidden"),
    ],
)
async def test_the_gateways_own_key_is_not_the_clients_fault(stand: Stand, status: int, alarm: str) -> None:
    """A refusal of the gateway's credential is 503 to the client, an alarm to the operator (faults.md 8)."""
    emulator = await stand.emulator(deny_status=status)
    with capture_logs() as logs:
        gateway = await stand.gateway(emulator.url)
        client = await knock(gateway)
    assert client.status == 503
    assert int(client.header("retry-after") or 0) > 0
    body = denied(client)
    assert "credit" not in body["err_msg"]
    assert "credential" not in body["err_msg"].lower()
    alarms = [entry for entry in logs if entry["log_level"] == "critical"]
    assert [(entry["event"], entry["status"]) for entry in alarms] == [(alarm, status)]


async def test_a_clients_bad_key_is_deepgrams_401(stand: Stand) -> None:
    """With auth.upstream = "client" it is Deepgram who says no, and nobody is alarmed."""
    emulator = await stand.emulator(api_keys=("another",))
    with capture_logs() as logs:
        gateway = await stand.gateway(emulator.url, auth={"upstream": "client"})
        client = await knock(gateway)
    assert client.status == 401
    assert denied(client)["err_code"] == "INVALID_AUTH"
    assert not [entry for entry in logs if entry["log_level"] == "critical"]


async def test_without_a_credential_none_is_lent(stand: Stand) -> None:
    """With auth.upstream = "client" the gateway's key is never put in the place of a missing one."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, auth={"upstream": "client"})
    async with await WireClient.open(gateway.address, TARGET) as client:
        assert client.status == 401
    assert "authorization" not in emulator.refusals[0].headers


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_passing_5xx_is_not_seen(stand: Stand, status: int) -> None:
    """The next dial may do: the client gets its 101 from that one."""
    emulator = await stand.emulator(faults=(Fault("refuse", nth=1, status=status),))
    gateway = await stand.gateway(emulator.url, session={"backoff_base": 0.05})
    client = await knock(gateway)
    assert client.status == 101
    assert client.header("dg-request-id") == emulator.connections[0].request_id
    assert [record.status for record in emulator.refusals] == [status]


async def test_a_late_4xx_is_a_close(stand: Stand) -> None:
    """After the 101 a permanent refusal closes with 1008 and Deepgram's words."""
    emulator, gateway = await stand_with_slow_refusal(stand, 400)
    async with await WireClient.open(gateway.address, TARGET, OWN) as client:
        assert client.status == 101
        texts, code, reason = await client.messages()
    assert (texts, code) == ([], 1008)
    assert reason == json.loads(emulator_body(emulator, 400))["err_msg"]


async def stand_with_slow_refusal(stand: Stand, status: int) -> tuple[Emulator, Gateway]:
    emulator = await stand.emulator(deny_status=status, handshake_delay=0.3)
    gateway = await stand.gateway(emulator.url, auth={"upstream": "client"}, session={"accept_wait_ms": 50})
    return emulator, gateway


def emulator_body(emulator: Emulator, status: int) -> bytes:
    return standard(status).body_bytes(emulator.refusals[0].request_id)


async def test_a_late_refusal_of_the_own_key(stand: Stand) -> None:
    """After the 101 it is 1011: our fault, and the client may come again."""
    emulator = await stand.emulator(deny_status=401, handshake_delay=0.3)
    gateway = await stand.gateway(emulator.url, session={"accept_wait_ms": 50})
    async with await WireClient.open(gateway.address, TARGET) as client:
        assert client.status == 101
        _, code, reason = await client.messages()
    assert code == 1011
    assert "credential" not in reason.lower()


async def test_a_redirect_is_not_followed(stand: Stand) -> None:
    """The key never goes where an answer points to (security.md S7)."""
    elsewhere = await stand.emulator()
    answer = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}/v1/listen\r\nContent-Length: 0\r\n\r\n"
    async with Answering(answer.encode()) as deepgram:
        gateway = await stand.gateway(deepgram.url, session={"accept_wait_ms": 200})
        client = await knock(gateway)
        await eventually(lambda: deepgram.requests)
    assert client.status == 101  # accepted after the wait; the dial goes on
    assert elsewhere.connections == elsewhere.refusals == []


@pytest.mark.parametrize(
    "query",
    ["callback=https://a.b", "callback=", "%63allback=wss%3A%2F%2Fa.b&callback=", "callback_method=PUT"],
)
async def test_nobody_is_called_back(stand: Stand, query: str) -> None:
    """Unless the operator allows it: 400 in Deepgram's form, and no dial (security.md S30)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    client = await knock(gateway, f"{TARGET}&{query}")
    if "a.b" not in query:
        assert client.status == 101
        return
    assert client.status == 400
    assert denied(client)["err_code"] == "INVALID_QUERY_PARAMETER"
    assert emulator.connections == emulator.refusals == []
    assert gateway.metrics.sessions_active == gateway.metrics.dials_waiting == 0


async def test_a_call_that_calls_back_ends_with_its_connection(stand: Stand) -> None:
    """A second connection would call back a second time."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"allow_callback": True})
    target = f"{TARGET}&callback=http%3A%2F%2F127.0.0.1"
    async with await WireClient.open(gateway.address, target, OWN) as client:
        assert client.status == 101
        await eventually(lambda: emulator.connections)
        emulator.act("reset")
        _, code, reason = await client.messages()
    assert code == 1011
    assert "callback" in reason
    assert len(emulator.connections) == 1
