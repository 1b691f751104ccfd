"""One deployment of AEGIS for one test: a database, a broker, workers, beat - and a ledger outside of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
from fault_workflows import LIMITS, SILENT
from local_engine import AegisWorker, LocalProcess, LocalWorkerContainer, eventually
from pytest_celery import CeleryTestNode
from redis.sentinel import Sentinel

from aegis.config.settings import Settings, read
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.persistence.watch import heartbeats
from aegis.tasks.broker import PRIORITY_STEPS, Broker
from aegis.tasks.unheard import noting
from aegis.testing.invariants import Rules, check
from aegis.testing.ledger import Ledger
from aegis.workers.factory import make_app

SUPPORT = Path(__file__).parent
# Everything that waits in production, waits less: the mechanisms are the same. What health says is looked at,
# not how soon: a machine that runs a thousand tests may be slow to answer.
QUICK: Mapping[str, str] = {
    "AEGIS_HEARTBEAT_INTERVAL": "0.4",
    "AEGIS_HEARTBEAT_TIMEOUT": "2",
    "AEGIS_SWEEP_INTERVAL": "0.3",
    "AEGIS_RING_GRACE": "1",
    "AEGIS_STOP_GRACE": "10",
    "AEGIS_HEALTH_TIMEOUT": "10",
}


class Deployment:
    """What a test works with."""

    def __init__(self, folder: Path, database_url: str, broker_url: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.environment = {
            **QUICK,
            "AEGIS_DATABASE_URL": database_url,
            "AEGIS_HOME": str(folder / "home"),  # keys and anchors of its own
            "AEGIS_BROKER_URL": broker_url,
            "AEGIS_BROKER_PREFIX": f"{folder.name}:",
            "AEGIS_WORKFLOWS": "fault_workflows,fault_points",
            "AEGIS_TEST_LEDGER": str(folder / "ledger.jsonl"),
            "PYTHONPATH": str(SUPPORT),
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges",
            **environment,
        }
        self.settings: Settings = read(self.environment)
        self.app = make_app(self.settings)
        self.database = Database(self.settings.database)
        grace = timedelta(seconds=self.settings.ring_grace)
        terms = Terms(actor="user:test", grace=grace, max_bytes=self.settings.max_bytes)
        self.engine = DurableWorkflowEngine(self.database, noting(Broker(self.app).ring, self.database), terms)
        self.broker = _client(self.settings)
        self._nodes: list[CeleryTestNode] = []

    # --- processes ----------------------------------------------------------------------

    def worker(
        self, *, concurrency: int = 1, wait: bool = True, options: Sequence[str] = (), **environment: str
    ) -> AegisWorker:
        """Start a worker; ``environment`` is added to the deployment's."""
        number = len(self._nodes)
        name = f"w{number}@test"
        argv = [
            *(sys.executable, "-m", "celery", "--quiet", "-A", "aegis.workers.app", "worker"),
            *(f"--hostname={name}", f"--concurrency={concurrency}", "--without-mingle", "--without-gossip"),
            *options,
        ]
        process = LocalProcess(name, lambda: argv, self.folder, {**self.environment, **environment}).start()
        node = AegisWorker(LocalWorkerContainer(process), app=self.app)
        self._nodes.append(node)
        if wait:
            self.await_worker(node)
        return node

    def workers(self, count: int, **options: Any) -> list[AegisWorker]:
        """Start several workers at once."""
        nodes = [self.worker(wait=False, **options) for _ in range(count)]
        for node in nodes:
            self.await_worker(node)
        return nodes

    def await_worker(self, node: AegisWorker) -> None:
        """Wait until a worker consumes, and its heartbeat says so."""
        node.ready()
        eventually(f"{node.name()} has a heartbeat", lambda: self.heartbeat_of(node) is not None)

    def beat(self, app: str = "aegis.workers.app") -> CeleryTestNode:
        """Start a beat."""
        argv = [sys.executable, "-m", "celery", "--quiet", "-A", app, "beat"]
        process = LocalProcess(f"beat{len(self._nodes)}", lambda: argv, self.folder, self.environment).start()
        node = CeleryTestNode(LocalWorkerContainer(process), app=self.app)
        self._nodes.append(node)
        return node

    def heartbeat_of(self, node: AegisWorker) -> str | None:
        """The id under which a worker's heartbeat is known."""
        with self.database.statement() as connection:
            ids = [beat.worker_id for beat in heartbeats(connection)]
        return next((worker for worker in ids if worker.startswith(f"{node.name()}/")), None)

    def empty_queue(self) -> None:
        """Lose every bell on the default queue, whatever its priority."""
        self.broker.delete(*(self.list_of(step) for step in PRIORITY_STEPS))

    def list_of(self, step: int = PRIORITY_STEPS[-1]) -> str:
        """The list in Redis that holds a step of the default queue; that of no priority by default."""
        queue = f"{self.settings.broker_prefix}{self.settings.queue}"
        return f"{queue}\x06\x16{step}" if step else queue

    def kill(self) -> None:
        """End every process that this test started, at once."""
        for node in self._nodes:
            node.container.kill()

    def stop(self) -> None:
        """The same, and let go of everything: what it showed, it has shown."""
        self.kill()
        self.broker.close()
        self.database.close()

    # --- questions ----------------------------------------------------------------------

    def effects(self, workflow_id: str, seq: int | None = None) -> int:
        """How many effects the ledger holds of a workflow, or of one of its transitions."""
        return sum(
            entry.kind == "effect" and entry.workflow_id == workflow_id and seq in {None, entry.seq}
            for entry in self.ledger.entries()
        )

    def status(self, workflow_id: str) -> str:
        return self.engine.describe(workflow_id).status

    def await_status(self, workflow_id: str, status: str, within: float = 30.0) -> None:
        eventually(f"{workflow_id} is {status}", lambda: self.status(workflow_id) == status, within)

    def await_all(self, status: str, count: int, within: float = 60.0) -> None:
        """Wait until so many workflows have that status."""

        def there() -> bool:
            return len(self.engine.list(status=status, limit=10_000)) == count

        eventually(f"{count} workflows are {status}", there, within)

    def assert_sound(self, **max_attempts: int) -> None:
        """Check every invariant; the limits are of transitions whose ``max_attempts`` is not 5."""
        rules = Rules(max_attempts={**LIMITS, **max_attempts}, silent=SILENT)
        violations = check(self.database, self.ledger.entries(), rules)
        assert not violations, "\n".join(map(str, violations))


def _client(settings: Settings) -> redis.Redis:
    """What a test looks at the broker with, past kombu."""
    if settings.sentinels is None:
        return redis.Redis.from_url(settings.broker.replace("redis+socket://", "unix://"))
    return Sentinel(settings.sentinels.hosts).master_for(settings.broker_master)


@contextmanager
def deployed(folder: Path, database_url: str, broker_url: str, **environment: str) -> Iterator[Deployment]:
    """A deployment, and the end of all its processes."""
    made = Deployment(folder, database_url, broker_url, environment)
    try:
        yield made
    finally:
        made.stop()
