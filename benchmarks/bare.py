"""The floor: bare Celery, one task a step, one hand-written psycopg2 transaction that writes the same.

Four statements: lock and read the row, move it on, insert the transition, insert the snapshot.
It publishes the next step, and acknowledges last. What it lacks: claims, fencing, heartbeats,
recovery, hashes that anybody could verify, types.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from typing import Any

import psycopg2
from celery import Celery

app = Celery("bare", broker=os.environ["AEGIS_BROKER_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    task_default_queue="bare",
    broker_transport_options={"global_keyprefix": "bare:"},
    worker_send_task_events=False,
)

SCHEMA = """
CREATE TABLE bare_workflow (
    id text PRIMARY KEY, seq bigint NOT NULL, state text NOT NULL, head bytea NOT NULL, data bytea NOT NULL,
    due_at timestamptz, updated_at timestamptz NOT NULL
);
CREATE INDEX ON bare_workflow (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE bare_transition (
    workflow_id text, seq bigint, state text, at timestamptz, envelope bytea, hash bytea,
    PRIMARY KEY (workflow_id, seq)
);
CREATE TABLE bare_checkpoint (
    workflow_id text, seq bigint, body bytea, hash bytea, at timestamptz, PRIMARY KEY (workflow_id, seq)
);
"""

_held = threading.local()


def connect() -> Any:
    """Return this thread's connection."""
    if not hasattr(_held, "connection"):
        _held.connection = psycopg2.connect(os.environ["AEGIS_DATABASE_URL"])
    return _held.connection


@app.task(name="bare.step", acks_late=True)
def step(workflow_id: str, seq: int, steps: int) -> None:
    """Do one step of a workflow."""
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT seq, head, data FROM bare_workflow WHERE id = %s FOR UPDATE", (workflow_id,))
        current, head, data = cursor.fetchone()
        if current != seq:
            return
        state = json.loads(bytes(data))
        state["count"] += 1
        body = json.dumps(state, sort_keys=True).encode()
        envelope = json.dumps({"wf": workflow_id, "seq": seq + 1, "prev": bytes(head).hex()}).encode()
        digest = hashlib.sha256(envelope).digest()
        cursor.execute(
            "UPDATE bare_workflow SET seq = %s, state = %s, head = %s, data = %s, updated_at = now(),"
            " due_at = CASE WHEN %s THEN NULL ELSE now() + interval '5 s' END WHERE id = %s",
            (seq + 1, f"s{seq + 1}", digest, body, seq + 1 >= steps, workflow_id),
        )
        cursor.execute(
            "INSERT INTO bare_transition VALUES (%s, %s, %s, now(), %s, %s)",
            (workflow_id, seq + 1, f"s{seq + 1}", envelope, digest),
        )
        cursor.execute(
            "INSERT INTO bare_checkpoint VALUES (%s, %s, %s, %s, now())",
            (workflow_id, seq + 1, body, hashlib.sha256(body).digest()),
        )
    if seq + 1 < steps:
        step.apply_async((workflow_id, seq + 1, steps))


def start(workflow_id: str, steps: int, text: str) -> None:
    """Accept a workflow."""
    body = json.dumps({"count": 0, "text": text}, sort_keys=True).encode()
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO bare_workflow VALUES (%s, 0, 's0', %s, %s, now() + interval '5 s', now())",
            (workflow_id, hashlib.sha256(body).digest(), body),
        )
        cursor.execute(
            "INSERT INTO bare_checkpoint VALUES (%s, 0, %s, %s, now())",
            (workflow_id, body, hashlib.sha256(body).digest()),
        )
    step.apply_async((workflow_id, 0, steps))
