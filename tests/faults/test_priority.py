"""What is urgent overtakes what has waited for longer: in a real broker, and in the sweep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery import Celery
from deployment import Deployment
from fault_workflows import Steps

from aegis.core.bell import Bell
from aegis.core.starting import Start
from aegis.persistence import watch
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.watch import Worker
from aegis.tasks.broker import PRIORITY_STEPS, TRANSITION, Broker
from aegis.tasks.sweep import sweep

MANY = 200
ALIVE = Worker(id="w", host="h", pid=1, pids=(1,), queues=("aegis",), types=("Steps/1",))


def finished(deployment: Deployment) -> list[str]:
    """The ids of what has completed, the first first."""
    rows = deployment.engine.list(status="completed", limit=10_000)
    return [row.id for row in sorted(rows, key=lambda row: row.updated_at)]


def test_an_urgent_workflow_overtakes_200_that_are_queued(deployment: Deployment) -> None:
    deployment.engine.start_many([Start(Steps(), id=f"steps-{n:03d}") for n in range(MANY)])
    deployment.engine.start(Steps(), id="low", priority=2)
    deployment.engine.start(Steps(), id="urgent", priority=9)
    assert Broker(deployment.app).lengths([None]) == {None: MANY + 2}
    deployment.worker()
    deployment.beat()
    deployment.await_all("completed", MANY + 2)
    order = finished(deployment)
    # Each has three transitions, and each time it queues again.
    assert order.index("urgent") == 0, order[:10]
    assert order.index("low") <= 2, order[:10]
    deployment.assert_sound()


def test_the_sweep_rings_what_is_urgent_first(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(deployment.app)
    broker.remember()
    deployment.engine.start_many([Start(Steps(), id=f"s-{n:02d}", priority=n % 10) for n in range(20)])
    deployment.empty_queue()
    rung: list[Bell] = []
    real = broker.ring
    monkeypatch.setattr(broker, "ring", lambda bells: rung.extend(bells) or real(bells))
    with deployment.database.statement() as connection:
        watch.beat(connection, ALIVE)
        watch.all_due(connection, deployment.settings.recovery, 10_000)
    assert sweep(deployment.database, broker, deployment.settings.recovery).rung == 20
    assert [bell.priority for bell in rung] == sorted((n % 10 for n in range(20)), reverse=True)
    assert broker.lengths([None]) == {None: 20}


def plain_app(deployment: Deployment) -> Celery:
    """An application's own Celery app, that says nothing of priorities."""
    app = Celery("shop", broker=deployment.settings.broker, set_as_current=False)
    app.conf.update(
        task_default_queue=deployment.settings.queue,
        broker_transport_options={"global_keyprefix": deployment.settings.broker_prefix},
    )
    return app


@pytest.mark.parametrize("priority", range(10))
def test_an_app_without_aegiss_settings_rings_where_workers_listen(deployment: Deployment, priority: int) -> None:
    app = plain_app(deployment)
    bell = Bell(workflow_id="w", seq=0, queue=None, label="Steps", priority=priority)
    assert Broker(app).ring([bell]) is True
    assert Broker(deployment.app).ring([bell, bell]) is True
    # Both count what either has put there, and both read it.
    assert Broker(app).lengths([None]) == Broker(deployment.app).lengths([None]) == {None: 3}
    for reader in (app, deployment.app):
        with reader.connection_for_read() as connection:
            message = connection.default_channel.basic_get(deployment.settings.queue, no_ack=True)
        assert message.headers["task"] == TRANSITION
        assert message.properties["priority"] in PRIORITY_STEPS
    app.close()


def test_an_app_without_aegiss_settings_starts_what_is_urgent(
    deployment: Deployment, deploy: Callable[..., Deployment]
) -> None:
    del deploy
    app = plain_app(deployment)
    database = Database(deployment.settings.database)
    terms = deployment.engine._terms
    engine = DurableWorkflowEngine(database, Broker(app).ring, terms)
    engine.start_many([Start(Steps(), id=f"steps-{n}", priority=n) for n in range(10)])
    deployment.worker()
    deployment.await_all("completed", 10)  # without a beat: every bell was heard
    database.close()
    app.close()
