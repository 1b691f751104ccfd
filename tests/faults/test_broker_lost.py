"""F7: the broker forgets everything, or part of it, with bells under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployment import Deployment, deployed
from fault_workflows import Approval, Steps
from local_engine import eventually
from private_servers import PrivateBroker, folder

from aegis.config.settings import Settings
from aegis.core.bell import Bell
from aegis.tasks.broker import Broker
from aegis.workers.factory import make_app

pytestmark = pytest.mark.faults

MANY = 60


@pytest.fixture
def own_broker() -> Iterator[PrivateBroker]:
    with folder("own-broker") as root:
        server = PrivateBroker(root)
        server.start()
        yield server
        server.container.remove()


def start_many(deployment: Deployment, pause: float = 0.02) -> None:
    for number in range(MANY):
        handle = deployment.engine.start(Steps(pause=pause), id=f"steps-{number:03d}")
        deployment.ledger.accepted(handle.id)


def test_wiped_with_bells_queued(tmp_path: Path, database_url: str, own_broker: PrivateBroker) -> None:
    with deployed(tmp_path, database_url, own_broker.url) as deployment:
        deployment.beat()
        deployment.worker(concurrency=2)
        start_many(deployment)
        eventually("some are done", lambda: len(deployment.engine.list(status="completed")) > 2)
        deployment.broker.flushall()
        deployment.await_all("completed", MANY)
        deployment.assert_sound()


def test_killed_and_back_empty(tmp_path: Path, database_url: str, own_broker: PrivateBroker) -> None:
    with deployed(tmp_path, database_url, own_broker.url) as deployment:
        deployment.beat()
        deployment.worker(concurrency=2)
        start_many(deployment)
        own_broker.kill()
        own_broker.forget()
        accepted = deployment.engine.start(Steps(), id="while-it-was-away")
        assert not accepted.rung, "nobody was there to take the bell"
        deployment.ledger.accepted(accepted.id)
        own_broker.start()
        deployment.await_all("completed", MANY + 1, within=90)
        deployment.assert_sound()


def test_a_broker_that_is_away_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, kombu sleeps and tries again for six seconds: in an application's request."""
    waits: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", waits.append)
    settings = Settings(database_url="postgresql://a@b/c", broker_url="redis+socket:///nonexistent/valkey.sock")
    bell = Bell(workflow_id="w", seq=0, queue=None, label="Steps.one")
    assert not Broker(make_app(settings)).ring([bell])
    assert waits == []


def test_a_worker_looks_for_a_broker_that_is_away_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's own pauses grow to thirty seconds: so long would nothing run that waits for it."""
    pauses: list[float] = []

    def told(_error: Exception, pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    settings = Settings(database_url="postgresql://a@b/c", broker_url="redis+socket:///nonexistent/valkey.sock")
    with pytest.raises(KeyboardInterrupt), make_app(settings).connection_for_read() as connection:
        # As the worker's consumer does it.
        connection.ensure_connection(told, None, callback=lambda: None)
    assert len(pauses) == 12
    assert max(pauses) <= 2


def test_part_of_the_queue_lost(deployment: Deployment) -> None:
    """The mark is still there, so nobody knows; each row's own due_at does it."""
    start_many(deployment, pause=0)
    deployment.broker.ltrim(deployment.list_of(), 0, MANY // 2 - 1)
    assert Broker(deployment.app).lengths([None]) == {None: MANY // 2}
    deployment.beat()
    deployment.worker(concurrency=2)
    deployment.await_all("completed", MANY)
    deployment.assert_sound()


def test_an_event_whose_bell_was_lost_is_taken_all_the_same(deployment: Deployment) -> None:
    deployment.beat()
    worker = deployment.worker()
    handle = deployment.engine.start(Approval(), id="approval")
    deployment.ledger.accepted(handle.id)
    deployment.await_status("approval", "waiting")
    worker.kill()
    handle.send("decide", True)
    deployment.broker.flushall()
    deployment.worker()
    deployment.await_status("approval", "completed")
    deployment.assert_sound()


def test_the_sweep_does_not_flood_a_queue_that_is_only_long(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(AEGIS_RING_GRACE="0.5")
    broker = Broker(deployment.app)
    broker.remember()
    deployment.worker()  # it lives, and is too slow
    start_many(deployment, pause=0.1)
    deployment.beat()
    longest = 0
    while len(deployment.engine.list(status="completed", limit=1000)) < MANY:
        longest = max(longest, broker.lengths([None])[None])
    assert longest <= MANY + 20, "bells pile up"
    deployment.assert_sound()
