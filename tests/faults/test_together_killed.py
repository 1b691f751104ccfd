"""``checkpoint_on_transition=False``, and the process is killed in the middle: no more is lost than is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment
from fault_workflows import Together
from local_engine import eventually

from aegis.persistence.durable import DurableWorkflowEngine
from aegis.sync import DurableWorkflowEngine as Engine
from aegis.tasks.broker import Broker
from aegis.testing.ledger import Ledger

pytestmark = pytest.mark.faults

SUPPORT = Path(__file__).parents[1] / "support"
_STORY = """
import sys, time
sys.path[:0] = [{path!r}]
from aegis.sync import DurableWorkflowEngine
from fault_workflows import Together
engine = DurableWorkflowEngine({address!r}, checkpoint_on_transition=False)
engine.start(Together(gate={gate!r}), id="t")
time.sleep(60)
"""


def ran(ledger: Ledger) -> dict[str, int]:
    """How often each handler ran."""
    return dict(Counter(entry.name for entry in ledger.entries() if entry.kind == "effect"))


def before_the_end(engine: Any, ledger: Ledger) -> None:
    """See what there is, and what is not, while the last handler runs."""
    eventually("the last handler runs", lambda: ran(ledger).get("four") == 1)
    row = engine.describe("t")
    # The second handler's checkpoint had the first one's transition recorded; it began in the air, and on the ground.
    assert (row.seq, row.running) == (1, True)
    assert ran(ledger) == {"one": 1, "two": 2, "three": 1, "four": 1}


def after_the_end(engine: Any, ledger: Ledger) -> None:
    """See that it went on from the checkpoint, and that nothing is there twice."""
    assert [(link.seq, link.event) for link in engine.history("t")] == [
        (0, "created"),
        (1, "one"),
        (2, "two"),
        (3, "three"),
        (4, "four"),
    ]
    assert engine.get("t").ran == ["one", "two", "three", "four"]
    # Of what was recorded nothing ran again: not the first, and of the second not what its checkpoint has.
    assert ran(ledger) == {"one": 1, "two": 2, "three": 2, "four": 2}
    assert engine.verify_integrity("t") == (True, None)


def test_a_worker_that_is_killed_loses_what_lay_ahead_and_no_more(deployment: Deployment, tmp_path: Path) -> None:
    terms = replace(deployment.engine._terms, checkpoint_on_transition=False)
    engine = DurableWorkflowEngine(deployment.database, Broker(deployment.app).ring, terms)
    deployment.beat()
    worker = deployment.worker()
    gate = tmp_path / "gate"
    engine.start(Together(gate=str(gate)), id="t")
    before_the_end(engine, deployment.ledger)
    worker.kill_host()
    gate.touch()
    deployment.worker()
    deployment.await_status("t", "completed")
    after_the_end(engine, deployment.ledger)


def test_a_process_on_sqlite_that_is_killed_loses_what_lay_ahead_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, gate, ledger = f"sqlite:///{tmp_path / 'x.db'}", tmp_path / "gate", Ledger(tmp_path / "ledger.jsonl")
    monkeypatch.setenv("AEGIS_TEST_LEDGER", str(tmp_path / "ledger.jsonl"))
    story = _STORY.format(path=str(SUPPORT), address=address, gate=str(gate))
    with subprocess.Popen([sys.executable, "-c", story], env=dict(os.environ)) as process:
        eventually("it has begun", lambda: ran(ledger).get("four") == 1)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    gate.touch()
    with Engine(address) as engine:
        eventually("it went on", lambda: engine.describe("t").status == "completed")
        after_the_end(engine, ledger)
