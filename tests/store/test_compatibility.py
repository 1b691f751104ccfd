"""What `aegis check` finds: each way in which new code cannot go on with old rows, and nothing where it can."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Any

import pytest
from store_workbench import everything, sql

from aegis import Context, Workflow, transition, upgrade
from aegis.core.compatibility import KINDS, Problem
from aegis.core.workflow import Registry, registry
from aegis.persistence import compatibility
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import run_transition

TYPE = "store.Deployed"
Data = dict[str, Any]


class Old(StrEnum):
    NEW = "new"
    OPEN = "open"
    DONE = "done"
    LATE = "late"


class Deployed(Workflow, name=TYPE):
    """What is in the database: begun, it waits for ``finish``, or seven days."""

    __qualname__ = "Deployed"
    state: Old = Old.NEW
    title: str
    pages: int = 1

    @transition(Old.NEW, Old.OPEN)
    def begin(self, ctx: Context) -> None: ...

    @transition(Old.OPEN, Old.DONE, on="finish")
    def finish(self, ctx: Context, word: str) -> None: ...

    @transition(Old.OPEN, Old.LATE, after=timedelta(days=7))
    def expire(self, ctx: Context) -> None: ...


@pytest.fixture(autouse=True)
def _deployed() -> Iterator[None]:
    registry.add(Deployed)
    yield
    registry.add(Deployed)


@pytest.fixture
def rows(engine: DurableWorkflowEngine, bench: Bench) -> None:
    """Three that wait, one of them with an event that it has not taken yet; two that are new; one that has ended."""
    for name in ("w-1", "w-2", "w-3", "end"):
        engine.start(Deployed(title=name), id=name)
        run_transition(bench, name, 0)
    engine.send("end", "finish", "x")
    run_transition(bench, "end", 1)
    engine.send("w-2", "finish", "end")
    for name in ("n-1", "n-2"):
        engine.start(Deployed(title=name), id=name)


def found(database: Database, *classes: type[Workflow], sample: int | None = None) -> list[Problem]:
    known = Registry()
    for each in classes:
        known.add(each)
    before = everything(database)
    checked = compatibility.check(database, known, sample=sample)
    assert everything(database) == before, "it only looks"
    assert (checked.workflows, checked.events) == (5, 1)
    return list(checked.problems)


def told(problems: list[Problem]) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(one.kind, one.count, one.examples) for one in problems]


@pytest.mark.usefixtures("rows")
def test_the_code_that_runs_can_go_on(database: Database) -> None:
    assert found(database, Deployed) == []


@pytest.mark.usefixtures("rows")
def test_a_type_that_is_not_loaded(database: Database) -> None:
    problems = found(database)
    assert sum(one.count for one in problems) == 5
    assert {(one.kind, one.type, one.version) for one in problems} == {("unknown type", TYPE, 1)}
    assert "AEGIS_WORKFLOWS" in problems[0].remedy


# --- the code of a new deployment, and what is wrong with it -----------------------------------------


def no_way() -> type[Workflow]:
    class New(Workflow, name=TYPE, version=3):
        __qualname__ = "Deployed"
        state: Old = Old.NEW
        title: str
        pages: int = 1

        @upgrade(2)
        @staticmethod
        def from_v2(data: Data) -> Data:
            return data

        @transition(Old.NEW, (Old.OPEN, Old.DONE, Old.LATE))
        def begin(self, ctx: Context) -> Old:
            return Old.DONE

    return New


def upgraded(change: Callable[[Data], Any]) -> Callable[[], type[Workflow]]:
    def make() -> type[Workflow]:
        class New(Workflow, name=TYPE, version=2):
            __qualname__ = "Deployed"
            state: Old = Old.NEW
            title: str
            pages: int
            author: str

            @upgrade(1)
            @staticmethod
            def from_v1(data: Data) -> Any:
                return change(data)

            @transition(Old.NEW, (Old.OPEN, Old.DONE, Old.LATE))
            def begin(self, ctx: Context) -> Old:
                return Old.DONE

            @transition(Old.OPEN, Old.DONE, on="finish")
            def finish(self, ctx: Context, word: str) -> None: ...

        return New

    return make


class Fewer(StrEnum):
    NEW = "new"
    DONE = "done"


def without_a_state() -> type[Workflow]:
    class New(Workflow, name=TYPE):
        __qualname__ = "Deployed"
        state: Fewer = Fewer.NEW
        title: str
        pages: int = 1

        @transition(Fewer.NEW, Fewer.DONE)
        def begin(self, ctx: Context) -> None: ...

    return New


def with_other_edges() -> type[Workflow]:
    class New(Workflow, name=TYPE):
        __qualname__ = "Deployed"
        state: Old = Old.NEW
        title: str
        pages: int = 1

        @transition(Old.NEW, Old.OPEN)
        def start(self, ctx: Context) -> None: ...

        @transition(Old.OPEN, (Old.DONE, Old.LATE), on="close")
        def close(self, ctx: Context, word: str) -> Old:
            return Old.DONE

    return New


def with_another_payload() -> type[Workflow]:
    class New(Workflow, name=TYPE):
        __qualname__ = "Deployed"
        state: Old = Old.NEW
        title: str
        pages: int = 1

        @transition(Old.NEW, Old.OPEN)
        def begin(self, ctx: Context) -> None: ...

        @transition(Old.OPEN, Old.DONE, on="finish")
        def finish(self, ctx: Context, number: int) -> None: ...

        @transition(Old.OPEN, Old.LATE, after=timedelta(days=7))
        def expire(self, ctx: Context) -> None: ...

    return New


def with_a_new_field() -> type[Workflow]:
    class New(Workflow, name=TYPE):
        __qualname__ = "Deployed"
        state: Old = Old.NEW
        title: str
        pages: int = 1
        author: str

        @transition(Old.NEW, Old.OPEN)
        def begin(self, ctx: Context) -> None: ...

        @transition(Old.OPEN, Old.DONE, on="finish")
        def finish(self, ctx: Context, word: str) -> None: ...

        @transition(Old.OPEN, Old.LATE, after=timedelta(days=7))
        def expire(self, ctx: Context) -> None: ...

    return New


def with_timer(after: timedelta) -> Callable[[], type[Workflow]]:
    def make() -> type[Workflow]:
        class New(Workflow, name=TYPE):
            __qualname__ = "Deployed"
            state: Old = Old.NEW
            title: str
            pages: int = 1

            @transition(Old.NEW, Old.OPEN)
            def begin(self, ctx: Context) -> None: ...

            @transition(Old.OPEN, Old.DONE, on="finish")
            def finish(self, ctx: Context, word: str) -> None: ...

            @transition(Old.OPEN, Old.LATE, after=timedelta(days=7))
            def expire(self, ctx: Context) -> None: ...

            @transition(Old.OPEN, Old.LATE, after=after)
            def remind(self, ctx: Context) -> None: ...

        return New

    return make


def with_a_longer_timer() -> type[Workflow]:
    class New(Workflow, name=TYPE):
        __qualname__ = "Deployed"
        state: Old = Old.NEW
        title: str
        pages: int = 1

        @transition(Old.NEW, Old.OPEN)
        def begin(self, ctx: Context) -> None: ...

        @transition(Old.OPEN, Old.DONE, on="finish")
        def finish(self, ctx: Context, word: str) -> None: ...

        @transition(Old.OPEN, Old.LATE, after=timedelta(days=8))
        def expire(self, ctx: Context) -> None: ...

    return New


class Left(StrEnum):
    NEW = "new"
    OPEN = "open"
    DONE = "done"
    LATE = "late"


def left_at_once() -> type[Workflow]:
    class New(Workflow, name=TYPE):
        __qualname__ = "Deployed"
        state: Left = Left.NEW
        title: str
        pages: int = 1

        @transition(Left.NEW, Left.OPEN)
        def begin(self, ctx: Context) -> None: ...

        @transition(Left.OPEN, Left.LATE)
        def expire(self, ctx: Context) -> None: ...

        @transition(Left.LATE, Left.DONE, on="finish")
        def finish(self, ctx: Context, word: str) -> None: ...

    return New


ALL = ("n-1", "n-2", "w-1", "w-2", "w-3")


def _raise(_: Data) -> Any:
    raise KeyError("author")


CASES: dict[str, tuple[Callable[[], type[Workflow]], list[tuple[str, int, tuple[str, ...]]], list[str]]] = {
    "no way from there": (
        no_way,
        [("no upgrade", 5, ALL)],
        ["the code is of version 3 and has no way from 1", "@upgrade(1)"],
    ),
    "an upgrade that raises": (
        upgraded(_raise),
        [("upgrade fails", 5, ALL)],
        ["from version 1 failed: KeyError: 'author'", "mend @upgrade(1)"],
    ),
    "an upgrade whose data does not fit": (
        upgraded(lambda data: data),
        [("data does not fit", 5, ALL)],
        ["/author: Field required", "mend the upgrade"],
    ),
    "a state that vanished": (
        without_a_state,
        [
            ("data does not fit", 3, ("w-1", "w-2", "w-3")),
            ("event vanished", 1, ("w-2",)),
            ("state vanished", 3, ("w-1", "w-2", "w-3")),
        ],
        ["they are in state 'open', which the code has not", "version=2 and an @upgrade(1)"],
    ),
    "transitions that vanished": (
        with_other_edges,
        [
            ("event vanished", 1, ("w-2",)),
            ("transition vanished", 2, ("n-1", "n-2")),
            ("transition vanished", 3, ("w-1", "w-2", "w-3")),
            ("transition vanished", 3, ("w-1", "w-2", "w-3")),
        ],
        [
            "begin was to run from state 'new'",
            "expire was to run from state 'open'",
            "they wait for 'finish' in state 'open'",
            "the event 'finish' waits, and no state takes it any more",
        ],
    ),
    "a payload that does not fit": (
        with_another_payload,
        [("payload does not fit", 1, ("w-2",))],
        ["the payload of 'finish'", "Input should be a valid integer"],
    ),
    "a timer that runs out earlier": (
        with_timer(timedelta(days=2)),
        [("timer earlier", 2, ("w-1", "w-3"))],
        [
            "they wait in state 'open' with a timer of 7 days, 0:00:00; remind is after 2 days, 0:00:00",
            "`aegis resume --all store.Deployed`",
            "--accept 'timer earlier'",
        ],
    ),
    "a state that is left at once": (
        left_at_once,
        [
            ("no wait any more", 2, ("w-1", "w-3")),
            ("transition vanished", 3, ("w-1", "w-2", "w-3")),
        ],
        ["they wait in state 'open', which is now left at once"],
    ),
    "a new field without a default": (
        with_a_new_field,
        [("data does not fit", 5, ALL)],
        ["/author: Field required", "give new fields a default"],
    ),
}


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("case", CASES)
def test_what_the_new_code_cannot_go_on_with(database: Database, case: str) -> None:
    make, expected, says = CASES[case]
    problems = found(database, make())
    assert sorted((kind, count) for kind, count, _ in told(problems)) == sorted((kind, n) for kind, n, _ in expected)
    for kind, count, examples in told(problems):
        assert len(examples) <= 3
        assert any(kind == k and count == n and set(examples) <= set(names) | set(ALL) for k, n, names in expected)
    text = " | ".join(f"{one.what} {one.remedy}" for one in problems)
    for part in says:
        assert part in text
    assert all(one.remedy and one.type == TYPE and one.version == 1 for one in problems)


@pytest.mark.usefixtures("rows")
def test_an_upgrade_that_works_is_no_problem(database: Database) -> None:
    assert found(database, upgraded(lambda data: data | {"author": "Ada"})()) == []


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("make", [with_a_longer_timer, with_timer(timedelta(days=9))])
def test_a_timer_that_runs_out_later_is_no_problem(database: Database, make: Callable[[], type[Workflow]]) -> None:
    assert found(database, make()) == [], "whoever wakes too early is looked at, and waits on"


@pytest.mark.usefixtures("rows")
def test_where_there_was_no_timer_one_is_new(database: Database) -> None:
    without = "definition = 'sha256:other', following = NULL, timer_at = NULL, ready_at = NULL, due_at = NULL"
    sql(database, f"UPDATE aegis_workflow SET {without} WHERE id IN ('w-1', 'w-3')")  # noqa: S608
    (problem,) = found(database, Deployed)
    assert (problem.kind, problem.count, problem.examples) == ("timer earlier", 2, ("w-1", "w-3"))
    assert problem.what == "they wait in state 'open' with no timer; expire is after 7 days, 0:00:00"


@pytest.mark.usefixtures("rows")
def test_every_kind_has_a_name_that_can_be_accepted(database: Database) -> None:
    assert {kind for _, kinds, _ in CASES.values() for kind, _, _ in kinds} < set(KINDS)


@pytest.mark.usefixtures("rows")
def test_rows_that_are_newer_than_the_code(database: Database) -> None:
    sql(database, "UPDATE aegis_workflow SET version = 2 WHERE id = 'w-1'")
    (problem,) = found(database, Deployed)
    assert (problem.kind, problem.version, problem.count) == ("newer than the code", 2, 1)
    assert "older than what has run" in problem.remedy


@pytest.mark.usefixtures("rows")
def test_data_that_cannot_even_be_read(database: Database) -> None:
    sql(database, "UPDATE aegis_checkpoint SET body = 'x' WHERE workflow_id = 'w-1'")
    sql(database, "DELETE FROM aegis_checkpoint WHERE workflow_id = 'w-2'")
    (problem,) = found(database, Deployed)
    assert (problem.kind, problem.count, problem.examples) == ("data broken", 2, ("w-1", "w-2"))
    assert "aegis verify" in problem.remedy


@pytest.mark.usefixtures("rows")
def test_of_many_the_oldest_and_the_newest_are_read(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    known = Registry()
    known.add(Deployed)
    assert compatibility.check(database, known, sample=1).data == 2, "one of each state"
    assert compatibility.check(database, known, sample=2).data == 4
    assert compatibility.check(database, known, sample=1000).data == 5
    for name in ("w-1", "w-3"):  # the oldest, and the newest, of those that wait
        sql(database, "UPDATE aegis_checkpoint SET body = 'x' WHERE workflow_id = :id", id=name)
    assert told(found(database, Deployed, sample=2)) == [("data broken", 2, ("w-1", "w-3"))]


def test_a_thousand_kinds_of_trouble_are_told_in_bounded_space(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    for number in range(120):
        engine.start(Deployed(title=f"t-{number}"), id=f"t-{number:03d}")

    def fail(data: Data) -> Any:
        raise ValueError(data["title"])

    known = Registry()
    known.add(upgraded(fail)())
    problems = list(compatibility.check(database, known).problems)
    assert len(problems) == 51
    assert sum(one.count for one in problems) == 120
    assert [one.count for one in problems if one.what.startswith("more of this kind")] == [70]


def test_a_large_table_is_read_in_bounded_memory(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Deployed(title="x" * 20_000), id="first")
    sql(
        database,
        "INSERT INTO aegis_workflow SELECT (jsonb_populate_record(w, jsonb_build_object('id', 'copy-' || n))).*"
        " FROM aegis_workflow w, generate_series(1, 3000) n WHERE w.id = 'first'",
    )
    sql(
        database,
        "INSERT INTO aegis_checkpoint (workflow_id, seq, number, kind, body, salt, commitment, at)"
        " SELECT 'copy-' || n, seq, number, kind, body, salt, commitment, at"
        " FROM aegis_checkpoint, generate_series(1, 3000) n WHERE workflow_id = 'first'",
    )
    known = Registry()
    known.add(Deployed)
    tracemalloc.start()
    try:
        checked = compatibility.check(database, known)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (checked.problems, checked.data) == ((), 3001)
    assert peak < 40_000_000, f"{peak / 1e6:.0f} MB for 60 MB of data"
