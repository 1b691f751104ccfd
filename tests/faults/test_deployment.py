"""F22, F23: old and new workers at once, workflows started before and after by both, and one worker killed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from deployment import Deployment
from local_engine import eventually

from aegis.core.chain import ENGINE_EVENTS
from aegis.persistence import history

pytestmark = pytest.mark.faults

ONE, TWO = {"AEGIS_WORKFLOWS": "trip_one"}, {"AEGIS_WORKFLOWS": "trip_two"}
STURDY = dict.fromkeys(("leave", "rest", "arrive"), 50)
# An application of that version, as a process of its own.
START = """
import sys, {module} as code
from aegis.sync import DurableWorkflowEngine
engine = DurableWorkflowEngine(actor="app:{module}")
for name in sys.argv[1:]:
    engine.start(code.Trip({distance}, pause=0.05), id=name)
"""
SEND = """
import sys, {module}
from aegis.sync import DurableWorkflowEngine
engine = DurableWorkflowEngine(actor="app:{module}")
for name in sys.argv[1:]:
    engine.send(name, "rest", 20, key="rest")
"""


def app(deployment: Deployment, code: str, module: str, names: list[str]) -> None:
    distance = "km=3" if module == "trip_one" else "metres=3000"
    done = subprocess.run(
        [sys.executable, "-c", code.format(module=module, distance=distance), *names],
        env={**os.environ, **deployment.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.returncode, done.stderr
    if code is START:
        for name in names:
            deployment.ledger.accepted(name)


def names(letter: str, count: int) -> list[str]:
    return [f"{letter}-{number:02d}" for number in range(count)]


def test_two_versions_at_once_lose_nothing_and_misread_nothing(deployment: Deployment) -> None:
    before, during, old, new = names("before", 10), names("during", 10), names("old", 10), names("new", 10)
    everything = [*before, *during, *old, *new]
    deployment.beat()
    first = deployment.worker(concurrency=2, **ONE)
    app(deployment, START, "trip_one", before)
    deployment.await_all("waiting", len(before))
    app(deployment, SEND, "trip_one", before[:3])
    deployment.await_all("completed", 3)  # by the old code, from beginning to end

    app(deployment, START, "trip_one", during)
    deployment.worker(concurrency=2, **TWO)
    app(deployment, START, "trip_two", new)
    app(deployment, START, "trip_one", old)
    app(deployment, SEND, "trip_two", [*before[3:6], *during[:5], *old[:5]])  # some of them wait already, some do not
    eventually("both versions have run some", lambda: {1, 2} <= versions(deployment), 60)
    first.kill_host()
    deployment.worker(concurrency=2, **ONE)
    app(deployment, SEND, "trip_one", [*before[6:], *during[5:], *new[:5]])
    app(deployment, SEND, "trip_two", [*old[5:], *new[5:]])
    deployment.await_all("completed", len(everything), within=120)

    ran = {name: check(deployment, name) for name in everything}
    assert all(set(ran[name]) == {"1"} for name in before[:3])
    assert all(set(ran[name]) == {"2"} for name in new), "what is new was never run by old code"
    assert any(set(versions_) == {"1", "2"} for versions_ in ran.values()), "some went from one to the other"
    assert all(row.error is None for row in deployment.engine.list(limit=100)), "nothing was left alone"
    deployment.assert_sound(**STURDY)


def versions(deployment: Deployment) -> set[int]:
    return {row.version for row in deployment.engine.list(limit=100) if row.seq > 0}


def check(deployment: Deployment, name: str) -> str:
    """Check one workflow's data and history; return the versions that ran its three handlers, in order."""
    with deployment.database.statement() as connection:
        stored = history.data_at(connection, name)
    links = deployment.engine.history(name)
    own = [link.event for link in links if link.event not in ENGINE_EVENTS]
    ran = [step.split() for step in stored.data["seen"]]
    assert own == ["leave", "rest", "arrive"]
    assert [handler for _, handler in ran] == own, "each once, on the data of the one before"
    upgrades = [link for link in links if link.event == "upgraded"]
    by = "".join(version for version, _ in ran)
    assert by == "".join(sorted(by)), "never back"
    assert stored.version == int(by[-1])
    distance = {"km": 6} if stored.version == 1 else {"metres": 6000}
    assert stored.data.items() >= distance.items()
    assert len(upgrades) == (stored.version == 2 and not name.startswith("new"))
    assert deployment.engine.verify_integrity(name) == (True, None)
    return by
