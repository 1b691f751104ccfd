"""What recovery reads and writes, the figures of a deployment, and what health makes of them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from private_servers import PrivateBroker, PrivatePostgres
from sqlalchemy import event
from store_workbench import (
    GRACE,
    HAND,
    RecordingRing,
    claim,
    claimed,
    everything,
    let_timer_run_out,
    make_bench,
    make_due,
    row,
    sql,
    value,
)
from store_workflows import SCRIPT, Act, Decision, Letter, Once, Parcel, Relay

from aegis.config.keys import new_anchor_key, new_mac_key
from aegis.config.settings import Settings
from aegis.core.recovery import Claimed, Policy
from aegis.persistence import schema, vitals, watch
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.records import Hand
from aegis.persistence.watch import Watch, Worker
from aegis.tasks import anchor as anchors
from aegis.tasks.bench import Bench
from aegis.tasks.check import Check, State
from aegis.tasks.checkpoint import request_checkpoints
from aegis.tasks.health import health, worst
from aegis.tasks.sinks import sinks
from aegis.tasks.transition import run_transition

SECOND = timedelta(seconds=1)
POLICY = Policy(heartbeat_timeout=12 * SECOND, ring_grace=5 * SECOND)
KNOWN = ("store.Once/1", "store.Parcel/1", "store.Relay/1", "store.Letter/1")
ALIVE = Worker(
    id="w@test", host="host", pid=1, pids=(HAND.pid,), queues=("aegis", "belt", "desk", "night", "fast"), types=KNOWN
)


def beat(database: Database, worker: Worker = ALIVE) -> None:
    with database.statement() as connection:
        watch.beat(connection, worker)


def begin_sweep(database: Database, gap: timedelta) -> Watch:
    with database.statement() as connection:
        return watch.begin_sweep(connection, gap)


def overdue(database: Database, workflow_id: str, seconds: int = 60) -> None:
    sql(
        database,
        "UPDATE aegis_workflow SET due_at = clock_timestamp() - :ago WHERE id = :id",
        ago=timedelta(seconds=seconds),
        id=workflow_id,
    )


# --- the sweep's own clock ------------------------------------------------------------------


def test_sweeps_without_a_gap_have_watched_since_the_first(database: Database) -> None:
    first = begin_sweep(database, 60 * SECOND)
    second = begin_sweep(database, 60 * SECOND)
    assert first.since == second.since <= first.now < second.now
    assert value(database, "SELECT ran_at FROM aegis_sweep") <= second.now


def test_after_a_gap_the_watch_begins_anew(database: Database) -> None:
    """After the database was away, every worker first gets the time to speak again."""
    sql(
        database,
        "UPDATE aegis_sweep SET ran_at = clock_timestamp() - interval '61 s', since = ran_at - interval '1 day'",
    )
    again = begin_sweep(database, 60 * SECOND)
    assert abs(again.now - again.since) < SECOND
    assert begin_sweep(database, 60 * SECOND).since == again.since


def test_a_pause_that_is_no_gap_leaves_the_watch_as_it_is(database: Database) -> None:
    sql(
        database,
        "UPDATE aegis_sweep SET ran_at = clock_timestamp() - interval '50 s',"
        " since = clock_timestamp() - interval '1 day'",
    )
    found = begin_sweep(database, 60 * SECOND)
    assert found.now - found.since > timedelta(hours=23)


# --- workers --------------------------------------------------------------------------------


def test_a_heartbeat_is_written_over_the_one_before(database: Database) -> None:
    beat(database)
    began = value(database, "SELECT started_at FROM aegis_worker")
    with database.statement() as connection:
        (first,) = watch.heartbeats(connection)
        watch.beat(connection, replace(ALIVE, pids=(1, 2), queues=("other",), types=("A/1",), pid=9, host="there"))
        (second,) = watch.heartbeats(connection)
    assert (first.worker_id, first.pids, first.queues) == ("w@test", {HAND.pid}, frozenset(ALIVE.queues))
    assert (second.worker_id, second.pids, second.queues, second.types) == ("w@test", {1, 2}, {"other"}, {"A/1"})
    assert second.seen_at > first.seen_at
    assert value(database, "SELECT started_at FROM aegis_worker") == began
    assert value(database, "SELECT host || pid FROM aegis_worker") == "there9"


def test_neighbours_are_the_workers_of_a_host(database: Database) -> None:
    for name, host, pid in (("a", "here", 1), ("b", "here", 2), ("c", "there", 1)):
        beat(database, replace(ALIVE, id=name, host=host, pid=pid))
    with database.statement() as connection:
        assert sorted(watch.neighbours(connection, "here")) == [("a", 1), ("b", 2)]
        assert watch.neighbours(connection, "nowhere") == []


def test_what_a_buried_worker_had_in_hand_is_due_at_once(engine: DurableWorkflowEngine, database: Database) -> None:
    for workflow_id, worker in (("a", "dead"), ("b", "dead"), ("c", "alive")):
        engine.start(Parcel(), id=workflow_id)
        claimed(database, workflow_id, hand=Hand(worker=worker, pid=1, thread=1))
        engine.checkpoint(workflow_id)
    for name in ("dead", "alive"):
        beat(database, replace(ALIVE, id=name))
    before = row(database, "c")
    with database.statement() as connection:
        assert watch.bury(connection, ["dead", "never heard of"]) == 2
        assert [found.worker_id for found in watch.heartbeats(connection)] == ["alive"]
        assert [found.workflow_id for found in watch.due(connection, KNOWN, 10)] == ["a", "b"]
    for workflow_id in ("a", "b"):
        found = row(database, workflow_id)
        assert (found.owner, found.owner_pid, found.owner_thread, found.claimed_at) == (None, None, None, None)
        assert (found.rings, found.attempt, found.claim, found.checkpoint_asked_at) == (0, 1, 1, None)
        assert claimed(database, workflow_id).position.attempt == 2, "the attempt counts, whatever became of it"
    assert row(database, "c") == before


def test_nobody_is_buried_for_nothing(engine: DurableWorkflowEngine, database: Database) -> None:
    beat(database)
    before = everything(database)
    with database.statement() as connection:
        assert watch.bury(connection, []) == 0
    assert everything(database) == before


def test_claims_are_what_is_in_some_hand(engine: DurableWorkflowEngine, database: Database) -> None:
    for workflow_id in ("a", "b"):
        engine.start(Parcel(), id=workflow_id)
    claimed(database, "a")
    with database.statement() as connection:
        assert watch.claims(connection) == [
            Claimed(
                workflow_id="a",
                claim=1,
                owner=HAND.worker,
                pid=HAND.pid,
                thread=HAND.thread,
                claimed_at=row(database, "a").claimed_at,
            )
        ]


def test_an_abandoned_claim_is_released_and_one_that_was_taken_again_stays(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    for workflow_id in ("gone", "again"):
        engine.start(Parcel(), id=workflow_id)
        claimed(database, workflow_id)
    with database.statement() as connection:
        abandoned = watch.claims(connection)
        claimed(database, "again")  # the same hand, a moment later
        before = row(database, "again")
        assert watch.release(connection, abandoned) == 1
        assert watch.release(connection, abandoned) == 0, "twice is as good as once"
    assert row(database, "again") == before
    found = row(database, "gone")
    assert (found.owner, found.owner_pid, found.claimed_at, found.rings) == (None, None, None, 0)
    assert claimed(database, "gone").position.attempt == 2


def test_a_claim_that_was_given_to_another_worker_stays(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Parcel(), id="p")
    claimed(database, "p")
    with database.statement() as connection:
        abandoned = watch.claims(connection)
        sql(database, "UPDATE aegis_workflow SET owner = 'x@test'")
        assert watch.release(connection, abandoned) == 0


# --- what is due ----------------------------------------------------------------------------


def test_due_is_what_was_not_heard_of_the_oldest_first(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    for workflow_id in ("old", "older", "later", "timer", "event", "held", "paused", "waiting"):
        engine.start(Parcel(), id=workflow_id)
    for workflow_id in ("timer", "event", "waiting"):
        run_transition(bench, workflow_id, 0)
    engine.send("event", "decide", Decision(send=True))
    let_timer_run_out(database, "timer", ago=300 * SECOND)
    engine.pause("paused")
    claimed(database, "held")
    for workflow_id, ago in (("old", 100), ("older", 200), ("event", 50), ("held", 25)):
        overdue(database, workflow_id, ago)
    with database.statement() as connection:
        found = watch.due(connection, KNOWN, 100)
        assert [due.workflow_id for due in watch.due(connection, KNOWN, 2)] == ["timer", "older"]
    assert [(due.workflow_id, due.seq, due.queue, due.label, due.rings, due.claimed) for due in found] == [
        ("timer", 1, "night", "store.Parcel.expire", 0, False),
        ("older", 0, "belt", "store.Parcel.pack", 1, False),
        ("old", 0, "belt", "store.Parcel.pack", 1, False),
        ("event", 1, "desk", "store.Parcel.expire", 1, False),
        ("held", 0, "belt", "store.Parcel.pack", 1, True),
    ]


def test_a_type_that_no_worker_knows_stays_due(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Parcel(), id="p")
    engine.start(Once(), id="o")
    for workflow_id in ("p", "o"):
        overdue(database, workflow_id)
    with database.statement() as connection:
        assert [due.workflow_id for due in watch.due(connection, ["store.Once/1", "store.Parcel/2"], 10)] == ["o"]
        assert watch.due(connection, [], 10) == []
        assert {due.workflow_id for due in watch.due(connection, KNOWN, 10)} == {"o", "p"}, "nothing was lost"


def test_two_sweeps_at_once_share_what_is_due(engine: DurableWorkflowEngine, database: Database) -> None:
    for number in range(10):
        engine.start(Parcel(), id=f"p-{number}")
        overdue(database, f"p-{number}", 100 - number)
    with database.transaction() as first, database.transaction() as second:
        mine = {due.workflow_id for due in watch.due(first.connection(), KNOWN, 4)}
        rest = {due.workflow_id for due in watch.due(second.connection(), KNOWN, 100)}
    assert mine == {f"p-{number}" for number in range(4)}
    assert rest == {f"p-{number}" for number in range(4, 10)}


def test_a_sweep_does_not_wait_for_a_workflow_that_somebody_works_on(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    for workflow_id in ("busy", "free"):
        engine.start(Parcel(), id=workflow_id)
        overdue(database, workflow_id)
    with database.transaction() as person, database.transaction() as sweep:
        person.connection().exec_driver_sql("SELECT 1 FROM aegis_workflow WHERE id = 'busy' FOR UPDATE")
        assert [due.workflow_id for due in watch.due(sweep.connection(), KNOWN, 10)] == ["free"]


def test_each_look_is_put_off_by_its_own_delay(engine: DurableWorkflowEngine, database: Database) -> None:
    looks = {"a": 10 * SECOND, "b": 10 * SECOND, "c": 600 * SECOND}
    for workflow_id in (*looks, "other"):
        engine.start(Parcel(), id=workflow_id)
    before = row(database, "other")
    with database.statement() as connection:
        watch.look_again(connection, looks)
        watch.look_again(connection, {})
    now = value(database, "SELECT clock_timestamp()")
    for workflow_id, delay in looks.items():
        found = row(database, workflow_id)
        assert found.rings == 2
        assert abs(found.due_at - now - delay) < 5 * SECOND
    assert row(database, "other") == before


def test_the_count_of_looks_does_not_overflow(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Parcel(), id="p")
    sql(database, "UPDATE aegis_workflow SET rings = 999")
    with database.statement() as connection:
        for _ in range(3):
            watch.look_again(connection, {"p": SECOND})
    assert row(database, "p").rings == 1000


def test_after_the_broker_forgot_everything_that_could_run_is_due(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    for workflow_id in ("ready", "event", "held", "waiting", "retry", "paused"):
        engine.start(Parcel(), id=workflow_id)
    for workflow_id in ("event", "waiting"):
        run_transition(bench, workflow_id, 0)
    engine.send("event", "decide", Decision(send=True))
    engine.pause("paused")
    claimed(database, "held")
    sql(database, "UPDATE aegis_workflow SET ready_at = clock_timestamp() + interval '1 hour' WHERE id = 'retry'")
    with database.statement() as connection:
        # A few at a time, until there is none left.
        assert [watch.all_due(connection, POLICY, 1) for _ in range(4)] == [1, 1, 0, 0]
        found = watch.due(connection, KNOWN, 10)
    assert {(due.workflow_id, due.rings) for due in found} == {("ready", 0), ("event", 0)}


# --- checkpoints ----------------------------------------------------------------------------


def test_handlers_that_run_for_long_are_asked_for_a_checkpoint_once(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    for workflow_id in ("long", "saved", "short", "idle"):
        engine.start(Parcel(), id=workflow_id)
        if workflow_id != "idle":
            claimed(database, workflow_id)
    ago = "clock_timestamp() - interval '10 minutes'"
    sql(database, f"UPDATE aegis_workflow SET checkpointed_at = {ago}")  # noqa: S608
    sql(database, f"UPDATE aegis_workflow SET claimed_at = {ago} WHERE id IN ('long', 'saved')")  # noqa: S608
    sql(database, "UPDATE aegis_workflow SET checkpointed_at = clock_timestamp() WHERE id = 'saved'")
    assert request_checkpoints(database, timedelta(minutes=5)) == 1
    assert request_checkpoints(database, timedelta(minutes=5)) == 0, "it was asked, and has not answered yet"
    asked = {one: row(database, one).checkpoint_asked_at is not None for one in ("long", "saved", "short", "idle")}
    assert asked == {"long": True, "saved": False, "short": False, "idle": False}


# --- figures --------------------------------------------------------------------------------


def figures(database: Database, queue: str = "aegis") -> vitals.Vitals:
    with database.statement() as connection:
        return vitals.read(connection, queue, POLICY)


def test_the_figures_of_a_deployment_where_nothing_happens(database: Database) -> None:
    found = figures(database)
    assert (found.workers, found.troubled, found.ready, found.running) == ((), 0, 0, 0)
    assert found.overdue == found.unsaved == timedelta(0)
    assert (found.strangers, found.unheard, found.broken, found.sampled) == ({}, {}, (), 0)
    assert found.swept_at is not None


def test_the_figures_of_a_busy_deployment(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: dict[str, Act]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    beat(database)
    script["act"] = fail
    for number in range(3):
        engine.start(Parcel(), id=f"ready-{number}")
    engine.start(Once(), id="failed")
    run_transition(bench, "failed", 0)
    engine.start(Parcel(), id="old-run")
    engine.start(Parcel(), id="new-run")
    engine.start(Letter(), id="waiting")
    for workflow_id in ("old-run", "new-run"):
        claimed(database, workflow_id)
    sql(
        database,
        "UPDATE aegis_workflow SET claimed_at = clock_timestamp() - interval '5 minutes',"
        " checkpointed_at = clock_timestamp() - interval '3 minutes' WHERE id = 'old-run'",
    )
    overdue(database, "ready-1", 90)
    found = figures(database)
    assert [worker.worker_id for worker in found.workers] == ["w@test"]
    assert (found.ready, found.running, found.troubled) == (3, 2, 1)
    assert abs(found.overdue - 90 * SECOND) < 10 * SECOND
    assert abs(found.unsaved - 180 * SECOND) < 10 * SECOND, "since the later of its claim and its checkpoint"
    assert (found.strangers, found.unheard, found.broken, found.sampled) == ({}, {}, (), 5)


def test_the_figures_tell_of_types_and_queues_that_nobody_serves(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    engine.start(Parcel(), id="p")  # on the queue belt
    for number in range(2):
        engine.start(Once(), id=f"o-{number}")  # on the default queue
    engine.start(Relay(), id="r")
    assert (figures(database).strangers, figures(database).unheard) == ({}, {}), "nobody lives: that is told elsewhere"
    beat(database, replace(ALIVE, types=("store.Parcel/1", "store.Once/2"), queues=("aegis",)))
    found = figures(database)
    assert found.strangers == {"store.Once/1": 2, "store.Relay/1": 1}
    assert found.unheard == {"belt": 1}
    beat(database, replace(ALIVE, id="second", types=("store.Once/1", "store.Relay/1"), queues=("belt",)))
    found = figures(database)
    assert (found.strangers, found.unheard) == ({}, {})
    assert figures(database, queue="main").unheard == {"main": 3}


def test_the_figures_tell_of_a_broken_chain_among_the_newest(engine: DurableWorkflowEngine, database: Database) -> None:
    for number in range(7):
        engine.start(Letter(), id=f"l-{number}")
    sql(database, "UPDATE aegis_transition SET actor = 'user:eve' WHERE workflow_id IN ('l-0', 'l-6')")
    found = figures(database)
    assert found.sampled == 5
    assert len(found.broken) == 1
    assert found.broken[0].startswith("workflow 'l-6', transition 0: HASH_MISMATCH")


# --- health ---------------------------------------------------------------------------------

LINES = ["database", "schema", "workers", "beat", "backlog", "due", "RPO now", "failures", "chains"]
LINES += ["append-only", "mac", "replication", "broker", "anchors", "backup", "drills"]


# The tests' own user is a superuser, and could switch the triggers off; nothing was backed up, or drilled, here.
OWNER = {"append-only": State.WARNING, "backup": State.WARNING, "drills": State.WARNING}


def deployed(database_url: str, broker_url: str, home: Path) -> Settings:
    """Settings with which what health says does not depend on how busy the machine is."""
    return Settings(home=home, database_url=database_url, broker_url=broker_url, health_timeout=10)


@pytest.fixture
def settings(database_url: str, broker: PrivateBroker, tmp_path: Path) -> Settings:
    return deployed(database_url, broker.url, tmp_path)


@pytest.fixture
def healthy(engine: DurableWorkflowEngine, database: Database, settings: Settings) -> None:
    """A worker lives, beat sweeps, a workflow waits and one is ready; there are keys, and an anchor."""
    beat(database)
    begin_sweep(database, 60 * SECOND)
    engine.start(Parcel(), id="p")
    engine.start(Letter(), id="l")
    new_anchor_key(settings.key_folder, "tester")
    new_mac_key(settings.key_folder, grace=60 * SECOND)
    policy = anchors.Policy(interval=60 * SECOND, every=1000)
    anchors.anchor(database, sinks(settings), anchors.notary(settings), policy)


def lines(settings: Settings) -> dict[str, Check]:
    checks = health(settings)
    found = {check.name: check for check in checks}
    assert len(found) == len(checks), "each line once"
    for check in checks:
        assert bool(check.remedy) == (check.state is not State.OK), f"{check}: a remedy where something is wrong"
        assert check.says
        assert "\n" not in check.says + check.remedy
    return found


@pytest.mark.usefixtures("healthy")
def test_a_healthy_deployment_is_ok_line_by_line(settings: Settings) -> None:
    found = lines(settings)
    assert list(found) == LINES
    assert {name: check.state for name, check in found.items() if check.state is not State.OK} == OWNER
    assert worst(list(found.values())) is State.WARNING
    assert found["schema"].says == f"at {schema.wanted()}"
    assert found["workers"].says == "1 alive, 0 handlers running"
    assert found["backlog"].says == "1 ready to run"
    assert found["due"].says == "nothing overdue"
    assert found["RPO now"].says == "transitions 0 s, running handlers 0.0 s"
    assert found["chains"].says == "the 2 newest are intact, 0% verified in the last 24 h"
    assert found["mac"].says.startswith("key ")
    assert found["anchors"].says.startswith("2 of 2 logged transitions, 0.")
    assert found["broker"].says.startswith("answers; Valkey ")


Spoil = Callable[[DurableWorkflowEngine, Database], object]


def _fail(engine: DurableWorkflowEngine, database: Database) -> None:
    def act(*_: object) -> None:
        raise RuntimeError

    SCRIPT["act"] = act
    engine.start(Once(), id="o")
    run_transition(make_bench(database, RecordingRing()), "o", 0)
    SCRIPT.clear()


def _run_for_long(engine: DurableWorkflowEngine, database: Database) -> None:
    claimed(database, "p")
    past = "clock_timestamp() - interval '10 minutes'"
    sql(database, f"UPDATE aegis_workflow SET claimed_at = {past}, checkpointed_at = {past}")  # noqa: S608


SPOILED: dict[str, tuple[Spoil, str, State, str, str]] = {
    "no worker": (
        lambda _, database: sql(database, "DELETE FROM aegis_worker"),
        "workers",
        State.DEGRADED,
        "none alive",
        "aegis worker",
    ),
    "only silent workers": (
        lambda _, database: sql(database, "UPDATE aegis_worker SET seen_at = seen_at - interval '1 hour'"),
        "workers",
        State.DEGRADED,
        "none alive",
        "aegis worker",
    ),
    "a silent worker beside a living one": (
        lambda _, database: sql(
            database,
            "INSERT INTO aegis_worker SELECT 'old', host, pid, pids, queues, types, started_at,"
            " seen_at - interval '1 hour' FROM aegis_worker",
        ),
        "workers",
        State.DEGRADED,
        "1 alive, 0 handlers running, 1 silent",
        "sweep",
    ),
    "workers at another broker": (
        lambda _, database: sql(database, "UPDATE aegis_worker SET broker = 'redis://elsewhere:6379/0'"),
        "workers",
        State.WARNING,
        "1 alive, 0 handlers running, none of which listens at redis+socket://",
        "in the same spelling: redis://elsewhere:6379/0",
    ),
    "no sweep": (
        lambda _, database: sql(database, "UPDATE aegis_sweep SET ran_at = ran_at - interval '5 minutes'"),
        "beat",
        State.DEGRADED,
        "last sweep 5 min ago",
        "aegis beat",
    ),
    "never a sweep": (
        lambda _, database: sql(database, "DELETE FROM aegis_sweep"),
        "beat",
        State.DEGRADED,
        "the sweep has never run",
        "aegis beat",
    ),
    "a strange type": (
        lambda _, database: sql(database, """UPDATE aegis_worker SET types = '["Other/1"]'"""),
        "backlog",
        State.DEGRADED,
        "no worker knows the type of 1 of store.Parcel/1",
        "AEGIS_WORKFLOWS",
    ),
    "a queue without listener": (
        lambda _, database: sql(database, """UPDATE aegis_worker SET queues = '["aegis"]'"""),
        "backlog",
        State.DEGRADED,
        "no worker listens to the queue of 1 on 'belt'",
        "aegis worker -Q",
    ),
    "long overdue": (
        lambda _, database: overdue(database, "p", 60),
        "due",
        State.DEGRADED,
        "the oldest is 60 s overdue",
        "beat",
    ),
    "a handler without checkpoints": (_run_for_long, "RPO now", State.DEGRADED, "running handlers 10 min", "progress"),
    "a failure": (_fail, "failures", State.DEGRADED, "1 failed or quarantined", "aegis retry"),
    "an edited history": (
        lambda _, database: sql(database, "UPDATE aegis_transition SET actor = 'user:eve' WHERE workflow_id = 'l'"),
        "chains",
        State.DOWN,
        "workflow 'l', transition 0: HASH_MISMATCH",
        "aegis verify",
    ),
}


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("name", SPOILED)
def test_health_names_what_is_wrong_and_what_to_do(
    engine: DurableWorkflowEngine, database: Database, settings: Settings, name: str
) -> None:
    spoil, line, state, says, remedy = SPOILED[name]
    spoil(engine, database)
    found = lines(settings)
    assert list(found) == LINES
    assert found[line].state is state
    assert says in found[line].says
    assert remedy in found[line].remedy
    assert worst(list(found.values())) is state
    assert {check.name for check in found.values() if check.state is not State.OK} - set(OWNER) == {line}


def test_every_line_about_rows_can_go_wrong() -> None:
    assert {line for _, line, _, _, _ in SPOILED.values()} == set(LINES) - {
        "database",
        "schema",
        "broker",
        "append-only",
        "mac",
        "replication",
        "anchors",
        "backup",
        "drills",
    }


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    "edit", ["UPDATE aegis_payload SET body = 'no json'", "DELETE FROM aegis_deployment"], ids=["payload", "deployment"]
)
def test_health_does_not_take_what_it_cannot_read_for_a_database_that_does_not_answer(
    engine: DurableWorkflowEngine, database: Database, bench: Bench, settings: Settings, edit: str
) -> None:
    engine.send("l", "finish", "a")
    run_transition(bench, "l", 0)
    assert sql(database, edit)
    found = lines(settings)
    assert worst(list(found.values())) is State.DOWN
    assert "no answer" not in found["database"].says


def test_health_without_a_schema(postgres: PrivatePostgres, broker: PrivateBroker, tmp_path: Path) -> None:
    with postgres.database() as url:
        found = lines(deployed(url, broker.url, tmp_path))
    assert list(found) == ["database", "schema", "broker", "anchors", "backup", "drills"]
    assert (found["database"].state, found["broker"].state) == (State.OK, State.OK)
    assert (found["schema"].state, found["schema"].remedy) == (State.DOWN, "run `aegis db upgrade`")
    assert found["schema"].says == f"missing, this AEGIS needs {schema.wanted()}"


def test_health_with_the_schema_of_another_version(database: Database, settings: Settings) -> None:
    sql(database, "UPDATE aegis_schema SET version_num = '0000'")
    found = lines(settings)
    assert list(found) == ["database", "schema", "broker", "anchors", "backup", "drills"]
    assert (found["schema"].state, found["schema"].says) == (
        State.DOWN,
        f"at 0000, this AEGIS needs {schema.wanted()}",
    )


def test_health_without_a_database(tmp_path: Path, broker: PrivateBroker) -> None:
    url = f"postgresql://aegis:secret@/aegis?host={tmp_path}"
    found = lines(deployed(url, broker.url, tmp_path))
    assert list(found) == ["database", "broker", "anchors", "backup", "drills"]
    assert found["database"].state is State.DOWN
    assert "AEGIS_DATABASE_URL" in found["database"].remedy
    assert "secret" not in found["database"].says + found["database"].remedy
    assert found["broker"].state is State.OK


def test_health_with_a_database_that_is_too_busy_to_tell(database: Database, settings: Settings) -> None:
    """Somebody holds a lock on everything: the report comes all the same, and calls nothing down."""
    held = threading.Event()
    with database.transaction() as session:
        session.connection().exec_driver_sql("LOCK TABLE aegis_workflow IN ACCESS EXCLUSIVE MODE")
        held.set()
        found = lines(settings.model_copy(update={"health_timeout": 0.7}))
    assert list(found) == ["database", "schema", "figures", "broker", "anchors", "backup", "drills"]
    assert found["database"].state is State.OK
    assert found["figures"].state is State.DEGRADED
    assert "not read within" in found["figures"].says
    assert found["broker"].state is State.OK


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("url", ["redis+socket:///nonexistent/valkey.sock", "redis://:secret@127.0.0.1:1/0"])
def test_health_without_a_broker(database_url: str, url: str, tmp_path: Path) -> None:
    found = lines(deployed(database_url, url, tmp_path))
    assert list(found) == LINES
    assert found["broker"].state is State.DEGRADED
    assert "AEGIS_BROKER_URL" in found["broker"].remedy
    assert "nothing is lost meanwhile" in found["broker"].remedy
    assert "secret" not in found["broker"].says + found["broker"].remedy
    assert worst(list(found.values())) is State.DEGRADED
    assert {check.state for name, check in found.items() if name not in {"broker", *OWNER}} == {State.OK}


def test_health_without_anything(tmp_path: Path) -> None:
    url = f"postgresql://aegis@/aegis?host={tmp_path}"
    found = lines(deployed(url, f"redis+socket://{tmp_path}/valkey.sock", tmp_path))
    assert {name: check.state for name, check in found.items()} == {
        "database": State.DOWN,
        "broker": State.DEGRADED,
        "anchors": State.WARNING,
        "backup": State.WARNING,
        "drills": State.WARNING,
    }


@pytest.mark.usefixtures("healthy")
def test_health_changes_nothing(database: Database, settings: Settings) -> None:
    before = everything(database)
    health(settings)
    assert everything(database) == before


def test_a_workflow_that_is_due_is_found_again_by_every_way(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    """A bell lost, a worker dead, a broker wiped: each makes the same row due, and it can be claimed."""
    ways: dict[str, Callable[[Any, str], object]] = {
        "bell": lambda _, workflow_id: overdue(database, workflow_id),
        "worker": lambda connection, workflow_id: (claimed(database, workflow_id), watch.bury(connection, ["w@test"])),
        "broker": lambda connection, _: watch.all_due(connection, POLICY, 10),
        "retry": lambda _, workflow_id: make_due(database, workflow_id),
    }
    for workflow_id, way in ways.items():
        engine.start(Once(), id=workflow_id)
        due_at = row(database, workflow_id).due_at
        assert due_at - row(database, workflow_id).created_at == GRACE
        with database.statement() as connection:
            way(connection, workflow_id)
            found = watch.due(connection, KNOWN, 10)
        assert workflow_id in {due.workflow_id for due in found}
        assert claim(database, workflow_id) is not None
        engine.cancel(workflow_id)


# --- what only sleeps -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [
        lambda connection: watch.due(connection, ["store.Parcel/1"], 100),
        lambda connection: watch.due(connection, ["store.Parcel/1"], 100, urgent=False),
        lambda connection: watch.due(connection, ["store.Parcel/1"], 100, urgent=True),
        lambda connection: watch.due_queues(connection, ["store.Parcel/1"], 100),
        lambda connection: watch.is_due(connection, ["store.Parcel/1"]),
        lambda connection: watch.all_due(connection, POLICY, 100),
    ],
    ids=["due", "due, ordinary", "due, urgent", "queues", "is due", "all due"],
)
def test_what_only_sleeps_is_not_read_by_a_sweep(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, look: Callable[[Any], object]
) -> None:
    """A moment that does not change within the statement is where the index is entered; a clock would be asked each."""
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    columns = "type, version, definition, state, status, seq, head, accepts, moved_at, entered_at, checkpointed_at"
    copied = f"{columns}, created_at, updated_at, timer_at, ready_at, due_at"
    sleepers = f"INSERT INTO aegis_workflow (id, {copied}) SELECT 'z' || n, {copied} FROM aegis_workflow"  # noqa: S608
    sql(database, f"{sleepers}, generate_series(1, 3000) AS n WHERE id = 'p'")
    with database.statement() as connection:
        connection.exec_driver_sql("ANALYZE aegis_workflow")
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    with database.transaction() as session:
        look(session.connection())
    event.remove(database.engine, "before_cursor_execute", note)
    with database.transaction() as session:
        plan = session.connection().exec_driver_sql("EXPLAIN (ANALYZE, BUFFERS OFF) " + seen[0][0], seen[0][1])
        lines = list(plan.scalars())
    removed = [int(found[1]) for line in lines if (found := re.search(r"Rows Removed by Filter: (\d+)", line))]
    assert sum(removed) < 100, "\n".join(lines)
    assert any("Index Cond" in line and "due_at <" in line for line in lines), "\n".join(lines)
