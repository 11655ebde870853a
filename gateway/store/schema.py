"""The tables. What a migration makes must equal them; a test compares the two on both databases.

Times are seconds since 1970 (UTC), durations seconds of audio. JSON that is only passed on is kept as the
bytes it came as. Ids are handed in by whoever writes: a transcript has the id of its job, its request or its
call.

The index for full-text search is made by the migrations alone: an FTS5 table with its triggers in SQLite, a
GIN index in PostgreSQL; `transcripts.search` asks it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

JOBS: Final = Table(
    "jobs",  # the fields of `gateway.store.job.Job`
    METADATA,
    Column("id", Text, primary_key=True),
    Column("principal", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("query", Text, nullable=False),
    Column("url", Text),
    Column("spooled", Text),
    Column("media_type", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("duration", Double),
    Column("route", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("callback", Text),
    Column("metadata", LargeBinary),
    Column("stored", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("reruns", Integer, nullable=False),
    Column("run_at", Double, nullable=False),
    Column("lease_until", Double),
    Column("worker", Text, nullable=False),
    Column("awaited", Text),
    Column("error", LargeBinary),
    Column("result", LargeBinary),
    Column("request_id", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Index(None, "state", "priority", "run_at"),
    Index(None, "principal", "created_at", "id"),
    Index(None, "ended_at"),
)

OPEN: Final = text("ended_at IS NULL")
"""Of a transcript: its call goes on, or nobody ended it."""

TRANSCRIPTS: Final = Table(
    "transcripts",
    METADATA,
    # A key of its own for FTS5, which knows rows by a number that must not change.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("principal", Text, nullable=False),
    Column("source", Text, nullable=False),  # transcripts.Source
    Column("request_id", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("metadata", LargeBinary),
    Column("duration", Double),
    Column("text", Text, nullable=False),  # what is searched; of a call it is empty until its end
    Column("result", LargeBinary),  # Deepgram's response; a call has finals instead
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),  # None: a call that goes on
    Index(None, "principal", "created_at", "id"),
    Index(None, "created_at"),
    Index("ix_transcripts_open", "created_at", sqlite_where=OPEN, postgresql_where=OPEN),
)

FINALS: Final = Table(
    "finals",
    METADATA,
    Column(
        "transcript",
        Text,
        ForeignKey(TRANSCRIPTS.c.id, ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("number", Integer, primary_key=True),  # in the order in which they were said to the client
    Column("channel", Integer, nullable=False),
    Column("start", Double, nullable=False),
    Column("duration", Double, nullable=False),
    Column("text", Text, nullable=False),
    Column("words", LargeBinary, nullable=False),  # JSON, Deepgram's array
)

SESSIONS: Final = Table(
    "sessions",  # calls that are over: the fields of `gateway.store.sessions.Session`
    METADATA,
    Column("id", Text, primary_key=True),
    Column("principal", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("region", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("continuity", Text, nullable=False),
    Column("close_code", Integer),
    Column("stored", Boolean, nullable=False),
    Column("accepted_seconds", Double, nullable=False),
    Column("sent_seconds", Double, nullable=False),
    Column("replayed_seconds", Double, nullable=False),
    Column("gap_seconds", Double, nullable=False),
    Column("gaps", LargeBinary, nullable=False),  # JSON
    Column("connections", Integer, nullable=False),
    Column("breaks", Integer, nullable=False),
    Column("resumes", Integer, nullable=False),
    Column("max_lag", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double, nullable=False),
    Index(None, "principal", "created_at", "id"),
    Index(None, "created_at"),
)

USAGE: Final = Table(
    "usage",
    METADATA,
    Column("principal", Text, primary_key=True),
    Column("day", Date, primary_key=True),  # UTC
    Column("accepted_seconds", Double, nullable=False),
    Column("sent_seconds", Double, nullable=False),
    Column("replayed_seconds", Double, nullable=False),
)

DELIVERIES: Final = Table(
    "deliveries",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("principal", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("since", Double),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("subject", Text),  # the id of a job or a session
    Index(None, "subject"),
    Index(None, "state", "next_at"),
    Index(None, "principal", "created_at", "id"),
    Index(None, "ended_at"),
)
