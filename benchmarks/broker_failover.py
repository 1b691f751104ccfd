"""The broker killed with SIGKILL under load: how long until bells are rung and workflows move again, and what is lost.

    python benchmarks/broker_failover.py

An application starts a workflow of ten transitions every 250 ms; a worker (prefork 2) and a beat run them. After
five seconds the broker is killed; a single one is started again one second later, as a supervisor would.

publishers  from the kill until bells of the application are on a queue again: the end of the longest pause
workers     from the kill until transitions are committed again: likewise
caught up   from the kill until every workflow that was accepted before it has completed
queued      messages in the broker just before the kill / just after it is back (or another took its place)
lost        accepted workflows that did not complete, and transitions that are there twice or not at all
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
from bench_workflows import STEPS, TenSteps
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from redis import Redis

from aegis.config.settings import Settings, read
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.servers.sentinel import MASTER, Node, SentinelGroup
from aegis.servers.valkey import Valkey
from aegis.tasks.broker import Broker
from aegis.tasks.unheard import noting
from aegis.workers.factory import make_app
from servers import Servers, servers, worker

UNDER_WAY = 5.0
AWAY = 1.0
AFTERWARDS = 12.0
BETWEEN_STARTS = 0.25
KINDS = {
    "single, in memory only": ("--appendonly", "no"),
    "single, AOF everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "single, AOF always": ("--appendonly", "yes", "--appendfsync", "always"),
}


@dataclass
class Running:
    """The broker's processes, and how it is killed and put right."""

    environment: dict[str, str]
    kill: Callable[[], None]
    mend: Callable[[], None]
    port_or_socket: Callable[[], Redis]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, "Sentinel"])
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # each bell that was not rung is told of
    heads = f"{'broker':24} {'publishers':>10} {'workers':>8} {'caught up':>10} {'queued':>11} {'lost':>5}"
    print(f"{os.cpu_count()} cores; seconds\n\n{heads}")
    for kind in options.kinds:
        for _ in range(options.rounds):
            with servers() as given, _broker(kind, given.folder) as broker:
                print(f"{kind:24} {_measure(given, broker)}", flush=True)


def _measure(given: Servers, broker: Running) -> str:
    environment = given.environment(AEGIS_WORKFLOWS="bench_workflows", AEGIS_HOME=str(given.folder))
    environment |= broker.environment
    settings = read({name: value for name, value in environment.items() if name.startswith("AEGIS_")})
    publisher = Publisher(settings)
    with (
        worker("aegis.workers.app", environment, "--concurrency=2"),
        _beat(environment),
        psycopg2.connect(given.database_url) as connection,
        connection.cursor() as cursor,
    ):
        connection.autocommit = True
        _wait(lambda: _one(cursor, "SELECT count(*) FROM aegis_worker") == 1)
        publisher.start()
        time.sleep(UNDER_WAY)
        before = _queued(settings, broker)
        killed, killed_at = time.monotonic(), _one(cursor, "SELECT clock_timestamp()")
        broker.kill()
        broker.mend()
        back = _queued(settings, broker)
        time.sleep(max(0.0, killed + AFTERWARDS - time.monotonic()))
        publisher.stop()
        _wait(lambda: _completed(cursor) == publisher.accepted, otherwise=None)
        moving, caught_up = _moving_again(cursor, killed_at), _caught_up(cursor, killed_at)
        lost = publisher.accepted - _completed(cursor) + _wrong(cursor)
    publishers = _end_of_longest_pause([0.0, *(at - killed for at in publisher.rung if at > killed)])
    return f"{publishers:10.2f} {moving:8.2f} {caught_up:10.2f} {before:5} / {back:3} {lost:5}"


def _moving_again(cursor: Cursor, since: object) -> float:
    """Return when the longest pause after the kill ended: what was in a worker's hands goes on meanwhile."""
    cursor.execute(
        "SELECT extract(epoch FROM at - %s) FROM aegis_transition"
        f" WHERE at BETWEEN %s AND %s + interval '{AFTERWARDS} s' ORDER BY at",
        (since, since, since),
    )
    times = [0.0, *(float(row[0]) for row in cursor.fetchall())]
    return _end_of_longest_pause(times)


def _end_of_longest_pause(times: Sequence[float]) -> float:
    return max(itertools.pairwise(times), key=lambda pair: pair[1] - pair[0])[1]


