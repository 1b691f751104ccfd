"""the whole engine: how workflows are started and found, effects, codes of checkpoints inside handlers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

EFFECT_GRANTS = (
    ("aegis_app", "GRANT SELECT, INSERT, UPDATE, DELETE ON aegis_effect TO aegis_app"),
    ("aegis_auditor", "GRANT SELECT ON aegis_effect TO aegis_auditor"),
    ("aegis_owner", "ALTER TABLE aegis_effect OWNER TO aegis_owner"),
)
AS_ROLE = """
DO $$ BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{role}') THEN
        {statement};
    END IF;
EXCEPTION WHEN insufficient_privilege THEN RAISE NOTICE 'not granted to {role}: %', SQLERRM;
END $$
"""


def upgrade() -> None:
    """Bring the schema forward; workers of the version before must survive it."""
    for column in (
        sa.Column("home_queue", sa.Text()),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attributes", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True)),
        sa.Column("singleton", sa.Text()),
        sa.Column("steered_by", sa.Text()),
        sa.Column("checkpoint_on_transition", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    ):
        op.add_column("aegis_workflow", column)
    op.create_check_constraint("aegis_workflow_priority_range", "aegis_workflow", "priority BETWEEN 0 AND 9")
    op.create_index(
        "aegis_workflow_singleton",
        "aegis_workflow",
        ["type", "singleton"],
        unique=True,
        postgresql_where=sa.text("singleton IS NOT NULL AND status NOT IN ('completed', 'cancelled')"),
    )
    op.create_index(
        "aegis_workflow_attributes",
        "aegis_workflow",
        ["attributes"],
        postgresql_using="gin",
        postgresql_ops={"attributes": "jsonb_path_ops"},
        postgresql_where=sa.text("attributes <> '{}'"),
    )
    op.create_index(
        "aegis_workflow_urgent",
        "aegis_workflow",
        ["priority", "due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL AND priority > 0"),
    )
    op.add_column("aegis_event", sa.Column("reason", sa.Text()))
    op.add_column("aegis_checkpoint", sa.Column("mac", sa.LargeBinary()))
    op.add_column("aegis_checkpoint", sa.Column("mac_key", sa.Text()))
    op.create_check_constraint("aegis_checkpoint_mac_has_key", "aegis_checkpoint", "(mac IS NULL) = (mac_key IS NULL)")
    _effects()


def _effects() -> None:
    op.create_table(
        "aegis_effect",
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("transition", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("claim", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("result", sa.LargeBinary()),
        sa.Column("error", JSONB()),
        sa.Column("resolved_by", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("status IN ('begun', 'done', 'not done', 'in doubt')", name="aegis_effect_status_known"),
        sa.CheckConstraint("(status = 'done') = (result IS NOT NULL)", name="aegis_effect_done_has_result"),
        sa.CheckConstraint("(reason IS NULL) = (resolved_by IS NULL)", name="aegis_effect_resolved_has_reason"),
        sa.PrimaryKeyConstraint("workflow_id", "seq", "name", name="aegis_effect_pkey"),
    )
    op.create_index(
        "aegis_effect_open", "aegis_effect", ["status", "begun_at"], postgresql_where=sa.text("status <> 'done'")
    )
    for role, statement in EFFECT_GRANTS:
        op.execute(AS_ROLE.format(role=role, statement=statement))


def downgrade() -> None:
    """Take it back."""
    op.drop_table("aegis_effect")
    op.drop_constraint("aegis_checkpoint_mac_has_key", "aegis_checkpoint", type_="check")
    op.drop_column("aegis_checkpoint", "mac_key")
    op.drop_column("aegis_checkpoint", "mac")
    op.drop_column("aegis_event", "reason")
    op.drop_index("aegis_workflow_urgent", table_name="aegis_workflow")
    op.drop_index("aegis_workflow_attributes", table_name="aegis_workflow")
    op.drop_index("aegis_workflow_singleton", table_name="aegis_workflow")
    op.drop_constraint("aegis_workflow_priority_range", "aegis_workflow", type_="check")
    for column in (
        "checkpoint_on_transition",
        "steered_by",
        "singleton",
        "deadline",
        "attributes",
        "priority",
        "home_queue",
    ):
        op.drop_column("aegis_workflow", column)
