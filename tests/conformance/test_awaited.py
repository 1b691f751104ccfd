"""The engine that is awaited: the same verbs as the one that blocks, and an event loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import awaited as maker
import psycopg
import psycopg2
import pytest
from hearts import Hearts, app_for, black_hole
from private_servers import TEMPLATE, PrivatePostgres
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from store_workflows import Letter, Once, Relay
from stores import make_engine, make_runner

import aegis
import aegis.sync
from aegis.core.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    ForeignSession,
    SchemaMismatch,
    WaitTimeout,
    WorkflowNotFound,
)
from aegis.persistence import awaited, durable
from aegis.persistence.awaited_reader import AwaitedReader
from aegis.persistence.database import Database
from aegis.persistence.reader import Reader


def verbs(engine: type) -> dict[str, Any]:
    return {name: verb for name, verb in inspect.getmembers(engine, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("blocking", "waiting"),
    [
        (aegis.sync.DurableWorkflowEngine, aegis.DurableWorkflowEngine),
        (durable.Handle, awaited.Handle),
        (Reader, AwaitedReader),
    ],
    ids=["engine", "handle", "reader"],
)
def test_both_have_the_same_verbs_parameters_and_words(blocking: type, waiting: type) -> None:
    there, here = verbs(blocking), verbs(waiting)
    assert there.keys() == here.keys()
    for name, verb in there.items():
        if name == "standby":  # there is nothing to wait for; the reader that it gives is awaited
            assert inspect.signature(verb).parameters == inspect.signature(here[name]).parameters
        else:
            assert inspect.iscoroutinefunction(here[name]), name
            assert inspect.signature(verb) == inspect.signature(here[name]), name
        assert inspect.getdoc(verb) == inspect.getdoc(here[name]), name


def test_the_file_was_made_from_the_verbs_as_they_are() -> None:
    wanted = maker.write(maker.BLOCKING.read_text())
    assert maker.AWAITED.read_text() == wanted, "run `python tests/support/awaited.py`"


def test_the_constructors_take_the_same() -> None:
    signature = inspect.signature(aegis.sync.DurableWorkflowEngine)
    assert inspect.signature(aegis.DurableWorkflowEngine) == signature


# --- the loop goes on -----------------------------------------------------------------------------


@pytest.fixture
def url(postgres: PrivatePostgres) -> Iterator[str]:
    with postgres.database(TEMPLATE) as made:
        yield made


def test_a_broker_that_does_not_answer_does_not_hold_the_loop(url: str) -> None:
    async def story(broker: str) -> tuple[Hearts, float, Any]:
        async with aegis.DurableWorkflowEngine(url, app=app_for(broker)) as engine, Hearts() as hearts:
            began = time.perf_counter()
            handle = await engine.start(Once(), id="o")
            return hearts, time.perf_counter() - began, handle

    with black_hole() as broker:
        hearts, took, handle = asyncio.run(story(broker))
    assert handle.rung is False  # it was tried, and given up
    assert took > 1
    assert hearts.went_on(), (sorted(hearts.loop)[-5:], max(hearts.thread))


@pytest.mark.parametrize("store", ["postgresql", "file", "memory"])
def test_who_waits_for_a_workflow_does_not_hold_the_loop(store: str, url: str, tmp_path: Path) -> None:
    address = {"postgresql": url, "file": f"sqlite:///{tmp_path / 'a.db'}", "memory": "sqlite://"}[store]

    async def story() -> Hearts:
        app = app_for("memory://") if store == "postgresql" else None
        async with aegis.DurableWorkflowEngine(address, app=app) as engine:
            await engine.start(Letter(), id="l")
            async with Hearts() as hearts:
                with pytest.raises(WaitTimeout):
                    await engine.wait("l", timeout=1)
            return hearts

    hearts = asyncio.run(story())
    assert hearts.went_on(), (sorted(hearts.loop)[-5:], max(hearts.thread))


def test_a_long_verification_does_not_hold_the_loop(url: str) -> None:
    database = Database(url)
    runner = make_runner(database)
    blocking: Any = make_engine("blocking", database, runner.ring)
    blocking.start(Letter(), id="l")
    for _ in range(300):
        blocking.pause("l")
        blocking.resume("l")

    async def story() -> tuple[Hearts, Any]:
        engine: Any = make_engine("awaited", database, runner.ring)
        async with Hearts() as hearts:
            valid = [await engine.verify_integrity("l") for _ in range(5)]
        await engine.close()
        return hearts, valid

    hearts, valid = asyncio.run(story())
    database.close()
    assert valid == [(True, None)] * 5
    assert hearts.went_on(), (sorted(hearts.loop)[-5:], max(hearts.thread))


def test_many_at_once_share_the_connections(url: str) -> None:
    async def story() -> list[str]:
        async with aegis.DurableWorkflowEngine(url, app=app_for("memory://")) as engine:
            await asyncio.gather(*(engine.start(Once(), id=f"o{number}") for number in range(60)))
            return sorted(one.id for one in await engine.list(limit=100))

    assert len(asyncio.run(story())) == 60


def test_who_gives_up_leaves_the_engine_as_it_was(url: str) -> None:
    """A task that is cancelled while it waits takes no connection with it."""

    async def story() -> str:
        async with aegis.DurableWorkflowEngine(url, app=app_for("memory://")) as engine:
            await engine.start(Letter(), id="l")
            for _ in range(30):
                task = asyncio.create_task(engine.wait("l"))
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            return (await engine.describe("l")).status

    assert asyncio.run(story()) == "waiting"


# --- in the caller's transaction ----------------------------------------------------------------


def test_a_workflow_starts_if_and_only_if_the_callers_transaction_commits(url: str) -> None:
    async def story() -> list[str]:
        theirs = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
        async with aegis.DurableWorkflowEngine(url, app=app_for("memory://")) as engine:
            async with AsyncSession(theirs) as session, session.begin():
                await session.execute(text("CREATE TABLE orders (number INTEGER)"))
                await engine.start(Once(), id="kept", session=session)
            async with AsyncSession(theirs) as session:
                await engine.start(Once(), id="undone", session=session)
                await session.rollback()
            with pytest.raises(ForeignSession, match=r"aegis\.sync"), Session() as blocking:
                await engine.start(Once(), session=blocking)
            found = [one.id for one in await engine.list()]
        await theirs.dispose()
        return found

    assert asyncio.run(story()) == ["kept"]


def test_a_bare_connection_that_blocks_is_refused_as_well(url: str) -> None:
    async def story() -> list[str]:
        async with aegis.DurableWorkflowEngine(url, app=app_for("memory://")) as engine:
            for driver in (psycopg, psycopg2):
                with closing(driver.connect(url)) as given, pytest.raises(ForeignSession, match="it blocks"):
                    await engine.start(Once(), id="undone", session=given)
            return [one.id for one in await engine.list()]

    assert asyncio.run(story()) == []


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_database_that_is_away_is_said(tmp_path: Path) -> None:
    async def story() -> None:
        nobody = "postgresql://u:secret@127.0.0.1:9/x"
        async with aegis.DurableWorkflowEngine(nobody, app=app_for("memory://")) as engine:
            with pytest.raises(DatabaseUnavailable) as caught:
                await engine.start(Once())
            assert "secret" not in str(caught.value)

    asyncio.run(story())


def test_errors_are_those_of_the_blocking_engine(url: str, postgres: PrivatePostgres) -> None:
    async def story() -> None:
        async with aegis.DurableWorkflowEngine(url, app=app_for("memory://")) as engine:
            with pytest.raises(WorkflowNotFound):
                await engine.describe("nobody")
        with postgres.database() as empty:
            async with aegis.DurableWorkflowEngine(empty, app=app_for("memory://")) as engine:
                with pytest.raises(SchemaMismatch, match="aegis db upgrade"):
                    await engine.describe("nobody")

    asyncio.run(story())


def test_an_app_cannot_serve_sqlite() -> None:
    with pytest.raises(ConfigurationError, match="SQLite"):
        aegis.DurableWorkflowEngine("sqlite://", app=app_for("memory://"))


def test_a_relay_runs_in_memory_to_its_end() -> None:
    async def story() -> Any:
        async with aegis.DurableWorkflowEngine("sqlite://") as engine:
            handle = await engine.start(Relay())
            await handle.send("go")
            return (await handle.wait(timeout=10)), await handle.verify_integrity()

    workflow, verified = asyncio.run(story())
    assert (workflow.state, verified) == ("home", (True, None))
