"""What is not there to write: reading from standbys, health in words, and the awaited engine on several hosts."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import psutil
import pytest
from cluster_site import Site
from command_line import CommandLine
from deployment import Deployment
from fault_workflows import Steps
from local_engine import eventually
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session

import aegis
from aegis.core.errors import InvalidData, NotOnSQLite, WorkflowNotFound
from aegis.persistence import durable
from aegis.persistence.asynchronous import AsyncDatabase, spawn
from aegis.persistence.database import Database
from aegis.persistence.reader import Reader
from aegis.persistence.standbys import Standbys
from aegis.sync import DurableWorkflowEngine
from aegis.tasks.check import State
from aegis.tasks.health import health

SECONDS = timedelta(seconds=10)


@pytest.fixture
def primary(whole: Site) -> Iterator[Database]:
    """Whoever leads."""
    made = Database(whole.url, pool_size=1)
    yield made
    made.close()


@pytest.fixture
def url_of_standbys(whole: Site) -> str:
    """Those of the cluster that are no primary."""
    return whole.url_of([node for node in whole.cluster.layout.nodes if node.name != whole.leader()])


@pytest.fixture
def standbys(url_of_standbys: str, primary: Database) -> Iterator[Standbys]:
    made = Standbys(url_of_standbys, primary)
    yield made
    made.close()


@contextmanager
def paused_standbys(site: Site) -> Iterator[None]:
    """Have them replay nothing meanwhile: what is paused by PostgreSQL's own function, Patroni resumes."""
    leader = site.leader()
    stopped = [site.replayer(node.name) for node in site.cluster.layout.nodes if node.name != leader]
    for process in stopped:
        process.suspend()
    try:
        for process in stopped:
            eventually("it stands still", lambda: process.status() == psutil.STATUS_STOPPED)  # noqa: B023
        yield
    finally:
        for process in stopped:
            process.resume()


def engine_of(running: Deployment) -> durable.DurableWorkflowEngine:
    """An engine of its own, that has written nothing yet."""
    return durable.DurableWorkflowEngine(running.database, running.engine._ring, running.engine.terms)


def test_a_standby_answers_and_knows_what_one_has_just_written(
    whole: Site, running: Deployment, standbys: Standbys
) -> None:
    reader = Reader(running.engine, standbys, stale_ok=SECONDS, after=None)
    (database, *_) = standbys.fresh(stale_ok=SECONDS)
    with database.statement() as connection:
        assert connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one()
    for number in range(30):
        running.engine.start(Steps(), id=f"own-{number}")
        assert reader.describe(f"own-{number}").id == f"own-{number}"
    running.await_status("own-0", "completed")
    running.engine.writes += 1  # as if this engine had seen to that
    assert [link.seq for link in reader.history("own-0")] == [0, 1, 2, 3]
    assert reader.get("own-0") == running.engine.get("own-0")
    assert not reader.verify_audit_chain("own-0").failures
    assert {row.id for row in reader.list(limit=1000)} >= {f"own-{number}" for number in range(30)}


def test_a_standby_that_stopped_replaying_is_passed_over(whole: Site, running: Deployment, standbys: Standbys) -> None:
    reader = Reader(running.engine, standbys, stale_ok=SECONDS, after=None)
    bound = Reader(running.engine, standbys, stale_ok=timedelta(milliseconds=1), after=None)
    with paused_standbys(whole):
        running.engine.start(Steps(), id="unseen")
        assert list(standbys.fresh(stale_ok=SECONDS, after=running.engine.token())) == []
        assert reader.describe("unseen").id == "unseen"  # by the primary
        assert bound.describe("unseen").id == "unseen"
        elsewhere = Reader(engine_of(running), standbys, stale_ok=timedelta(hours=1), after=None)
        assert "unseen" not in {row.id for row in elsewhere.list(limit=1000)}  # stale, as it was asked for
        token = running.engine.token()
        told = Reader(engine_of(running), standbys, stale_ok=timedelta(hours=1), after=token)
        assert "unseen" in {row.id for row in told.list(limit=1000)}


