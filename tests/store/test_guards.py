"""Append-only in the database itself: what its triggers refuse, what each role may do, and that health says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from store_workbench import RecordingRing, make_bench, make_engine, run_where_it_is_sent, sql, value
from store_workflows import Act, Decision, Letter, Parcel
from tampering import anchor_now, at, failures, signing_key

from aegis import Context
from aegis.config.settings import Settings
from aegis.core.finding import Code
from aegis.core.names import SYSTEM
from aegis.persistence import guards, scrub, watch
from aegis.persistence.auditor import Auditor, Sources
from aegis.persistence.database import Database
from aegis.persistence.guards import APPEND_ONLY
from aegis.persistence.models import Base
from aegis.persistence.schema import VERSION_TABLE
from aegis.persistence.watch import Worker
from aegis.tasks.health import Check, State, health
from aegis.tasks.sinks import AnchorFile
from aegis.tasks.transition import Ended, run_transition

OWNER, APP, AUDITOR = "aegis_owner", "aegis_app", "aegis_auditor"
TABLES: Final = [table.name for table in Base.metadata.sorted_tables]
KEY: Final = {"aegis_log": "log_index", "aegis_log_node": "number", "aegis_anchor": "size"}


@pytest.fixture
def file(tmp_path: Path) -> AnchorFile:
    return AnchorFile(tmp_path / "anchors.jsonl")


def address(url: str, role: str) -> str:
    """The database's address for whoever has that role and no other."""
    return f"{url.replace('postgresql://', 'postgresql+psycopg2://')}&options=-c%20role%3D{role}"


@contextmanager
def as_role(url: str, role: str) -> Iterator[Database]:
    database = Database(address(url, role))
    try:
        assert value(database, "SELECT current_user") == role
        yield database
    finally:
        database.close()


@pytest.fixture
def app(database_url: str) -> Iterator[Database]:
    """The database as the application has it."""
    with as_role(database_url, APP) as made:
        yield made


@pytest.fixture
def filled(database: Database, file: AnchorFile, script: dict[str, Act]) -> Database:
    """A row in each of the tables that are append-only: a history, its anchor, a removal, and a node."""
    live(database, file, script)
    sql(database, "INSERT INTO aegis_log_node VALUES (1, 0, sha256('x'))")
    for table in APPEND_ONLY:
        assert value(database, f"SELECT count(*) FROM {table}") > 0, table  # noqa: S608
    return database


def live(database: Database, file: AnchorFile, script: dict[str, Act]) -> None:
    """Let workflows live through everything that there is, to being purged."""
    engine, bench = make_engine(database, RecordingRing()), make_bench(database, RecordingRing())

    def save(_parcel: Any, ctx: Context) -> None:
        ctx.checkpoint()

    script["pack"] = save
    for workflow_id in ("a", "b"):
        engine.start(Parcel(), id=workflow_id)
        assert run_transition(bench, workflow_id, 0) is Ended.COMMITTED
        engine.pause(workflow_id)
        engine.resume(workflow_id)
        engine.send(workflow_id, "decide", Decision(send=True), key="mail-1")
        assert run_where_it_is_sent(bench, workflow_id, 3) is Ended.COMMITTED
    engine.start(Letter(), id="c")
    engine.checkpoint("c")
    engine.cancel("c", reason="of no use")
    watched(database)
    assert anchor_now(database, file).written == 1
    engine.erase("a", reason="asked for")
    assert engine.prune(keep=1, older_than=timedelta(0)) > 0
    assert engine.purge("c") == 1
    ran = anchor_now(database, file)
    assert (ran.written, ran.behind, ran.alarms) == (1, (), ())


def watched(database: Database) -> None:
    """Let a worker give a sign of life, and be buried by a sweep; and the scrubber end a round."""
    with database.transaction() as session:
        connection = session.connection()
        watch.beat(connection, Worker(id="w@test", host="host", pid=1, pids=(1,), queues=("aegis",), types=("none/1",)))
        watch.begin_sweep(connection, timedelta(seconds=12))
        watch.bury(connection, ["w@test"])
    with database.statement() as connection:
        assert scrub.finish(connection, scrub.state(connection), scrub.Seen(verified=0))


