"""Rows of one version, code of another: what is upgraded, what is left alone, and that nothing is misread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Any

import pytest
from pydantic import Field
from store_workbench import RecordingRing, everything, make_bench, make_due, row, sql, value

from aegis import Context, Workflow, transition, upgrade
from aegis.cli import verify_bundle as shipped
from aegis.config.settings import read
from aegis.core.bundle import verify
from aegis.core.errors import InvalidData, UnknownEvent, UnknownVersion, UpgradeFailed
from aegis.core.finding import failures
from aegis.core.workflow import registry
from aegis.persistence import vitals
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

TYPE = "store.Versioned"
KEYS: list[str] = []
Data = dict[str, Any]


class Old(StrEnum):
    NEW = "new"
    OPEN = "open"
    DONE = "done"
    LATE = "late"


class New(StrEnum):
    NEW = "new"
    OPEN = "open"
    ASKED = "asked"
    DONE = "done"


def first() -> type[Workflow]:
    class One(Workflow, version=1, name=TYPE):
        __qualname__ = "Versioned"
        state: Old = Old.NEW
        name: str
        words: list[str] = Field(default_factory=list)

        @transition(Old.NEW, Old.OPEN)
        def begin(self, ctx: Context) -> None: ...

        @transition(Old.OPEN, Old.DONE, on="finish")
        def finish(self, ctx: Context, word: str) -> None:
            KEYS.append(ctx.key)

        @transition(Old.OPEN, Old.LATE, after=timedelta(days=7))
        def expire(self, ctx: Context) -> None: ...

    return One


def third(
    change: Callable[[Data], Any] = lambda data: data, *, of: int = 3, queue: str | None = None
) -> type[Workflow]:
    """Version 3: ``name`` is ``title``, there are ``pages``, the timer is shorter, and leads to a second event."""

    class Three(Workflow, version=3, name=TYPE):
        __qualname__ = "Versioned"
        state: New = New.NEW
        title: str
        words: list[str] = Field(default_factory=list)
        pages: int

        @upgrade(1)
        @staticmethod
        def from_v1(data: Data) -> Data:
            return {"state": data["state"], "title": data["name"], "words": data["words"]}

        @upgrade(2)
        @staticmethod
        def from_v2(data: Data) -> Any:
            return change(data | {"pages": 7})

        @transition(New.NEW, New.OPEN)
        def begin(self, ctx: Context) -> None: ...

        @transition(New.OPEN, New.DONE, on="finish")
        def finish(self, ctx: Context, word: str) -> None:
            KEYS.append(ctx.key)
            self.words.append(word)

        @transition(New.OPEN, New.ASKED, after=timedelta(days=3))
        def ask(self, ctx: Context) -> None:
            KEYS.append(ctx.key)

        @transition(New.ASKED, New.DONE, on="answer")
        def answer(self, ctx: Context, text: str) -> None: ...

    return Three


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    KEYS.clear()
    yield
    registry._types.pop(TYPE, None)


@pytest.fixture
def opened(engine: DurableWorkflowEngine, bench: Bench) -> str:
    """One of version 1, that waits for ``finish``, or its timer of seven days."""
    engine.start(first()(name="Rivers"), id="v")
    assert run_transition(bench, "v", 0) is Ended.COMMITTED
    return "v"


def at_work(database: Database, *, worker: str = "w3@test") -> Bench:
    """A worker with the code that is loaded at this moment."""
    made = make_bench(database, RecordingRing(), worker=worker)
    assert made.known
    return made


def both_verify(engine: DurableWorkflowEngine, workflow_id: str = "v") -> None:
    """In the database, and by the two verifiers of bundles, which share no code."""
    assert engine.verify_integrity(workflow_id) == (True, None)
    bundle = engine.export_bundle(workflow_id)
    assert failures(verify(bundle, [])) == []
    found = shipped.Verification(bundle.to_bytes(), shipped.Trust()).findings
    assert [str(one) for one in found if one.code not in shipped.INFORMATIVE] == []


# --- upgraded ---------------------------------------------------------------------------------


def test_a_row_is_upgraded_first_and_goes_on_by_the_new_definition(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    before = row(database, opened)
    three = third()
    engine.send(opened, "finish", "end", key="k")
    bench = at_work(database)
    assert run_transition(bench, opened, 1) is Ended.COMMITTED

    link = engine.history(opened)[-1]
    assert (link.seq, link.event, link.from_state, link.to_state) == (2, "upgraded", "open", "open")
    assert (link.actor, link.payload) == ("worker:w3@test", {"from_version": 1, "to_version": 3})
    now = row(database, opened)
    assert (now.version, now.definition, now.state, now.status) == (3, three.definition.fingerprint, "open", "pending")
    assert (now.entered_at, now.entered_seq) == (before.entered_at, before.entered_seq)
    assert now.timer_at == before.entered_at + timedelta(days=3), "the timer counts from where it always did"
    assert engine.get(opened).to_dict() == {"state": "open", "title": "Rivers", "words": [], "pages": 7}
    assert [(bell.workflow_id, bell.seq) for bell in bench.ring.take()] == [(opened, 2)]  # type: ignore[attr-defined]

    assert run_transition(bench, opened, 2) is Ended.COMMITTED
    assert KEYS == ["v:2"], "the key of before"
    assert engine.get(opened).to_dict()["words"] == ["end"]
    assert engine.describe(opened).status == "completed"
    both_verify(engine)


def test_one_that_waits_is_upgraded_and_waits_on(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, opened: str
) -> None:
    three = third()
    ring.take()
    assert [handle.id for handle in engine.resume_all_pending(three)] == [opened]
    bench = at_work(database)
    (bell,) = ring.take()
    assert run_transition(bench, bell.workflow_id, bell.seq) is Ended.COMMITTED
    found = row(database, opened)
    assert (found.status, found.version, found.following, found.accepts) == ("waiting", 3, "ask", ["finish"])
    assert found.ready_at == found.due_at == found.timer_at
    assert engine.resume_all_pending(three) == [], "there is nothing more to do"


def test_a_timer_that_would_have_run_out_by_the_new_definition_runs_out_at_once(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    sql(database, "UPDATE aegis_workflow SET entered_at = entered_at - interval '4 days'")
    engine.resume_all_pending(third())
    bench = at_work(database)
    run_transition(bench, opened, 1)
    assert run_transition(bench, opened, 2) is Ended.COMMITTED
    assert engine.describe(opened).state == "asked"
    assert KEYS == ["v:2"]


def test_an_upgrade_may_lead_to_another_state_where_everything_begins_anew(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    three = third(lambda data: data | {"state": "asked"})
    engine.resume_all_pending(three)
    assert run_transition(at_work(database), opened, 1) is Ended.COMMITTED
    link, found = engine.history(opened)[-1], row(database, opened)
    assert (link.event, link.from_state, link.to_state) == ("upgraded", "open", "asked")
    assert (found.state, found.entered_seq, found.entered_at) == ("asked", 2, link.at)
    assert (found.accepts, found.timer_at, found.status) == (["answer"], None, "waiting")
    both_verify(engine)


def test_an_upgrade_may_end_a_workflow(engine: DurableWorkflowEngine, database: Database, opened: str) -> None:
    engine.resume_all_pending(third(lambda data: data | {"state": "done"}))
    assert run_transition(at_work(database), opened, 1) is Ended.COMMITTED
    assert engine.describe(opened).status == "completed"
    both_verify(engine)


def test_a_new_one_is_upgraded_before_its_first_handler(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(first()(name="Rivers"), id="v")
    third()
    bench = at_work(database)
    assert run_transition(bench, "v", 0) is Ended.COMMITTED
    assert run_transition(bench, "v", 1) is Ended.COMMITTED
    assert [link.event for link in engine.history("v")] == ["created", "upgraded", "begin"]


def test_what_a_handler_saved_on_its_way_is_upgraded_and_tied_into_the_chain(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    assert engine.checkpoint(opened) is not None
    engine.resume_all_pending(third())
    assert run_transition(at_work(database), opened, 1) is Ended.COMMITTED
    payload: Any = engine.history(opened)[-1].payload
    assert len(payload["progress"]) == 1
    both_verify(engine)


def test_effects_go_on_through_an_upgrade_and_are_told_where_they_end_with_it(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    columns = "workflow_id, seq, name, status, key, claim, attempt, actor, begun_at"
    values = "'v', 2, 'mail', 'begun', 'v:2:mail', 1, 1, 'w', now()"
    sql(database, f"INSERT INTO aegis_effect ({columns}) VALUES ({values})")  # noqa: S608
    engine.resume_all_pending(third(lambda data: data | {"state": "asked"}))
    run_transition(at_work(database), opened, 1)
    payload: Any = engine.history(opened)[-1].payload
    assert payload["effects"] == [{"name": "mail", "key": "v:2:mail", "result": None}]


# --- left alone ------------------------------------------------------------------------------------


def _raise(_: Data) -> Any:
    raise KeyError("total")


BROKEN: dict[str, tuple[Callable[[Data], Any], str]] = {
    "it raises": (_raise, "the upgrade of store.Versioned from version 2 failed: KeyError: 'total'"),
    "it returns nothing": (lambda _: None, "it returned NoneType, not a dict"),
    "its data does not fit": (lambda data: data | {"pages": "many"}, "/pages: Input should be a valid integer"),
    "its data has no state": (lambda data: data | {"state": "gone"}, "/state"),
    "its data has more": (lambda data: data | {"more": 1}, "/more: Extra inputs"),
    "its data is too large": (lambda data: data | {"title": "x" * 300_000}, "bytes"),
    "its data is no JSON": (lambda data: data | {"title": "\ud800"}, "surrogate"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_upgrade_that_cannot_be_leaves_the_row_alone_and_says_so(
    engine: DurableWorkflowEngine, database: Database, opened: str, case: str
) -> None:
    change, says = BROKEN[case]
    third(change)
    engine.send(opened, "finish", "end")
    before = everything(database)
    assert run_transition(at_work(database), opened, 1) is Ended.LEFT
    found = row(database, opened)
    assert (found.seq, found.version, found.attempt, found.owner, found.state) == (1, 1, 0, None, "open")
    assert says in found.error["message"]
    after = everything(database)
    assert {name for name in after if after[name] != before[name]} == {"aegis_workflow"}
    with database.snapshot() as connection:
        assert vitals.read(connection, "aegis", read({}).recovery).misfits == 1
    third()
    make_due(database, opened)
    assert run_transition(at_work(database), opened, 1) is Ended.COMMITTED, "once the code is mended, it goes on"
    with database.snapshot() as connection:
        assert vitals.read(connection, "aegis", read({}).recovery).misfits == 0


def test_code_without_a_way_from_there_does_not_touch_it(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    engine.send(opened, "finish", "end")

    class Two(Workflow, version=2, name=TYPE):
        __qualname__ = "Versioned"
        state: Old = Old.NEW

        @transition(Old.NEW, (Old.OPEN, Old.DONE, Old.LATE))
        def begin(self, ctx: Context) -> Old:
            return Old.DONE

    assert run_transition(at_work(database), opened, 1) is Ended.STALE
    found = row(database, opened)
    assert (found.seq, found.version, found.attempt, found.strayed) == (1, 1, 0, 1)
    with pytest.raises(UnknownVersion, match=r"version 1 of store.Versioned cannot be read here \(known: 2\)"):
        engine.get(opened)


def test_an_old_worker_leaves_what_a_new_one_has_upgraded(
    engine: DurableWorkflowEngine, database: Database, bench: Bench, opened: str
) -> None:
    third()
    engine.send(opened, "finish", "end")
    run_transition(at_work(database), opened, 1)
    one = first()
    old = at_work(database, worker="w1@test")
    assert run_transition(old, opened, 2) is Ended.STALE
    assert row(database, opened).strayed == 1
    with pytest.raises(UnknownVersion, match="deploy the newer code"):
        engine.get(opened)
    assert engine.resume_all_pending(one) == [] or run_transition(old, opened, 2) is Ended.STALE
    assert row(database, opened).version == 3


# --- steered by code of another version ------------------------------------------------------------


def test_old_rows_are_steered_by_new_code(engine: DurableWorkflowEngine, database: Database, opened: str) -> None:
    third()
    engine.pause(opened, reason="look")
    assert engine.checkpoint(opened) is not None
    engine.resume(opened)
    engine.send(opened, "answer", "later")
    with pytest.raises(UnknownEvent):
        engine.send(opened, "other")
    with pytest.raises(InvalidData):
        engine.send(opened, "finish", {"not": "a text"})
    engine.cancel(opened)
    assert [link.event for link in engine.history(opened)][2:] == ["paused", "resumed", "cancelled"]
    assert row(database, opened).version == 1
    both_verify(engine)


def test_new_rows_are_steered_by_old_code(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, opened: str
) -> None:
    engine.resume_all_pending(third())
    run_transition(at_work(database), opened, 1)
    first()
    ring.take()
    engine.send(opened, "finish", "end")
    assert [bell.workflow_id for bell in ring.take()] == [opened]
    with pytest.raises(UnknownEvent):
        engine.send(opened, "answer", "x")
    engine.pause(opened)
    engine.resume(opened)
    third()
    bench = at_work(database)
    assert run_transition(bench, opened, 4) is Ended.COMMITTED
    assert engine.describe(opened).status == "completed"
    both_verify(engine)


def test_an_event_that_only_the_new_code_takes_wakes_an_old_row(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, opened: str
) -> None:
    third(lambda data: data | {"state": "asked"})
    ring.take()
    engine.send(opened, "answer", "yes")
    assert [bell.workflow_id for bell in ring.take()] == [opened]
    bench = at_work(database)
    assert run_transition(bench, opened, 1) is Ended.COMMITTED
    assert run_transition(bench, opened, 2) is Ended.COMMITTED
    assert [link.event for link in engine.history(opened)][2:] == ["upgraded", "answer"]


# --- read ---------------------------------------------------------------------------------------------


def test_reading_upgrades_in_memory_and_writes_nothing(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    third()
    before = everything(database)
    now = {"state": "open", "title": "Rivers", "words": [], "pages": 7}
    assert engine.get(opened).to_dict() == now
    assert engine.load(opened, seq=0).to_dict() == now | {"state": "new"}
    assert everything(database) == before


def test_earlier_states_are_read_by_the_version_that_they_were_of(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    third()
    engine.send(opened, "finish", "end")
    bench = at_work(database)
    run_transition(bench, opened, 1)
    run_transition(bench, opened, 2)
    for seq, state, words in ((0, "new", []), (1, "open", []), (2, "open", []), (3, "done", ["end"])):
        data = engine.load(opened, seq=seq).to_dict()
        assert (data["state"], data["title"], data["words"]) == (state, "Rivers", words)
    assert engine.load(opened, at=engine.history(opened)[1].at).to_dict()["state"] == "open"


def test_reading_says_what_is_wrong_with_an_upgrade(engine: DurableWorkflowEngine, opened: str) -> None:
    third(_raise)
    with pytest.raises(UpgradeFailed, match="KeyError: 'total'"):
        engine.get(opened)


# --- tampered with ------------------------------------------------------------------------------------------


def test_a_version_that_is_not_the_one_of_the_last_upgrade_is_found_by_both_verifiers(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    third()
    engine.resume_all_pending(third())
    run_transition(at_work(database), opened, 1)
    both_verify(engine)
    sql(database, "UPDATE aegis_workflow SET version = 1")
    intact, says = engine.verify_integrity(opened)
    assert not intact
    assert says is not None
    assert "version 3" in says
    bundle = engine.export_bundle(opened)
    (own,) = failures(verify(bundle, []))
    (other,) = [
        one
        for one in shipped.Verification(bundle.to_bytes(), shipped.Trust()).findings
        if one.code not in shipped.INFORMATIVE
    ]
    assert (own.code.value, own.seq) == (other.code, other.seq) == ("ROW_STATE_MISMATCH", 2)


def test_the_history_of_versions_is_not_read_from_an_edited_payload(
    engine: DurableWorkflowEngine, database: Database, opened: str
) -> None:
    third()
    engine.resume_all_pending(third())
    run_transition(at_work(database), opened, 1)
    forged = '{"from_version":3,"to_version":3}'
    assert sql(database, "UPDATE aegis_payload SET body = :body WHERE seq = 2", body=forged.encode())
    with pytest.raises(Exception, match="what it was upgraded from is not what was committed"):
        engine.load(opened, seq=1)
    assert value(database, "SELECT count(*) FROM aegis_transition") == 3
