"""Recovery: at which brokers workers listen, and since when the server leads: what was rung before may be lost."""

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
    op.add_column("aegis_sweep", sa.Column("timeline", sa.Text(), nullable=True))
    op.add_column("aegis_sweep", sa.Column("led_since", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take it back."""
    for name in ("led_since", "timeline", "brokers"):
        op.drop_column("aegis_sweep", name)
    op.drop_column("aegis_worker", "broker")
