"""Callbacks name the job or the call that they tell of, so that they can go with it."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column

revision: Final = "0003"
down_revision: Final = "0002"


def upgrade() -> None:
    """Callbacks from before have none."""
    op.add_column("deliveries", Column("subject", sa.Text))
    op.create_index("ix_deliveries_subject", "deliveries", ["subject"])


def downgrade() -> None:
    op.drop_index("ix_deliveries_subject", "deliveries")
    op.drop_column("deliveries", "subject")
