"""All tables, and the index for full-text search.

SQLite: an FTS5 table that reads `transcripts` (external content) and triggers that keep it in step.
PostgreSQL: a GIN index over the first characters of a text, since what it is made of may not exceed 1 MB.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column

revision: Final = "0001"
down_revision: Final = None

_ADD: Final = "INSERT INTO transcripts_text(rowid, text) VALUES (new.number, new.text);"
_REMOVE: Final = """
    INSERT INTO transcripts_text(transcripts_text, rowid, text) VALUES ('delete', old.number, old.text);"""
_FTS5: Final = (
    """CREATE VIRTUAL TABLE transcripts_text USING fts5(
        text, content='transcripts', content_rowid='number', tokenize='unicode61 remove_diacritics 0')""",
    f"CREATE TRIGGER transcripts_added AFTER INSERT ON transcripts BEGIN {_ADD} END",
    f"CREATE TRIGGER transcripts_removed AFTER DELETE ON transcripts BEGIN {_REMOVE} END",
    f"CREATE TRIGGER transcripts_changed AFTER UPDATE OF text ON transcripts BEGIN {_REMOVE} {_ADD} END",
)
_GIN: Final = """CREATE INDEX ix_transcripts_text ON transcripts
    USING gin (to_tsvector('simple'::regconfig, left(text, 500000)))"""


def upgrade() -> None:
    """Makes everything."""
    _jobs()
    _transcripts()
    _sessions()
    _deliveries()
    for statement in _FTS5 if op.get_bind().dialect.name == "sqlite" else (_GIN,):
        op.execute(statement)


def downgrade() -> None:
    """Drops everything."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE transcripts_text")
    for table in ("finals", "transcripts", "jobs", "sessions", "usage", "deliveries"):
        op.drop_table(table)


def _jobs() -> None:
    op.create_table(
        "jobs",
        Column("id", sa.Text, nullable=False),
        Column("principal", sa.Text, nullable=False),
        Column("state", sa.Text, nullable=False),
        Column("priority", sa.Integer, nullable=False),
        Column("query", sa.Text, nullable=False),
        Column("url", sa.Text),
        Column("spooled", sa.Text),
        Column("media_type", sa.Text, nullable=False),
        Column("size_bytes", sa.BigInteger, nullable=False),
        Column("duration", sa.Double),
        Column("route", sa.Text, nullable=False),
        Column("reason", sa.Text, nullable=False),
        Column("callback", sa.Text),
        Column("metadata", sa.LargeBinary),
        Column("stored", sa.Boolean, nullable=False),
        Column("attempts", sa.Integer, nullable=False),
        Column("max_attempts", sa.Integer, nullable=False),
        Column("reruns", sa.Integer, nullable=False),
        Column("run_at", sa.Double, nullable=False),
        Column("lease_until", sa.Double),
        Column("worker", sa.Text, nullable=False),
        Column("awaited", sa.Text),
        Column("error", sa.LargeBinary),
        Column("result", sa.LargeBinary),
        Column("request_id", sa.Text, nullable=False),
        Column("created_at", sa.Double, nullable=False),
        Column("started_at", sa.Double),
        Column("ended_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state_priority_run_at", "jobs", ["state", "priority", "run_at"])
    op.create_index("ix_jobs_principal_created_at_id", "jobs", ["principal", "created_at", "id"])
    op.create_index("ix_jobs_ended_at", "jobs", ["ended_at"])


def _transcripts() -> None:
    op.create_table(
        "transcripts",
        Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        Column("id", sa.Text, nullable=False),
        Column("principal", sa.Text, nullable=False),
        Column("source", sa.Text, nullable=False),
        Column("request_id", sa.Text, nullable=False),
        Column("query", sa.Text, nullable=False),
        Column("metadata", sa.LargeBinary),
        Column("duration", sa.Double),
        Column("text", sa.Text, nullable=False),
        Column("result", sa.LargeBinary),
        Column("created_at", sa.Double, nullable=False),
        Column("ended_at", sa.Double),
        sa.PrimaryKeyConstraint("number", name="pk_transcripts"),
        sa.UniqueConstraint("id", name="uq_transcripts_id"),
    )
    op.create_index(
        "ix_transcripts_principal_created_at_id", "transcripts", ["principal", "created_at", "id"]
    )
    op.create_index("ix_transcripts_created_at", "transcripts", ["created_at"])
    op.create_table(
        "finals",
        Column("transcript", sa.Text, nullable=False),
        Column("number", sa.Integer, nullable=False),
        Column("channel", sa.Integer, nullable=False),
        Column("start", sa.Double, nullable=False),
        Column("duration", sa.Double, nullable=False),
        Column("text", sa.Text, nullable=False),
        Column("words", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("transcript", "number", name="pk_finals"),
        sa.ForeignKeyConstraint(
            ["transcript"], ["transcripts.id"], name="fk_finals_transcript", ondelete="CASCADE"
        ),
    )


def _sessions() -> None:
    op.create_table(
        "sessions",
        Column("id", sa.Text, nullable=False),
        Column("principal", sa.Text, nullable=False),
        Column("request_id", sa.Text, nullable=False),
        Column("model", sa.Text, nullable=False),
        Column("region", sa.Text, nullable=False),
        Column("outcome", sa.Text, nullable=False),
        Column("continuity", sa.Text, nullable=False),
        Column("close_code", sa.Integer),
        Column("stored", sa.Boolean, nullable=False),
        Column("accepted_seconds", sa.Double, nullable=False),
        Column("sent_seconds", sa.Double, nullable=False),
        Column("replayed_seconds", sa.Double, nullable=False),
        Column("gap_seconds", sa.Double, nullable=False),
        Column("gaps", sa.LargeBinary, nullable=False),
        Column("connections", sa.Integer, nullable=False),
        Column("breaks", sa.Integer, nullable=False),
        Column("resumes", sa.Integer, nullable=False),
        Column("max_lag", sa.Double, nullable=False),
        Column("created_at", sa.Double, nullable=False),
        Column("ended_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_principal_created_at_id", "sessions", ["principal", "created_at", "id"])
    op.create_index("ix_sessions_created_at", "sessions", ["created_at"])
    op.create_table(
        "usage",
        Column("principal", sa.Text, nullable=False),
        Column("day", sa.Date, nullable=False),
        Column("accepted_seconds", sa.Double, nullable=False),
        Column("sent_seconds", sa.Double, nullable=False),
        Column("replayed_seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("principal", "day", name="pk_usage"),
    )


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        Column("id", sa.Text, nullable=False),
        Column("principal", sa.Text, nullable=False),
        Column("url", sa.Text, nullable=False),
        Column("host", sa.Text, nullable=False),
        Column("event", sa.Text, nullable=False),
        Column("body", sa.LargeBinary, nullable=False),
        Column("state", sa.Text, nullable=False),
        Column("attempts", sa.Integer, nullable=False),
        Column("next_at", sa.Double, nullable=False),
        Column("since", sa.Double),
        Column("last_status", sa.Integer),
        Column("last_error", sa.Text),
        Column("created_at", sa.Double, nullable=False),
        Column("ended_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_state_next_at", "deliveries", ["state", "next_at"])
    op.create_index("ix_deliveries_principal_created_at_id", "deliveries", ["principal", "created_at", "id"])
    op.create_index("ix_deliveries_ended_at", "deliveries", ["ended_at"])
