"""The states of a session and every way between them.

Rules
- A client is answered exactly once, on the way out of CONNECTING.
- Whether an upstream connection is open is not the client's business: STREAMING and RECONNECTING differ in
  nothing that a client can see.
- DRAINING begins when no more audio will come, and ends when all of it is accounted for.
- HELD is for clients that may come back alone: all was said, and the end is not yet known to have arrived.
- CLOSED is final. An input that a state does not know is a defect of ours and raises.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    CONNECTING = "connecting"
    """The client waits for its 101 while Deepgram is dialled."""
    STREAMING = "streaming"
    """An upstream connection is open and takes audio."""
    RECONNECTING = "reconnecting"
    """There is none; audio is kept."""
    DRAINING = "draining"
    """The client has said its last; Deepgram's last results are awaited."""
    HELD = "held"
    """All has been said; the client may still come back for it."""
    CLOSED = "closed"


class Input(enum.Enum):
    UPSTREAM_OPENED = "upstream opened"
    UPSTREAM_LOST = "upstream lost"
    WAIT_OVER = "accept wait over"
    REFUSED = "refused for good"
    FINISHED = "client finished"
    CLIENT_LOST = "client lost"
    LAST_WORD_SAID = "last word said"
    ENDED = "all accounted for"


TABLE: Final[dict[tuple[State, Input], State]] = {
    (State.CONNECTING, Input.UPSTREAM_OPENED): State.STREAMING,
    (State.CONNECTING, Input.UPSTREAM_LOST): State.CONNECTING,
    (State.CONNECTING, Input.WAIT_OVER): State.RECONNECTING,
    (State.CONNECTING, Input.REFUSED): State.CLOSED,
    (State.CONNECTING, Input.CLIENT_LOST): State.CLOSED,
    (State.STREAMING, Input.UPSTREAM_LOST): State.RECONNECTING,
    (State.STREAMING, Input.REFUSED): State.CLOSED,
    (State.STREAMING, Input.FINISHED): State.DRAINING,
    (State.STREAMING, Input.CLIENT_LOST): State.DRAINING,
    (State.STREAMING, Input.LAST_WORD_SAID): State.HELD,
    (State.RECONNECTING, Input.UPSTREAM_OPENED): State.STREAMING,
    (State.RECONNECTING, Input.UPSTREAM_LOST): State.RECONNECTING,
    (State.RECONNECTING, Input.REFUSED): State.CLOSED,
    (State.RECONNECTING, Input.FINISHED): State.DRAINING,
    (State.RECONNECTING, Input.CLIENT_LOST): State.DRAINING,
    (State.RECONNECTING, Input.LAST_WORD_SAID): State.HELD,
    (State.DRAINING, Input.UPSTREAM_OPENED): State.DRAINING,
    (State.DRAINING, Input.UPSTREAM_LOST): State.DRAINING,
    (State.DRAINING, Input.CLIENT_LOST): State.DRAINING,
    (State.DRAINING, Input.REFUSED): State.CLOSED,
    (State.DRAINING, Input.ENDED): State.CLOSED,
    (State.DRAINING, Input.LAST_WORD_SAID): State.HELD,
    (State.HELD, Input.ENDED): State.CLOSED,
}


def after(state: State, happened: Input) -> State:
    """The next state. Raises AssertionError for a step that the table does not have."""
    following = TABLE.get((state, happened))
    assert following is not None, f"{happened.value!r} cannot happen in {state.value}"
    return following


def diagram() -> str:
    """The table as a Mermaid state diagram; docs/design.md holds this text."""
    lines = ["stateDiagram-v2", "    [*] --> connecting"]
    lines += [f"    {a.value} --> {b.value}: {why.value}" for (a, why), b in TABLE.items()]
    return "\n".join([*lines, "    closed --> [*]"])
