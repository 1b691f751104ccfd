"""A commit that no standby has: PostgreSQL waits, and where the wait is broken off it is no success, ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import stores
from local_engine import eventually
from lonely import Lonely
from store_workbench import RecordingRing, make_bench, make_engine, row
from store_workflows import Act, Parcel

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.asynchronous import AsyncDatabase, spawn
from aegis.persistence.database import Database
from aegis.persistence.doubt import doubt_in
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition


@pytest.fixture
def lonely_bench(lonely: Lonely, ring: RecordingRing) -> Bench:
    return make_bench(lonely.database, ring)


def test_a_start_whose_wait_was_broken_off_is_not_accepted_until_a_standby_has_it(
    lonely: Lonely, ring: RecordingRing
) -> None:
    engine = make_engine(lonely.database, ring)
    lonely.waits("nobody")
    start = lonely.during(lambda: engine.start(Parcel(), id="p-1"))
    lonely.give_up()
    with pytest.raises(DatabaseUnavailable, match="canceling wait for synchronous replication"):
        start.result(10)
    assert ring.take() == []
    assert row(lonely.outside, "p-1").seq == 0  # visible, and perhaps on no other machine
    again = lonely.during(lambda: engine.start(Parcel(), id="p-1"))
    assert not again.done()
    lonely.waits("")
    assert not again.result(10).new


def test_asking_again_for_what_no_standby_has_fails_as_the_first_time_did(lonely: Lonely, ring: RecordingRing) -> None:
    engine = make_engine(lonely.database, ring)
    engine.start(Parcel(), id="p-2")
    lonely.waits("nobody")
    again = lonely.during(lambda: engine.start(Parcel(), id="p-2"))
    lonely.give_up()
    with pytest.raises(DatabaseUnavailable, match="canceling wait"):
        again.result(10)


def test_a_transition_whose_wait_was_broken_off_is_recorded_once_and_counts_once_a_standby_has_it(
    lonely: Lonely, ring: RecordingRing, lonely_bench: Bench, script: dict[str, Act]
) -> None:
    engine = make_engine(lonely.database, ring)
    engine.start(Parcel(), id="p-3")
    ring.take()
    lonely.waits("nobody")
    runs: list[int] = []
    script["pack"] = lambda *_: runs.append(1)
    ended = lonely.during(lambda: run_transition(lonely_bench, "p-3", 0))
    lonely.give_up()
    eventually("what became of it is asked, and waits in its turn", lambda: bool(lonely.waiting()))
    assert not ended.done()
    lonely.waits("")
    assert ended.result(10) is Ended.COMMITTED
    assert runs == [1]
    assert [link.seq for link in engine.history("p-3")] == [0, 1]


def test_a_transaction_of_sqlalchemy_is_checked_as_well(lonely: Lonely, ring: RecordingRing) -> None:
    lonely.waits("nobody")

    def write() -> None:
        with lonely.database.transaction() as session:
            session.connection().exec_driver_sql("SELECT pg_logical_emit_message(true, 'test', '')")

    written = lonely.during(write)
    lonely.give_up()
    with pytest.raises(DatabaseUnavailable, match="canceling wait"):
        written.result(10)


def test_a_single_statement_is_checked_as_well(lonely: Lonely) -> None:
    lonely.waits("nobody")

    def write() -> None:
        with lonely.database.statement() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS test_single ()")

    written = lonely.during(write)
    lonely.give_up()
    with pytest.raises(DatabaseUnavailable, match="canceling wait"):
        written.result(10)
    lonely.waits("")
    with lonely.database.statement() as connection:  # "relation exists, skipping" is no doubt
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS test_single ()")


def test_many_threads_each_hear_of_their_own_commit_alone(lonely: Lonely, ring: RecordingRing) -> None:
    engine = make_engine(lonely.database, ring)
    lonely.waits("nobody")
    outcomes: list[str] = []

    def start(number: int) -> None:
        try:
            engine.start(Parcel(), id=f"many-{number}")
            outcomes.append("accepted")
        except DatabaseUnavailable:
            outcomes.append("unknown")

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    eventually("all wait", lambda: len(lonely.waiting()) == 4)
    lonely.server.execute(f"SELECT pg_cancel_backend({lonely.waiting()[0]})")
    eventually("one is told", lambda: outcomes == ["unknown"])
    lonely.waits("")
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == ["accepted"] * 3 + ["unknown"]


# --- the engine that is awaited ---------------------------------------------------------------------


async def _start(lonely: Lonely, ring: RecordingRing, workflow_id: str) -> bool:
    engine: Any = stores.make_engine("awaited", lonely.database, ring)
    try:
        return bool((await engine.start(Parcel(), id=workflow_id)).new)
    finally:
        await engine.close()


def test_a_start_that_is_awaited_is_not_accepted_either_until_a_standby_has_it(
    lonely: Lonely, ring: RecordingRing
) -> None:
    lonely.waits("nobody")
    start = lonely.during(lambda: asyncio.run(_start(lonely, ring, "p-4")))
    lonely.give_up()
    with pytest.raises(DatabaseUnavailable, match="canceling wait for synchronous replication"):
        start.result(10)
    assert ring.take() == []
    assert row(lonely.outside, "p-4").seq == 0  # visible, and perhaps on no other machine
    again = lonely.during(lambda: asyncio.run(_start(lonely, ring, "p-4")))
    assert not again.done()
    lonely.waits("")
    assert again.result(10) is False


async def _awaited(blocking: Database, act: Callable[[AsyncDatabase], Any]) -> Any:
    database = AsyncDatabase(blocking)
    try:
        return await spawn(act, database)
    finally:
        await database.aclose()


def _create(database: Database) -> None:
    with database.statement() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS test_awaited ()")


def test_a_single_statement_that_is_awaited_is_checked_as_well(lonely: Lonely) -> None:
    lonely.waits("nobody")
    written = lonely.during(lambda: asyncio.run(_awaited(lonely.database, _create)))
    lonely.give_up()
    with pytest.raises(DatabaseUnavailable, match="canceling wait"):
        written.result(10)
    lonely.waits("")
    asyncio.run(_awaited(lonely.database, _create))  # "relation exists, skipping" is no doubt


def _write(database: Database) -> str:
    try:
        with database.transaction() as session:
            session.connection().exec_driver_sql("SELECT pg_logical_emit_message(true, 'test', '')")
    except DatabaseUnavailable as error:
        return str(error)
    return "written"


def test_what_was_said_of_one_commit_is_not_said_of_the_next_on_the_same_connection(lonely: Lonely) -> None:
    def twice(database: AsyncDatabase) -> list[str]:
        said = [_write(database)]
        lonely.waits("")
        return [*said, _write(database)]

    lonely.waits("nobody")
    written = lonely.during(lambda: asyncio.run(_awaited(lonely.database, twice)))
    lonely.give_up()
    first, second = written.result(10)
    assert "canceling wait" in first
    assert second == "written"


@pytest.mark.parametrize(
    ("said", "doubt"),
    [
        ([], None),
        (["NOTICE:  relation exists, skipping\n"], None),
        (["WARNING:  there is no transaction in progress\n"], None),
        (
            ["NOTICE:  x\n", "WARNING:  canceling wait for synchronous replication due to user request\nDETAIL:  y\n"],
            "WARNING:  canceling wait for synchronous replication due to user request",
        ),
        (["WARNUNG:  Warten auf synchrone Replikation wird storniert\n"], "WARNUNG:  Warten auf synchrone Replikation"),
    ],
)
def test_what_leaves_a_commit_in_doubt(said: list[str], doubt: str | None) -> None:
    found = doubt_in(said)
    assert (found is None) if doubt is None else (found is not None and found.startswith(doubt))
