"""A cluster of two workers as operators see it, through pytest-celery's own nodes."""

from __future__ import annotations

from cluster_workflows import Relay
from local_engine import eventually
from pytest_celery import CeleryTestSetup

from aegis.sync import DurableWorkflowEngine


def completed(engine: DurableWorkflowEngine) -> int:
    return len(engine.list(status="completed", limit=1000))


def test_the_setup_answers(celery_setup: CeleryTestSetup) -> None:
    assert celery_setup.ready(ping=False, control=False, docker=True)
    replies = celery_setup.app.control.ping(timeout=5)
    assert len(replies) == 2


def test_both_workers_share_the_work(celery_setup: CeleryTestSetup, engine: DurableWorkflowEngine) -> None:
    handles = [engine.start(Relay(pause=0.1)) for _ in range(12)]
    eventually("all are done", lambda: completed(engine) == 12, within=60)
    actors = {link.actor.partition("/")[0] for handle in handles for link in handle.history()[1:]}
    assert len(actors) == 2
    assert all(handle.verify_integrity() == (True, None) for handle in handles)


def test_what_a_killed_worker_had_in_hand_goes_on_in_the_other(
    celery_setup: CeleryTestSetup, engine: DurableWorkflowEngine
) -> None:
    handles = [engine.start(Relay(pause=0.5)) for _ in range(6)]
    eventually("both are at work", lambda: sum(row.running for row in engine.list()) == 2)
    celery_setup.worker.kill()
    eventually("all are done", lambda: completed(engine) == 6, within=60)
    assert all([link.seq for link in handle.history()] == [0, 1, 2] for handle in handles)
    assert max(link.attempt for handle in handles for link in handle.history()) == 2


def test_a_restarted_broker_loses_nothing(celery_setup: CeleryTestSetup, engine: DurableWorkflowEngine) -> None:
    for _ in range(10):
        engine.start(Relay(pause=0.2))
    celery_setup.broker.restart()
    for _ in range(2):
        engine.start(Relay())
    eventually("all are done", lambda: completed(engine) == 12, within=90)
    assert all(engine.verify_integrity(row.id) == (True, None) for row in engine.list())
