"""An application starts 1,000 workflows in its own transactions, and rolls half of them back: the other half runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deployment import Deployment
from own_transactions import workflow_of
from sqlalchemy import text

SCRIPT = Path(__file__).parents[1] / "support" / "own_transactions.py"
MANY = 1000


def run(deployment: Deployment, *given: int) -> int:
    """Run the application to its end; return its exit status."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, given)],
        env={**os.environ, **deployment.environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr[-2000:]
    return done.returncode


def orders(deployment: Deployment) -> list[int]:
    """The orders that were committed."""
    with deployment.database.statement() as connection:
        return list(connection.execute(text("SELECT id FROM orders ORDER BY id")).scalars())


def assert_exactly_these_ran(deployment: Deployment, placed: list[int]) -> None:
    """There is a workflow for each order, and for nothing else; each ran to its end, each transition once."""
    rows = deployment.engine.list(limit=10_000)
    assert sorted(row.id for row in rows) == [workflow_of(number) for number in placed]
    assert {row.status for row in rows} == {"completed"}
    assert {row.seq for row in rows} == {3}
    effects = {(entry.workflow_id, entry.seq) for entry in deployment.ledger.entries() if entry.kind == "effect"}
    assert effects == {(workflow_of(number), seq) for number in placed for seq in (1, 2, 3)}
    deployment.assert_sound()


def test_exactly_the_committed_half_of_1000_runs(deployment: Deployment) -> None:
    deployment.workers(2, concurrency=2)
    deployment.beat()
    assert run(deployment, 0, MANY) == 0
    placed = orders(deployment)
    assert placed == list(range(0, MANY, 2))
    deployment.await_all("completed", len(placed), within=240)
    assert_exactly_these_ran(deployment, placed)


def test_what_was_committed_before_a_kill_is_rung_by_the_sweep(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    deployment.worker(concurrency=2)
    deployment.beat()
    assert run(deployment, 0, 200, 100) == -signal.SIGKILL
    placed = orders(deployment)
    assert 100 in placed, "it was killed after the commit"
    assert len(placed) < 100, "it was killed"
    deployment.await_all("completed", len(placed), within=60)
    assert_exactly_these_ran(deployment, placed)
    # Whoever places the rest of the orders again does no harm.
    left = [number for number in range(0, 200, 2) if number not in placed]
    for number in left[:3]:
        assert run(deployment, number, 1) == 0
    deployment.await_all("completed", len(placed) + 3)
    assert_exactly_these_ran(deployment, orders(deployment))
