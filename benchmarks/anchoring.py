"""What one anchor costs, as the log grows: a thousand new transitions on ten thousand, a hundred thousand, a million.

    python benchmarks/anchoring.py
    python benchmarks/anchoring.py --lengths 10000 1000000 --rounds 20

seconds   one run: places given, nodes kept, the old root proved to be part of the new one, signed, on disk
process   processor time of the process that anchors, in it
postgres  processor time of PostgreSQL, in it

The logs stand side by side, each in a database of its own on one server, and the rounds alternate.
Machines are shared: take the ratios, not the seconds. The statement to show is that the last line
says about one: the cost of an anchor is that of what is new, however long the log is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import psycopg2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from aegis.core.note import SigningKey
from aegis.persistence import log
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.tasks.anchor import Anchored, Notary, Policy, anchor
from aegis.tasks.sinks import AnchorFile
from servers import Servers, cpu_seconds, servers

NEW = 1000
POLICY = Policy(interval=timedelta(days=1), every=1)

# Histories of a hundred transitions each, with envelopes of the usual size.
TRANSITIONS = """
    INSERT INTO aegis_transition (workflow_id, seq, event, to_state, actor, attempt, at, envelope, hash)
    SELECT %(name)s || '-' || n / 100, n %% 100, 'step', 'there', 'worker:bench', 1, clock_timestamp(),
           convert_to(repeat('x', 600), 'UTF8'), sha256(convert_to(%(name)s || n, 'UTF8'))
    FROM generate_series(0, %(count)s - 1) AS n
"""
LEAVES = """
    INSERT INTO aegis_log (log_index, workflow_id, seq, hash)
    SELECT row_number() OVER (ORDER BY workflow_id, seq) - 1, workflow_id, seq, hash FROM aegis_transition
"""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A log of some length."""

    length: int
    database: Database
    sink: AnchorFile


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one anchor took."""

    seconds: float
    process: float
    postgres: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with servers() as given, ExitStack() as stack:
        sides = [stack.enter_context(_side(given, length)) for length in options.lengths]
        for side in sides:  # once for nothing: imports, connections, plans, what is behind a bulk load
            _measure(given, side, "warm")
        costs: dict[int, list[Cost]] = {side.length: [] for side in sides}
        for number in range(options.rounds):
            for side in sides:
                costs[side.length].append(_measure(given, side, f"r{number}"))
        _print(costs)


@contextmanager
def _side(given: Servers, length: int) -> Iterator[Side]:
    """Make a log of that length at once: anchored up to its end, with all its nodes."""
    name = f"log_{length}"
    _create(given, name)
    url = given.database_url.replace("postgresql://", "postgresql+psycopg2://").replace("/postgres?", f"/{name}?")
    database = Database(url, pool_size=2)
    upgrade(database, deployment="aegis.example/bench")
    with database.transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql(TRANSITIONS, {"name": "old", "count": length})
        connection.exec_driver_sql(LEAVES)
        log._keep_nodes(connection, 0, length)  # noqa: SLF001 - what a million small steps would have kept
        connection.execute(text("UPDATE aegis_log_state SET size = :length"), {"length": length})
    with database.statement() as connection:
        for table in ("aegis_transition", "aegis_log", "aegis_log_node"):
            connection.exec_driver_sql(f"VACUUM ANALYZE {table}")
    side = Side(length=length, database=database, sink=AnchorFile(given.folder / f"{name}.jsonl"))
    _anchor(side)
    yield side
    database.close()


def _create(given: Servers, name: str) -> None:
    connection = psycopg2.connect(given.database_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()


def _measure(given: Servers, side: Side, name: str) -> Cost:
    with side.database.transaction() as session:
        session.connection().exec_driver_sql(TRANSITIONS, {"name": name, "count": NEW})
    with side.database.statement() as connection:
        # What was written until now is not to be written to the disk meanwhile.
        connection.exec_driver_sql("CHECKPOINT")
    before = cpu_seconds(given.postgres)
    mine, began = _own(), time.perf_counter()
    ran = _anchor(side)
    cost = Cost(
        seconds=time.perf_counter() - began,
        process=_own() - mine,
        postgres=cpu_seconds(given.postgres) - before,
    )
    _check(side, ran)
    return cost


def _anchor(side: Side) -> Anchored:
    key = SigningKey(name="aegis.example/bench", private=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    return anchor(side.database, [side.sink], Notary(key=key, trusted=[]), POLICY)


def _own() -> float:
    """Return this process's processor time; the servers are its children."""
    used = psutil.Process().cpu_times()
    return used.user + used.system


def _check(side: Side, ran: Anchored) -> None:
    last = side.sink.last()
    if ran != Anchored(logged=NEW, written=1) or last is None or len(last.entries) != NEW:
        raise SystemExit(f"the benchmark is wrong: {ran}")


def _print(costs: dict[int, list[Cost]]) -> None:
    rounds = len(next(iter(costs.values())))
    print(f"{os.cpu_count()} cores; {rounds} anchors on each log, of {NEW:,} new entries; min / median / max")
    print(f"\n{'log':>10}  {'seconds':^23}  {'process':^23}  {'postgres':^23}   ratio")
    first = statistics.median(cost.seconds for cost in next(iter(costs.values())))
    for length, each in costs.items():
        columns = [_spread([getattr(cost, name) for cost in each]) for name in ("seconds", "process", "postgres")]
        ratio = statistics.median(cost.seconds for cost in each) / first
        print(f"{length:10,}  {'  '.join(columns)}   {ratio:5.2f}")


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):6.3f} {statistics.median(values):7.3f} {max(values):8.3f}"


if __name__ == "__main__":
    main()
