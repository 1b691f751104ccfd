"""history that proves itself: MACs, the log, anchors; append-only tables, and roles."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Never changed, never removed; but a purge may take transitions away, through its function.
APPEND_ONLY = ("aegis_transition", "aegis_log", "aegis_log_node", "aegis_anchor", "aegis_removal")

ROLES = ("aegis_owner", "aegis_app", "aegis_auditor")

# What the application's role may do to each table; the auditor's may read all of them.
GRANTS = {
    "aegis_workflow": "SELECT, INSERT, UPDATE, DELETE",
    "aegis_transition": "SELECT, INSERT",
    "aegis_payload": "SELECT, INSERT, DELETE",
    "aegis_checkpoint": "SELECT, INSERT, UPDATE, DELETE",
    "aegis_event": "SELECT, INSERT, UPDATE, DELETE",
    "aegis_worker": "SELECT, INSERT, UPDATE, DELETE",
    "aegis_sweep": "SELECT, UPDATE",
    "aegis_deployment": "SELECT",
    "aegis_log": "SELECT, INSERT",
    "aegis_log_node": "SELECT, INSERT",
    "aegis_log_state": "SELECT, UPDATE",
    "aegis_anchor": "SELECT, INSERT",
    "aegis_removal": "SELECT, INSERT",
    "aegis_scrub": "SELECT, UPDATE",
    "aegis_schema": "SELECT",
}

REFUSE = """
CREATE FUNCTION aegis_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- One inside the other: not all of these tables have the column, and AND promises no order.
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'aegis_transition' AND TG_LEVEL = 'ROW' THEN
        IF OLD.workflow_id = current_setting('aegis.purge', true) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION '% is append-only: its rows are never changed or removed', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$
"""

PURGE = """
CREATE FUNCTION aegis_purge(workflow text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    removed bigint;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM aegis_removal r WHERE r.workflow_id = workflow AND r.kind = 'purged') THEN
        RAISE EXCEPTION 'no record says that workflow % is purged', quote_literal(workflow)
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    PERFORM set_config('aegis.purge', workflow, true);
    DELETE FROM aegis_transition t WHERE t.workflow_id = workflow;
    GET DIAGNOSTICS removed = ROW_COUNT;
    PERFORM set_config('aegis.purge', '', true);
    RETURN removed;
END $$
"""

# The roles are the cluster's, and making them needs a right that not every owner of a database has:
# whoever has it not goes on without, and `aegis health` says so.
MAKE_ROLE = """
DO $$ BEGIN
    CREATE ROLE {role} NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN RAISE NOTICE 'the role {role} was not made: %', SQLERRM;
