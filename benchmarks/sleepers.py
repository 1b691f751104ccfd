"""What sleeping workflows cost: one sweep beside 0, 100,000 and 300,000 of them.

    python benchmarks/sleepers.py

idle    a sweep that finds nothing due
busy    a sweep that finds 200 due, and rings them
timer   how late a timer runs out, with beat and a worker that have nothing else to do

Three deployments stand side by side, and each round sweeps all of them in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import psycopg2
from bench_workflows import Nap
from redis import Redis

from aegis.config.settings import Settings, read
from aegis.persistence import watch
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.persistence.watch import Worker
from aegis.tasks.broker import Broker
from aegis.tasks.sweep import sweep
from aegis.workers.factory import make_app
from servers import HERE, Servers, servers, worker

DUE = 200
# Copies of one workflow that waits for its timer, which runs out within the next ten to sixty days.
SLEEPERS = """
    INSERT INTO aegis_workflow (
        id, type, version, definition, state, status, seq, head, following, accepts, moved_at, entered_at,
        timer_at, ready_at, due_at, checkpointed_at, created_at, updated_at)
    SELECT 'sleeper-' || n, type, version, definition, state, status, seq, head, following, accepts, moved_at,
        entered_at, wakes, wakes, wakes, checkpointed_at, created_at, updated_at
    FROM (SELECT *, clock_timestamp() + interval '10 d' + n * interval '14.4 s' AS wakes
          FROM aegis_workflow, generate_series(1, %s) AS n WHERE id = 'pattern') AS sleeping
"""
MAKE_DUE = """
    UPDATE aegis_workflow SET ready_at = clock_timestamp(), due_at = clock_timestamp(), rings = 0
    WHERE id LIKE 'due-%'
"""


@dataclass
class Place:
    """One deployment with so many sleepers, and what was measured there."""

    count: int
    given: Servers
    settings: Settings
    database: Database
    broker: Broker
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"idle": [], "busy": []})

    def sweep(self, kind: str, expected: int) -> None:
        """Sweep once, and note how long it took."""
        began = time.perf_counter()
        swept = sweep(self.database, self.broker, self.settings.recovery)
        self.seconds[kind].append(time.perf_counter() - began)
        _check(swept.rung == expected, f"{swept.rung} rung instead of {expected}")

    def median(self, kind: str) -> float:
        """Return the middle one, in milliseconds."""
        return statistics.median(self.seconds[kind]) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 100_000, 300_000])
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; {options.rounds} rounds; milliseconds, median\n")
    with ExitStack() as stack:
        places = [stack.enter_context(_place(count)) for count in options.counts]
        for number in range(options.rounds + 5):
            for place in places[:: 1 if number % 2 else -1]:
                place.sweep("idle", 0)
                _make_due(place)
                place.sweep("busy", DUE)
            if number == 4:  # the first few only warm up
                for place in places:
                    place.seconds = {"idle": [], "busy": []}
        print("  sleeping      idle     ratio      busy     ratio   timer late by: median, most")
        for place in places:
            late = _timers(place)
            shown = [
                f"{place.median(kind):9.2f} {place.median(kind) / places[0].median(kind):9.2f}"
                for kind in place.seconds
            ]
            print(f"{place.count:10,} {' '.join(shown)}   {statistics.median(late):.2f} s, {max(late):.2f} s")


@contextmanager
def _place(count: int) -> Iterator[Place]:
    with servers() as given:
        settings = read(given.environment())
        database = Database(settings.database)
        broker = Broker(make_app(settings))
        terms = Terms(actor="app:bench", grace=timedelta(hours=1), max_bytes=settings.max_bytes)
        engine = DurableWorkflowEngine(database, broker.ring, terms)
        engine.start(Nap(), id="pattern")
        for number in range(DUE):
            engine.start(Nap(), id=f"due-{number:04d}")
        with _cursor(given) as cursor:
            cursor.execute(SLEEPERS, (count,))
            cursor.execute("UPDATE aegis_workflow SET due_at = timer_at, ready_at = timer_at")
            cursor.execute("VACUUM ANALYZE")
        broker.remember()
        alive = Worker(id="w", host="h", pid=1, pids=(1,), queues=(settings.queue,), types=("Nap/1",))
        with database.statement() as connection:
            watch.beat(connection, alive)
        yield Place(count=count, given=given, settings=settings, database=database, broker=broker)
        database.close()


def _make_due(place: Place) -> None:
    with _cursor(place.given) as cursor:
        cursor.execute(MAKE_DUE)
    _redis(place).delete(f"{place.settings.broker_prefix}{place.settings.queue}")
    alive = Worker(id="w", host="h", pid=1, pids=(1,), queues=(place.settings.queue,), types=("Nap/1",))
    with place.database.statement() as connection:
        watch.beat(connection, alive)


def _timers(place: Place) -> list[float]:
    """Return how late each of twenty timers ran out (seconds), with a real worker and beat."""
    with _cursor(place.given) as cursor:
        cursor.execute("UPDATE aegis_workflow SET due_at = timer_at, ready_at = timer_at, rings = 0")
        cursor.execute("DELETE FROM aegis_worker")
    _redis(place).flushall()
    environment = place.given.environment(AEGIS_WORKFLOWS="bench_workflows")
    beat = subprocess.Popen(
        [sys.executable, "-m", "celery", "--quiet", "-A", "aegis.workers.app", "beat"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=HERE,
    )
    try:
        with worker("aegis.workers.app", environment, "--concurrency=2"), _cursor(place.given) as cursor:
            _until(lambda: _one(cursor, "SELECT count(*) FROM aegis_worker") == 1)
            time.sleep(3)
            cursor.execute(
                "UPDATE aegis_workflow SET entered_at = wakes - interval '1 d', timer_at = wakes, ready_at = wakes,"
                " due_at = wakes FROM (SELECT id AS nap, clock_timestamp() + interval '3 s'"
                " + right(id, 4)::int * interval '0.37 s' AS wakes FROM aegis_workflow"
                " WHERE id LIKE 'due-00%' AND right(id, 4)::int < 20) AS timers WHERE id = nap"
            )
            late = (
                "SELECT extract(epoch FROM t.at - w.timer_at) FROM aegis_transition t JOIN"
                " (SELECT workflow_id, seq FROM aegis_transition WHERE event = 'wake') woken USING (workflow_id, seq)"
                " JOIN naps w ON w.id = t.workflow_id"
            )
            cursor.execute("CREATE TEMP TABLE naps AS SELECT id, timer_at FROM aegis_workflow WHERE id LIKE 'due-00%'")
            _until(lambda: _one(cursor, "SELECT count(*) FROM aegis_transition WHERE event = 'wake'") == 20)
            cursor.execute(late)
            return [float(row[0]) for row in cursor.fetchall()]
    finally:
        beat.terminate()
        beat.wait(30)


@contextmanager
def _cursor(given: Servers) -> Iterator[psycopg2.extensions.cursor]:
    connection = psycopg2.connect(given.database_url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def _one(cursor: psycopg2.extensions.cursor, query: str) -> object:
    cursor.execute(query)
    row = cursor.fetchone()
    return None if row is None else row[0]


def _until(true: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not true():
        _check(time.monotonic() < deadline, "it did not come to that in time")
        time.sleep(0.05)


def _redis(place: Place) -> Redis:
    return Redis.from_url(place.settings.broker.replace("redis+socket://", "unix://"))


def _check(true: bool, problem: str) -> None:
    if not true:
        raise SystemExit(f"the benchmark is wrong: {problem}")


if __name__ == "__main__":
    main()
