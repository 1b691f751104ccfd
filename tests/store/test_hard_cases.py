"""What a review of all that can go wrong found: each of these left a workflow stuck, repeated, or falsely accused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import WorkerTerminate
from private_servers import PrivateBroker
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DataError, OperationalError
from store_workbench import (
    GRACE,
    RecordingRing,
    claimed,
    make_bench,
    make_due,
    make_engine,
    meanwhile,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act, Booking, Letter, Once, Parcel, Stage

from aegis import Context, Workflow
from aegis.config.settings import Settings
from aegis.core.bell import Bell
from aegis.core.errors import DatabaseUnavailable
from aegis.core.recovery import Policy
from aegis.persistence import repository, watch
from aegis.persistence.database import Database, is_too_slow
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.records import Hand
from aegis.persistence.watch import Worker
from aegis.tasks import entry, sweep
from aegis.tasks.bench import Bench
from aegis.tasks.broker import Broker
from aegis.tasks.check import State
from aegis.tasks.context import HandlerContext
from aegis.tasks.health import health
from aegis.tasks.sweep import sweep as run_sweep
from aegis.tasks.transition import Ended, run_transition
from aegis.workers.factory import make_app
from aegis.workers.schedule import InProcessScheduler

SECOND = timedelta(seconds=1)
POLICY = Policy(heartbeat_timeout=12 * SECOND, ring_grace=5 * SECOND)
KNOWN = ("store.Once/1", "store.Parcel/1", "store.Letter/1")

Script = dict[str, Act]


def raising(error: BaseException) -> Act:
    def act(_workflow: Any, _ctx: Context) -> None:
        raise error

    return act


def cancelled(_workflow: Any, _ctx: Context) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(asyncio.sleep(9))
        task.cancel()
        await task

    asyncio.run(main())


# --- what a handler raises that is no Exception -----------------------------------------------


@pytest.mark.parametrize("act", [cancelled, raising(GeneratorExit()), raising(SystemExit(3))], ids=lambda a: a.__name__)
def test_whatever_a_handler_raises_is_an_attempt_that_failed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, act: Act
) -> None:
    script["pack"] = act
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    found = row(database, "p")
    assert (found.owner, found.attempt, found.status) == (None, 1, "pending")
    assert found.error["attempt"] == 1
    script.clear()
    make_due(database, "p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED


@pytest.mark.parametrize("error", [WorkerTerminate(1), KeyboardInterrupt()], ids=["terminated", "interrupted"])
@pytest.mark.parametrize("kind", [Parcel, Booking])
def test_a_worker_that_is_ended_in_a_handler_puts_the_workflow_down(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    error: BaseException,
    kind: Callable[[], Workflow],
) -> None:
    script["pack"] = script["book"] = raising(error)
    engine.start(kind(), id="p")
    with pytest.raises(type(error)):
        run_transition(bench, "p", 0)
    found = row(database, "p")
    assert (found.owner, found.attempt, found.rings) == (None, 0, 0)
    assert found.due_at is not None


# --- a time limit that strikes while a checkpoint is written -------------------------------------


@contextmanager
def struck_after_the_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise in the moment between a checkpoint's write and the line after it, as SIGALRM does; once."""
    real = HandlerContext._write
    struck: list[bool] = []

    def write(self: HandlerContext, *arguments: Any) -> bool:
        written = real(self, *arguments)
        if not struck:
            struck.append(True)
            raise TimeoutError("the limit")
        return written

    with monkeypatch.context() as patched:
        patched.setattr(HandlerContext, "_write", write)
        yield
    assert struck


def saves(words: list[str], *, again: bool) -> Act:
    def act(workflow: Any, ctx: Context) -> None:
        workflow.note = words[0]
        try:
            ctx.checkpoint()
        except TimeoutError:
            if not again:
                raise
        for word in words[1:]:
            workflow.note = word
            ctx.checkpoint()

    return act