# --- by whose clock ----------------------------------------------------------------------------------


@pytest.fixture
def with_clock(
    url_of_standbys: str, primary: Database, request: pytest.FixtureRequest
) -> Iterator[Callable[[str, Database], Standbys]]:
    """Standbys whose clocks are wrong: a function of that name stands before PostgreSQL's own."""
    made: list[Standbys] = []

    def make(wrong_by: str, asked: Database) -> Standbys:
        name = f"clock_{secrets.token_hex(4)}"
        with primary.statement() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
            connection.exec_driver_sql(
                f"CREATE FUNCTION {name}.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
                f" AS $$SELECT pg_catalog.clock_timestamp() + interval '{wrong_by}'$$"
            )
        request.addfinalizer(lambda: _drop(primary, name))
        made.append(Standbys(f"{url_of_standbys}&options=-csearch_path%3D{name},pg_catalog,public", asked))
        for database in made[-1].databases:
            eventually("it has that clock", lambda: _has_clock(database, name))  # noqa: B023
        return made[-1]

    yield make
    for standbys in made:
        standbys.close()


def _drop(primary: Database, name: str) -> None:
    with primary.statement() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")


def _has_clock(database: Database, name: str) -> bool:
    query = "SELECT count(*) FROM pg_proc WHERE proname = 'clock_timestamp' AND pronamespace = to_regnamespace(%s)"
    with database.statement() as connection:
        return bool(connection.exec_driver_sql(query, (name,)).scalar_one())


@pytest.mark.usefixtures("running")
def test_a_standby_whose_clock_is_slow_is_not_taken_for_fresh(
    whole: Site, primary: Database, with_clock: Callable[[str, Database], Standbys]
) -> None:
    slow = with_clock("-1 hour", primary)
    with paused_standbys(whole):
        eventually("none is fresh", lambda: not list(slow.fresh(stale_ok=timedelta(seconds=1))))


def test_a_standby_whose_clock_is_fast_is_not_passed_over(
    primary: Database, with_clock: Callable[[str, Database], Standbys]
) -> None:
    assert len(list(with_clock("1 hour", primary).fresh(stale_ok=SECONDS))) == 2


def test_a_standby_that_has_everything_is_fresh_though_nothing_was_committed_for_long(standbys: Standbys) -> None:
    """A bound that the last commit is always beyond: it is the place in the WAL that tells."""
    bound = timedelta(microseconds=1)
    eventually("it has caught up", lambda: bool(list(standbys.fresh(stale_ok=bound))))


