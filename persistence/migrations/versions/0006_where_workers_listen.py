"""Recovery: at which brokers workers listen, so that one at which nobody does any more is noticed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; workers of the version before must survive it."""
    op.add_column("aegis_worker", sa.Column("broker", sa.Text(), nullable=True))
    op.add_column("aegis_sweep", sa.Column("brokers", JSONB(), server_default=sa.text("'{}'"), nullable=False))


def downgrade() -> None:
    """Take it back."""
    op.drop_column("aegis_sweep", "brokers")
    op.drop_column("aegis_worker", "broker")
