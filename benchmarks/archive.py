"""What it costs to let commits wait for the archive, and what it saves when the database's disk is gone.

    python benchmarks/archive.py
    python benchmarks/archive.py --rounds 5 --workflows 300 --clients 8

Workflows are started, each in a commit of its own, in alternating rounds: without an archive, with one, and
with one that commits wait for. Then, in the middle of it, PostgreSQL is killed and its data directory removed;
what is archived is restored, and compared with what clients were told is committed. Barman has to be installed:
pip install 'aegis-workflows[backup]'. The archive is on the same disk as the database here: another disk, or
another machine, has other figures.

Machines are shared: take ratios.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta

from bench_workflows import TenSteps
from sqlalchemy import text

from aegis.config.keys import new_anchor_key
from aegis.config.settings import Settings
from aegis.core.errors import DatabaseUnavailable
from aegis.persistence import cluster
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.recovery.backup.prove import database_name
from aegis.recovery.backup.source import repository
from aegis.recovery.backup.take import take
from aegis.recovery.copy import copied
from aegis.recovery.restore.restore import restore
from servers import Servers, servers

NONE, BESIDE, WAITED_FOR = "no archive", "an archive", "an archive that commits wait for"
WRITES_FOR = 3.0


class Clients:
    """Clients that start workflows, and a ledger of what they were told is committed."""

    def __init__(self, settings: Settings, clients: int) -> None:
        self.acknowledged: list[str] = []
        self._database = Database(settings.database, pool_size=clients)
        terms = Terms(actor="user:bench", grace=timedelta(hours=1), max_bytes=settings.max_bytes)
        self._engine = DurableWorkflowEngine(self._database, lambda _: True, terms)
        self._pool = ThreadPoolExecutor(clients)
        self._clients, self._numbers = clients, itertools.count()

    def start(self, count: int) -> list[float]:
        """Start so many; return how long each took, in milliseconds."""
        each = [count // self._clients] * self._clients
        return [took for some in self._pool.map(self._start, each) for took in some]

    def _start(self, count: int) -> list[float]:
        return [self.one() for _ in range(count)]

    def one(self) -> float:
        """Start one."""
        workflow_id = f"w-{next(self._numbers):07}"
        began = time.perf_counter()
        self._engine.start(TenSteps(text="x" * 1000), id=workflow_id)
        took = (time.perf_counter() - began) * 1000
        self.acknowledged.append(workflow_id)
        return took

    def until_it_is_gone(self) -> None:
        """Start them until the database does not answer any more."""

        def run(_: int) -> None:
            try:
                while True:
                    self.one()
            except DatabaseUnavailable:
                return

        list(self._pool.map(run, range(self._clients)))

    def close(self) -> None:
        """End them."""
        self._pool.shutdown()
        self._database.close()


@contextmanager
def archived(running: Servers, settings: Settings, how: str) -> Iterator[None]:
    """Have it archived, in that way."""
    if how == NONE:
        yield
        return
    tell(settings, "aegis_archive" if how == WAITED_FOR else "")
    environment = running.environment(AEGIS_HOME=str(settings.home))
    argv = [sys.executable, "-m", "aegis.recovery.backup.archive"]
    archive = subprocess.Popen(argv, env=environment, start_new_session=True)
    database = Database(settings.database, pool_size=1)
    try:
        while not (found := look(database)) or not found.active or found.synchronous != (how == WAITED_FOR):
            time.sleep(0.1)
        time.sleep(0.5)
        yield
    finally:
        with suppress(DatabaseUnavailable):  # it may be destroyed by now
            tell(settings, "")
        archive.send_signal(signal.SIGTERM)
        archive.wait(30)
        database.close()


def look(database: Database) -> cluster.Archive | None:
    """Ask how far it is."""
    with database.statement() as connection:
        return cluster.archive(connection)


def tell(settings: Settings, names: str) -> None:
    """Tell the server whom to wait for."""
    database = Database(settings.database, pool_size=1)
    with database.statement() as connection:
        for statement in (f"ALTER SYSTEM SET synchronous_standby_names = '{names}'", "SELECT pg_reload_conf()"):
            connection.execute(text(statement))
    database.close()


def measure(running: Servers, settings: Settings, rounds: int, count: int, clients: int) -> None:
    """Measure, round by round, and print."""
    took: dict[str, list[list[float]]] = {NONE: [], BESIDE: [], WAITED_FOR: []}
    writing = Clients(settings, clients)
    writing.start(clients * 20)
    for _ in range(rounds):
        for how, found in took.items():
            with archived(running, settings, how):
                found.append(writing.start(count))
    writing.close()
    for how, found in took.items():
        every = sorted(itertools.chain(*found))
        ratios = [statistics.median(one) / statistics.median(none) for one, none in zip(found, took[NONE], strict=True)]
        print(
            f"{how:34} p50 {statistics.median(every):6.2f} ms  p95 {every[int(len(every) * 0.95)]:6.2f} ms  "
            f"beside none, by round: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def lose(running: Servers, settings: Settings, clients: int) -> None:
    """Destroy the disk while clients write; restore, and compare."""
    waited_for = settings.model_copy(update={"backup_synchronous": True})
    writing = Clients(waited_for, clients)
    with archived(running, waited_for, WAITED_FOR):
        threading.Timer(WRITES_FOR, lambda: destroy(running, settings)).start()
        writing.until_it_is_gone()
    writing.close()
    began = time.monotonic()
    done = restore(waited_for, "latest", running.folder / "restored")
    took = time.monotonic() - began
    with copied(running.folder / "restored", repository(settings).programs, running.folder / "restored.log") as copy:
        copy.start(user="aegis", durable=True)
        database = Database(copy.url("aegis", database_name(settings)), pool_size=1)
        with database.statement() as connection:
            there = set(connection.execute(text("SELECT id FROM aegis_workflow")).scalars())
        database.close()
    missing = set(writing.acknowledged) - there
    print(
        f"disk destroyed: {len(writing.acknowledged):,} acknowledged, {len(missing)} of them missing; "
        f"{done.workflows:,} histories restored and verified in {took:.1f} s"
    )


def destroy(running: Servers, settings: Settings) -> None:
    """Kill every process of the server, and remove its data."""
    for process in [running.postgres, *running.postgres.children(recursive=True)]:
        process.kill()
    shutil.rmtree(settings.places.postgres)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workflows", type=int, default=300, help="in each round")
    parser.add_argument("--clients", type=int, default=1, help="that write at once")
    given = parser.parse_args()
    with servers() as running:
        settings = Settings(home=running.folder, database_url=running.database_url, broker_url=running.broker_url)
        new_anchor_key(settings.key_folder, "bench")
        take(settings)
        measure(running, settings, given.rounds, given.workflows, given.clients)
        lose(running, settings, given.clients)


if __name__ == "__main__":
    main()
