"""The schema: made from nothing, by several at once, and the same as the models say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from private_servers import TEMPLATE, PrivatePostgres
from sqlalchemy import CheckConstraint, inspect, text
from store_workbench import RecordingRing, make_bench, make_engine, sql, value
from store_workflows import Once

from aegis.core.errors import SchemaMismatch
from aegis.persistence import schema
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.persistence.models import Base
from aegis.tasks.transition import Ended, run_transition

TABLES = {table.name for table in Base.metadata.sorted_tables}


def driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://")


@pytest.fixture
def database_url(postgres: PrivatePostgres) -> Iterator[str]:
    """A database of the test's own: these change the schema."""
    with postgres.database(TEMPLATE) as url:
        yield url


@pytest.fixture
def empty_url(postgres: PrivatePostgres) -> Iterator[str]:
    """The address of a database with nothing in it."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    """A database with nothing in it."""
    made = Database(driver(empty_url))
    yield made
    made.close()


def tables(database: Database) -> set[str]:
    with database.statement() as connection:
        return set(inspect(connection).get_table_names())


def rows(database: Database, query: str) -> list[Any]:
    with database.statement() as connection:
        return list(connection.execute(text(query)))


def config(connection: Any) -> Config:
    made = Config()
    made.set_main_option("script_location", "aegis.persistence:migrations")
    made.attributes["connection"] = connection
    return made


# --- upgrading ------------------------------------------------------------------------------


def test_from_nothing_to_a_schema_that_works(empty: Database) -> None:
    with pytest.raises(SchemaMismatch, match="the database has no AEGIS schema"):
        schema.check(empty)
    assert upgrade(empty) == schema.wanted()
    assert schema.check(empty) == schema.wanted()
    assert tables(empty) == {*TABLES, schema.VERSION_TABLE}
    ring = RecordingRing()
    engine = make_engine(empty, ring)
    engine.start(Once(), id="o")
    assert run_transition(make_bench(empty, ring), "o", 0) is Ended.COMMITTED
    assert engine.verify_integrity("o") == (True, None)


def test_a_second_upgrade_changes_nothing(empty: Database) -> None:
    upgrade(empty, deployment="aegis.example/first")
    queries = [
        "SELECT * FROM aegis_deployment",
        "SELECT * FROM aegis_sweep",
        "SELECT * FROM aegis_schema",
        "SELECT oid, relname FROM pg_class WHERE relname LIKE 'aegis%' ORDER BY oid",
    ]
    before = [rows(empty, query) for query in queries]
    assert upgrade(empty) == schema.wanted()
    assert [rows(empty, query) for query in queries] == before


def test_the_name_of_the_deployment_is_given_once(empty: Database) -> None:
    """Every chain begins with it: another name would break them all."""
    upgrade(empty, deployment="aegis.example/first")
    engine = make_engine(empty, RecordingRing())
    engine.start(Once(), id="o")
    upgrade(empty, deployment="aegis.example/second")
    with empty.statement() as connection:
        assert schema.deployment_name(connection) == "aegis.example/first"
    assert engine.verify_integrity("o") == (True, None)


def test_a_deployment_without_a_name_gets_one_that_no_other_has(postgres: PrivatePostgres) -> None:
    names = []
    for _ in range(2):
        with postgres.database() as url:
            database = Database(driver(url))
            upgrade(database)
            names.append(value(database, "SELECT name FROM aegis_deployment"))
            database.close()
    assert all(re.fullmatch(r"aegis/[0-9a-f-]{36}", name) for name in names)
    assert names[0] != names[1]


def test_four_threads_upgrade_at_once(empty: Database, empty_url: str) -> None:
    """Alembic keeps what it works on in globals: the threads must take turns."""
    impatient = Database(driver(f"{empty_url}&options=-cstatement_timeout%3D20s"))
    with ThreadPoolExecutor(4) as pool:
        upgrades = [pool.submit(upgrade, impatient) for _ in range(4)]
    impatient.close()
    assert [done.result() for done in upgrades] == [schema.wanted()] * 4
    assert schema.check(empty) == schema.wanted()
    assert tables(empty) == {*TABLES, schema.VERSION_TABLE}
    assert value(empty, "SELECT count(*) FROM aegis_deployment") == 1


def test_four_processes_upgrade_at_once(empty: Database, empty_url: str) -> None:
    program = (
        "import sys; from aegis.persistence.database import Database; from aegis.persistence.migrate import upgrade;"
        "print(upgrade(Database(sys.argv[1])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, driver(empty_url)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, told
    assert [output.strip() for output, _ in told] == [schema.wanted()] * 4
    assert value(empty, "SELECT count(*) FROM aegis_deployment") == 1
    assert tables(empty) == {*TABLES, schema.VERSION_TABLE}


def test_an_upgrade_that_fails_leaves_nothing_half_made(empty: Database) -> None:
    sql(empty, "CREATE TABLE aegis_workflow (other int)")
    with pytest.raises(Exception, match="aegis_workflow"):
        upgrade(empty)
    assert tables(empty) == {"aegis_workflow"}


def test_a_newer_schema_is_refused_and_left_as_it_is(database: Database) -> None:
    sql(database, "UPDATE aegis_schema SET version_num = '9999'")
    with pytest.raises(SchemaMismatch) as refused:
        upgrade(database)
    assert (refused.value.found, refused.value.wanted) == ("9999", schema.wanted())
    assert "install the version of AEGIS that matches" in str(refused.value)
    with pytest.raises(SchemaMismatch):
        schema.check(database)
    assert value(database, "SELECT version_num FROM aegis_schema") == "9999"


def test_an_older_schema_is_not_worked_with(database: Database) -> None:
    sql(database, "UPDATE aegis_schema SET version_num = '0000'")
    with pytest.raises(SchemaMismatch, match="is at 0000, this AEGIS needs"):
        schema.check(database)


def test_an_applications_own_alembic_is_not_disturbed(empty: Database) -> None:
    sql(empty, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    sql(empty, "INSERT INTO alembic_version VALUES ('a1b2c3')")
    sql(empty, "CREATE TABLE customer (id int)")
    upgrade(empty)
    upgrade(empty)
    assert rows(empty, "SELECT version_num FROM alembic_version") == [("a1b2c3",)]
    assert rows(empty, "SELECT version_num FROM aegis_schema") == [(schema.wanted(),)]
    assert tables(empty) == {*TABLES, schema.VERSION_TABLE, "alembic_version", "customer"}


def test_an_applications_alembic_version_is_not_taken_for_ours(empty: Database) -> None:
    sql(empty, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    sql(empty, f"INSERT INTO alembic_version VALUES ('{schema.wanted()}')")  # noqa: S608
    with empty.statement() as connection:
        assert schema.current(connection) is None


def test_every_migration_can_be_taken_back(empty: Database) -> None:
    upgrade(empty)
    with empty.transaction() as session:
        command.downgrade(config(session.connection()), "base")
    assert tables(empty) == {schema.VERSION_TABLE}
    assert upgrade(empty) == schema.wanted()
    assert tables(empty) == {*TABLES, schema.VERSION_TABLE}


# --- models and migrations agree --------------------------------------------------------------


def _ours(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or bool(name and name.startswith("aegis_"))


def test_models_and_migrations_agree(database: Database) -> None:
    with database.snapshot() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": schema.VERSION_TABLE,
                "include_name": _ours,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def test_the_comparison_would_see_a_difference(database: Database) -> None:
    sql(database, "ALTER TABLE aegis_workflow DROP COLUMN queue")
    sql(database, "DROP INDEX aegis_workflow_due")
    with database.snapshot() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": schema.VERSION_TABLE, "include_name": _ours}
        )
        found = {difference[0] for difference in compare_metadata(context, Base.metadata)}
    assert found == {"add_column", "add_index"}


def test_checks_of_models_and_migrations_agree(database: Database, empty: Database) -> None:
    """Alembic compares no CHECK constraints, nor what an index is limited to."""
    with empty.transaction() as session:
        Base.metadata.create_all(session.connection())
    constraints = (
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid::regclass::text LIKE 'aegis%' AND conrelid::regclass::text <> 'aegis_schema' ORDER BY 1, 2"
    )
    indexes = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE tablename IN ({}) ORDER BY 1, 2".format(  # noqa: S608
        ", ".join(repr(name) for name in sorted(TABLES))
    )
    for query in (constraints, indexes):
        made = rows(database, query)
        assert made == rows(empty, query)
        assert made


def test_the_wanted_version_is_alembics_head() -> None:
    """It is read off the files' names, and must be what Alembic makes of them."""
    script = ScriptDirectory.from_config(config(None))
    assert script.get_heads() == [schema.wanted()]
    assert script.get_bases() == ["0001"]
    files = sorted(path.name for path in Path(script.versions).glob("[0-9]*.py"))
    assert [file.partition("_")[0] for file in files] == sorted(
        revision.revision for revision in script.walk_revisions()
    )


