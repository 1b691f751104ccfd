"""What a fail-over costs: lost transitions, the clients' gap, and when workflows move again.

    python benchmarks/failover.py [--repeat 3] [--faults node postmaster switchover frozen asynchronous]

A cluster of three nodes runs in a folder of its own, with two workers and beat. Outside of it, three threads
start workflows without pause and write each acknowledgement down; another one reads how far the workers have
come. Then one thing happens to the leader:

node          its PostgreSQL and its Patroni are killed
postmaster    its PostgreSQL alone is killed
switchover    it is told to hand over
frozen        its Patroni is stopped (SIGSTOP) for 40 s, its PostgreSQL goes on
asynchronous  synchronous mode is off, the standbys stop receiving, the leader is killed, one of them is promoted:
              what is lost here, the other measurements would have found

lost          acknowledged to the client, and not in the database afterwards
unknown       an error for the client, and in the database all the same
gap           the longest time without an acknowledgement, around the fault
moving        from the fault to the first transition that a worker commits after the longest pause
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg2
from failover_workflows import Relay

from aegis.config.keys import new_anchor_key
from aegis.config.settings import Settings, settings
from aegis.core.errors import AegisError, DatabaseUnavailable
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.recovery.cluster import patroni
from aegis.recovery.cluster.cluster import Cluster, is_whole
from aegis.servers import stack
from aegis.servers.supervisor import Supervisor
from aegis.sync import DurableWorkflowEngine

CLIENTS: Final = 3
STEADY: Final = 6.0
FROZEN: Final = 40.0
# The end of everything that waits here (seconds).
PATIENCE: Final = 150.0


@dataclass
class Clients:
    """Threads outside of the cluster that start workflows, and the ledger of what they were told."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    errored: dict[str, float] = field(default_factory=dict)
    stopping: bool = False

    def run(self, number: int) -> None:
        """Start workflows until told otherwise."""
        engine = DurableWorkflowEngine(actor=f"app:client-{number}")
        count = 0
        while not self.stopping:
            name = f"r-{os.getpid()}-{int(time.time())}-{number}-{count}"
            count += 1
            try:
                engine.start(Relay(), id=name)
                self.acknowledged[name] = time.monotonic()
            except AegisError:
                self.errored[name] = time.monotonic()
                time.sleep(0.05)
            time.sleep(0.01)
        engine.database.close()

    def longest_gap(self, since: float) -> float:
        """Return the longest time between two acknowledgements, from shortly before a moment on."""
        return longest([at for at in self.acknowledged.values() if at > since - 1])[0]


@dataclass
class Workers:
    """What is seen of the workers from outside: when the number of completed workflows went up."""

    moved: list[float] = field(default_factory=list)
    connections: dict[str, Any] = field(default_factory=dict)
    stopping: bool = False

    def watch(self, urls: list[str]) -> None:
        """Look until told otherwise, at every node: one that was left behind does not move."""
        furthest = -1
        while not self.stopping:
            for url in urls:
                found = self._look(url)
                if found > furthest:
                    self.moved.append(time.monotonic())
                    furthest = found
            time.sleep(0.05)
        for connection in self.connections.values():
            connection.close()

    def _look(self, url: str) -> int:
        try:
            if url not in self.connections:
                self.connections[url] = psycopg2.connect(url, connect_timeout=2)
                self.connections[url].autocommit = True
            with self.connections[url].cursor() as cursor:
                cursor.execute("SELECT coalesce(max(xact), 0) FROM aegis_transition WHERE actor LIKE 'worker:%'")
                return int(cursor.fetchone()[0])
        except psycopg2.Error:
            self.connections.pop(url, None)
            return -1


def longest(moments: list[float]) -> tuple[float, float]:
    """Return the longest gap between neighbours, and when it ended."""
    ordered = sorted(moments)
    gaps = [(after - before, after) for before, after in pairwise(ordered)]
    return max(gaps, default=(0.0, 0.0))


# --- the cluster, and what happens to it --------------------------------------------------------


