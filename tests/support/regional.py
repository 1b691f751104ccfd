"""Three regions that tests do things to, and clients inside and outside of the one that is met."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from fault_workflows import Steps
from local_engine import eventually

from aegis.core.errors import AegisError
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.recovery.cluster import patroni
from aegis.recovery.cluster.cluster import is_whole
from aegis.recovery.regions.regions import NAMES, Region, Regions
from aegis.servers.supervisor import Supervisor
from aegis.tasks.broker import Broker
from aegis.workers.factory import make_app

_TERMS = Terms(actor="app:test", grace=timedelta(seconds=1), max_bytes=65536)


class Client:
    """Starts workflows in one region without pause, and remembers what it was told, and when."""

    def __init__(self, region: Region, prefix: str) -> None:
        self.region, self._prefix = region, prefix
        self.acknowledged: dict[str, float] = {}
        self.refused: dict[str, float] = {}
        self.stopping = False

    def run(self) -> None:
        database = Database(self.region.settings.database, pool_size=1)
        engine = DurableWorkflowEngine(database, Broker(make_app(self.region.settings)).ring, _TERMS)
        number = 0
        while not self.stopping:
            workflow_id, number = f"{self._prefix}-{self.region.name}-{number}", number + 1
            try:
                engine.start(Steps(), id=workflow_id)
                self.acknowledged[workflow_id] = time.monotonic()
            except AegisError:
                self.refused[workflow_id] = time.monotonic()
                time.sleep(0.05)
            time.sleep(0.03)
        database.close()

    def since(self, moment: float) -> list[str]:
        """What it was told was accepted, after a moment."""
        return [workflow_id for workflow_id, at in list(self.acknowledged.items()) if at > moment]

    def served(self, within: float = 90) -> None:
        """Wait until it is served, and goes on being so."""
        began = time.monotonic()
        eventually(f"{self.region.name} is served", lambda: len(self.since(began)) > 5, within)


@dataclass
class Site:
    """The regions with their workers; ``database`` is seen from outside of all of them."""

    regions: Regions
    supervisor: Supervisor
    database: Database
    folder: Path
    down: set[str] = field(default_factory=set)

    @property
    def engine(self) -> DurableWorkflowEngine:
        """One that looks, and rings nobody."""
        return DurableWorkflowEngine(self.database, lambda _: True, _TERMS)

    def leader(self) -> str:
        return self.regions.leader() or ""

    def await_another_leader(self, before: str) -> None:
        eventually("another region leads", lambda: self.leader() not in {"", before}, within=90)

    def cut(self, name: str) -> float:
        self.down.add(name)
        self.regions.cut(name)
        return time.monotonic()

    def kill(self, name: str) -> float:
        self.down.add(name)
        self.regions.kill(name, self.supervisor)
        return time.monotonic()

    def heal(self) -> None:
        while self.down:
            self.regions.heal(self.down.pop(), self.supervisor)

    def await_whole(self) -> None:
        eventually("every node leads or follows", lambda: is_whole(self.regions.cluster.members()), within=150)

    def is_asynchronous(self) -> bool:
        """Whether nobody waits for the two that follow."""
        following = [member for member in self.regions.cluster.members() if member.state == "streaming"]
        return [member.role for member in following] == ["replica", "replica"] and self._waits_for() == ""

    def _waits_for(self) -> str:
        with self.database.statement() as connection:
            return str(connection.exec_driver_sql("SHOW synchronous_standby_names").scalar_one())

    @contextmanager
    def asynchronous(self) -> Iterator[None]:
        """Acknowledge what the primary alone has, as many do; in the end as it was."""
        layout = self.regions.cluster.layout
        patroni.change(layout, {"synchronous_mode": False, "synchronous_mode_strict": False})
        try:
            eventually("nobody waits for a standby", self.is_asynchronous, within=60)
            yield
        finally:
            kept = {name: patroni.SETTINGS[name] for name in ("synchronous_mode", "synchronous_mode_strict")}
            patroni.change(layout, kept)

    @contextmanager
    def clients(self, prefix: str) -> Iterator[dict[str, Client]]:
        """One in each region, until the end of the body."""
        made = {name: Client(self.regions.all[name], prefix) for name in NAMES}
        with ExitStack() as stack:
            for name, client in made.items():
                thread = threading.Thread(target=client.run, name=f"client {name}", daemon=True)
                with self.regions.network.inside(name):
                    thread.start()  # and is there from now on
                stack.callback(thread.join, 60)
            for client in made.values():
                client.served()
            try:
                yield made
            finally:
                for client in made.values():
                    client.stopping = True

    def rows(self, prefix: str) -> dict[str, str]:
        """What is there of the workflows of a test, and its status."""
        query = "SELECT id, status FROM aegis_workflow WHERE starts_with(id, %(prefix)s)"
        with self.database.statement() as connection:
            return {row[0]: row[1] for row in connection.exec_driver_sql(query, {"prefix": f"{prefix}-"})}

    def lost(self, clients: Sequence[Client], prefix: str) -> dict[str, set[str]]:
        """What each client was told was accepted, and is not there, once all that is has ended."""
        eventually("everything has ended", lambda: set(self.rows(prefix).values()) <= {"completed"}, within=120)
        there = self.rows(prefix)
        return {client.region.name: client.acknowledged.keys() - there.keys() for client in clients}