def test_the_primary_is_asked_now_and_then_and_not_for_each_read(primary: Database, standbys: Standbys) -> None:
    asked: list[str] = []
    event.listen(primary.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    for _ in range(50):
        assert list(standbys.fresh(stale_ok=timedelta(hours=1)))
    assert 1 <= len(asked) <= 3


@pytest.fixture
def nobody() -> Iterator[Database]:
    """An address where no primary answers."""
    made = Database("postgresql://aegis@127.0.0.1:1/postgres", pool_size=1)
    yield made
    made.close()


@pytest.mark.usefixtures("running")
def test_without_a_primary_the_standbys_own_clock_has_to_do(
    nobody: Database, url_of_standbys: str, with_clock: Callable[[str, Database], Standbys]
) -> None:
    tried: list[int] = []
    event.listen(nobody.engine, "do_connect", lambda *_: tried.append(1))
    right = Standbys(url_of_standbys, nobody)
    for _ in range(5):
        assert len(list(right.fresh(stale_ok=SECONDS))) == 2
    assert len(tried) == 1, "it is passed over for a while, as each try may cost its time-out"
    right.close()
    assert not list(with_clock("1 hour", nobody).fresh(stale_ok=SECONDS))


# --- one's own writes ---------------------------------------------------------------------------------


def test_what_was_written_before_there_was_a_reader_is_known_as_well(
    whole: Site, running: Deployment, standbys: Standbys
) -> None:
    with paused_standbys(whole):
        running.engine.start(Steps(), id="before-the-reader")
        reader = Reader(running.engine, standbys, stale_ok=timedelta(hours=1), after=None)
        assert reader.describe("before-the-reader").id == "before-the-reader"


@pytest.mark.parametrize("how", ["session", "connection", "connection-in-use"])
def test_what_was_written_in_a_transaction_of_the_callers_is_known_once_it_has_committed(
    how: str, whole: Site, running: Deployment, standbys: Standbys
) -> None:
    app = create_engine(running.database.address)
    engine = engine_of(running)
    reader = Reader(engine, standbys, stale_ok=timedelta(hours=1), after=None)
    with paused_standbys(whole):
        if how == "session":
            with Session(app) as session, session.begin():
                engine.start(Steps(), id=how, session=session)
            found = reader.list(limit=1000)
        elif how == "connection":
            with app.begin() as connection:
                engine.start(Steps(), id=how, session=connection)
            found = reader.list(limit=1000)
        else:
            with app.connect() as connection:
                engine.start(Steps(), id=how, session=connection)
                connection.commit()
                found = reader.list(limit=1000)  # before the connection goes back to its pool
        assert how in {row.id for row in found}
    app.dispose()


@pytest.mark.usefixtures("whole")
def test_what_the_caller_rolled_back_is_not_waited_for(running: Deployment) -> None:
    app = create_engine(running.database.address)
    engine = engine_of(running)
    with Session(app) as session:
        engine.start(Steps(), id="rolled-back", session=session)
        session.rollback()
    assert engine.writes == 0
    app.dispose()


# --- the engine that is awaited -------------------------------------------------------------------------


@asynccontextmanager
async def awaited_engine(running: Deployment) -> AsyncIterator[Any]:
    async with aegis.DurableWorkflowEngine(running.database, app=running.app) as engine:
        yield engine


def test_an_engine_that_is_awaited_reads_from_standbys_too(
    whole: Site, running: Deployment, url_of_standbys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_REPLICA_URL", url_of_standbys)

    async def story() -> None:
        async with awaited_engine(running) as engine:
            reader = engine.standby(stale_ok=SECONDS)
            for number in range(10):
                handle = await engine.start(Steps(), id=f"awaited-{number}")
                assert (await reader.describe(handle.id)).id == handle.id
            await handle.wait(60)
            engine._near.writes += 1  # as if this engine had seen to that
            assert [link.seq for link in await reader.history(handle.id)] == [0, 1, 2, 3]
            assert await reader.get(handle.id) == await engine.get(handle.id)
            assert await reader.load(handle.id, seq=0) == await engine.load(handle.id, seq=0)
            assert not (await reader.verify_audit_chain(handle.id)).failures
            assert (await reader.verify_integrity(handle.id)) == (await engine.verify_integrity(handle.id))
            assert handle.id in {row.id for row in await reader.list(limit=1000)}

    asyncio.run(story())


def test_an_engine_that_is_awaited_reads_what_is_stale_where_that_was_allowed_and_no_more(
    whole: Site, running: Deployment, url_of_standbys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_REPLICA_URL", url_of_standbys)
    hour = timedelta(hours=1)
    done: list[None] = []

    async def story() -> None:
        async with awaited_engine(running) as writer, awaited_engine(running) as other:
            stale, bound = other.standby(stale_ok=hour), other.standby(stale_ok=timedelta(milliseconds=1))
            await writer.start(Steps(), id="awaited-unseen")
            assert "awaited-unseen" not in {row.id for row in await stale.list(limit=1000)}
            with pytest.raises(WorkflowNotFound):
                await stale.verify_audit_chain("awaited-unseen")
            assert (await bound.describe("awaited-unseen")).id == "awaited-unseen"  # by the primary
            told = other.standby(stale_ok=hour, after=await writer.token())
            assert (await told.describe("awaited-unseen")).id == "awaited-unseen"
            own = writer.standby(stale_ok=hour)
            # Many at once: none of them keeps the loop from another's look at the primary.
            found = await asyncio.wait_for(asyncio.gather(*(own.describe("awaited-unseen") for _ in range(8))), 30)
            assert {row.id for row in found} == {"awaited-unseen"}
            assert (await own.verify_audit_chain("awaited-unseen")).workflows == 1

    with paused_standbys(whole):
        # Nothing inside a loop ends a loop that waits for itself.
        in_time = threading.Thread(target=lambda: done.append(asyncio.run(story())), daemon=True)
        in_time.start()
        in_time.join(60)
    assert done == [None]


def test_sqlite_has_no_standbys_for_an_engine_that_is_awaited_either() -> None:
    async def story() -> None:
        async with aegis.DurableWorkflowEngine("sqlite://") as engine:
            engine.standby(stale_ok=SECONDS)

    with pytest.raises(NotOnSQLite):
        asyncio.run(story())


@pytest.mark.parametrize("after", ["", "now", "0/0; DROP TABLE x", "g/1"])
def test_what_is_no_token_is_refused(running: Deployment, standbys: Standbys, after: str) -> None:
    with pytest.raises(InvalidData, match="the token"):
        Reader(running.engine, standbys, stale_ok=SECONDS, after=after)


@pytest.mark.parametrize("stale_ok", [timedelta(0), timedelta(seconds=-1)])
def test_a_bound_that_nobody_can_keep_is_refused(running: Deployment, standbys: Standbys, stale_ok: timedelta) -> None:
    with pytest.raises(InvalidData, match="is no time at all"):
        Reader(running.engine, standbys, stale_ok=stale_ok, after=None)


def test_sqlite_has_no_standbys() -> None:
    with DurableWorkflowEngine("sqlite://") as engine, pytest.raises(NotOnSQLite):
        engine.standby(stale_ok=SECONDS)


def test_health_says_in_words_that_nothing_would_be_lost(whole: Site, running: Deployment) -> None:
    found = {check.name: check for check in health(running.settings)}
    assert found["replication"].state is State.OK
    assert found["replication"].says.startswith("a lost node loses nothing: 2 synchronous standbys (node-")
    assert found["nodes"].state is State.OK
    assert found["nodes"].says.count("standby") == 2
    assert found["nodes"].says.count("primary") == 1


def test_the_awaited_engines_connections_find_the_primary_behind_a_dark_host(whole: Site, running: Deployment) -> None:
    nodes = whole.cluster.layout.nodes
    # A host of TEST-NET-1 (RFC 5737), where nobody ever answers.
    url = whole.url_of(nodes, "read-write").replace("@", "@192.0.2.1:5432,", 1)

    async def ask() -> bool:
        blocking = Database(url, pool_size=1)
        database = AsyncDatabase(blocking)
        try:
            return bool(await asyncio.wait_for(spawn(_is_standby, database), 4))
        finally:
            await database.aclose()
            blocking.close()

    assert asyncio.run(ask()) is False


def _is_standby(database: Database) -> bool:
    with database.statement() as connection:
        return bool(connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one())


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (("list",), "shown"),
        (("show", "shown"), "shown"),
        (("history", "shown"), "two -> three"),
        (("verify", "shown"), "1 history, 4 transitions: as committed"),
    ],
)
def test_the_command_line_reads_from_a_standby(
    whole: Site, running: Deployment, command: tuple[str, ...], answer: str
) -> None:
    running.engine.start(Steps(), id="shown")
    running.await_status("shown", "completed")
    standbys = [node for node in whole.cluster.layout.nodes if node.name != whole.leader()]
    # Where the address of the primary leads nowhere, whoever answers is a standby.
    environment = running.environment | {
        "AEGIS_DATABASE_URL": "postgresql://aegis@127.0.0.1:1/postgres",
        "AEGIS_REPLICA_URL": whole.url_of(standbys),
        "AEGIS_ANCHORS": "none",
    }
    aegis = CommandLine(environment, running.folder)
    said = aegis(*command, "--stale-ok", "10")
    assert answer in said.stdout, said
    assert "no answer from the database" in aegis(*command).complaint()
