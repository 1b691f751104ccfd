"""Ringing from code that is awaited: it never holds the event loop, and comes once the caller has committed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from deployment import Deployment
from hearts import Hearts, app_for, black_hole
from private_servers import TEMPLATE, PrivatePostgres
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, create_async_engine
from store_workflows import Letter, Once
from stores import make_engine

import aegis
import aegis.sync
from aegis import Start
from aegis.core.bell import Bell
from aegis.persistence.database import Database
from aegis.tasks.broker import Broker

FAILED = text("UPDATE aegis_workflow SET status = 'failed', ready_at = NULL, due_at = NULL WHERE id = :id")
Story = Callable[[aegis.DurableWorkflowEngine, AsyncEngine], Awaitable[object]]


@pytest.fixture
def url(postgres: PrivatePostgres) -> Iterator[str]:
    with postgres.database(TEMPLATE) as made:
        yield made


def theirs_for(database: Database) -> AsyncEngine:
    """Return the application's own engine for the same database."""
    driver = "sqlite+aiosqlite" if database.is_sqlite else "postgresql+asyncpg"
    address = database.address.set(drivername=driver)
    if not database.is_sqlite:
        address = address.difference_update_query(["connect_timeout"])
    return create_async_engine(address)


# --- a broker that does not answer ----------------------------------------------------------------


async def start(engine: aegis.DurableWorkflowEngine, _: AsyncEngine) -> object:
    return (await engine.start(Once())).rung


async def start_many(engine: aegis.DurableWorkflowEngine, _: AsyncEngine) -> object:
    return {handle.rung for handle in await engine.start_many([Once() for _ in range(50)])} == {True}


async def send(engine: aegis.DurableWorkflowEngine, _: AsyncEngine) -> object:
    return await engine.send("letter", "finish", "word")


async def resume_all_pending(engine: aegis.DurableWorkflowEngine, _: AsyncEngine) -> object:
    return (await engine.resume_all_pending(Once))[0].rung


async def resume(engine: aegis.DurableWorkflowEngine, _: AsyncEngine) -> object:
    return await engine.resume("once")


async def retry_all(engine: aegis.DurableWorkflowEngine, _: AsyncEngine) -> object:
    assert await engine.retry_all(type="store.Once") == 1
    return False  # it says how many there were, not whether they were rung


async def ring(engine: aegis.DurableWorkflowEngine, _: AsyncEngine) -> object:
    return await engine.ring("once")


async def commit_of_a_session(engine: aegis.DurableWorkflowEngine, theirs: AsyncEngine) -> object:
    async with AsyncSession(theirs) as session:
        rung = (await engine.start(Once(), session=session)).rung
        await session.commit()
    return rung


async def commit_of_a_connection(engine: aegis.DurableWorkflowEngine, theirs: AsyncEngine) -> object:
    async with theirs.begin() as connection:
        return await engine.send("letter", "finish", "word", session=connection)


@pytest.mark.parametrize(
    "story",
    [
        *(start, start_many, send, resume_all_pending, resume, retry_all, ring),
        *(commit_of_a_session, commit_of_a_connection),
    ],
    ids=lambda story: str(story.__name__),
)
def test_a_broker_that_does_not_answer_does_not_hold_the_loop(url: str, story: Story) -> None:
    with aegis.sync.DurableWorkflowEngine(url, app=app_for("memory://")) as before:
        before.start_many([Start(Once(), id="once"), Start(Letter(), id="letter"), Start(Once(), id="failed")])
        with before.database.transaction() as session:
            session.execute(FAILED, {"id": "failed"})

    async def tell(broker: str) -> tuple[Hearts, float, object]:
        async with aegis.DurableWorkflowEngine(url, app=app_for(broker)) as engine:
            theirs = theirs_for(engine.database)
            await engine.describe("once")  # connected, and the schema checked
            async with Hearts() as hearts:
                began = time.perf_counter()
                rung = await story(engine, theirs)
                took = time.perf_counter() - began
            await theirs.dispose()
            return hearts, took, rung

    with black_hole() as broker:
        hearts, took, rung = asyncio.run(tell(broker))
    assert rung is False
    assert took > 1, "it was tried, and given up"
    assert hearts.went_on(), (sorted(hearts.loop)[-5:], max(hearts.thread))


# --- once the caller has committed ----------------------------------------------------------------