def test_every_constraint_and_index_of_the_models_has_a_name() -> None:
    for table in Base.metadata.sorted_tables:
        named = [*table.constraints, *table.indexes]
        assert all(str(one.name).startswith(f"{table.name}_") for one in named), table.name
        assert table.primary_key.name == f"{table.name}_pkey"
    assert any(isinstance(one, CheckConstraint) for table in Base.metadata.tables.values() for one in table.constraints)


def test_every_constraint_and_index_in_the_database_has_the_name_that_the_models_gave_it(database: Database) -> None:
    declared = {
        str(one.name) for table in Base.metadata.sorted_tables for one in (*table.constraints, *table.indexes)
    } | {table.primary_key.name for table in Base.metadata.sorted_tables}
    listed = ", ".join(f"'{name}'::regclass" for name in sorted(TABLES))
    made = rows(
        database,
        # Not null is a constraint of its own since PostgreSQL 18, with names of the server's choice.
        f"SELECT conname FROM pg_constraint WHERE conrelid IN ({listed}) AND contype <> 'n'"  # noqa: S608
        f" UNION SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid IN ({listed})",
    )
    assert {name for (name,) in made} == declared


# --- what the database refuses by itself ------------------------------------------------------


REFUSED = {
    "aegis_workflow_id_length": "UPDATE aegis_workflow SET id = ''",
    "aegis_workflow_status_known": "UPDATE aegis_workflow SET status = 'sleeping', due_at = NULL, ready_at = NULL",
    "aegis_workflow_head_is_a_hash": "UPDATE aegis_workflow SET head = 'short'",
    "aegis_workflow_counts": "UPDATE aegis_workflow SET inbox = -1",
    "aegis_workflow_owner_has_pid": "UPDATE aegis_workflow SET owner = 'w'",
    "aegis_workflow_at_rest": "UPDATE aegis_workflow SET status = 'failed'",
    "aegis_workflow_pkey": "INSERT INTO aegis_workflow SELECT * FROM aegis_workflow",
    "aegis_transition_hash_is_a_hash": "UPDATE aegis_transition SET hash = 'short'",
    "aegis_transition_pkey": "INSERT INTO aegis_transition SELECT * FROM aegis_transition",
    "aegis_payload_pkey": "INSERT INTO aegis_payload VALUES ('o', 0, 'x', 'x'), ('o', 0, 'y', 'y')",
    "aegis_checkpoint_kind_known": "UPDATE aegis_checkpoint SET kind = 'other'",
    "aegis_checkpoint_number_of_kind": "UPDATE aegis_checkpoint SET kind = 'manual'",
    "aegis_checkpoint_commitment_is_a_hash": "UPDATE aegis_checkpoint SET commitment = 'short'",
    "aegis_checkpoint_pkey": "INSERT INTO aegis_checkpoint SELECT * FROM aegis_checkpoint",
    "aegis_event_once": "INSERT INTO aegis_event (workflow_id, name, key, sender, payload, received_at)"
    " SELECT 'o', 'e', 'k', 's', 'p', now() FROM generate_series(1, 2)",
    "aegis_event_consumed": "INSERT INTO aegis_event (workflow_id, name, key, sender, payload, received_at,"
    " consumed_seq) SELECT 'o', 'e', n::text, 's', 'p', now(), 1 FROM generate_series(1, 2) AS n",
    "aegis_workflow_priority_range": "UPDATE aegis_workflow SET priority = 10",
    "aegis_workflow_singleton": "UPDATE aegis_workflow SET singleton = 'k'; CREATE TEMP TABLE twin AS"
    " SELECT * FROM aegis_workflow; UPDATE twin SET id = 'p'; INSERT INTO aegis_workflow SELECT * FROM twin",
    "aegis_checkpoint_mac_has_key": "UPDATE aegis_checkpoint SET mac = A_HASH",
    "aegis_effect_pkey": "INSERT INTO aegis_effect SELECT 'o', 1, 'e', 'act', 'begun', 'k', 1, 1, 'a', NULL, NULL,"
    " NULL, NULL, now(), NULL FROM generate_series(1, 2)",
    "aegis_effect_status_known": "INSERT INTO aegis_effect VALUES"
    " ('o', 1, 'e', 'act', 'lost', 'k', 1, 1, 'a', NULL, NULL, NULL, NULL, now())",
    "aegis_effect_done_has_result": "INSERT INTO aegis_effect VALUES"
    " ('o', 1, 'e', 'act', 'done', 'k', 1, 1, 'a', NULL, NULL, NULL, NULL, now())",
    "aegis_effect_resolved_has_reason": "INSERT INTO aegis_effect VALUES"
    " ('o', 1, 'e', 'act', 'not done', 'k', 1, 1, 'a', NULL, NULL, 'user:ada', NULL, now())",
    "aegis_worker_pkey": "INSERT INTO aegis_worker SELECT 'w', 'h', 1, '[]', '[]', '[]', now(), now()"
    " FROM generate_series(1, 2)",
    "aegis_sweep_is_one": "INSERT INTO aegis_sweep VALUES (2, now(), now())",
    "aegis_sweep_pkey": "INSERT INTO aegis_sweep VALUES (1, now(), now())",
    "aegis_deployment_is_one": "INSERT INTO aegis_deployment VALUES (2, 'other', now())",
    "aegis_deployment_pkey": "INSERT INTO aegis_deployment VALUES (1, 'other', now())",
    "aegis_transition_mac_has_key": "UPDATE aegis_transition SET mac = A_HASH",
    "aegis_transition_mac_is_a_hash": "UPDATE aegis_transition SET mac = 'short', mac_key = 'k'",
    "aegis_log_pkey": "INSERT INTO aegis_log SELECT 0, n::text, 0, A_HASH FROM generate_series(1, 2) AS n",
    "aegis_log_once": "INSERT INTO aegis_log SELECT n, 'o', 0, A_HASH FROM generate_series(1, 2) AS n",
    "aegis_log_index_counts": "INSERT INTO aegis_log VALUES (-1, 'o', 0, A_HASH)",
    "aegis_log_hash_is_a_hash": "INSERT INTO aegis_log VALUES (0, 'o', 0, 'short')",
    "aegis_log_node_pkey": "INSERT INTO aegis_log_node SELECT 1, 0, A_HASH FROM generate_series(1, 2)",
    "aegis_log_node_hash_is_a_hash": "INSERT INTO aegis_log_node VALUES (1, 0, 'short')",
    "aegis_log_state_is_one": "INSERT INTO aegis_log_state VALUES (2, 0, 0, '')",
    "aegis_log_state_pkey": "INSERT INTO aegis_log_state VALUES (1, 0, 0, '')",
    "aegis_anchor_root_is_a_hash": "INSERT INTO aegis_anchor (size, root, at, note) VALUES (0, 'short', now(), '')",
    "aegis_removal_pkey": "INSERT INTO aegis_removal SELECT 'o', 1, 'pruned', 1, NULL FROM generate_series(1, 2)",
    "aegis_removal_kind_known": "INSERT INTO aegis_removal VALUES ('o', 1, 'lost', 1, NULL)",
    "aegis_removal_purged_has_head": "INSERT INTO aegis_removal VALUES ('o', 1, 'purged', 1, NULL)",
    "aegis_scrub_is_one": "INSERT INTO aegis_scrub VALUES (2, now(), '', 0, NULL, NULL, 0, '[]', '[]')",
    "aegis_scrub_pkey": "INSERT INTO aegis_scrub SELECT * FROM aegis_scrub",
}


@pytest.mark.parametrize("constraint", REFUSED)
def test_the_database_refuses_by_itself(database: Database, constraint: str) -> None:
    make_engine(database, RecordingRing()).start(Once(), id="o")
    statement = REFUSED[constraint].replace("A_HASH", "decode(repeat('ab', 32), 'hex')")
    escaped = statement if "::" in statement else statement.replace(":", r"\:")
    with pytest.raises(Exception, match=f'"{constraint}"'):
        sql(database, escaped)


def test_every_rule_of_the_database_is_tried() -> None:
    declared = {str(one.name) for table in Base.metadata.sorted_tables for one in table.constraints}
    unique = {str(one.name) for table in Base.metadata.sorted_tables for one in table.indexes if one.unique}
    # The identities of events and anchors are made by the database: nobody can give one twice.
    assert set(REFUSED) == (declared | unique) - {"aegis_event_pkey", "aegis_anchor_pkey"}