def test_a_checkpoint_that_was_just_written_when_time_ran_out_is_kept(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script["act"] = saves(["saved"], again=False)
    engine.start(Once(), id="o")
    with struck_after_the_write(monkeypatch):
        assert run_transition(bench, "o", 0) is Ended.COMMITTED
    assert engine.describe("o").status == "failed"
    assert engine.get("o").to_dict()["note"] == "saved"
    assert engine.verify_integrity("o") == (True, None), "the checkpoint is listed by the transition after it"


def test_a_handler_that_goes_on_after_that_may_save_again(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script["act"] = saves(["one", "two", "three"], again=True)
    engine.start(Once(), id="o")
    with struck_after_the_write(monkeypatch):
        assert run_transition(bench, "o", 0) is Ended.COMMITTED
    assert engine.describe("o").status == "completed"
    assert engine.verify_integrity("o") == (True, None)


# --- transactional handlers ---------------------------------------------------------------------


@pytest.fixture
def seats(database: Database) -> Iterator[Callable[[], int]]:
    sql(database, "CREATE TABLE seats (workflow_id text, number integer)")
    yield lambda: int(value(database, "SELECT count(*) FROM seats"))
    sql(database, "DROP TABLE seats")


def book(ctx: Context) -> None:
    ctx.session.execute(text("INSERT INTO seats VALUES (:id, 1)"), {"id": ctx.workflow_id})


def test_the_error_of_another_database_is_the_handlers_own(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, seats: Callable[[], int]
) -> None:
    """Not an outage of ours: it counts, and ends after as many attempts as it may have."""
    foreign = create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 2})

    def act(_workflow: Any, ctx: Context) -> None:
        book(ctx)
        with foreign.connect():
            pass

    script["book"] = act
    engine.start(Booking(), id="b")
    for attempt in (1, 2):
        assert run_transition(bench, "b", 0) is Ended.FAILED
        assert row(database, "b").attempt == attempt
        make_due(database, "b")
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    assert engine.describe("b").status == "failed"
    assert seats() == 0


