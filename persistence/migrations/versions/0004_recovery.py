"""recovery: the epoch of a deployment, and what of the log was lost and is known to be."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; workers of the version before must survive it."""
    op.add_column("aegis_deployment", sa.Column("epoch", sa.BigInteger(), server_default=sa.text("1"), nullable=False))
    op.add_column("aegis_deployment", sa.Column("recovered_at", sa.DateTime(timezone=True)))
    op.add_column("aegis_worker", sa.Column("epoch", sa.BigInteger()))
    op.add_column("aegis_log", sa.Column("lost_seq", sa.BigInteger()))
    op.drop_constraint("aegis_log_once", "aegis_log", type_="unique")
    op.create_index(
        "aegis_log_once",
        "aegis_log",
        ["workflow_id", "seq"],
        unique=True,
        postgresql_where=sa.text("lost_seq IS NULL"),
    )
    op.create_index("aegis_log_lost", "aegis_log", ["log_index"], postgresql_where=sa.text("lost_seq IS NOT NULL"))


def downgrade() -> None:
    """Take it back; where something was lost and accepted, that is refused: a transition would stand there twice."""
    op.drop_index("aegis_log_lost", table_name="aegis_log")
    op.drop_index("aegis_log_once", table_name="aegis_log")
    op.create_unique_constraint("aegis_log_once", "aegis_log", ["workflow_id", "seq"])
    op.drop_column("aegis_log", "lost_seq")
    op.drop_column("aegis_worker", "epoch")
    op.drop_column("aegis_deployment", "recovered_at")
    op.drop_column("aegis_deployment", "epoch")
