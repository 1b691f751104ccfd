"""How long it takes to back a database up, to prove the backup, and to go back to a point in time.

    python benchmarks/restore.py
    python benchmarks/restore.py --workflows 10000

Workflows are started and anchored, and a backup is taken. Then there are a tenth more; and the database is
restored to the moment in between, into a directory: each chain in it verified, and its log compared with the
anchors. Barman has to be installed: pip install 'aegis-workflows[backup]'.

Machines are shared: take orders of magnitude.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from bench_workflows import TenSteps

from aegis.config.keys import new_anchor_key
from aegis.config.settings import Settings
from aegis.core.starting import Start
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.recovery.backup.take import take, verify
from aegis.recovery.restore.restore import restore
from aegis.tasks.anchor import Policy, anchor, notary
from aegis.tasks.sinks import sinks
from servers import servers

AT_ONCE = 1000
T = TypeVar("T")


def timed(what: str, act: Callable[[], T]) -> T:
    """Do something, and say how long it took."""
    began = time.monotonic()
    done = act()
    print(f"{time.monotonic() - began:8.1f} s  {what}", flush=True)
    return done


def start(engine: DurableWorkflowEngine, first: int, count: int) -> None:
    """Start so many workflows, a thousand in each transaction."""
    for number in range(first, first + count, AT_ONCE):
        numbers = range(number, min(number + AT_ONCE, first + count))
        engine.start_many(Start(TenSteps(text="x" * 1000), id=f"w-{each:07}") for each in numbers)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=100_000)
    count = parser.parse_args().workflows
    with servers() as running:
        settings = Settings(home=running.folder, database_url=running.database_url, broker_url=running.broker_url)
        new_anchor_key(settings.key_folder, "bench")
        database = Database(settings.database)
        terms = Terms(actor="user:bench", grace=timedelta(hours=1), max_bytes=settings.max_bytes)
        engine = DurableWorkflowEngine(database, lambda _: True, terms)
        policy = Policy(interval=timedelta(minutes=1), every=1000)

        def anchored() -> None:
            anchor(database, sinks(settings), notary(settings), policy, now=True)

        timed(f"{count:,} workflows started", lambda: start(engine, 0, count))
        timed("anchored", anchored)
        base = timed("a full backup", lambda: take(settings))
        print(f"{'':11}{base.size / 1e6:,.0f} MB")
        _, proof = timed("restored onto a scratch server, migrated, verified", lambda: verify(settings, base.id))
        print(
            f"{'':11}{proof.workflows:,} histories, {proof.transitions:,} transitions, {proof.anchored:,} as anchored"
        )
        between = datetime.now(UTC)
        timed(f"{count // 10:,} more", lambda: start(engine, count, count // 10))
        anchored()
        done = timed(
            "restored to the moment in between, verified, compared, given",
            lambda: restore(settings, between.isoformat(), running.folder / "restored"),
        )
        for lack in done.lacks:
            print(f"{'':11}{lack.source}: {lack.transitions:,} transitions of {lack.workflows:,} workflows later")
        database.close()


if __name__ == "__main__":
    main()
