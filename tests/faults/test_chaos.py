"""Chaos: everything at once, for a while, from a seed; then the checker.

A longer run: ``AEGIS_TEST_CHAOS_SECONDS=600 AEGIS_TEST_SEED=7 ./run test tests/faults/test_chaos.py -s``
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from deployment import Deployment, deployed
from fault_workflows import Failing, Steps
from local_engine import AegisWorker, eventually
from private_servers import PrivateBroker, PrivatePostgres, folder

from aegis.core.bell import Bell
from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.tasks.broker import Broker

pytestmark = pytest.mark.faults

SECONDS = float(os.environ.get("AEGIS_TEST_CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("AEGIS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
WORKERS = 3


class Chaos:
    """The deeds, and how often each was done."""

    def __init__(self, deployment: Deployment, postgres: PrivatePostgres, broker: PrivateBroker) -> None:
        self.deployment, self.postgres, self.broker = deployment, postgres, broker
        self.random = random.Random(SEED)  # noqa: S311 - to be repeated, not to be guessed
        self.done: Counter[str] = Counter()
        self.workers: list[AegisWorker] = deployment.workers(WORKERS)
        self.frozen: list[tuple[float, AegisWorker]] = []
        self.accepted = 0
        self.deeds: dict[Callable[[], None], int] = {
            self.kill_child: 4,
            self.kill_worker: 3,
            self.kill_host: 2,
            self.freeze: 2,
            self.wipe_broker: 2,
            self.restart_broker: 1,
            self.stop_database: 1,
            self.kill_database: 1,
            self.double_bells: 6,
        }

    def deed(self) -> None:
        self.thaw()
        chosen = self.random.choices(list(self.deeds), list(self.deeds.values()))[0]
        chosen()
        self.done[chosen.__name__] += 1

    def start_some(self) -> None:
        for _ in range(self.random.randrange(1, 8)):
            name = f"chaos-{self.accepted:05d}"
            kind = Failing(times=1) if self.accepted % 5 == 0 else Steps(pause=self.random.choice((0, 0, 0.02, 0.2)))
            try:
                self.deployment.engine.start(kind, id=name)
            except DatabaseUnavailable:
                continue  # the same id again, with the same input: that is what it is for
            self.deployment.ledger.accepted(name)
            self.accepted += 1

    def _one(self) -> AegisWorker | None:
        frozen = {id(node) for _, node in self.frozen}
        alive = [node for node in self.workers if node.container.status == "running" and id(node) not in frozen]
        return self.random.choice(alive) if alive else None

    def kill_child(self) -> None:
        node = self._one()
        for child in node.handlers()[:1] if node else []:
            child.kill()

    def kill_worker(self) -> None:
        if node := self._one():
            node.kill()
            self.replace(node)

    def kill_host(self) -> None:
        if node := self._one():
            try:
                node.kill_host()
            except StopIteration:  # it was only just started, and has no heartbeat yet
                node.kill()
            self.replace(node)

    def replace(self, node: AegisWorker) -> None:
        self.workers[self.workers.index(node)] = self.deployment.worker(wait=False, concurrency=2)

    def freeze(self) -> None:
        if node := self._one():
            node.freeze()
            self.frozen.append((time.monotonic() + 3, node))

    def thaw(self, *, everybody: bool = False) -> None:
        for until, node in list(self.frozen):
            if everybody or time.monotonic() > until:
                node.thaw()
                self.frozen.remove((until, node))

    def wipe_broker(self) -> None:
        self.deployment.broker.flushall()

    def restart_broker(self) -> None:
        self.broker.kill()
        self.broker.forget()
        self.broker.start()

    def stop_database(self) -> None:
        self.postgres.stop()
        self.postgres.start()

    def kill_database(self) -> None:
        self.postgres.kill()
        self.postgres.start()

    def double_bells(self) -> None:
        bells = [
            Bell(
                workflow_id=f"chaos-{self.random.randrange(max(1, self.accepted)):05d}", seq=seq, queue=None, label="x"
            )
            for seq in (0, 1, 2, 3)
            for _ in range(5)
        ]
        Broker(self.deployment.app).ring(bells)


@pytest.fixture
def chaos(tmp_path: Path) -> Iterator[Chaos]:
    with ExitStack() as stack:
        postgres = PrivatePostgres(stack.enter_context(folder("chaos-postgres")))
        broker = PrivateBroker(stack.enter_context(folder("chaos-broker")))
        postgres.start()
        stack.callback(postgres.container.remove)
        broker.start()
        stack.callback(broker.container.remove)
        database = Database(postgres.url().replace("postgresql://", "postgresql+psycopg2://"), pool_size=1)
        upgrade(database)
        database.close()
        deployment = stack.enter_context(deployed(tmp_path, postgres.url(), broker.url))
        deployment.beat()
        deployment.beat()
        made = Chaos(deployment, postgres, broker)
        stack.callback(made.thaw, everybody=True)
        yield made


def test_everything_at_once(chaos: Chaos) -> None:
    print(f"seed {SEED}, {SECONDS:g} s")
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        chaos.start_some()
        chaos.deed()
        time.sleep(chaos.random.uniform(0.1, 0.8))  # the faults' own rhythm, not a wait for anything
    chaos.thaw(everybody=True)
    deployment = chaos.deployment

    def settled() -> bool:
        return len(deployment.engine.list(status="completed", limit=100_000)) == chaos.accepted

    eventually(f"all {chaos.accepted} are completed (seed {SEED})", settled, within=120)
    deployment.assert_sound()
    print(f"{chaos.accepted} workflows; {dict(chaos.done)}")
    assert chaos.accepted >= SECONDS, "there was no traffic worth the name"
    assert sum(chaos.done.values()) >= SECONDS / 4, "there were too few faults"
