"""What the history proves, on every store and by both engines: edits are found, removals are told, moves go on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from private_servers import DEPLOYMENT
from sqlalchemy import Column, Integer, LargeBinary, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from store_workflows import Decision, Parcel
from stores import World, make_engine, make_runner

from aegis.core.chain import MacKey
from aegis.core.errors import (
    BundleRefused,
    CheckpointPruned,
    DataErased,
    HistoryBroken,
    InvalidData,
    NotOnSQLite,
    WorkflowNotFound,
    WrongStatus,
)
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.persistence.models import CheckpointRow, PayloadRow, TransitionRow, WorkflowRow
from aegis.persistence.sql import Moment

LIES: Final = b"\x07" * 32


@pytest.fixture
def told(world: World, script: dict[str, Any]) -> World:
    """A parcel with a history worth an edit: packed with a checkpoint on the way, paused, resumed, sent."""

    def pack(parcel: Any, ctx: Any) -> None:
        parcel.done.append("weighed")
        ctx.checkpoint()

    script["pack"] = pack
    world.engine.start(Parcel(), id="p")
    world.run()
    world.engine.pause("p", reason="a holiday")
    world.engine.resume("p")
    world.engine.send("p", "decide", Decision(send=True, comment="now"), key="mail-1")
    world.run()
    assert world.engine.verify_integrity("p") == (True, None)
    return world


def other(column: Column[Any]) -> Any:
    """Return another value for a column than it has."""
    match column.type:
        case LargeBinary():
            return LIES
        case Integer():
            return column + 1
        case Moment():
            return column + timedelta(microseconds=1)
        case _:
            return "lies"


# What is hashed, or stands for what is: the rest are notes for those who run and search.
HASHED: Final = [
    *(TransitionRow.__table__.c[name] for name in ("event", "from_state", "to_state", "actor", "attempt", "at")),
    *(TransitionRow.__table__.c[name] for name in ("workflow_id", "envelope", "hash")),
    *(PayloadRow.__table__.c[name] for name in ("body", "salt", "workflow_id")),
    *(CheckpointRow.__table__.c[name] for name in ("body", "salt", "commitment", "workflow_id")),
]


# Both engines verify by the same code, in a thread or not: one of them is enough for every edit.
@pytest.mark.parametrize("world", ["blocking"], indirect=True)
@pytest.mark.parametrize("column", HASHED, ids=str)
def test_every_edit_is_found_and_its_transition_named(told: World, column: Any) -> None:
    there = column.table
    of_it = [there.c.workflow_id == "p", there.c.seq == 4]
    if there.name == "aegis_checkpoint":
        of_it.append(there.c.number == 0)
    assert told.edit(update(there).where(*of_it).values({column.name: other(column)})) == 1
    valid, said = told.engine.verify_integrity("p")
    assert not valid
    assert "p" in said
    assert {finding.seq for finding in told.engine.verify_audit_chain("p").failures} & {3, 4}


@pytest.mark.parametrize("world", ["blocking"], indirect=True)
@pytest.mark.parametrize("name", ["type", "definition", "state", "status", "seq", "head"])
def test_a_row_that_is_not_what_its_history_says_is_found(told: World, name: str) -> None:
    column = WorkflowRow.__table__.c[name]
    lie = "cancelled" if name == "status" else other(column)
    assert told.edit(update(WorkflowRow).values({name: lie})) == 1
    assert told.engine.verify_integrity("p")[0] is False


@pytest.mark.parametrize("world", ["blocking"], indirect=True)
@pytest.mark.parametrize("seq", range(5))
def test_a_transition_that_is_gone_is_found(told: World, seq: int) -> None:
    assert told.edit(delete(TransitionRow).where(TransitionRow.seq == seq)) == 1
    assert told.engine.verify_integrity("p")[0] is False


def test_a_workflow_is_not_run_on_from_data_that_was_edited(world: World) -> None:
    world.engine.start(Parcel(), id="p")
    world.edit(update(CheckpointRow).values(body=LIES))
    world.run()
    row = world.engine.describe("p")
    assert (row.seq, row.status) == (0, "pending")
    assert "its checkpoint is not the one that was committed" in row.error["message"]
    with pytest.raises(HistoryBroken):
        world.engine.get("p")


@pytest.mark.parametrize("statement", [update(TransitionRow).values(actor="lies"), delete(TransitionRow)], ids=str)
def test_the_database_itself_keeps_transitions_from_being_changed(told: World, statement: Any) -> None:
    with pytest.raises(DBAPIError, match="append-only"), told.database.transaction() as session:
        session.connection().execute(statement)
    assert told.engine.verify_integrity("p") == (True, None)


def test_codes_of_a_key_are_found_to_be_missing(database: Database, world: World) -> None:
    key = MacKey(id="k1", secret=b"\x01" * 32, required_from=datetime.fromisoformat("2020-01-01T00:00:00+00:00"))
    engine = make_engine("blocking", database, world.runner.ring, mac_key=key)
    engine.start(Parcel(), id="sealed")  # type: ignore[unused-coroutine]
    assert engine.verify_integrity("sealed") == (True, None)  # type: ignore[comparison-overlap]
    world.edit(update(TransitionRow).values(mac=None, mac_key=None))
    assert engine.verify_integrity("sealed")[0] is False  # type: ignore[index]


# --- time travel --------------------------------------------------------------------------------


def test_time_travel(told: World) -> None:
    engine = told.engine
    assert [engine.load("p", seq=seq).state for seq in range(5)] == ["new", "packed", "packed", "packed", "sent"]
    assert engine.load("p", seq=0).done == []
    moments = [one.at for one in engine.history("p")]
    assert engine.load("p", at=moments[1]).done == ["weighed"]
    assert engine.load("p", at=moments[4] + timedelta(days=1)).state == "sent"
    with pytest.raises(InvalidData):
        engine.load("p", at=moments[0] - timedelta(microseconds=1))
    with pytest.raises(WorkflowNotFound):
        engine.load("p", seq=5)


def test_times_are_kept_to_the_microsecond(told: World) -> None:
    with told.database.statement() as connection:
        rows = connection.execute(select(TransitionRow.at, TransitionRow.envelope).order_by(TransitionRow.seq)).all()
    for row in rows:
        assert row.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode() in bytes(row.envelope)


# --- removals -----------------------------------------------------------------------------------


def test_erase(told: World) -> None:
    assert told.engine.erase("p", reason="art. 17") is True
    assert told.engine.erase("p", reason="art. 17") is False
    with pytest.raises(DataErased):
        told.engine.get("p")
    assert told.engine.verify_integrity("p") == (True, None)


def test_erase_needs_an_end(world: World) -> None:
    world.engine.start(Parcel(), id="p")
    with pytest.raises(WrongStatus):
        world.engine.erase("p", reason="art. 17")


def test_prune(told: World) -> None:
    assert told.engine.prune(keep=2, older_than=timedelta(hours=1)) == 0
    assert told.engine.prune(keep=2, older_than=timedelta(0)) == 2
    assert told.engine.prune(keep=2, older_than=timedelta(0)) == 0
    assert told.engine.load("p", seq=3).state == "packed"
    with pytest.raises(CheckpointPruned):
        told.engine.load("p", seq=1)
    assert told.engine.verify_integrity("p") == (True, None)


def test_purge_is_refused_where_there_is_no_log(told: World) -> None:
    for arguments in ({"id": "p"}, {"older_than": timedelta(0)}):
        if told.store == "postgresql":
            continue
        with pytest.raises(NotOnSQLite, match="erase the data"):
            told.engine.purge(**arguments)
    assert told.engine.describe("p").status == "completed"


# --- moves --------------------------------------------------------------------------------------


def test_a_workflow_moves_to_another_store_and_goes_on_there(world: World) -> None:
    world.engine.start(Parcel(weight=3), id="p", attributes={"customer": 7})
    world.run()
    bundle = world.engine.export_bundle("p")
    away = Database("sqlite://")
    try:
        upgrade(away, deployment="aegis.example/elsewhere")
        runner = make_runner(away)
        engine = make_engine("blocking", away, runner.ring)
        with pytest.raises(BundleRefused, match="not anchored"):
            engine.import_bundle(bundle)  # type: ignore[unused-coroutine]
        handle: Any = engine.import_bundle(bundle, accept_unanchored=True)
        assert (handle.describe().status, handle.get().weight) == ("paused", 3)
        assert handle.verify_integrity() == (True, None)
        engine.resume("p")  # type: ignore[unused-coroutine]
        handle.send("decide", Decision(send=False))
        runner.run_until_idle(10)
        assert handle.describe().state == "kept"
        assert handle.verify_integrity() == (True, None)
        # And back, to where it is already.
        with pytest.raises(BundleRefused, match="is here"):
            world.engine.import_bundle(engine.export_bundle("p"), accept_unanchored=True)
    finally:
        away.close()


def test_a_bundle_that_was_edited_moves_nothing(world: World) -> None:
    world.engine.start(Parcel(), id="p")
    world.run()
    edited = world.engine.export_bundle("p").to_bytes().replace(b"Main Street", b"Side Street")
    away = Database("sqlite://")
    try:
        upgrade(away, deployment=DEPLOYMENT)
        engine: Any = make_engine("blocking", away, make_runner(away).ring)
        with pytest.raises(BundleRefused):
            engine.import_bundle(edited, accept_unanchored=True)
        assert engine.list() == []
    finally:
        away.close()


# --- nothing half-written -----------------------------------------------------------------------


@pytest.mark.parametrize("table", ["aegis_transition", "aegis_checkpoint"])
def test_a_row_that_stands_in_the_way_leaves_nothing_half_written(world: World, table: str) -> None:
    """What the commit trips over at its second or third write undoes the first as well."""
    world.engine.start(Parcel(), id="p")
    rows: dict[str, Callable[[], Any]] = {
        "aegis_transition": lambda: insert(TransitionRow).from_select(
            _copied(TransitionRow), _at(TransitionRow, TransitionRow.seq + 1)
        ),
        "aegis_checkpoint": lambda: insert(CheckpointRow).from_select(
            _copied(CheckpointRow), _at(CheckpointRow, CheckpointRow.seq + 1)
        ),
    }
    assert world.edit(rows[table]()) == 1
    world.run()
    row = world.engine.describe("p")
    assert (row.seq, row.state) == (0, "new")
    with world.database.statement() as connection:
        count = connection.execute(text("SELECT count(*) FROM aegis_transition")).scalar_one()
    assert count == (2 if table == "aegis_transition" else 1)


def _copied(row: Any) -> list[str]:
    return [column.name for column in row.__table__.columns if column.name != "xact"]


def _at(row: Any, seq: Any) -> Any:
    return select(*(seq if name == "seq" else row.__table__.c[name] for name in _copied(row)))
