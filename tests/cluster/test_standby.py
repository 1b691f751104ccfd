"""What is not there to write: reading from standbys, health in words, and the awaited engine on several hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cluster_site import Site
from command_line import CommandLine
from deployment import Deployment
from fault_workflows import Steps
from local_engine import eventually

from aegis.core.errors import InvalidData, NotOnSQLite
from aegis.persistence.asynchronous import AsyncDatabase, spawn
from aegis.persistence.database import Database
from aegis.persistence.reader import Reader
from aegis.persistence.standbys import Standbys
from aegis.sync import DurableWorkflowEngine
from aegis.tasks.check import State
from aegis.tasks.health import health

SECONDS = timedelta(seconds=10)


@pytest.fixture
def standbys(whole: Site) -> Iterator[Standbys]:
    """Those of the cluster that are no primary."""
    layout = whole.cluster.layout
    made = Standbys(whole.url_of([node for node in layout.nodes if node.name != whole.leader()]))
    yield made
    made.close()


def paused(site: Site, *, pause: bool) -> None:
    """Let the standbys stop replaying, or go on."""
    leader = site.leader()
    for node in site.cluster.layout.nodes:
        if node.name != leader:
            database = Database(site.url_of([node]), pool_size=1)
            with database.statement() as connection:
                connection.exec_driver_sql(f"SELECT pg_wal_replay_{'pause' if pause else 'resume'}()")
                state = "SELECT pg_get_wal_replay_pause_state()"
                wanted = "paused" if pause else "not paused"
                # It is asked for, and done once the process that replays comes to it.
                eventually(wanted, lambda: connection.exec_driver_sql(state).scalar_one() == wanted)  # noqa: B023
            database.close()


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
    paused(whole, pause=True)
    try:
        running.engine.start(Steps(), id="unseen")
        assert list(standbys.fresh(stale_ok=SECONDS, after=running.engine.token())) == []
        assert reader.describe("unseen").id == "unseen"  # by the primary
        assert bound.describe("unseen").id == "unseen"
        elsewhere = Reader(running.engine, standbys, stale_ok=timedelta(hours=1), after=None)
        assert "unseen" not in {row.id for row in elsewhere.list(limit=1000)}  # stale, as it was asked for
        token = running.engine.token()
        told = Reader(running.engine, standbys, stale_ok=timedelta(hours=1), after=token)
        assert "unseen" in {row.id for row in told.list(limit=1000)}
    finally:
        paused(whole, pause=False)


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