def refusal(database: Database, statement: str) -> str:
    """What the database says to a statement that it refuses."""
    with pytest.raises(DBAPIError) as refused, database.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    return str(refused.value.orig).partition("\n")[0]


# --- triggers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_what_is_append_only_is_neither_changed_nor_removed_by_whoever_owns_it(
    filled: Database, database_url: str, table: str
) -> None:
    column = KEY.get(table, "seq" if table == "aegis_transition" else "through_seq")
    statements = [
        f"UPDATE {table} SET {column} = {column} + 1000",  # noqa: S608
        f"UPDATE {table} SET {column} = {column}",  # noqa: S608
        f"DELETE FROM {table}",  # noqa: S608
        f"TRUNCATE {table}",
    ]
    said = [f"{table} is append-only: its rows are never changed or removed"]
    if "workflow_id" not in Base.metadata.tables[table].columns:
        # The function looks for it before it refuses: it refuses all the same, in PostgreSQL's words.
        said.append('record "old" has no field "workflow_id"')
    before = value(filled, f"SELECT count(*) FROM {table}")  # noqa: S608
    with as_role(database_url, OWNER) as owner:
        for database in (filled, owner):
            for statement in statements:
                assert refusal(database, statement) in said, statement
    assert value(filled, f"SELECT count(*) FROM {table}") == before  # noqa: S608


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_the_application_has_no_right_to_try(filled: Database, app: Database, table: str) -> None:
    for statement in (f"UPDATE {table} SET {KEY.get(table, 'workflow_id')} = NULL", f"DELETE FROM {table}"):  # noqa: S608
        assert refusal(app, statement) == f"permission denied for table {table}"
    assert refusal(app, f"TRUNCATE {table}") == f"permission denied for table {table}"
    assert "must be owner" in refusal(app, f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    assert "permission denied" in refusal(app, "SET session_replication_role = replica")
    assert value(filled, f"SELECT count(*) FROM {table}") > 0  # noqa: S608


def test_nothing_is_purged_that_no_record_tells_of(filled: Database, app: Database) -> None:
    assert refusal(app, "SELECT aegis_purge('b')") == "no record says that workflow 'b' is purged"
    assert refusal(app, "SET aegis.purge = 'b'; DELETE FROM aegis_transition WHERE workflow_id = 'b'") == (
        "permission denied for table aegis_transition"
    )
    assert value(filled, "SELECT count(*) FROM aegis_transition WHERE workflow_id = 'b'") > 0


def test_a_purge_that_the_application_makes_up_a_record_for_is_found(
    filled: Database, app: Database, file: AnchorFile
) -> None:
    """It may add records, and what a record tells of may go: but the chain of records says nothing of this one."""
    sql(filled, "DELETE FROM aegis_log_node")  # it was made up as well
    sources = Sources(sinks=[file], trusted=[signing_key().verifier])
    assert Auditor(filled, sources).everything().valid
    seqs = range(value(filled, "SELECT seq FROM aegis_workflow WHERE id = 'b'") + 1)
    with app.transaction() as session:
        session.execute(
            text("INSERT INTO aegis_removal SELECT 'b', 77, 'purged', seq, head FROM aegis_workflow WHERE id = 'b'")
        )
        session.execute(text("SELECT aegis_purge('b')"))
        for table in ("aegis_payload", "aegis_checkpoint"):
            session.execute(text(f"DELETE FROM {table} WHERE workflow_id = 'b'"))  # noqa: S608
        session.execute(text("DELETE FROM aegis_workflow WHERE id = 'b'"))
    found = failures(Auditor(filled, sources).everything())
    assert found == at("b", seqs, Code.MISSING_WORKFLOW) | at(SYSTEM, [77], Code.PAYLOAD_MISMATCH)


# --- roles -----------------------------------------------------------------------------------------


def test_the_application_can_do_all_of_its_work(
    app: Database, database: Database, file: AnchorFile, script: dict[str, Act]
) -> None:
    live(app, file, script)
    report = Auditor(app, Sources(sinks=[file], trusted=[signing_key().verifier])).everything()
    assert report.valid, report
    assert report.witnesses[0].entries == value(database, "SELECT count(*) FROM aegis_log")


def test_the_auditor_can_verify_everything_and_write_nothing(
    filled: Database, database_url: str, file: AnchorFile
) -> None:
    sql(filled, "DELETE FROM aegis_log_node")
    with as_role(database_url, AUDITOR) as database:
        auditor = Auditor(database, Sources(sinks=[file], trusted=[signing_key().verifier]))
        assert auditor.everything().valid
        assert auditor.one("a").valid
        assert auditor.one("c").valid, "of one that was purged, by the record of it"
        for table in TABLES:
            column = Base.metadata.tables[table].columns.keys()[-1]
            for statement in (
                f"UPDATE {table} SET {column} = {column}",  # noqa: S608
                f"DELETE FROM {table}",  # noqa: S608
                f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {table}",  # noqa: S608
                f"TRUNCATE {table}",
            ):
                assert refusal(database, statement) == f"permission denied for table {table}", statement
        assert "permission denied" in refusal(database, "SELECT aegis_purge('c')")
        assert "permission denied" in refusal(database, "CREATE TABLE mine (a int)")


@pytest.mark.parametrize("role", [APP, AUDITOR])
def test_a_role_has_rights_on_every_table_and_no_more_than_its_own(database: Database, role: str) -> None:
    changes = {"INSERT", "UPDATE", "DELETE", "TRUNCATE"}
    with database.snapshot() as connection:
        for table in (*TABLES, VERSION_TABLE):
            held = rights(connection, role, table)
            assert "SELECT" in held, table
            assert not held & {"TRUNCATE", "REFERENCES", "TRIGGER"}, table
            if role == AUDITOR:
                assert not held & changes, table
            if table in APPEND_ONLY:
                assert held <= {"SELECT", "INSERT"}, table


def rights(connection: Connection, role: str, table: str) -> set[str]:
    names = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
    asked = text("SELECT has_table_privilege(:role, :table, :right)")
    return {
        name for name in names if connection.execute(asked, {"role": role, "table": table, "right": name}).scalar_one()
    }


@pytest.mark.parametrize("role", [OWNER, APP, AUDITOR])
def test_a_role_is_nobody_that_can_log_in_or_make_others(database: Database, role: str) -> None:
    powers = "rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication"
    assert value(database, f"SELECT {powers} FROM pg_roles WHERE rolname = :role", role=role) is False  # noqa: S608


# --- what is in force -----------------------------------------------------------------------------------


def read(database: Database) -> guards.Guards:
    with database.statement() as connection:
        return guards.read(connection)


@pytest.fixture
def granting(database: Database) -> Iterator[Callable[[str], None]]:
    """Run what changes the rules themselves; each is taken back at the end."""
    undone: list[str] = []

    def grant(statement: str, undo: str) -> None:
        undone.append(undo)
        sql(database, statement)

    yield grant
    for undo in undone:
        sql(database, undo)


def test_what_is_in_force_is_told_to_each_role(database: Database, database_url: str) -> None:
    assert read(database) == guards.Guards(role="aegis", unguarded=(), may_switch_off=True, may_change=APPEND_ONLY)
    with as_role(database_url, OWNER) as owner:
        assert read(owner) == guards.Guards(role=OWNER, unguarded=(), may_switch_off=True, may_change=APPEND_ONLY)
    for role in (APP, AUDITOR):
        with as_role(database_url, role) as limited:
            assert read(limited) == guards.Guards(role=role, unguarded=(), may_switch_off=False, may_change=())


@pytest.mark.parametrize("trigger", ["aegis_append_only_row", "aegis_append_only_all", "ALL", "USER"])
@pytest.mark.parametrize("table", APPEND_ONLY)
def test_a_trigger_that_is_switched_off_is_named(
    database: Database, app: Database, granting: Callable[..., None], table: str, trigger: str
) -> None:
    granting(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}", f"ALTER TABLE {table} ENABLE TRIGGER {trigger}")
    assert read(database).unguarded == (table,)
    assert read(app).unguarded == (table,), "whoever it is that looks"


def test_a_trigger_for_copies_alone_is_not_in_force(database: Database, granting: Callable[..., None]) -> None:
    trigger = "TRIGGER aegis_append_only_row"
    granting(f"ALTER TABLE aegis_log ENABLE REPLICA {trigger}", f"ALTER TABLE aegis_log ENABLE {trigger}")
    assert read(database).unguarded == ("aegis_log",)


def test_a_trigger_that_is_always_in_force_is_in_force(database: Database, granting: Callable[..., None]) -> None:
    trigger = "TRIGGER aegis_append_only_row"
    granting(f"ALTER TABLE aegis_log ENABLE ALWAYS {trigger}", f"ALTER TABLE aegis_log ENABLE {trigger}")
    assert read(database).unguarded == ()


# What somebody who owns the tables can put there under the same names.
ROW = "CREATE TRIGGER aegis_append_only_row BEFORE UPDATE OR DELETE ON aegis_log FOR EACH ROW"
ALL = "CREATE TRIGGER aegis_append_only_all BEFORE TRUNCATE ON aegis_log FOR EACH STATEMENT"
CALLS = "EXECUTE FUNCTION aegis_refuse()"
LETS = "LANGUAGE plpgsql AS $$ BEGIN RETURN coalesce(NEW, OLD); END $$"
NAMESAKES = {
    "on another function": ("row", f"{ROW} EXECUTE FUNCTION aegis_lets()"),
    "on a function of that name elsewhere": ("row", f"{ROW} EXECUTE FUNCTION elsewhere.aegis_refuse()"),
    "under a condition": ("row", f"{ROW} WHEN (OLD.log_index < 0) {CALLS}"),
    "for one column": ("row", f"{ROW.replace('UPDATE', 'UPDATE OF seq')} {CALLS}"),
    "for updates alone": ("row", f"{ROW.replace(' OR DELETE', '')} {CALLS}"),
    "for statements": ("row", f"{ROW.replace('ROW', 'STATEMENT')} {CALLS}"),
    "afterwards": ("row", f"{ROW.replace('BEFORE', 'AFTER')} {CALLS}"),
    "for what is added": ("all", f"{ALL.replace('TRUNCATE', 'INSERT')} {CALLS}"),
    "on another function for the whole table": ("all", f"{ALL} EXECUTE FUNCTION aegis_lets()"),
}


@pytest.mark.parametrize("name", NAMESAKES)
def test_a_trigger_of_that_name_that_does_something_else_is_not_in_force(
    database: Database, app: Database, granting: Callable[..., None], name: str
) -> None:
    which, made = NAMESAKES[name]
    dropped = f"DROP TRIGGER aegis_append_only_{which} ON aegis_log"
    as_it_was = f"{dropped}; {ROW if which == 'row' else ALL} {CALLS}"
    functions = f"CREATE FUNCTION aegis_lets() RETURNS trigger {LETS}; CREATE SCHEMA elsewhere"
    namesake = f"CREATE FUNCTION elsewhere.aegis_refuse() RETURNS trigger {LETS}"
    away = "DROP FUNCTION aegis_lets(); DROP FUNCTION elsewhere.aegis_refuse(); DROP SCHEMA elsewhere"
    granting(f"{functions}; {namesake}; {dropped}; {made}", f"{as_it_was}; {away}")
    assert read(database).unguarded == ("aegis_log",)
    assert read(app).unguarded == ("aegis_log",), "whoever it is that looks"


@pytest.mark.parametrize(
    "changed",
    [
        f"CREATE OR REPLACE FUNCTION aegis_refuse() RETURNS trigger {LETS}",
        "ALTER FUNCTION aegis_refuse() SET search_path = elsewhere, pg_catalog",
    ],
)
def test_a_function_that_refuses_no_more_is_not_in_force(
    database: Database, granting: Callable[..., None], changed: str
) -> None:
    refusing = value(database, "SELECT pg_get_functiondef('aegis_refuse()'::regprocedure)")
    granting(changed, f"{refusing}; ALTER FUNCTION aegis_refuse() RESET ALL")
    assert read(database).unguarded == APPEND_ONLY


def test_a_way_out_that_asks_for_no_record_is_told(database: Database, granting: Callable[..., None]) -> None:
    purging = value(database, "SELECT pg_get_functiondef('aegis_purge(text)'::regprocedure)")
    start, end = purging.index("    IF NOT EXISTS"), purging.index("    PERFORM")
    granting(purging[:start] + purging[end:], purging)
    assert read(database).unguarded == ("aegis_transition",)


def test_a_connection_that_triggers_are_silenced_on_is_told_so(database: Database) -> None:
    with database.transaction() as session:
        connection = session.connection()
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        assert guards.read(connection).unguarded == APPEND_ONLY


def test_a_table_that_is_not_there_is_unguarded(database: Database, granting: Callable[..., None]) -> None:
    granting("ALTER TABLE aegis_log_node RENAME TO away", "ALTER TABLE away RENAME TO aegis_log_node")
    assert read(database).unguarded == ("aegis_log_node",)


@pytest.mark.parametrize("right", ["UPDATE", "DELETE", "TRUNCATE"])
def test_a_right_that_is_too_much_is_named(app: Database, granting: Callable[..., None], right: str) -> None:
    granting(f"GRANT {right} ON aegis_anchor TO {APP}", f"REVOKE {right} ON aegis_anchor FROM {APP}")
    assert read(app).may_change == ("aegis_anchor",)
    assert not read(app).may_switch_off


# --- and health says so ---------------------------------------------------------------------------------


def line(database_url: str, role: str | None, tmp_path: Path) -> Check:
    url = database_url if role is None else address(database_url, role)
    settings = Settings(
        home=tmp_path, database_url=url, broker_url="redis://127.0.0.1:1/0", anchors=("none",), health_timeout=10
    )
    found = health(settings)
    return next(check for check in found if check.name == "append-only")


def test_health_says_who_is_kept_from_changing_anything(database_url: str, tmp_path: Path) -> None:
    application = line(database_url, APP, tmp_path)
    assert (application.state, application.says) == (State.OK, "triggers in force; aegis_app may only add")
    for role, name in ((None, "aegis"), (OWNER, OWNER)):
        found = line(database_url, role, tmp_path)
        assert (found.state, found.says) == (State.WARNING, f"triggers in force, but {name} could switch them off")
        assert "aegis_app" in found.remedy


def test_health_says_what_is_not_in_force(database_url: str, tmp_path: Path, granting: Callable[..., None]) -> None:
    granting(f"GRANT UPDATE ON aegis_log TO {APP}", f"REVOKE UPDATE ON aegis_log FROM {APP}")
    found = line(database_url, APP, tmp_path)
    assert (found.state, found.says) == (State.WARNING, "triggers in force, but aegis_app has rights to change")
    table = "aegis_transition"
    granting(f"ALTER TABLE {table} DISABLE TRIGGER USER", f"ALTER TABLE {table} ENABLE TRIGGER USER")
    for role in (None, OWNER, APP):
        found = line(database_url, role, tmp_path)
        assert (found.state, found.says) == (State.DEGRADED, "the triggers of aegis_transition are not in force")
        assert "aegis verify --all" in found.remedy