@dataclass
class Site:
    """A cluster with workers and beat."""

    cluster: Cluster
    supervisor: Supervisor
    told: Settings

    def leader(self) -> str:
        """Return who leads; wait until somebody does."""
        deadline = time.monotonic() + PATIENCE
        while (found := patroni.leader(self.cluster.members())) is None:
            if time.monotonic() > deadline:
                raise SystemExit("nobody leads")
            time.sleep(0.1)
        return found.name

    def postmaster(self, name: str) -> psutil.Process:
        """Return a node's PostgreSQL."""
        node = next(node for node in self.cluster.layout.nodes if node.name == name)
        return psutil.Process(node.postmaster())

    def receivers(self, leader: str) -> list[psutil.Process]:
        """Return the processes that receive the standbys' WAL."""
        standbys = [node.name for node in self.cluster.layout.nodes if node.name != leader]
        return [
            child
            for name in standbys
            for child in self.postmaster(name).children()
            if "walreceiver" in " ".join(child.cmdline())
        ]

    def each(self) -> list[str]:
        """Return the address of each node by itself."""
        layout = self.cluster.layout
        return [layout.url([node], target="any") for node in layout.nodes]

    def set_mode(self, mode: object) -> None:
        """Change synchronous mode, in all nodes."""
        change = {"synchronous_mode": mode, "synchronous_mode_strict": bool(mode)}
        patroni.change(self.cluster.layout, change)


Struck = tuple[float, Callable[[], object]]
"""When it happened, and what mends it."""


def node(site: Site) -> Struck:
    """Lose the leader's machine."""
    name = site.leader()
    site.supervisor.kill(name, stay_down=True)
    return time.monotonic(), lambda: site.supervisor.revive(name)


def postmaster(site: Site) -> Struck:
    """Kill the leader's PostgreSQL."""
    site.postmaster(site.leader()).kill()
    return time.monotonic(), lambda: None


def switchover(site: Site) -> Struck:
    """Hand over."""
    began = time.monotonic()
    patroni.switch_over(site.cluster.layout)
    return began, lambda: None


def frozen(site: Site) -> Struck:
    """Freeze the leader's agent, and thaw it later."""
    pid = site.supervisor.pid(site.leader())
    os.kill(pid, signal.SIGSTOP)
    thaw = threading.Timer(FROZEN, lambda: os.kill(pid, signal.SIGCONT))
    thaw.start()
    return time.monotonic(), thaw.join


def asynchronous(site: Site) -> Struck:
    """Lose the leader's machine while the standbys, which nobody waits for, are behind."""
    name = site.leader()
    receivers = site.receivers(name)
    for receiver in receivers:
        receiver.suspend()
    time.sleep(3)
    site.supervisor.kill(name, stay_down=True)
    struck = time.monotonic()
    for receiver in receivers:
        receiver.kill()  # what has reached its socket, but not the disk, is gone: as it is when a line is cut
    return struck, lambda: site.supervisor.revive(name)


FAULTS: Final[dict[str, Callable[[Site], Struck]]] = {
    "node": node,
    "postmaster": postmaster,
    "switchover": switchover,
    "frozen": frozen,
    "asynchronous": asynchronous,
}


@contextmanager
def site() -> Iterator[Site]:
    """Run a cluster with workers and beat, in a folder that is gone with it."""
    with tempfile.TemporaryDirectory(prefix="aegis-failover-") as folder:
        Path(folder).chmod(0o755)
        here = str(Path(__file__).parent)
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        os.environ |= {"AEGIS_HOME": folder, "AEGIS_WORKFLOWS": "failover_workflows", "PYTHONPATH": path}
        os.environ |= {"AEGIS_ANCHOR_INTERVAL": "1", "AEGIS_ANCHOR_EVERY": "20"}
        os.environ.setdefault("AEGIS_LOG_LEVEL", "warning")
        settings.cache_clear()
        supervisor = Supervisor(lambda *_: None)
        try:
            cluster = Cluster.prepare(settings())
            cluster.start(supervisor)
            supervisor.start(stack.broker(settings()))
            os.environ["AEGIS_DATABASE_URL"] = cluster.layout.url()
            os.environ["AEGIS_BROKER_URL"] = settings().places.broker_url
            settings.cache_clear()
            _migrate()
            for number in (1, 2):
                supervisor.start(stack.worker(settings(), settings().places.logs, number, 2))
            supervisor.start(stack.beat(settings().places.logs))
            yield Site(cluster, supervisor, settings())
        finally:
            supervisor.stop()


