"""The scrubber: what it compared with anchors, and what it could not look at."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; workers of the version before must survive it."""
    for name in ("hindered", "problems"):
        op.add_column("aegis_scrub", sa.Column(name, JSONB(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("aegis_scrub", sa.Column("compared", sa.BigInteger(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    """Take it back."""
    for name in ("compared", "problems", "hindered"):
        op.drop_column("aegis_scrub", name)