class Bells:
    """A ring that writes down what was rung for, and in which thread."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.threads: set[int] = set()

    def __call__(self, bells: Sequence[Bell], /) -> bool:
        self.ids += [bell.workflow_id for bell in bells]
        self.threads.add(threading.get_ident())
        return True

    def take(self) -> list[str]:
        taken, self.ids = sorted(self.ids), []
        return taken


@asynccontextmanager
async def at_work(database: Database, bells: Bells) -> AsyncIterator[tuple[Any, AsyncEngine]]:
    """Give an engine that is awaited, and the application's own, for the same database."""
    engine: Any = make_engine("awaited", database, bells)
    theirs = theirs_for(database)
    await engine.start(Letter(), id="letter")
    try:
        yield engine, theirs
    finally:
        await theirs.dispose()
        await engine.close()
    assert threading.get_ident() not in bells.threads, "the loop's own thread never waits for a broker"


@pytest.fixture(params=["postgresql", "file"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_commit_of_a_session_rings_once_and_nothing_before(database: Database) -> None:
    async def tell(bells: Bells) -> None:
        async with at_work(database, bells) as (engine, theirs), AsyncSession(theirs) as session:
            handle = await engine.start(Once(), id="a", session=session)
            await engine.start_many([Start(Once(), id="b"), Start(Letter(), id="c")], session=session)
            await engine.send("letter", "finish", "word", session=session)
            assert (handle.rung, bells.take()) == (False, [])
            await session.commit()
            assert bells.take() == ["a", "b", "letter"]
            await engine.start(Once(), id="d", session=session)
            await session.commit()
            assert bells.take() == ["d"]
            await session.commit()
            await session.close()
            assert bells.take() == []

    asyncio.run(tell(Bells()))


def test_what_is_rolled_back_is_not_rung(database: Database) -> None:
    async def tell(bells: Bells) -> None:
        async with at_work(database, bells) as (engine, theirs):
            async with AsyncSession(theirs) as session:
                await engine.start(Once(), id="a", session=session)
                await session.rollback()
                await engine.start(Once(), id="b", session=session)
                inner = await session.begin_nested()
                await engine.start(Once(), id="c", session=session)
                await inner.rollback()
                await session.commit()
            assert bells.take() == ["b"]
            async with theirs.connect() as connection:
                await engine.start(Once(), id="e", session=connection)
                await connection.rollback()
            async with theirs.connect() as connection:
                await engine.start(Once(), id="f", session=connection)  # and then nothing
            assert bells.take() == []
            assert sorted(one.id for one in await engine.list()) == ["b", "letter"]

    asyncio.run(tell(Bells()))


def test_a_session_that_is_scoped_or_begun_by_a_block_rings_as_well(database: Database) -> None:
    async def tell(bells: Bells) -> None:
        async with at_work(database, bells) as (engine, theirs):
            async with AsyncSession(theirs) as session, session.begin():
                await engine.start(Once(), id="a", session=session)
            assert bells.take() == ["a"]
            scoped = async_scoped_session(lambda: AsyncSession(theirs), scopefunc=asyncio.current_task)
            await engine.start(Once(), id="b", session=scoped)
            await scoped.commit()
            assert bells.take() == ["b"]
            await scoped.remove()

    asyncio.run(tell(Bells()))


def test_the_commit_of_a_connection_rings_when_it_goes_on_or_is_given_back(database: Database) -> None:
    async def tell(bells: Bells) -> None:
        async with at_work(database, bells) as (engine, theirs):
            connection: AsyncConnection
            async with theirs.begin() as connection:
                await engine.start(Once(), id="a", session=connection)
                assert bells.take() == []
            assert bells.take() == ["a"]
            async with theirs.connect() as connection:
                await engine.start(Once(), id="b", session=connection)
                await connection.commit()
                await connection.begin()
                assert bells.take() == ["b"]
            assert bells.take() == []

    asyncio.run(tell(Bells()))


def test_the_bell_is_in_the_broker_after_the_commit(deployment: Deployment) -> None:
    broker = Broker(deployment.app)

    def rung() -> int | None:
        return broker.lengths([None])[None]

    async def tell() -> None:
        async with aegis.DurableWorkflowEngine(deployment.settings.database, app=deployment.app) as engine:
            theirs = theirs_for(engine.database)
            async with AsyncSession(theirs) as session:
                await engine.start(Once(), id="a", session=session)
                assert rung() == 0
                await session.commit()
                assert rung() == 1
            async with theirs.begin() as connection:
                await engine.start_many([Start(Once(), id="b"), Start(Once(), id="c")], session=connection)
                assert rung() == 1
            assert rung() == 3
            await theirs.dispose()

    asyncio.run(tell())
