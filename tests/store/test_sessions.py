"""Calls as rows, on both databases."""

from __future__ import annotations

from functools import partial
from typing import Any

from gateway.store import sessions, transcripts
from gateway.store.sessions import Session, SessionGap
from gateway.store.store import Store


def session(id: str = "s", **fields: Any) -> Session:
    made: dict[str, Any] = {
        "principal": "p",
        "request_id": "r",
        "model": "nova-3",
        "region": "eu",
        "outcome": "completed",
        "continuity": "exact",
        "close_code": 1000,
        "stored": True,
        "accepted_seconds": 10.0,
        "sent_seconds": 12.0,
        "replayed_seconds": 2.0,
        "gap_seconds": 1.5,
        "gaps": [SessionGap(3.0, 4.5, "upstream_hole")],
        "connections": 2,
        "breaks": 1,
        "resumes": 0,
        "max_lag": 0.7,
        "created_at": 1000.0,
        "ended_at": 1010.0,
    }
    return Session(id=id, **made | fields)


async def test_a_session_is_saved_once(store: Store) -> None:
    """As it was; who writes it again is told, and another principal has none."""
    assert await store.write(partial(sessions.save, session=session()))
    assert not await store.write(partial(sessions.save, session=session(accepted_seconds=99.0)))
    assert await store.read(partial(sessions.get, principal="p", id="s")) == session()
    assert await store.read(partial(sessions.get, principal="q", id="s")) is None
    assert await store.read(partial(sessions.get, principal="p", id="t")) is None


async def test_sessions_go_with_transcripts(store: Store) -> None:
    """By principal and by age."""
    for one in (session("a"), session("b", principal="q"), session("c", principal="q", created_at=5.0)):
        await store.write(partial(sessions.save, session=one))
    await store.write(partial(transcripts.remove_all, principal="p", before=1e12, most=10))
    assert await store.read(partial(sessions.get, principal="p", id="a")) is None
    assert await store.write(partial(transcripts.expire, before=500.0, most=1)) == 1
    assert await store.read(partial(sessions.get, principal="q", id="c")) is None
    assert await store.read(partial(sessions.get, principal="q", id="b"))
