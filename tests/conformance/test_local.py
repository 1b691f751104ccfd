"""Workflows without servers: what is used where nothing is said, who runs it, and what a killed process leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from local_engine import eventually
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from store_workflows import SCRIPT, Act, Alarm, Booking, Letter, Once, Parcel, Relay
from stores import make_engine, make_runner

from aegis import Context, Workflow, transition
from aegis import DurableWorkflowEngine as AwaitedEngine
from aegis.cli.main import aegis
from aegis.config.settings import read, settings
from aegis.core.errors import ConfigurationError, DatabaseUnavailable, InvalidData, NotOnSQLite, WaitTimeout
from aegis.persistence import guards, log, scrub, vitals
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.sync import DurableWorkflowEngine
from aegis.testing.local import local_engine

HERE = Path(__file__)


class Step(StrEnum):
    NEW = "new"
    DONE = "done"


@pytest.fixture
def script() -> Iterator[dict[str, Act]]:
    yield SCRIPT
    SCRIPT.clear()


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that nothing is configured for; gives its AEGIS_HOME, which is not there."""
    for name in [name for name in os.environ if name.startswith("AEGIS_") and not name.startswith("AEGIS_TEST_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("AEGIS_HOME", str(home))
    settings.cache_clear()
    yield home
    settings.cache_clear()


# --- what is used -------------------------------------------------------------------------------


def test_without_anything_configured_it_works_in_memory_and_says_once_what_that_means(
    nothing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with DurableWorkflowEngine() as engine:
        assert engine.database.in_memory
        handle = engine.start(Relay())
        handle.send("go")
        assert handle.wait(timeout=10).state == "home"  # type: ignore[attr-defined]
    said = [record.getMessage() for record in caplog.records if "lost with this process" in record.getMessage()]
    assert len(said) == 1
    assert not nothing.exists()


def test_the_engine_that_is_awaited_says_so_as_well(nothing: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with AwaitedEngine() as engine:
            assert engine.database.in_memory
            handle = await engine.start(Relay())
            await handle.send("go")
            assert (await handle.wait(timeout=10)).state == "home"  # type: ignore[attr-defined]

    asyncio.run(story())
    said = [record.getMessage() for record in caplog.records if "lost with this process" in record.getMessage()]
    assert len(said) == 1
    assert not nothing.exists()


def test_two_engines_in_memory_know_nothing_of_each_other(nothing: Path) -> None:
    with DurableWorkflowEngine("sqlite://") as one, DurableWorkflowEngine("sqlite://") as other:
        one.start(Letter(), id="l")
        assert [found.id for found in one.list()] == ["l"]
        assert other.list() == []


def test_servers_that_were_set_up_once_are_used_and_have_to_run(nothing: Path) -> None:
    (nothing / "postgres").mkdir(parents=True)
    with pytest.raises(DatabaseUnavailable, match="aegis up"):
        DurableWorkflowEngine()


@pytest.mark.parametrize("arguments", [["list"], ["pause", "p"]], ids=lambda arguments: str(arguments[0]))
def test_a_command_has_nothing_in_memory_of_its_own(nothing: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(aegis, arguments)
    assert isinstance(done.exception, DatabaseUnavailable)


def test_sqlite_is_no_database_for_workers_and_commands() -> None:
    with pytest.raises(ConfigurationError, match="give SQLite's address to DurableWorkflowEngine itself") as caught:
        read({"AEGIS_DATABASE_URL": "sqlite:///x.db", "AEGIS_BROKER_URL": "redis://h"})
    assert "AEGIS_DATABASE_URL" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("sqlite://host/x.db", "no host"),
        ("mysql://h/x", "no address of a database"),
        ("orders.db", "no address of a database"),
        ("sqlite:////nonexistent/folder/x.db", "unable to open"),
        ("", "no address of a database"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Database(address).ping()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"a letter to my aunt, which is long enough to be looked at" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        DurableWorkflowEngine(f"sqlite:///{tmp_path / 'x.db'}")


def test_a_file_of_another_version_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'x.db'}"
    with DurableWorkflowEngine(address) as engine, engine.database.transaction() as session:
        session.execute(text("UPDATE aegis_schema SET version_num = '0001'"))
    before = (tmp_path / "x.db").read_bytes()
    with pytest.raises(ConfigurationError, match=r"version 0001.*export"):
        DurableWorkflowEngine(address)
    assert (tmp_path / "x.db").read_bytes() == before


def test_a_file_that_may_only_be_read_is_refused(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    upgrade(database)
    with database.snapshot() as connection, pytest.raises(Exception, match="readonly"):
        connection.execute(text("DELETE FROM aegis_scrub"))
    with database.transaction() as session:  # and the connection is as good as before
        session.execute(text("UPDATE aegis_scrub SET verified = 1"))
    database.close()


@pytest.mark.parametrize("ask", [guards.read, scrub.state, log.lock], ids=lambda ask: str(ask.__module__))
def test_what_only_postgresql_can_do_is_refused(ask: Any) -> None:
    with local_engine() as local, local.engine.database.statement() as connection, pytest.raises(NotOnSQLite):
        ask(connection)


def test_the_health_of_a_deployment_is_not_to_be_had() -> None:
    configured = read({})
    with local_engine() as local, local.engine.database.statement() as connection, pytest.raises(NotOnSQLite):
        vitals.read(connection, configured.queue, configured.recovery)


# --- the runner ---------------------------------------------------------------------------------


def test_what_is_urgent_goes_first(script: dict[str, Act]) -> None:
    order: list[str] = []
    script["act"] = lambda workflow, _: order.append(workflow.note)
    with local_engine() as local:
        for priority in (0, 9, 5):
            local.engine.start(Once(note=str(priority)), priority=priority)
        local.run()
    assert order == ["9", "5", "0"]


def test_a_clock_that_tests_move_on() -> None:
    with local_engine() as local:
        alarm = local.engine.start(Alarm())
        local.run()
        local.advance(timedelta(days=6))
        local.run()
        assert alarm.describe().status == "waiting"
        local.advance(timedelta(days=1, seconds=1))
        local.run()
        assert alarm.describe().status == "completed"
        assert alarm.verify_integrity() == (True, None)
        took = alarm.history()[1].at - alarm.history()[0].at
        assert timedelta(days=7) < took < timedelta(days=7, minutes=1)
        with pytest.raises(InvalidData, match="backwards"):
            local.advance(timedelta(seconds=-1))


def test_a_class_that_was_made_later_is_run_as_well() -> None:
    with local_engine() as local:
        local.run()

        class Late(Workflow, name="conformance.Late"):
            state: Step = Step.NEW

            @transition(Step.NEW, Step.DONE)
            def act(self, ctx: Context) -> None: ...

        handle = local.engine.start(Late())
        local.run()
        assert handle.describe().status == "completed"


def test_what_never_comes_to_rest_is_given_up(script: dict[str, Act]) -> None:
    with local_engine() as local:
        script["act"] = lambda *_: local.engine.start(Once())  # each starts the next
        local.engine.start(Once())
        with pytest.raises(WaitTimeout):
            local.run(timeout=0.3)


def test_several_threads_share_the_work(script: dict[str, Act], tmp_path: Path) -> None:
    script["act"] = lambda *_: time.sleep(0.3)
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    upgrade(database)
    runner = make_runner(database)
    runner._threads = 4
    engine: Any = make_engine("blocking", database, runner.ring)
    runner.start()
    began = time.monotonic()
    handles = [engine.start(Once()) for _ in range(8)]
    for handle in handles:
        handle.wait(timeout=20)
    assert time.monotonic() - began < 8 * 0.3
    assert runner.stop()
    database.close()


def test_stopping_lets_the_handler_finish_and_leaves_the_rest(script: dict[str, Act], tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'x.db'}"
    script["act"] = lambda *_: time.sleep(0.5)
    with DurableWorkflowEngine(address) as engine:
        engine.start_many([Once(note=str(number)) for number in range(3)])
        eventually("one is in hand", lambda: any(one.running for one in engine.list()))
    script.clear()
    with sqlite3.connect(tmp_path / "x.db") as plain:
        found = dict(plain.execute("SELECT status, count(*) FROM aegis_workflow GROUP BY status").fetchall())
        owned = plain.execute("SELECT count(*) FROM aegis_workflow WHERE owner IS NOT NULL").fetchone()[0]
        workers = plain.execute("SELECT count(*) FROM aegis_worker").fetchone()[0]
    plain.close()
    assert found["completed"] >= 1
    assert found["pending"] >= 1
    assert (owned, workers) == (0, 0)
    with DurableWorkflowEngine(address) as engine:
        eventually("the rest is done", lambda: {one.status for one in engine.list()} == {"completed"})


_STORY = """
import sys, time, os
sys.path[:0] = {path!r}
from aegis.sync import DurableWorkflowEngine, Start
from store_workflows import SCRIPT, Parcel, Once
def pack(parcel, ctx):
    parcel.done.append("weighed")
    ctx.checkpoint()
    print("in hand", flush=True)
    time.sleep(60)
SCRIPT["pack"] = pack
engine = DurableWorkflowEngine({address!r})
engine.start_many([Start(Parcel(), id="p", priority=9), Start(Once(), id="behind-it")])
time.sleep(60)
"""


def test_what_a_killed_process_left_goes_on_in_the_next_from_its_last_checkpoint(
    tmp_path: Path, script: dict[str, Act]
) -> None:
    address = f"sqlite:///{tmp_path / 'x.db'}"
    story = _STORY.format(path=[str(HERE.parents[1] / "support")], address=address)
    with subprocess.Popen([sys.executable, "-c", story], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("in hand" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not psutil.pid_exists(process.pid)
    seen: list[tuple[list[str], int]] = []
    script["pack"] = lambda parcel, ctx: seen.append((list(parcel.done), ctx.attempt))
    began = time.monotonic()
    with DurableWorkflowEngine(address) as engine:
        eventually("it goes on", lambda: engine.describe("p").state == "packed")
        assert time.monotonic() - began < 10
        engine.wait("behind-it", timeout=10)
        assert engine.verify_integrity("p") == (True, None)
    assert seen == [(["weighed"], 2)]


def test_two_processes_on_one_file_do_everything_once(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'x.db'}"
    database = Database(address)
    upgrade(database)
    runners = [make_runner(database, ring_grace=0.2), make_runner(Database(address), ring_grace=0.2)]
    engine: Any = make_engine("blocking", database, runners[0].ring)
    engine.start_many([Relay() for _ in range(40)])
    for runner in runners:
        runner.start()
    eventually("all wait", lambda: {one.state for one in engine.list(limit=100)} == {"third"})
    for runner in runners:
        assert runner.stop()
    assert all(engine.verify_integrity(one.id) == (True, None) for one in engine.list(limit=100))
    for runner in runners:
        runner._database.close()


# --- in the caller's transaction ----------------------------------------------------------------


def test_a_workflow_starts_if_and_only_if_the_callers_transaction_commits(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'x.db'}"
    theirs = create_engine(address)  # with Python's own way of beginning transactions, which is none
    with DurableWorkflowEngine(address) as engine:
        with theirs.begin() as connection:
            connection.execute(text("CREATE TABLE orders (number INTEGER)"))
        with Session(theirs) as session:
            engine.start(Once(), id="kept", session=session)
            session.execute(text("INSERT INTO orders VALUES (1)"))
            session.commit()
        with Session(theirs) as session:
            engine.start(Once(), id="undone", session=session)
            session.execute(text("INSERT INTO orders VALUES (2)"))
            session.rollback()
        engine.wait("kept", timeout=10)
        assert [one.id for one in engine.list()] == ["kept"]
        with theirs.begin() as connection:
            assert connection.execute(text("SELECT number FROM orders")).scalars().all() == [1]
    theirs.dispose()


def test_a_statement_that_fails_in_a_handlers_transaction_undoes_all_of_it(script: dict[str, Act]) -> None:
    def book(_: Any, ctx: Any) -> None:
        ctx.session.execute(text("CREATE TABLE seats (number INTEGER)"))
        ctx.session.execute(text("INSERT INTO nowhere VALUES (1)"))

    script["book"] = book
    with local_engine() as local:
        handle = local.engine.start(Booking())
        local.run()
        row = handle.describe()
        assert (row.seq, row.status, row.attempt) == (0, "pending", 1)
        assert row.error is not None
        assert "nowhere" in row.error["message"]
        with local.engine.database.statement() as connection:
            tables = connection.execute(text("SELECT name FROM sqlite_master WHERE name = 'seats'")).all()
        assert tables == []


def test_whoever_else_writes_is_waited_for(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    upgrade(database)
    runner = make_runner(database)
    engine: Any = make_engine("blocking", database, runner.ring)
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    timer.start()
    began = time.monotonic()
    engine.start(Parcel(), id="p")
    assert time.monotonic() - began > 0.4
    timer.join()
    other.close()
    database.close()
