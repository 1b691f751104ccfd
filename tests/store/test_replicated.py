"""A commit that no standby has: PostgreSQL waits, and where the wait is broken off it is no success, ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from local_engine import eventually
from private_servers import DEPLOYMENT, PrivatePostgres, folder
from store_workbench import RecordingRing, make_bench, make_engine, row, value
from store_workflows import Act, Parcel

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.database import Database
from aegis.persistence.doubt import doubt_in
from aegis.persistence.migrate import upgrade
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'aegis'"


class Lonely:
    """A server that may be told to wait for a standby that does not exist."""

    def __init__(self, server: PrivatePostgres) -> None:
        self.server = server
        self.database = Database(server.url())
        # What looks from outside writes nothing, and so never waits.
        self.outside = Database(server.url() + "&application_name=test")
        self._pool = ThreadPoolExecutor(4)

    def waits(self, standby: str) -> None:
        self.server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        self.server.execute("SELECT pg_reload_conf()")
        eventually("it is told", lambda: value(self.outside, "SHOW synchronous_standby_names") == standby)

    def during(self, act: Callable[[], Any]) -> Future[Any]:
        """Do something that will wait, in a thread; return once it does."""
        future = self._pool.submit(act)
        eventually("it waits for a standby", lambda: bool(self.waiting()))
        return future

    def waiting(self) -> list[int]:
        with self.outside.statement() as connection:
            return list(connection.exec_driver_sql(WAITING).scalars())

    def give_up(self) -> None:
        """Break the wait off, as an operator in a hurry does."""
        for pid in self.waiting():
            self.server.execute(f"SELECT pg_cancel_backend({pid})")

    def close(self) -> None:
        self._pool.shutdown()
        self.database.close()
        self.outside.close()


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    with folder("lonely") as root:
        made = PrivatePostgres(root)
        made.start()
        database = Database(made.url(), pool_size=1)
        upgrade(database, deployment=DEPLOYMENT)
        database.close()
        yield made
        made.stop()


@pytest.fixture
def lonely(server: PrivatePostgres) -> Iterator[Lonely]:
    made = Lonely(server)
    try:
        yield made
    finally:
        made.waits("")
        made.close()


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
