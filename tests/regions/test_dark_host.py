"""A host that goes dark in the middle of a transaction: the server lets go of what it had, and recovery goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from local_engine import eventually
from private_servers import DEPLOYMENT, PrivatePostgres, folder
from site_of_its_own import opened
from sqlalchemy import text
from store_workbench import RecordingRing, make_engine
from store_workflows import Once

from aegis.persistence.asynchronous import AsyncDatabase
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.recovery.regions.namespace import why_not
from aegis.recovery.regions.network import Network, joined

pytestmark = [pytest.mark.faults, pytest.mark.skipif(bool(why_not()), reason=why_not())]

PORT = 7001
HOLD = "SELECT id FROM aegis_workflow WHERE id = 'held' FOR UPDATE"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with joined(["server", "host"], ["outside"]) as made:
        yield made


@pytest.fixture(scope="module")
def server(network: Network) -> Iterator[PrivatePostgres]:
    """PostgreSQL in a place of its own, reached over the network by the host and through its socket by us."""
    with folder("dark") as root:
        made = PrivatePostgres(root)
        (made.home.postgres / "pg_hba.conf").write_text("local all all trust\nhost all all samenet trust\n")
        argv = made.container._argv
        listen = f"listen_addresses={network.address('server')}"
        made.container._argv = lambda: [*argv(), "-c", listen, "-c", f"port={PORT}"]
        with network.inside("server"):
            made.container.start()
        eventually("PostgreSQL answers", lambda: is_served(made))
        database = opened(address(made))
        upgrade(database, deployment=DEPLOYMENT)
        make_engine(database, RecordingRing()).start(Once(), id="held")
        database.close()
        yield made
        made.kill()


def address(server: PrivatePostgres) -> str:
    return f"postgresql://aegis@/postgres?host={server.home.sockets}&port={PORT}"


def is_served(server: PrivatePostgres) -> bool:
    try:
        psycopg2.connect(address(server)).close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture
def database(server: PrivatePostgres) -> Iterator[Database]:
    made = opened(address(server))
    yield made
    made.close()


@contextmanager
def held_by(network: Network, act: threading.Thread, holds: threading.Event) -> Iterator[None]:
    """Have a thread hold a row from the host, and the host dark meanwhile."""
    act.start()
    assert holds.wait(20)
    network.cut("host")
    try:
        yield
    finally:
        network.mend("host")


def is_free(database: Database) -> bool:
    with database.transaction() as session:
        return session.execute(text(f"{HOLD} SKIP LOCKED")).one_or_none() is not None


@pytest.mark.parametrize("awaited", [False, True])
def test_what_a_host_that_went_dark_had_locked_is_free_within_seconds(
    network: Network, database: Database, *, awaited: bool
) -> None:
    """Linux looks after two hours whether somebody is still there."""
    holds, ends = threading.Event(), threading.Event()
    there = f"postgresql://aegis@{network.address('server')}:{PORT}/postgres"

    def hold() -> None:
        with network.inside("host"):
            blocking = Database(there, pool_size=1)
            if awaited:
                asyncio.run(hold_awaited(blocking))
                return
            with blocking.engine.connect() as connection:
                connection.execute(text(HOLD))
                holds.set()
                ends.wait(60)
                connection.invalidate()

    async def hold_awaited(blocking: Database) -> None:
        used = AsyncDatabase(blocking, pool_size=1)
        async with used._async.connect() as connection:
            await connection.execute(text(HOLD))
            holds.set()
            await asyncio.to_thread(ends.wait, 60)
            await connection.invalidate()
        await used.aclose()

    thread = threading.Thread(target=hold, daemon=True)
    try:
        with held_by(network, thread, holds):
            assert not is_free(database)
            eventually("it is free", lambda: is_free(database), within=45)
    finally:
        ends.set()
        thread.join(20)
