"""Who waits for too long asks whether another host leads: left if one does, waited for if none does.

Two addresses of one server stand for two servers: what waits on the one waits on the other, and both take writes.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
import stores
from local_engine import eventually
from lonely import Lonely
from private_servers import folder
from store_workbench import RecordingRing
from store_workflows import Parcel

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.asynchronous import AsyncDatabase, spawn
from aegis.persistence.database import Database


class Doors:
    """The addresses of a server: two that lead there, one that leads nowhere."""

    def __init__(self, sockets: Path, root: Path) -> None:
        self.front, self.back, self.shut = sockets, root / "back", root / "shut"
        self.back.symlink_to(sockets)

    def url(self, *folders: Path) -> str:
        hosts = "&".join(f"host={folder}:5432" for folder in folders)
        return f"postgresql://aegis@/postgres?{hosts}&target_session_attrs=read-write"


@pytest.fixture
def doors(lonely: Lonely) -> Iterator[Doors]:
    with folder("doors") as root:
        yield Doors(lonely.server.home.sockets, root)


def started(kind: str, database: Database, workflow_id: str) -> bool:
    """Start a workflow with an engine of one of the two kinds; return whether it is new."""
    engine: Any = stores.make_engine(kind, database, RecordingRing())
    if kind == "blocking":
        return bool(engine.start(Parcel(), id=workflow_id).new)

    async def start() -> bool:
        try:
            return bool((await engine.start(Parcel(), id=workflow_id)).new)
        finally:
            await engine.close()

    return asyncio.run(start())


def during(lonely: Lonely, kind: str, url: str, workflow_id: str) -> Future[Any]:
    def start() -> bool:
        database = Database(url)
        try:
            return started(kind, database, workflow_id)
        finally:
            database.close()

    return lonely.during(start)


@pytest.mark.parametrize("kind", stores.ENGINES)
def test_a_commit_that_waits_where_nobody_leads_any_more_is_cut_and_its_outcome_unknown(
    kind: str, lonely: Lonely, doors: Doors
) -> None:
    lonely.waits("nobody")
    start = during(lonely, kind, doors.url(doors.front, doors.back), f"left-{kind}")
    with pytest.raises(DatabaseUnavailable):
        start.result(30)
    # It was committed there all the same, as so often; who asks again is told once a standby has it.
    lonely.waits("")
    assert started(kind, lonely.database, f"left-{kind}") is False


@pytest.mark.parametrize("kind", stores.ENGINES)
def test_a_commit_goes_on_waiting_where_no_other_host_leads(kind: str, lonely: Lonely, doors: Doors) -> None:
    lonely.waits("nobody")
    start = during(lonely, kind, doors.url(doors.front, doors.shut), f"kept-{kind}")
    time.sleep(5)  # it is looked into after three seconds, and then once a second
    assert not start.done()
    lonely.waits("")
    assert start.result(10) is True


def read(database: Any, seconds: float) -> None:
    """Ask something that is answered after so long."""
    with database.statement() as connection:
        connection.exec_driver_sql(f"SELECT pg_sleep({seconds})")


def reads(kind: str, url: str, seconds: float) -> None:
    if kind == "blocking":
        database = Database(url, pool_size=1)
        try:
            read(database, seconds)
        finally:
            database.close()
        return

    async def ask() -> None:
        awaited = AsyncDatabase(Database(url))
        try:
            await spawn(read, awaited, seconds)
        finally:
            await awaited.aclose()

    asyncio.run(ask())


@pytest.mark.parametrize("kind", stores.ENGINES)
def test_a_read_that_is_not_answered_where_another_leads_is_cut(kind: str, doors: Doors) -> None:
    """A server that was killed in parts keeps connections that nobody answers any more."""
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        reads(kind, doors.url(doors.front, doors.back), 60)
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("kind", stores.ENGINES)
def test_a_read_goes_on_where_no_other_host_leads(kind: str, doors: Doors) -> None:
    reads(kind, doors.url(doors.front, doors.shut), 5)


def test_a_connection_that_does_not_even_answer_a_ping_is_cut(lonely: Lonely, doors: Doors) -> None:
    database = Database(doors.url(doors.front, doors.back), pool_size=1, pre_ping=True)
    try:
        with database.statement() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        backend = psutil.Process(pid)
        backend.suspend()
        try:
            with database.statement() as connection:
                assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() != pid
        finally:
            backend.resume()
    finally:
        database.close()


def leads_to(database: AsyncDatabase) -> str:
    """Return the host of a connection of its own."""
    with database.statement() as connection:
        found, _ = database._leads_to[connection.connection.driver_connection]
        connection.invalidate()
    return found


def test_the_host_that_was_left_is_asked_last(lonely: Lonely, doors: Doors) -> None:
    async def places() -> list[str]:
        blocking = Database(doors.url(doors.front, doors.back))
        database = AsyncDatabase(blocking)
        database._preference.avoid((str(doors.front), "5432"))
        try:
            return [await spawn(leads_to, database) for _ in range(8)]
        finally:
            await database.aclose()
            blocking.close()

    assert asyncio.run(places()) == [str(doors.back)] * 8


def test_the_host_that_was_left_serves_again_where_nobody_else_does(lonely: Lonely, doors: Doors) -> None:
    async def avoided() -> object:
        blocking = Database(doors.url(doors.front, doors.shut))
        database = AsyncDatabase(blocking)
        try:
            database._preference.avoid((str(doors.front), "5432"))
            await spawn(database.ping)
            return database._preference.avoided
        finally:
            await database.aclose()
            blocking.close()

    assert asyncio.run(avoided()) is None


def test_the_event_loop_goes_on_meanwhile_and_nothing_is_left_at_the_end(lonely: Lonely, doors: Doors) -> None:
    """Neither a task nor a timer, though the engine is closed while a look is due."""
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.02)

    async def waited() -> tuple[set[str], int]:
        loop: Any = asyncio.get_running_loop()
        heart = asyncio.create_task(beat())
        blocking = Database(doors.url(doors.front, doors.back))
        engine: Any = stores.make_engine("awaited", blocking, RecordingRing())
        with pytest.raises(DatabaseUnavailable):
            await engine.start(Parcel(), id="beats")
        await engine.close()
        heart.cancel()
        blocking.close()
        await asyncio.sleep(0)
        tasks = {str(task.get_coro()) for task in asyncio.all_tasks() - {asyncio.current_task()}}
        return tasks, sum(not timer.cancelled() for timer in loop._scheduled)

    lonely.waits("nobody")
    tasks, timers = asyncio.run(waited())
    assert not tasks
    assert timers == 0
    assert len(beats) > 30, "the loop stood still while a commit waited"
    lonely.waits("")


def test_who_is_interrupted_in_a_statement_is_not_waited_for_any_more(lonely: Lonely, doors: Doors) -> None:
    """As a time limit does in a thread: what is left over would be looked into for ever, and others with it."""
    database = Database(doors.url(doors.front, doors.shut), pool_size=1)
    ended: Future[str] = Future()

    def ask() -> None:
        try:
            read(database, 2)
        except KeyboardInterrupt:
            ended.set_result("interrupted")
        else:
            ended.set_result("answered")

    thread = threading.Thread(target=ask)
    thread.start()
    waits = database._patience._waits
    eventually("it waits", waits.anybody)
    interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert interrupt(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)) == 1
    assert ended.result(30) == "interrupted"
    thread.join()
    assert not waits.anybody()
    database.close()


def test_who_gives_up_waiting_is_not_waited_for_any_more(lonely: Lonely, doors: Doors) -> None:
    async def gave_up() -> bool:
        blocking = Database(doors.url(doors.front, doors.shut))
        engine: Any = stores.make_engine("awaited", blocking, RecordingRing())
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.start(Parcel(), id="gave-up"), 1)
            return bool(engine._awaited._patience._waits.anybody())
        finally:
            await engine.close()
            blocking.close()

    lonely.waits("nobody")
    assert asyncio.run(gave_up()) is False
