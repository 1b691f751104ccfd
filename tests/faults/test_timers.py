"""Timers with real workers and real beat: how late they are, and a week that passes in a moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from deployment import Deployment
from fault_workflows import Approval, Long, Seasons
from local_engine import eventually

from aegis.testing import Clock

pytestmark = pytest.mark.faults


def test_timers_run_out_within_about_a_second(deploy: Callable[..., Deployment]) -> None:
    """With the settings that everybody has: a sweep a second."""
    deployment = deploy(AEGIS_SWEEP_INTERVAL="1")
    deployment.beat()
    deployment.worker(concurrency=2)
    for number in range(20):
        deployment.engine.start(Approval(), id=f"a-{number:02d}")
    eventually(
        "all of them wait", lambda: all(row.timer_at or row.status == "completed" for row in deployment.engine.list())
    )
    deployment.await_all("completed", 20)
    late = []
    for number in range(20):
        _, begun, expired = deployment.engine.history(f"a-{number:02d}")
        assert expired.event == "expire"
        late.append(expired.at - begun.at - timedelta(seconds=2))
    assert min(late) >= timedelta(0)
    # A sweep, a bell and a claim; and what a machine that does other things as well may take.
    assert max(late) < timedelta(seconds=2.5), late
    assert sorted(late)[10] < timedelta(seconds=1.5), late


def test_a_timer_of_seven_days_runs_out_when_the_clock_is_put_forward(
    database_url: str, deploy: Callable[..., Deployment]
) -> None:
    clock = Clock.install(database_url)
    deployment = deploy()
    deployment.beat()
    deployment.worker(concurrency=2)
    deployment.engine.start(Seasons(), id="s")
    deployment.engine.start(Long(goal=60, turn=0.1), id="long")
    deployment.ledger.accepted("long")
    eventually("it waits", lambda: deployment.engine.describe("s").timer_at is not None)
    eventually("the other one runs", lambda: deployment.effects("long") == 1)

    clock.advance(timedelta(days=7) - timedelta(minutes=5))
    deployment.await_status("long", "completed", within=60)
    assert deployment.engine.describe("s").state == "waiting", "not yet"

    before = datetime.now().astimezone()
    clock.advance(timedelta(minutes=5))
    eventually("the week is over", lambda: deployment.engine.describe("s").state == "week over", 10)
    assert datetime.now().astimezone() - before < timedelta(seconds=10)
    clock.advance(timedelta(days=30))
    deployment.await_status("s", "completed")

    history = deployment.engine.history("s")
    assert [transition.event for transition in history] == ["created", "begin", "week", "month"]
    assert history[2].at - history[1].at >= timedelta(days=7)
    assert history[3].at - history[2].at >= timedelta(days=30)
    assert deployment.engine.verify_integrity("s") == (True, None)
    # Nobody took the worker for dead, and did its work once more.
    assert deployment.effects("long") == 1
    assert len(deployment.engine.history("long")) == 2
    with deployment.database.statement() as connection:
        workers = connection.exec_driver_sql("SELECT id FROM aegis_worker").scalars().all()
    assert len(workers) == 1