END $$
"""
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
    op.add_column("aegis_transition", sa.Column("mac", sa.LargeBinary()))
    op.add_column("aegis_transition", sa.Column("mac_key", sa.Text()))
    xact = sa.text("(pg_current_xact_id()::text)::bigint")
    op.add_column("aegis_transition", sa.Column("xact", sa.BigInteger(), server_default=xact, nullable=False))
    op.create_check_constraint("aegis_transition_mac_has_key", "aegis_transition", "(mac IS NULL) = (mac_key IS NULL)")
    op.create_check_constraint("aegis_transition_mac_is_a_hash", "aegis_transition", "octet_length(mac) = 32")
    op.create_index("aegis_transition_xact", "aegis_transition", ["xact"])
    _tables()
    _append_only()
    _roles()


def _tables() -> None:
    op.create_table(
        "aegis_log",
        sa.Column("log_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("log_index >= 0", name="aegis_log_index_counts"),
        sa.CheckConstraint("octet_length(hash) = 32", name="aegis_log_hash_is_a_hash"),
        sa.PrimaryKeyConstraint("log_index", name="aegis_log_pkey"),
        sa.UniqueConstraint("workflow_id", "seq", name="aegis_log_once"),
    )
    op.create_table(
        "aegis_log_node",
        sa.Column("level", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("octet_length(hash) = 32", name="aegis_log_node_hash_is_a_hash"),
        sa.PrimaryKeyConstraint("level", "number", name="aegis_log_node_pkey"),
    )
    op.create_table(
        "aegis_log_state",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("horizon", sa.BigInteger(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name="aegis_log_state_is_one"),
        sa.PrimaryKeyConstraint("id", name="aegis_log_state_pkey"),
    )
    op.create_table(
        "aegis_anchor",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint("octet_length(root) = 32", name="aegis_anchor_root_is_a_hash"),
        sa.PrimaryKeyConstraint("id", name="aegis_anchor_pkey"),
    )
    op.create_table(
        "aegis_removal",
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("system_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("through_seq", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary()),
        sa.CheckConstraint("kind IN ('pruned', 'purged')", name="aegis_removal_kind_known"),
        sa.CheckConstraint("(kind = 'purged') = (head IS NOT NULL)", name="aegis_removal_purged_has_head"),
        sa.PrimaryKeyConstraint("workflow_id", "system_seq", name="aegis_removal_pkey"),
    )
    op.create_index("aegis_removal_record", "aegis_removal", ["system_seq"])
    op.create_table(
        "aegis_scrub",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("verified", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("took_from", sa.DateTime(timezone=True)),
        sa.Column("covered", sa.BigInteger(), nullable=False),
        sa.Column("found", sa.dialects.postgresql.JSONB(), nullable=False),
        sa.Column("findings", sa.dialects.postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("id = 1", name="aegis_scrub_is_one"),
        sa.PrimaryKeyConstraint("id", name="aegis_scrub_pkey"),
    )


def _append_only() -> None:
    op.execute(REFUSE)
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER aegis_append_only_row BEFORE UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION aegis_refuse()"
        )
        op.execute(
            f"CREATE TRIGGER aegis_append_only_all BEFORE TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION aegis_refuse()"
        )
    op.execute(PURGE)
    # Whoever calls it may put other tables of these names first in his own search path.
    op.execute(
        "DO $$ BEGIN EXECUTE format('ALTER FUNCTION aegis_purge(text) SET search_path = %I, pg_temp',"
        " current_schema()); END $$"
    )
    op.execute("REVOKE EXECUTE ON FUNCTION aegis_purge(text) FROM PUBLIC")


def _roles() -> None:
    for role in ROLES:
        op.execute(MAKE_ROLE.format(role=role))

    def as_role(role: str, statement: str) -> None:
        op.execute(AS_ROLE.format(role=role, statement=statement))

    as_role("aegis_owner", "EXECUTE format('GRANT aegis_owner TO %I', current_user)")
    for table, rights in GRANTS.items():
        as_role("aegis_app", f"GRANT {rights} ON {table} TO aegis_app")
        as_role("aegis_auditor", f"GRANT SELECT ON {table} TO aegis_auditor")
    as_role("aegis_app", "GRANT EXECUTE ON FUNCTION aegis_purge(text) TO aegis_app")
    schema = "EXECUTE format('GRANT USAGE ON SCHEMA %I TO {role}', current_schema())"
    for role in ("aegis_app", "aegis_auditor"):
        as_role(role, schema.format(role=role))
    as_role("aegis_owner", "EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO aegis_owner', current_schema())")
    for table in GRANTS:
        as_role("aegis_owner", f"ALTER TABLE {table} OWNER TO aegis_owner")
    as_role("aegis_owner", "ALTER FUNCTION aegis_purge(text) OWNER TO aegis_owner")
    as_role("aegis_owner", "ALTER FUNCTION aegis_refuse() OWNER TO aegis_owner")


def downgrade() -> None:
    """Take it back. The roles stay: other databases of the cluster may use them."""
    for table in APPEND_ONLY:
        op.execute(f"DROP TRIGGER aegis_append_only_row ON {table}")
        op.execute(f"DROP TRIGGER aegis_append_only_all ON {table}")
    op.execute("DROP FUNCTION aegis_purge(text)")
    op.execute("DROP FUNCTION aegis_refuse()")
    for table in ("scrub", "removal", "anchor", "log_state", "log_node", "log"):
        op.drop_table(f"aegis_{table}")
    op.drop_index("aegis_transition_xact", table_name="aegis_transition")
    for column in ("xact", "mac_key", "mac"):
        op.drop_column("aegis_transition", column)
