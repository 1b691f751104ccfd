"""F10, F14-F18, F22: two of everything, zombies, poison, hangs, and a worker without the code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from deployment import Deployment
from fault_workflows import Approval, Failing, Hopeless, Long, Poison, Steps, Stuck
from local_engine import eventually

from aegis.persistence import watch
from aegis.persistence.watch import Worker
from aegis.tasks.broker import Broker
from aegis.tasks.check import State
from aegis.tasks.health import health
from aegis.tasks.sweep import sweep

pytestmark = pytest.mark.faults


def test_two_beats_at_once_and_a_hundred_workflows(deployment: Deployment) -> None:
    deployment.beat()
    deployment.beat()
    deployment.workers(2)
    for number in range(100):
        deployment.ledger.accepted(deployment.engine.start(Steps(), id=f"steps-{number:03d}").id)
    deployment.empty_queue()
    deployment.await_all("completed", 100)
    deployment.assert_sound()


def test_sweeps_at_once_share_the_work(deployment: Deployment) -> None:
    """Every due workflow is rung once, whoever of the four sweeps finds it."""
    broker = Broker(deployment.app)
    broker.remember()
    for number in range(200):
        deployment.engine.start(Steps(), id=f"steps-{number:03d}")
    deployment.empty_queue()
    alive = Worker(id="w", host="h", pid=1, pids=(1,), queues=("aegis",), types=("Steps/1",))
    with deployment.database.statement() as connection:
        watch.beat(connection, alive)
        watch.all_due(connection, deployment.settings.recovery, 10_000)
    with ThreadPoolExecutor(4) as pool:
        swept = list(pool.map(lambda _: sweep(deployment.database, broker, deployment.settings.recovery), range(4)))
    assert sum(one.rung for one in swept) == 200
    assert broker.lengths([None]) == {None: 200}


def test_two_workers_and_one_workflow(deployment: Deployment) -> None:
    deployment.workers(2, concurrency=2)
    handle = deployment.engine.start(Steps(pause=0.2), id="steps")
    deployment.ledger.accepted(handle.id)
    for _ in range(20):
        deployment.engine.resume_all_pending(Steps)
    deployment.await_status("steps", "completed")
    assert [deployment.effects("steps", seq) for seq in (1, 2, 3)] == [1, 1, 1]
    deployment.assert_sound()


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_run_it_too(deployment: Deployment, pool: str) -> None:
    deployment.beat()
    deployment.worker(concurrency=8, options=[f"--pool={pool}"])
    for number in range(30):
        deployment.ledger.accepted(deployment.engine.start(Steps(pause=0.02), id=f"steps-{number:02d}").id)
    deployment.await_all("completed", 30)
    deployment.assert_sound()


@pytest.mark.skipif(sys.gettrace() is not None, reason="under coverage's tracer the interrupted thread hangs in it")
def test_a_pool_of_threads_stops_a_handler_that_takes_too_long(deployment: Deployment) -> None:
    deployment.beat()
    worker = deployment.worker(concurrency=1, options=["--pool=threads"])
    deployment.ledger.accepted(deployment.engine.start(Stuck(), id="stuck").id)
    deployment.ledger.accepted(deployment.engine.start(Steps(), id="bystander").id)
    deployment.await_status("stuck", "failed")
    deployment.await_status("bystander", "completed")
    assert deployment.effects("stuck") == 2
    error = deployment.engine.describe("stuck").error
    assert error is not None
    assert error["message"] == "Stuck.work did not finish within its timeout of 0.5 s"
    assert worker.container.status == "running"
    deployment.assert_sound(work=2)


def test_a_zombie_that_wakes_after_its_claim_was_given_away_is_fenced_off(deployment: Deployment) -> None:
    deployment.beat()
    zombie = deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Steps(pause=1), id="steps").id)
    eventually("the handler runs", lambda: deployment.effects("steps", 1) == 1)
    frozen = [zombie.pulse(), *zombie.handlers()]
    zombie.container._container.signal(signal.SIGSTOP)
    for process in frozen:
        process.suspend()
    deployment.worker()
    deployment.await_status("steps", "completed")
    for process in frozen:
        process.resume()
    zombie.container._container.signal(signal.SIGCONT)
    zombie.wait_for_log("claim lost", timeout=20)
    assert deployment.effects("steps", 1) == 2
    assert deployment.engine.history("steps")[1].attempt == 2
    deployment.assert_sound()


def test_a_handler_that_kills_its_worker_every_time_is_quarantined(deployment: Deployment) -> None:
    deployment.beat()
    worker = deployment.worker(concurrency=2)
    deployment.ledger.accepted(deployment.engine.start(Poison(), id="poison").id)
    deployment.ledger.accepted(deployment.engine.start(Steps(), id="bystander").id)
    deployment.await_status("poison", "quarantined")
    deployment.await_status("bystander", "completed")
    assert deployment.effects("poison") == 3
    assert worker.container.status == "running"
    row = deployment.engine.describe("poison")
    assert row.error is not None
    assert "died in each of 3 attempts at Poison.poison" in row.error["message"]
    deployment.assert_sound()


def test_a_quarantined_workflow_goes_on_when_it_is_retried(deployment: Deployment) -> None:
    deployment.beat()
    deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Poison(harmless_after=3), id="poison").id)
    deployment.await_status("poison", "quarantined")
    deployment.engine.retry("poison", reason="mended")
    # Three attempts again; and this handler does no harm from the fourth on.
    deployment.await_status("poison", "quarantined")


@pytest.mark.parametrize("in_c", [False, True], ids=["in Python", "in C"])
def test_a_handler_that_hangs_is_ended_by_its_timeout(deployment: Deployment, in_c: bool) -> None:
    deployment.beat()
    deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Stuck(in_c=in_c), id="stuck").id)
    deployment.await_status("stuck", "quarantined" if in_c else "failed", within=60)
    assert deployment.effects("stuck") == 2
    deployment.assert_sound(work=2)


@pytest.mark.parametrize("how", ["kill", "hang", "hang in C"])
def test_a_handler_that_never_ends_gives_up_where_there_is_a_state_for_it(deployment: Deployment, how: str) -> None:
    """Soft limits, hard limits and killed processes all obey Retry, and all lead there."""
    deployment.beat()
    worker = deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Hopeless(how=how), id="hopeless").id)
    deployment.engine.send("hopeless", "again", key="k")
    deployment.await_status("hopeless", "completed", within=60)
    assert deployment.effects("hopeless") == 2
    last = deployment.engine.history("hopeless")[-1]
    assert (last.event, last.to_state) == ("try_it", "done")
    assert isinstance(last.payload, dict)
    assert (last.payload["gave_up"], last.payload["key"]) == (True, "k")
    problem = "within its timeout of 0.5 s" if how == "hang" else "its worker died in each of 2 attempts"
    assert problem in last.payload["error"]["message"]  # type: ignore[index, call-overload, operator]
    assert deployment.engine.describe("hopeless").inbox == 0
    assert worker.container.status == "running"
    assert deployment.engine.verify_integrity("hopeless") == (True, None)


def test_an_attempt_that_raises_is_tried_again_and_told(deployment: Deployment) -> None:
    deployment.beat()
    deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Failing(times=2), id="third-time").id)
    deployment.ledger.accepted(deployment.engine.start(Failing(times=9), id="never").id)
    deployment.await_status("third-time", "completed")
    deployment.await_status("never", "failed")
    assert deployment.engine.history("third-time")[1].attempt == 3
    last = deployment.engine.history("never")[-1]
    assert (last.event, last.attempt) == ("failed", 5)
    assert last.payload == {"error": {"type": "RuntimeError", "message": "attempt 5"}, "transition": "go"}
    deployment.assert_sound()


def test_a_worker_without_the_code_leaves_it_for_one_that_has_it(deployment: Deployment) -> None:
    deployment.beat()
    ignorant = deployment.worker(AEGIS_WORKFLOWS="ignorant_workflows")
    for number in range(5):
        deployment.ledger.accepted(deployment.engine.start(Steps(), id=f"steps-{number}").id)
    ignorant.wait_for_log("left for a worker that knows its type", timeout=20)
    backlog = next(check for check in health(deployment.settings) if check.name == "backlog")
    assert backlog.state is State.DEGRADED
    assert "Steps/1" in backlog.says
    assert all(row.seq == 0 and row.attempt == 0 for row in deployment.engine.list())
    deployment.worker()
    deployment.await_all("completed", 5)
    deployment.assert_sound()


def test_a_stop_that_a_whole_process_group_is_told_of_cuts_off_no_handler(deployment: Deployment) -> None:
    """As honcho, a terminal, and most runners of a Procfile do it."""
    deployment.beat()
    worker = deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Steps(pause=2), id="steps").id)
    eventually("the handler runs", lambda: deployment.effects("steps", 1) == 1)
    worker.container._container.signal_group(signal.SIGTERM)
    process = worker.container._container.process
    assert process is not None
    assert process.wait(20) == 0
    assert [link.event for link in deployment.engine.history("steps")] == ["created", "one"]
    deployment.worker()
    deployment.await_status("steps", "completed")
    assert {link.attempt for link in deployment.engine.history("steps")} == {1}
    deployment.assert_sound()


def test_a_graceful_stop_finishes_what_runs_and_hands_back_the_rest(deployment: Deployment) -> None:
    deployment.beat()
    worker = deployment.worker(concurrency=2)
    for number in range(10):
        deployment.ledger.accepted(deployment.engine.start(Steps(pause=0.5), id=f"steps-{number}").id)
    eventually("two handlers run", lambda: len(deployment.ledger.entries()) == 12)
    worker.container._container.stop(20)
    assert worker.container._container.process is not None
    assert worker.container._container.process.returncode == 0
    eventually("it has left", lambda: deployment.heartbeat_of(worker) is None)
    moved = [row.seq for row in deployment.engine.list()]
    assert all(not row.running for row in deployment.engine.list())
    assert sum(moved) == len([e for e in deployment.ledger.entries() if e.kind == "effect"]), "a handler was cut off"
    deployment.worker(concurrency=2)
    deployment.await_all("completed", 10)
    assert all(link.attempt == 1 for row in deployment.engine.list() for link in deployment.engine.history(row.id))
    deployment.assert_sound()


def test_a_killed_worker_resumes_a_long_handler_from_its_last_checkpoint(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(AEGIS_CHECKPOINT_INTERVAL="1")
    deployment.beat()
    worker = deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Long(goal=120, turn=0.05), id="long").id)
    worker.wait_for_log("kind=periodic", timeout=30)
    saved = deployment.engine.get("long").to_dict()["turns"]
    assert 0 < saved < 120
    worker.kill_host()
    deployment.worker()
    deployment.await_status("long", "completed")
    first, second = deployment.engine.get("long").to_dict()["begun_at"]
    assert first == 0
    assert 0 < saved <= second, "it went on from its last progress, not from its start"
    link = deployment.engine.history("long")[1]
    assert link.attempt == 2
    assert isinstance(link.payload, dict)
    assert link.payload["progress"], "the checkpoints inside the handler are tied into the chain"
    deployment.assert_sound()


def test_a_timer_and_an_event_race_and_one_of_them_wins(deployment: Deployment) -> None:
    deployment.beat()
    deployment.workers(2)
    for number in range(6):
        deployment.ledger.accepted(deployment.engine.start(Approval(), id=f"approval-{number}").id)
    deployment.await_all("waiting", 6)
    for number in range(3):
        deployment.engine.send(f"approval-{number}", "decide", number != 1, key="once")
        deployment.engine.send(f"approval-{number}", "decide", number != 1, key="once")
    deployment.await_all("completed", 6)
    states = [deployment.engine.describe(f"approval-{number}").state for number in range(6)]
    assert states == ["yes", "no", "yes", "late", "late", "late"]
    deployment.assert_sound()


def test_a_pause_lets_the_handler_finish_and_nothing_more_begin(deployment: Deployment) -> None:
    deployment.beat()
    deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Steps(pause=0.7), id="steps").id)
    eventually("the handler runs", lambda: deployment.effects("steps", 1) == 1)
    deployment.engine.pause("steps", reason="let me look")
    deployment.await_status("steps", "paused")
    events = [(link.event, link.actor, link.payload) for link in deployment.engine.history("steps")]
    assert events[1][0] == "one"
    assert events[2] == ("paused", "user:test", {"reason": "let me look"})
    deployment.engine.resume("steps")
    deployment.await_status("steps", "completed")
    assert {deployment.effects("steps", seq) for seq in (1, 4, 5)} == {1}
    deployment.assert_sound()


def test_a_cancelled_workflow_stays_cancelled_whatever_its_handler_says(deployment: Deployment) -> None:
    worker = deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Steps(pause=1), id="steps").id)
    eventually("the handler runs", lambda: deployment.effects("steps", 1) == 1)
    deployment.engine.cancel("steps", reason="never mind")
    worker.wait_for_log("claim lost", timeout=20)
    assert [link.event for link in deployment.engine.history("steps")] == ["created", "cancelled"]
    deployment.assert_sound()
