"""Time limits of handlers that run in threads: stopped, tried again, and given up, on every store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from enum import StrEnum

import pytest
from local_engine import eventually
from sqlalchemy import text
from stores import World

from aegis import Context, Retry, Workflow, transition
from aegis.core.errors import HandlerTimeout

CALLS: list[tuple[str, int, bool]] = []
HANGS: set[int] = set()


class Stage(StrEnum):
    NEW = "new"
    DONE = "done"


class End(StrEnum):
    NEW = "new"
    DONE = "done"
    LATE = "late"


def hang(ctx: Context) -> None:
    """Do something that has no end, at the attempts that are to hang."""
    CALLS.append((ctx.workflow_id, ctx.attempt, threading.current_thread() is threading.main_thread()))
    ends = time.monotonic() + 20
    while ctx.attempt in HANGS and ctx.workflow_id == "h" and time.monotonic() < ends:
        time.sleep(0.01)


class Hanging(Workflow, name="conformance.Hanging"):
    state: Stage = Stage.NEW

    @transition(Stage.NEW, Stage.DONE, timeout=0.2, retry=Retry(max_attempts=2, delay=0.05, jitter=0))
    def work(self, ctx: Context) -> None:
        hang(ctx)


class GivingUp(Workflow, name="conformance.GivingUp"):
    state: End = End.NEW

    @transition(
        End.NEW,
        End.DONE,
        timeout=0.2,
        retry=Retry(max_attempts=5, delay=0.05, jitter=0, never=(HandlerTimeout,)),
        give_up=End.LATE,
    )
    def work(self, ctx: Context) -> None:
        hang(ctx)


class Booked(Workflow, name="conformance.Booked"):
    """A handler inside the checkpoint's own transaction."""

    state: Stage = Stage.NEW

    @transition(
        Stage.NEW,
        Stage.DONE,
        transactional=True,
        timeout=0.2,
        retry=Retry(max_attempts=2, delay=0.05, jitter=0),
    )
    def work(self, ctx: Context) -> None:
        ctx.session.execute(text("INSERT INTO seats VALUES (:attempt)"), {"attempt": ctx.attempt})
        hang(ctx)


def _is_slow(_: Workflow) -> bool:
    time.sleep(0.3)
    return True


class Looking(Workflow, name="conformance.Looking"):
    """Its guard is what hangs."""

    state: Stage = Stage.NEW

    @transition(Stage.NEW, Stage.DONE, guard=_is_slow, timeout=0.1, retry=Retry(max_attempts=1))
    def work(self, ctx: Context) -> None: ...

    @transition(Stage.NEW, Stage.DONE)
    def otherwise(self, ctx: Context) -> None: ...


@pytest.fixture(autouse=True)
def _in_threads(world: World) -> Iterator[None]:
    CALLS.clear()
    HANGS.clear()
    world.runner.start()
    yield
    assert world.runner.stop() is True, "no thread is held by a handler"


def reaches(world: World, workflow_id: str, status: str) -> None:
    eventually(f"{workflow_id} is {status}", lambda: world.engine.describe(workflow_id).status == status, 15)


def test_a_handler_over_its_time_is_stopped_and_tried_again(world: World) -> None:
    HANGS.add(1)
    world.engine.start(Hanging(), id="h")
    reaches(world, "h", "completed")
    assert CALLS == [("h", 1, False), ("h", 2, False)]
    assert world.engine.verify_integrity("h") == (True, None)


def test_one_that_is_over_it_every_time_fails_with_what_happened(world: World) -> None:
    HANGS.update({1, 2})
    began = time.monotonic()
    world.engine.start(Hanging(), id="h")
    reaches(world, "h", "failed")
    assert time.monotonic() - began < 10, "none of them ran to its end"
    error = world.engine.describe("h").error
    assert error["type"] == "aegis.core.errors.HandlerTimeout"
    assert error["message"] == "conformance.Hanging.work did not finish within its timeout of 0.2 s"
    assert [attempt for _, attempt, _ in CALLS] == [1, 2]


def test_a_policy_may_give_up_at_once(world: World) -> None:
    HANGS.update(range(1, 6))
    world.engine.start(GivingUp(), id="h")
    reaches(world, "h", "completed")
    assert world.engine.describe("h").state == "late"
    assert world.engine.history("h")[-1].payload["error"]["type"] == "aegis.core.errors.HandlerTimeout"
    assert len(CALLS) == 1


def test_a_guard_has_the_same_limit(world: World) -> None:
    world.engine.start(Looking(), id="l")
    reaches(world, "l", "failed")
    assert world.engine.describe("l").error["type"] == "aegis.core.errors.HandlerTimeout"


def test_a_transaction_of_a_handler_over_its_time_leaves_nothing(world: World) -> None:
    with world.database.transaction() as session:
        session.execute(text("CREATE TABLE seats (attempt INTEGER)"))
    HANGS.add(1)
    world.engine.start(Booked(), id="h")
    reaches(world, "h", "completed")
    assert [attempt for _, attempt, _ in CALLS] == [1, 2]
    with world.database.statement() as connection:
        assert connection.execute(text("SELECT attempt FROM seats")).scalars().all() == [2]


def test_the_thread_goes_on_with_others(world: World) -> None:
    HANGS.add(1)
    names = [f"o-{number}" for number in range(20)]
    for name in ("h", *names):
        world.engine.start(Hanging(), id=name)
    for name in names:
        reaches(world, name, "completed")
    assert sorted(call for call in CALLS if call[0] != "h") == sorted((name, 1, False) for name in names)
