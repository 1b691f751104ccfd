"""``checkpoint_on_transition``, as applications say it: to the constructors of both engines, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from private_servers import TEMPLATE, PrivatePostgres
from stores import make_runner

import aegis
import aegis.sync
from aegis import Context, Workflow, transition
from aegis.persistence import history
from aegis.persistence.database import Database

LOOKED: list[int] = []
DATABASES: list[Database] = []


class Lap(StrEnum):
    START = "start"
    FIRST = "first"
    SECOND = "second"
    OVER = "over"


def look(ctx: Context) -> None:
    """Note how many transitions are recorded while a handler runs."""
    with DATABASES[-1].statement() as connection:
        LOOKED.append(history.summary(connection, ctx.workflow_id).seq)


class Laps(Workflow, name="conformance.Laps"):
    state: Lap = Lap.START

    @transition(Lap.START, Lap.FIRST)
    def one(self, ctx: Context) -> None:
        look(ctx)

    @transition(Lap.FIRST, Lap.SECOND)
    def two(self, ctx: Context) -> None:
        look(ctx)

    @transition(Lap.SECOND, Lap.OVER)
    def three(self, ctx: Context) -> None:
        look(ctx)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    LOOKED.clear()
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'x.db'}"
        return
    postgres: PrivatePostgres = request.getfixturevalue("postgres")
    with postgres.database(TEMPLATE) as url:
        yield url


def made_for(address: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add what an engine needs where workers would run what it starts."""
    return options if address.startswith("sqlite") else {**options, "app": Celery(broker="memory://")}


def run(database: Database) -> None:
    """Do what workers do, where the engine itself does not."""
    if not database.is_sqlite:
        make_runner(database).run_until_idle(30)


def blocking(address: str, options: dict[str, Any]) -> list[str]:
    with aegis.sync.DurableWorkflowEngine(address, **made_for(address, options)) as engine:
        DATABASES.append(engine.database)
        engine.start(Laps(), id="l")
        run(engine.database)
        engine.wait("l", timeout=20)
        assert engine.verify_integrity("l") == (True, None)
        return [link.event for link in engine.history("l")]


async def waiting(address: str, options: dict[str, Any]) -> list[str]:
    async with aegis.DurableWorkflowEngine(address, **made_for(address, options)) as engine:
        DATABASES.append(engine.database)
        await engine.start(Laps(), id="l")
        await asyncio.to_thread(run, engine.database)
        await engine.wait("l", timeout=20)
        assert await engine.verify_integrity("l") == (True, None)
        return [link.event for link in await engine.history("l")]


@pytest.mark.parametrize("engine", ["blocking", "awaited"])
@pytest.mark.parametrize(
    ("options", "looked"),
    [
        ({}, [0, 1, 2]),
        ({"checkpoint_on_transition": True}, [0, 1, 2]),
        ({"checkpoint_on_transition": False}, [0, 0, 0]),
    ],
    ids=["default", "on", "off"],
)
def test_each_is_recorded_by_itself_or_all_together(
    address: str, engine: str, options: dict[str, Any], looked: list[int]
) -> None:
    events = blocking(address, options) if engine == "blocking" else asyncio.run(waiting(address, options))
    assert events == ["created", "one", "two", "three"]
    assert looked == LOOKED