def test_a_statement_that_always_takes_too_long_counts(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        ctx.session.execute(text("SET LOCAL statement_timeout = 20"))
        ctx.session.execute(text("SELECT pg_sleep(10)"))

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.FAILED
    assert row(database, "b").attempt == 1


def test_an_outage_within_the_handlers_transaction_does_not_count_and_is_not_repeated_every_second(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        ctx.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    script["book"] = act
    engine.start(Booking(), id="b")
    delays = []
    for _ in range(4):
        assert run_transition(bench, "b", 0) is Ended.LEFT
        found = row(database, "b")
        assert found.attempt == 0
        delays.append(round((found.due_at - found.updated_at).total_seconds()))
        make_due(database, "b")
    assert delays == [1, 2, 4, 8]
    script.clear()
    assert run_transition(bench, "b", 0) is Ended.COMMITTED


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_a_handler_that_ends_its_transaction_itself_is_refused_once_and_for_all(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, seats: Callable[[], int], how: str
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        book(ctx)
        getattr(ctx.session, how)()

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    row_error = engine.describe("b").error
    assert engine.describe("b").status == "failed", "another attempt would do the same"
    assert row_error is not None
    assert "store.Booking.book: it" in row_error["message"]
    assert seats() == 0


# --- locks, deadlocks, serialization ---------------------------------------------------------------


def with_options(database: Database, options: str) -> Database:
    url = database.engine.url.update_query_dict({"options": options}, append=True)
    return Database(url.render_as_string(hide_password=False))


def test_a_lock_that_is_not_had_in_time_is_waited_for(
    engine: DurableWorkflowEngine,
    database: Database,
    ring: RecordingRing,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a lock_timeout on the role, which is common: the handler's result is kept until the row is free."""
    impatient = with_options(database, "-clock_timeout=50ms")
    bench = make_bench(impatient, ring)
    engine.start(Parcel(), id="p")
    holds, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with database.transaction() as session:
            session.execute(text("SELECT 1 FROM aegis_workflow WHERE id = 'p' FOR UPDATE"))
            holds.set()
            let_go.wait(20)

    real, refused = Database.run, []

    def run(self: Database, *arguments: Any) -> Any:
        try:
            return real(self, *arguments)
        except DatabaseUnavailable as error:
            refused.append(error.reason)
            if len(refused) == 3:
                let_go.set()
            raise

    def packs(_workflow: Any, _ctx: Context) -> None:
        with_lock.start()
        assert holds.wait(10)

    with_lock = threading.Thread(target=hold)
    script["pack"] = packs
    monkeypatch.setattr(Database, "run", run)
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    with_lock.join()
    assert len(refused) >= 3
    assert "lock timeout" in refused[0]
    impatient.close()
    assert engine.describe("p").state == Stage.PACKED
    assert engine.history("p")[-1].attempt == 1


def test_a_verb_that_was_given_up_for_another_is_tried_again(
    engine: DurableWorkflowEngine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F21: a deadlock rolls the whole transaction back; the whole transaction goes again."""
    tried: list[int] = []

    def deadlock(session: Any) -> str:
        tried.append(1)
        if len(tried) < 3:
            session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$"))
        return "done"

    assert engine._write(deadlock) == "done"
    assert len(tried) == 3
    monkeypatch.setattr("aegis.persistence.database._MOST_TRIES", 2)
    tried.clear()
    with pytest.raises(OperationalError):
        engine._write(deadlock)
    assert len(tried) == 2


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_the_servers_default_isolation_makes_no_difference(
    database: Database, ring: RecordingRing, engine: DurableWorkflowEngine, level: str
) -> None:
    strict = with_options(database, f"-cdefault_transaction_isolation={level.replace(' ', chr(92) + ' ')}")
    bench = make_bench(strict, ring)
    own = DurableWorkflowEngine(strict, ring, engine._terms)
    for number in range(8):
        own.start(Letter(), id=f"l-{number}")

    def send() -> None:
        for number in range(8):
            own.send(f"l-{number}", "finish", "x")

    with meanwhile(send), meanwhile(send):
        for number in range(8):
            own.send(f"l-{number}", "finish", "y")
    assert {row(database, f"l-{number}").inbox for number in range(8)} == {3}
    for number in range(8):
        assert run_where_it_is_sent(bench, f"l-{number}", 0) is Ended.COMMITTED
    strict.close()


# --- what a hand has left over ------------------------------------------------------------------------


def test_a_claim_that_its_own_hand_forgot_is_freed_as_soon_as_it_takes_another(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    hand = Hand(worker="w@test", pid=7, thread=1)
    for workflow_id in ("forgotten", "held"):
        engine.start(Once(), id=workflow_id)
        claimed(database, workflow_id, hand=hand)
    with database.statement() as connection:
        watch.beat(connection, Worker(id="w@test", host="h", pid=1, pids=(7,), queues=("aegis",), types=KNOWN))
    _, dead, freed, *_ = sweep._free(database, POLICY)
    assert (dead, freed) == ((), 1)
    assert row(database, "forgotten").owner is None
    assert row(database, "held").owner == "w@test"


# --- the sweep -----------------------------------------------------------------------------------------


def test_sweeps_that_are_always_far_apart_find_the_dead_all_the_same(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    engine.start(Once(), id="o")
    claimed(database, "o")
    with database.statement() as connection:
        watch.beat(connection, Worker(id="w@test", host="h", pid=1, pids=(4711,), queues=("aegis",), types=KNOWN))
    found = []
    for _ in range(4):
        # Twenty seconds pass: longer than the time-out, between any two sweeps.
        for statement in (
            "UPDATE aegis_sweep SET ran_at = ran_at - interval '20 s', since = since - interval '20 s'",
            "UPDATE aegis_worker SET seen_at = seen_at - interval '20 s'",
        ):
            sql(database, statement)
        found.append(sweep._free(database, POLICY)[1])
    assert ("w@test",) in found[:2], "not at once, as the database may have been away; but soon"
    assert row(database, "o").owner is None


@pytest.mark.parametrize("known", [True, False], ids=["found dead", "dead before"])
def test_a_sweep_does_not_wait_for_what_the_dead_hold(
    engine: DurableWorkflowEngine, database: Database, *, known: bool
) -> None:
    """A process that is stopped in the middle of a transaction keeps it open for as long as it is."""
    for workflow_id in ("held", "free"):
        engine.start(Once(), id=workflow_id)
        claimed(database, workflow_id)
    if known:
        with database.statement() as connection:
            watch.beat(connection, Worker(id="w@test", host="h", pid=1, pids=(4711,), queues=("aegis",), types=KNOWN))
    sql(database, "UPDATE aegis_worker SET seen_at = seen_at - interval '1 hour'")
    sql(database, "UPDATE aegis_workflow SET claimed_at = claimed_at - interval '1 hour'")
    sql(database, "UPDATE aegis_sweep SET ran_at = clock_timestamp(), since = clock_timestamp() - interval '1 hour'")
    impatient = with_options(database, "-clock_timeout=5s")
    with database.transaction() as session:
        session.execute(text("SELECT 1 FROM aegis_workflow WHERE id = 'held' FOR UPDATE"))
        assert sweep._free(impatient, POLICY)[2] == 1
    assert (row(database, "held").owner, row(database, "free").owner) == ("w@test", None)
    assert sweep._free(impatient, POLICY)[2] == 1
    assert row(database, "held").owner is None
    impatient.close()


@pytest.fixture
def doorbell(broker: PrivateBroker, tmp_path: Path) -> Broker:
    """A real broker, under a prefix of the test's own."""
    address = {"database_url": "postgresql://a@b/c", "broker_url": broker.url}
    made = Broker(make_app(Settings(**address, broker_prefix=f"{tmp_path.name[:60]}:")))
    made.remember()
    return made


def alive(database: Database, *queues: str) -> None:
    with database.statement() as connection:
        watch.beat(connection, Worker(id="w@test", host="h", pid=1, pids=(1,), queues=queues, types=KNOWN))


def test_a_queue_that_nobody_listens_to_is_not_rung_for_ever(
    engine: DurableWorkflowEngine, database: Database, doorbell: Broker
) -> None:
    for number in range(20):
        engine.start(Parcel(), id=f"p-{number}")  # on "belt"
    alive(database, "aegis")
    for _ in range(7):
        sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'")
        run_sweep(database, doorbell, POLICY)
    # The bells of the starts were never rung here: they are rung once, and then only wait.
    assert doorbell.lengths(["belt"]) == {"belt": 20}


def listens(database: Database, name: str, broker: str, *, silent_for: float = 0) -> None:
    worker = Worker(id=name, host="h", pid=1, pids=(1,), queues=("aegis",), types=KNOWN, broker=broker)
    with database.statement() as connection:
        watch.beat(connection, worker)
    gone = "UPDATE aegis_worker SET seen_at = seen_at - make_interval(secs => :by) WHERE id = :name"
    sql(database, gone, by=silent_for, name=name)


@pytest.fixture
def deserted(engine: DurableWorkflowEngine, database: Database, doorbell: Broker) -> None:
    """Twenty are due, and more bells wait here; at the other broker, where workers listened, nobody does any more."""
    for number in range(20):
        engine.start(Once(), id=f"o-{number}")
    listens(database, "here", doorbell.url)
    listens(database, "there", "redis://there")
    assert doorbell.ring([Bell(workflow_id="another", seq=0, queue=None, label="l")] * 100)
    sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'")
    assert run_sweep(database, doorbell, POLICY).rung == 0, "by the queue alone nothing is lost"
    sql(database, "UPDATE aegis_sweep SET since = since - interval '1 hour'")
    listens(database, "there", "redis://there", silent_for=60)


@pytest.mark.usefixtures("deserted")
def test_what_waits_at_a_broker_that_nobody_listens_to_any_more_is_rung_elsewhere(
    database: Database, doorbell: Broker
) -> None:
    left = sweep._free(database, POLICY)[3]  # what another sweep has found at the same moment
    listens(database, "there", "redis://there", silent_for=60)
    assert run_sweep(database, doorbell, POLICY).rung == 20
    sweep._give_up(database, left, POLICY)
    assert run_sweep(database, doorbell, POLICY).rung == 0, "once: it is rung here now"
    sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'")
    assert run_sweep(database, doorbell, POLICY).rung == 0


def test_after_a_fail_over_what_was_rung_before_is_rung_once_more_and_goes_first(
    engine: DurableWorkflowEngine, database: Database, doorbell: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was to ring may have gone with the server; and a standby that was behind never heard of what was answered."""
    engine.start(Once(), id="o")
    alive(database, "aegis")
    assert doorbell.ring([Bell(workflow_id="another", seq=0, queue=None, label="l")] * 100)
    past = "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'"
    sql(database, past)
    assert run_sweep(database, doorbell, POLICY).rung == 0, "the queue is long, and the server always was this one"

    sql(database, past)
    sql(database, "UPDATE aegis_sweep SET timeline = '00000000'")
    rung: list[Bell] = []
    with monkeypatch.context() as patched:
        patched.setattr(Broker, "ring", lambda _, bells: bool(rung.extend(bells)) or True)
        assert run_sweep(database, doorbell, POLICY).rung == 1
    assert [(bell.workflow_id, bell.priority) for bell in rung] == [("o", 1)]
    # It was rung by this server's sweep now, which takes some time.
    sql(database, "UPDATE aegis_sweep SET led_since = led_since - interval '1 hour'")
    sql(database, past)
    assert run_sweep(database, doorbell, POLICY).rung == 0


@pytest.mark.usefixtures("deserted")
def test_a_sweep_that_dies_before_all_of_it_is_due_leaves_it_to_the_next(
    database: Database, doorbell: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "_make_due", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            run_sweep(database, doorbell, POLICY)
    assert {row(database, f"o-{number}").rings for number in range(20)} == {2}
    # By now the dead worker is forgotten; where it listened is not, and since when nobody does.
    sql(database, "UPDATE aegis_sweep SET brokers = jsonb_set(brokers, '{redis://there}', '0')")
    assert run_sweep(database, doorbell, POLICY).rung == 20


def test_what_is_rung_again_goes_ahead_of_what_was_never_rung(
    engine: DurableWorkflowEngine, database: Database, doorbell: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is older than all that waits; behind a backlog it would wait for the whole of it."""
    engine.start(Once(), id="lost")
    engine.start(Once(), id="urgent", priority=5)
    engine.start(Once(), id="new")
    engine.start(Once(), id="interrupted")
    claimed(database, "interrupted")
    with database.statement() as connection:
        watch.bury(connection, ["w@test"])
    engine.start(Once(), id="failed")
    sql(database, "UPDATE aegis_workflow SET attempt = 1, error = '{}' WHERE id = 'failed'")
    alive(database, "aegis")
    sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'")
    sql(database, "UPDATE aegis_workflow SET rings = 0 WHERE id IN ('new', 'failed')")
    rung: dict[str, int] = {}

    def ring(_self: Broker, bells: Sequence[Bell]) -> bool:
        rung.update({bell.workflow_id: bell.priority for bell in bells})
        return True

    monkeypatch.setattr(Broker, "ring", ring)
    run_sweep(database, doorbell, POLICY)
    assert rung == {"lost": 1, "urgent": 5, "new": 0, "interrupted": 1, "failed": 0}


def test_a_sweep_whose_bells_did_not_go_out_leaves_alone_what_moved_meanwhile(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, doorbell: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker took ten seconds to fail, and had taken the bells all the same."""
    engine.start(Parcel(), id="waits")
    engine.start(Once(), id="ended")
    engine.start(Once(), id="claimed")
    engine.start(Once(), id="still")
    alive(database, "aegis")
    sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s', rings = 0")

    def fails(_self: Broker, bells: Any) -> bool:
        assert len(bells) == 4
        run_transition(bench, "waits", 0)
        run_transition(bench, "ended", 0)
        claimed(database, "claimed")
        return False

    monkeypatch.setattr(Broker, "ring", fails)
    before = row(database, "claimed").due_at
    run_sweep(database, doorbell, POLICY)
    assert row(database, "ended").due_at is None
    assert row(database, "waits").due_at > row(database, "waits").updated_at + timedelta(days=6)
    assert row(database, "claimed").due_at > before
    assert row(database, "still").due_at <= row(database, "ended").updated_at + GRACE
    assert row(database, "still").rings == 0


def test_whatever_goes_wrong_in_beats_work_is_logged_and_beat_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setitem(entry.PERIODIC, entry.SWEEP, fails)
    monkeypatch.setattr(entry, "settings", lambda: Settings(database_url="postgresql://a@b/c", broker_url="redis://b"))
    app = make_app(entry.settings())
    entry.run_periodic(app, entry.SWEEP)
    assert "a fault in AEGIS" in caplog.text


def test_beat_sweeps_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's own beat would wait for the broker before its first look at the schedule."""
    settings = Settings(database_url="postgresql://a@b/c", broker_url="redis+socket:///nonexistent/valkey.sock")
    app = make_app(settings)
    swept: list[str] = []
    monkeypatch.setattr("aegis.workers.schedule.run_periodic", lambda _, name: swept.append(name))
    scheduler = InProcessScheduler(app=app, lazy=True)
    scheduler.setup_schedule()
    for found in scheduler.schedule.values():
        found.last_run_at -= timedelta(hours=1)
    # What is slow runs aside: neither it nor the broker may hold the sweep up.
    for _ in range(len(scheduler.schedule) + 1):
        scheduler.tick()
    assert {entry.SWEEP, entry.CHECKPOINT} <= set(swept)


# --- workflows that this worker does not know -------------------------------------------------------------


def test_bells_that_strayed_are_rung_again_a_few_at_a_time(
    engine: DurableWorkflowEngine, database: Database, doorbell: Broker
) -> None:
    """Their own workers may be busy for an hour; those that answered instead have work of their own."""
    for number in range(20):
        engine.start(Once(), id=f"o-{number}")
    alive(database, "aegis")
    policy = Policy(heartbeat_timeout=12 * SECOND, ring_grace=5 * SECOND, most_strays=7)
    for number in range(20):
        with database.statement() as connection:
            assert repository.hand_over(connection, f"o-{number}", 0, ["other/1"], SECOND)
    rung = []
    for _ in range(4):
        past = "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s' WHERE rings = 0"
        sql(database, past)
        run_sweep(database, doorbell, policy)
        rung.append(doorbell.lengths([None])[None])
    assert rung == [7, 14, 20, 20]
    claimed(database, "o-0")
    assert row(database, "o-0").strayed == 0


# --- events, and code of two versions ------------------------------------------------------------------------


def test_an_event_that_the_row_waits_for_wakes_it_whatever_the_senders_code_says(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    """A web application that is not restarted yet sends to a state that its code does not know."""
    engine.start(Letter(), id="l")
    sql(database, """UPDATE aegis_workflow SET state = 'newer', accepts = '["post"]' WHERE id = 'l'""")
    ring.take()
    engine.send("l", "post", "word")
    found = row(database, "l")
    assert (found.status, found.inbox, found.rings) == ("pending", 1, 1)
    assert [bell.workflow_id for bell in ring.take()] == ["l"]


def test_an_event_from_before_a_deployment_is_taken_when_the_workflow_is_resumed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    """It was kept, as the state did not take it; the new code does."""
    for workflow_id in ("l", "m"):
        engine.start(Letter(), id=workflow_id)
        sql(database, f"UPDATE aegis_workflow SET accepts = '[]' WHERE id = '{workflow_id}'")  # noqa: S608
    with database.statement() as connection:
        connection.execute(
            text(
                "INSERT INTO aegis_event (workflow_id, name, key, sender, payload, received_at)"
                " SELECT id, 'finish', 'k', 'user:ada', convert_to('\"kept\"', 'UTF8'), clock_timestamp()"
                " FROM aegis_workflow"
            )
        )
    sql(database, "UPDATE aegis_workflow SET inbox = 1")
    ring.take()
    assert engine.resume("l")
    assert [bell.workflow_id for bell in ring.take()] == ["l"]
    assert [handle.id for handle in engine.resume_all_pending(Letter)] == ["l", "m"]
    for workflow_id in ("l", "m"):
        assert run_where_it_is_sent(bench, workflow_id, 0) is Ended.COMMITTED
        assert engine.get(workflow_id).to_dict()["words"] == ["kept"]


# What PostgreSQL may choose by itself, where it knows little of a table: a subquery is run for each row anew.
NESTED = "".join(
    f" -cenable_{way}=off"
    for way in ("hashjoin", "mergejoin", "hashagg", "sort", "material", "indexscan", "bitmapscan")
).strip()


@pytest.mark.parametrize("plan", ["", NESTED], ids=["as it likes", "nested"])
def test_everything_pending_is_rung_a_few_at_a_time(
    database: Database, ring: RecordingRing, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    """However PostgreSQL plans it: a page's limit must not hold for each row anew."""
    engine = make_engine(with_options(database, plan) if plan else database, ring)
    monkeypatch.setattr("aegis.persistence.durable._AT_ONCE", 3)
    for number in range(8):
        engine.start(Once(), id=f"o-{number}")
    ring.take()
    before = ring.calls
    assert [handle.id for handle in engine.resume_all_pending(Once)] == [f"o-{number}" for number in range(8)]
    assert ring.calls - before == 3
    assert len(ring.take()) == 8


def test_what_is_made_due_again_is_so_a_few_at_a_time(engine: DurableWorkflowEngine, database: Database) -> None:
    for number in range(8):
        engine.start(Once(), id=f"o-{number}")
    nested = with_options(database, NESTED)
    with nested.statement() as connection:
        assert [watch.all_due(connection, POLICY, 3) for _ in range(4)] == [3, 3, 2, 0]
    nested.close()


# --- health ---------------------------------------------------------------------------------------------------


def test_health_sees_one_moment_and_accuses_nobody(
    engine: DurableWorkflowEngine, bench: Bench, database_url: str, broker: PrivateBroker
) -> None:
    """While transitions are committed all the time, no history seems to contradict itself."""
    settings = Settings(database_url=database_url, broker_url=broker.url, health_timeout=10)
    over = threading.Event()

    def work() -> None:
        number = 0
        while not over.is_set():
            number += 1
            workflow_id = f"l-{number}"
            engine.start(Letter(), id=workflow_id)
            engine.send(workflow_id, "finish", "a")
            engine.send(workflow_id, "post", "b")
            for seq in (0, 1):
                run_where_it_is_sent(bench, workflow_id, seq)

    with meanwhile(work):
        try:
            found = [check for _ in range(40) for check in health(settings) if check.name == "chains"]
        finally:
            over.set()
    assert len(found) > 30
    assert {check.state for check in found} == {State.OK}, [c.says for c in found if c.state is not State.OK][:1]


def test_an_error_of_the_database_keeps_its_name_unless_it_is_an_outage(database: Database) -> None:
    with pytest.raises(DataError, match="division by zero"), database.statement() as connection:
        connection.execute(text("SELECT 1/0"))
    with pytest.raises(DatabaseUnavailable) as raised, database.snapshot(timedelta(milliseconds=20)) as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    assert is_too_slow(raised.value)
