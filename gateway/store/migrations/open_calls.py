"""An index of the calls that have no end, which are few: they are looked for every hour."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

_OPEN: Final = sa.text("ended_at IS NULL")


def upgrade() -> None:
    """Adds it."""
    op.create_index(
        "ix_transcripts_open", "transcripts", ["created_at"], sqlite_where=_OPEN, postgresql_where=_OPEN
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_index("ix_transcripts_open", "transcripts")