def _caught_up(cursor: Cursor, since: object) -> float:
    cursor.execute(
        "SELECT extract(epoch FROM max(updated_at) - %s) FROM aegis_workflow WHERE created_at < %s", (since, since)
    )
    ((seconds,),) = cursor.fetchall()
    return float(seconds)


def _completed(cursor: Cursor) -> int:
    return _one(cursor, "SELECT count(*) FROM aegis_workflow WHERE status = 'completed'")


def _wrong(cursor: Cursor) -> int:
    """Return how many completed workflows have more or fewer transitions than were declared."""
    return _one(
        cursor,
        "SELECT count(*) FROM (SELECT FROM aegis_transition WHERE workflow_id LIKE 'w-%' GROUP BY workflow_id"
        f" HAVING count(*) <> {STEPS + 1} OR count(DISTINCT seq) <> {STEPS + 1}) AS wrong",
    )


class Publisher:
    """An application that starts workflows, whatever happens to the broker."""

    def __init__(self, settings: Settings) -> None:
        self.accepted = 0
        self.rung: list[float] = []
        self._database = Database(settings.database)
        terms = Terms(actor="app:bench", grace=timedelta(seconds=settings.ring_grace), max_bytes=settings.max_bytes)
        self._engine = DurableWorkflowEngine(
            self._database, noting(Broker(make_app(settings)).ring, self._database), terms
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.start = self._thread.start

    def stop(self) -> None:
        """Start no more."""
        self._stopped.set()
        self._thread.join()
        self._database.close()

    def _run(self) -> None:
        while not self._stopped.wait(BETWEEN_STARTS):
            handle = self._engine.start(TenSteps(text="x" * 900), id=f"w-{self.accepted:06d}")
            self.accepted += 1
            if handle.rung:
                self.rung.append(time.monotonic())


# --- brokers ----------------------------------------------------------------------------


@contextmanager
def _broker(kind: str, folder: Path) -> Iterator[Running]:
    made = _sentinels(folder / "sentinels") if kind == "Sentinel" else _single(folder / "single", KINDS[kind])
    try:
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait(10)


def _single(root: Path, options: Sequence[str]) -> Running:
    valkey = Valkey.prepare(Settings(home=root))
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start() -> None:
        processes["valkey"] = _start([*valkey.argv, *options])
        _wait(valkey.is_ready)

    def mend() -> None:
        time.sleep(AWAY)
        start()

    def client() -> Redis:
        return Redis(unix_socket_path=str(valkey.socket))

    start()
    environment = {"AEGIS_BROKER_URL": Settings(home=root).broker}
    return Running(environment, lambda: _kill(processes["valkey"]), mend, client, processes)


def _sentinels(root: Path) -> Running:
    group = SentinelGroup.prepare(Settings(home=root), down_after=2.0)
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(nodes: Sequence[Node]) -> None:
        processes.update({node.name: _start(node.argv) for node in nodes})
        _wait(lambda: all(node.is_ready() for node in nodes))

    def client() -> Redis:
        found = group.master()
        return Redis(port=(found or group.servers[0]).port)

    start(group.servers)
    _wait(group.is_linked)
    start(group.sentinels)
    _wait(group.is_complete)
    environment = {"AEGIS_BROKER_URL": group.url, "AEGIS_BROKER_MASTER": MASTER}
    return Running(
        environment,
        lambda: _kill(processes["server0"]),
        lambda: _wait(lambda: group.master() == group.servers[1]),
        client,
        processes,
    )


def _queued(settings: Settings, broker: Running) -> int:
    """Return how many messages the broker holds: waiting, and in workers' hands."""
    with broker.port_or_socket() as client:
        waiting = sum(client.llen(key) for key in client.keys(f"{settings.broker_prefix}{settings.queue}*"))
        return int(waiting) + int(client.hlen(f"{settings.broker_prefix}unacked"))


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)


@contextmanager
def _beat(environment: dict[str, str]) -> Iterator[None]:
    argv = [sys.executable, "-m", "celery", "--quiet", "-A", "aegis.workers.app", "beat"]
    folder = Path(tempfile.mkdtemp(prefix="aegis-bench-beat-"))
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(holds: Callable[[], bool], within: float = 60.0, otherwise: str | None = "the benchmark is wrong") -> None:
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            if otherwise is not None:
                raise SystemExit(f"{otherwise}: not within {within:g} s")
            return
        time.sleep(0.02)


def _one(cursor: Cursor, statement: str) -> Any:
    cursor.execute(statement)
    ((value,),) = cursor.fetchall()
    return value


if __name__ == "__main__":
    main()
