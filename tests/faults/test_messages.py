"""F8, F9: messages doubled, late, stale and forged: a message is a hint, and never more."""

from __future__ import annotations

import base64
import json
from uuid import uuid4

import pytest
from corpus import TEXTS, VALUES
from deployment import Deployment
from fault_workflows import Approval, Steps
from fingerprint import fingerprint
from local_engine import eventually

from aegis.core.bell import Bell
from aegis.tasks.broker import TRANSITION, Broker

pytestmark = pytest.mark.faults


def bell(workflow_id: str, seq: int) -> Bell:
    return Bell(workflow_id=workflow_id, seq=seq, queue=None, label="test")


def test_every_bell_doubled_and_late(deployment: Deployment) -> None:
    broker = Broker(deployment.app)
    deployment.beat()
    deployment.workers(2, concurrency=2)
    for number in range(20):
        handle = deployment.engine.start(Steps(pause=0.01), id=f"steps-{number:03d}")
        deployment.ledger.accepted(handle.id)
        for seq in (0, 0, 0, 1, 1, 2, 2, 3, 7):
            broker.ring([bell(handle.id, seq)])
    deployment.await_all("completed", 20)
    deployment.assert_sound()
    assert all(deployment.effects(f"steps-{number:03d}") == 3 for number in range(20)), "a double ran"


def test_forged_messages_change_nothing_and_harm_nobody(deployment: Deployment) -> None:
    worker = deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Approval(), id="waits").id)
    deployment.await_status("waits", "waiting")
    before = deployment.engine.describe("waits")
    forgeries: list[tuple[object, object]] = [
        ((), {}),
        (("waits",), {}),
        (("waits", "1"), {}),
        (("waits", 1, 2), {}),
        (("waits", True), {}),
        (("waits", -1), {}),
        (("waits", 2**70), {}),
        ((17, 1), {}),
        ((None, None), {}),
        (({"$ne": ""}, 1), {}),
        (("x" * 100_000, 1), {}),
        (("\x00", 1), {}),
        (("'; DROP TABLE aegis_workflow; --", 0), {}),
        (("nobody", 0), {}),
        (("waits", 1), {}),  # the right form, at the right place - but nothing to do there
        ((), {"workflow_id": "waits", "seq": 1}),
    ]
    for args, kwargs in forgeries:
        deployment.app.send_task(TRANSITION, args=args, kwargs=kwargs)
    after = deployment.engine.start(Steps(), id="honest")
    deployment.ledger.accepted(after.id)
    deployment.await_status("honest", "completed")
    eventually("all of them were taken", lambda: worker.logs().count("message refused") >= 12)
    assert deployment.engine.describe("waits") == before
    assert len(deployment.engine.list()) == 2
    assert len(worker.handlers()) == 1
    assert "Traceback" not in worker.logs()
    deployment.assert_sound()


def test_bad_input_as_a_message_changes_no_row_and_harms_nobody(deployment: Deployment) -> None:
    """The corpus, in the place of a workflow's id and of its seq, and as the bytes of a message."""
    worker = deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Approval(), id="waits").id)
    deployment.await_status("waits", "waiting")
    before = rows(deployment)
    for bad in VALUES:
        deployment.app.send_task(TRANSITION, args=(bad.value, 1))
        deployment.app.send_task(TRANSITION, args=("waits", bad.value))
    queue = deployment.list_of()
    for text in TEXTS:
        deployment.broker.lpush(queue, raw(deployment, text.within('[["waits", ', '], {}, {"chord": null}]')))
        deployment.broker.lpush(queue, raw(deployment, text.within("", "")))
    eventually("the queue is empty", lambda: deployment.broker.llen(queue) == 0)
    deployment.ledger.accepted(deployment.engine.start(Steps(), id="honest").id)
    deployment.await_status("honest", "completed")
    after = rows(deployment)
    for table, found in before.items():
        assert [row for row in after[table] if "honest" not in row] == found, table
    assert worker.logs().count("message refused") >= 2 * len(VALUES)
    deployment.assert_sound()


def rows(deployment: Deployment) -> dict[str, list[str]]:
    """Every row of every table, but for what the worker's heartbeat writes all the time."""
    return fingerprint(deployment.environment["AEGIS_DATABASE_URL"], but=["aegis_worker"])


def raw(deployment: Deployment, body: bytes) -> str:
    """A message for a transition, as it stands in the broker, with any bytes for its body."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": TRANSITION, "id": str(uuid4()), "root_id": None, "parent_id": None},
            "properties": {
                "correlation_id": str(uuid4()),
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": deployment.settings.queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
    )


def test_a_message_for_no_task_of_ours_harms_nobody(deployment: Deployment) -> None:
    worker = deployment.worker()
    deployment.app.send_task("no.such.task", args=("waits", 1))
    worker.wait_for_log("Received unregistered task", timeout=20)
    deployment.ledger.accepted(deployment.engine.start(Steps(), id="honest").id)
    deployment.await_status("honest", "completed")
    deployment.assert_sound()


def test_a_redelivery_of_a_running_handler_does_not_run_it_twice(deployment: Deployment) -> None:
    deployment.worker(concurrency=2)
    deployment.ledger.accepted(deployment.engine.start(Steps(pause=1), id="slow").id)
    eventually("the handler runs", lambda: deployment.effects("slow", 1) == 1)
    for _ in range(5):
        Broker(deployment.app).ring([bell("slow", 0)])
    deployment.await_status("slow", "completed")
    assert deployment.effects("slow", 1) == 1
    deployment.assert_sound()
