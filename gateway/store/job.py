"""A job, and the states it goes through. Pure.

A job is `queued`, `running`, then for ever `succeeded`; or `failed` or `cancelled` until someone retries it.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
JobRoute = Literal["async", "callback", "parts"]
"""How an attempt asks Deepgram: in one go, to be called back, or for one part after the other."""
JobEvent = Literal["claimed", "succeeded", "failed", "put_back", "cancelled", "retried"]

STATES: Final[tuple[JobState, ...]] = get_args(JobState)
OPEN: Final[frozenset[JobState]] = frozenset({"queued", "running"})
TERMINAL: Final[frozenset[JobState]] = frozenset({"succeeded", "failed", "cancelled"})
TRANSITIONS: Final[dict[tuple[JobState, JobEvent], JobState]] = {
    ("queued", "claimed"): "running",
    ("queued", "cancelled"): "cancelled",
    ("running", "claimed"): "running",  # its lease has run out: whoever had it has died
    ("running", "succeeded"): "succeeded",
    ("running", "failed"): "failed",
    ("running", "put_back"): "queued",
    ("running", "cancelled"): "cancelled",
    ("failed", "retried"): "queued",
    ("cancelled", "retried"): "queued",
}

FIRST_PRIORITY: Final = 1
LAST_PRIORITY: Final = 9


def after(state: JobState, event: JobEvent) -> JobState:
    """Raises KeyError for what cannot happen in `state`."""
    return TRANSITIONS[state, event]


class JobError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an attempt failed: a code for programs, a sentence for people, Deepgram's status if it answered."""

    code: str
    message: str
    status: int = 0


Fence = tuple[str, float, int]
"""An attempt: the job's id, when it was made (the id of a deleted one may be used again), its number."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A recording to be transcribed. Times are seconds since 1970 (UTC), durations seconds of audio.

    The audio is at `url`, or in the file `spooled` of the spool. `query` is what Deepgram is asked,
    percent-encoded. `awaited` is the digest of the token that Deepgram's callback for the latest attempt
    brings.
    """

    id: str
    principal: str
    state: JobState = "queued"
    priority: int = 5
    query: str = ""
    url: str | None = None
    spooled: str | None = None
    media_type: str = "application/octet-stream"
    size_bytes: int = 0
    duration: float | None = None
    route: JobRoute = "async"
    reason: str = ""
    callback: str | None = None
    metadata: msgspec.Raw | None = None
    stored: bool = True
    attempts: int = 0
    max_attempts: int = 3
    reruns: int = 0
    run_at: float = 0.0
    lease_until: float | None = None
    worker: str = ""
    awaited: str | None = None
    error: JobError | None = None
    result: msgspec.Raw | None = None
    request_id: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def fence(self) -> Fence:
        """Its latest attempt, which alone may end it."""
        return self.id, self.created_at, self.attempts
