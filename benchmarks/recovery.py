"""How long until pending workflows are under way again: 100 and 10,000 of them, resumed and swept.

    python benchmarks/recovery.py

resumed   ``engine.resume_all_pending``: until every bell is on the queue
swept     the broker has forgotten everything: until one sweep has rung them all
moving    a worker (prefork 4) is there: until every one of them has made a transition
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta

import psycopg2
from bench_workflows import TenSteps
from redis import Redis

from aegis.config.settings import settings
from aegis.core.starting import Start
from aegis.persistence import starting, watch
from aegis.persistence.database import Database
from aegis.persistence.operations import Terms
from aegis.persistence.watch import Worker
from aegis.sync import DurableWorkflowEngine
from aegis.tasks.broker import Broker
from aegis.tasks.sweep import sweep
from aegis.workers.factory import make_app
from servers import Servers, servers, worker

A_BATCH = 500


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 10_000])
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; seconds\n\n   pending   resumed     swept    moving")
    for count in options.counts:
        with servers() as given:
            os.environ.update(given.environment(AEGIS_WORKFLOWS="bench_workflows"))
            settings.cache_clear()
            print(f"{count:10,} {_resumed(count):9.2f} {_swept(count):9.2f} {_moving(given, count):9.2f}")


def _resumed(count: int) -> float:
    engine = DurableWorkflowEngine(actor="app:bench")
    _accept(engine.database, count)
    began = time.monotonic()
    handles = engine.resume_all_pending(TenSteps)
    seconds = time.monotonic() - began
    _check(len(handles) == count and _queued() == count)
    return seconds


def _swept(count: int) -> float:
    """Sweep as beat does, once; a living worker that knows the type is only said to be there."""
    database = Database(settings().database)
    broker = Broker(make_app(settings()))
    _broker().flushall()
    alive = Worker(id="w", host="h", pid=1, pids=(1,), queues=(settings().queue,), types=("TenSteps/1",))
    with database.statement() as connection:
        watch.beat(connection, alive)
    began = time.monotonic()
    swept = sweep(database, broker, settings().recovery)
    seconds = time.monotonic() - began
    _check(swept.rung == count and swept.broker_forgot and _queued() == count)
    with database.statement() as connection:
        watch.bury(connection, ["w"])
    database.close()
    return seconds


def _moving(given: Servers, count: int) -> float:
    environment = given.environment(AEGIS_WORKFLOWS="bench_workflows")
    with (
        worker("aegis.workers.app", environment, "--concurrency=4") as process,
        psycopg2.connect(given.database_url) as connection,
        connection.cursor() as cursor,
    ):
        connection.autocommit = True
        while True:  # it is ready once its heartbeat is there
            cursor.execute("SELECT count(*) FROM aegis_worker")
            if cursor.fetchone() == (1,):
                break
            time.sleep(0.05)
        process.suspend()
        began = time.monotonic()
        process.resume()
        while True:
            cursor.execute("SELECT count(*) FROM aegis_workflow WHERE seq > 0")
            if cursor.fetchone() == (count,):
                return time.monotonic() - began
            time.sleep(0.02)


def _accept(database: Database, count: int) -> None:
    """Accept workflows whose bells were never rung."""
    terms = Terms(actor="app:bench", grace=timedelta(hours=1), max_bytes=settings().max_bytes)
    for start in range(0, count, A_BATCH):
        with database.transaction() as session:
            numbers = range(start, min(start + A_BATCH, count))
            starting.start_all(session, [(f"w-{n:06d}", Start(TenSteps(text="x" * 900))) for n in numbers], terms)


def _broker() -> Redis:
    return Redis.from_url(settings().broker.replace("redis+socket://", "unix://"))


def _queued() -> int:
    return Broker(make_app(settings())).lengths([None])[None]


def _check(true: bool) -> None:
    if not true:
        raise SystemExit("the benchmark is wrong: not everything was rung")


if __name__ == "__main__":
    main()