def _migrate() -> None:
    database = Database(settings().database, pool_size=1)
    upgrade(database, deployment="aegis.example/failover")
    new_anchor_key(settings().key_folder, "aegis.example/failover")
    database.close()


# --- measuring ----------------------------------------------------------------------------------


def measure(here: Site, fault: str) -> str:
    """Do one fault under load; return a line of the table."""
    if fault == "asynchronous":
        here.set_mode("off")
        time.sleep(6)
    clients, workers = Clients(), Workers()
    threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(CLIENTS)]
    threads.append(threading.Thread(target=workers.watch, args=(here.each(),)))
    for thread in threads:
        thread.start()
    time.sleep(STEADY)
    began, heal = FAULTS[fault](here)
    _await_change(here, clients, began)
    heal()
    _await_whole(here)
    time.sleep(STEADY)
    clients.stopping = workers.stopping = True
    for thread in threads:
        thread.join(PATIENCE)
    lost, unknown, completed = _settle(clients)
    pause, moved = longest([at for at in workers.moved if at > began - 1])
    acknowledged = len(clients.acknowledged)
    return (
        f"{fault:>13} {acknowledged:>7,} {lost:>6,} {unknown:>8} {clients.longest_gap(began):>6.1f}"
        f" {moved - began if pause > 1 else 0.0:>7.1f} {completed:>10,}"
    )


def _await_change(here: Site, clients: Clients, began: float) -> None:
    """Wait until clients are served again after the fault."""
    time.sleep(2)
    while not (_serves(clients, since=began + 2) and _one_leads(here)):
        here.supervisor.look()
        if time.monotonic() > began + PATIENCE:
            raise SystemExit("the clients are not served again")
        time.sleep(0.1)


def _serves(clients: Clients, *, since: float) -> bool:
    return any(at > since for at in list(clients.acknowledged.values())[-CLIENTS:])


def _one_leads(here: Site) -> bool:
    return patroni.leader(here.cluster.members()) is not None


def _await_whole(here: Site) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (is_whole(here.cluster.members()) or _is_asynchronous(here)):
        here.supervisor.look()
        if time.monotonic() > deadline:
            raise SystemExit("the cluster does not become whole again")
        time.sleep(0.2)


def _is_asynchronous(here: Site) -> bool:
    members = here.cluster.members()
    return [member.role for member in members].count("replica") == 2


def _settle(clients: Clients) -> tuple[int, int, int]:
    """Wait until what is there has completed; return what was lost, what was there all the same, what completed."""
    database = Database(settings().database, pool_size=1)
    deadline = time.monotonic() + PATIENCE
    rows: list[tuple[str, str]] = []
    while time.monotonic() < deadline:
        with suppress(DatabaseUnavailable), database.statement() as connection:
            found = connection.exec_driver_sql("SELECT id, status FROM aegis_workflow WHERE type = 'Relay'").all()
            rows = [(row[0], row[1]) for row in found]
        if rows and all(status == "completed" for _, status in rows):
            break
        time.sleep(0.2)
    present = {workflow_id for workflow_id, _ in rows}
    database.close()
    lost = clients.acknowledged.keys() - present
    completed = sum(status == "completed" for _, status in rows)
    if completed != len(rows):
        raise SystemExit(f"{len(rows) - completed} workflows do not complete")
    return len(lost), len(clients.errored.keys() & present), completed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; seconds\n")
    print(f"{'fault':>13} {'acked':>7} {'lost':>6} {'unknown':>8} {'gap':>6} {'moving':>7} {'completed':>10}")
    with site() as here:
        for fault in options.faults:
            for _ in range(options.repeat):
                print(measure(here, fault), flush=True)
        print("\n" + _verify())


def _verify() -> str:
    """Return what the verification with the anchors says of everything that is there."""
    import subprocess  # noqa: PLC0415 - needed here alone

    argv = [str(Path(sys.executable).parent / "aegis"), "verify", "--all"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "\n".join((done.stdout + done.stderr).splitlines()[-12:])


if __name__ == "__main__":
    main()
