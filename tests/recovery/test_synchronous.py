"""Commits that wait for the archive: whatever a client was told, a destroyed disk does not take back."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from local_engine import eventually
from private_servers import folder
from site_of_its_own import Site, archiving, given, ids, needs_barman, opened, run, up
from store_workbench import RecordingRing, make_engine, value
from store_workflows import Once

from aegis.config.home import Home
from aegis.core.errors import DatabaseUnavailable
from aegis.recovery.backup import take
from aegis.recovery.restore.restore import restore
from aegis.tasks.check import Check, State
from aegis.tasks.health import health

pytestmark = needs_barman

WAITS_FOR_IT = "a lost disk loses nothing: a commit returns once it is archived"


def told(place: Site, name: str) -> Check:
    (found,) = [check for check in health(place.asking(backup_synchronous=True)) if check.name == name]
    return found


def waits(place: Site, standby: str) -> None:
    """Tell the server whom commits are to wait for."""
    place.server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
    place.server.execute("SELECT pg_reload_conf()")


def receivers(archive: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """PostgreSQL's own programs that write down what the archive receives."""
    return [each for each in psutil.Process(archive.pid).children(recursive=True) if "receivewal" in each.name()]


class Client:
    """Starts one workflow after another, and keeps a ledger, outside of the database, of what it was told is there."""

    def __init__(self, place: Site) -> None:
        self.acknowledged: list[str] = []
        self.latencies: list[float] = []
        self._database = opened(place.settings.database)
        self._engine = make_engine(self._database, RecordingRing())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                self._engine.start(Once(), id=f"w-{number:06}")
            except DatabaseUnavailable:
                return
            self.latencies.append(time.monotonic() - began)
            self.acknowledged.append(f"w-{number:06}")
            number += 1

    def has(self, more: int) -> bool:
        return len(self.acknowledged) >= more

    def end(self) -> None:
        self._stopped.set()
        self._thread.join(60)
        self._database.close()


def lose_the_disk(place: Site, archive: subprocess.Popen[bytes], client: Client) -> tuple[int, set[str]]:
    """Let a client write, stop the receiver for a second, destroy the disk, restore; what is missing of its ledger."""
    eventually("it writes", lambda: client.has(100), 60)
    for process in receivers(archive):
        process.send_signal(signal.SIGSTOP)  # it takes its part of what is lost with it, as a cut network would
    time.sleep(1)
    place.server.kill()
    client.end()
    for process in [*psutil.Process(archive.pid).children(recursive=True), psutil.Process(archive.pid)]:
        process.kill()
    archive.wait()
    shutil.rmtree(place.server.home.postgres)
    began = time.monotonic()
    done = restore(place.asking(backup_synchronous=True), "latest", place.root / "copy")
    print(f"{len(client.acknowledged)} acknowledged, restored in {time.monotonic() - began:.1f} s")  # shown by -s
    with given(place, done) as database:
        return len(client.acknowledged), set(client.acknowledged) - set(ids(database))


def test_a_destroyed_disk_takes_nothing_that_was_acknowledged(place: Site) -> None:
    take.take(place.settings)
    with archiving(place) as archive:
        eventually("it streams", lambda: place.archive().active, 30)
        waits(place, "aegis_archive")  # the receiver was begun before that, and is begun anew
        eventually("commits wait for it", lambda: told(place, "replication").says.startswith(WAITS_FOR_IT), 60)
        assert told(place, "archive").says.startswith("streaming, and commits wait for it: nothing would be lost")
        acknowledged, missing = lose_the_disk(place, archive, Client(place))
    assert acknowledged >= 100
    assert not missing


def test_without_waiting_the_same_loses_what_was_acknowledged_which_is_found(place: Site) -> None:
    take.take(place.settings)
    with archiving(place) as archive:
        eventually("it streams", lambda: place.archive().active, 30)
        assert told(place, "archive").state is State.DEGRADED  # it is asked for, and the server does not do it
        assert "commits do not wait for it" in told(place, "archive").says
        assert "synchronous_standby_names = 'aegis_archive'" in told(place, "archive").remedy
        _, missing = lose_the_disk(place, archive, Client(place))
    assert missing  # this loss is what the other test would see


def test_without_its_archive_writes_wait_and_go_on_with_it(place: Site) -> None:
    take.take(place.settings)
    waits(place, "aegis_archive")
    client = Client(place)
    try:
        eventually("health says so", lambda: told(place, "replication").says.startswith("writes wait"), 30)
        assert told(place, "replication").state is State.DEGRADED
        assert "and writes wait for it" in told(place, "archive").says
        time.sleep(0.5)
        assert not client.has(1)
        with archiving(place) as archive:
            eventually("they go on", lambda: client.has(20), 60)
            (process,) = receivers(archive)
            process.kill()
            there = len(client.acknowledged)
            eventually("they go on with the next receiver", lambda: client.has(there + 20), 60)
    finally:
        waits(place, "")
        client.end()


def test_a_restored_copy_waits_for_nobody(place: Site) -> None:
    place.start("o-1")
    take.take(place.settings)
    with archiving(place):
        eventually("it streams", lambda: place.archive().active, 30)
        waits(place, "ANY 1 (standby, aegis_archive)")
        eventually("commits wait for it", lambda: place.archive().synchronous, 60)
        take.take(place.settings)  # in which that is told
        done = restore(place.settings, "latest", place.root / "copy")
    assert done.waited
    # What it has last is what counts.
    assert (place.root / "copy" / "postgresql.auto.conf").read_text().endswith("synchronous_standby_names = ''\n")
    with given(place, done) as database:
        assert ids(database) == ["o-1"]


@contextmanager
def synchronous(home: Path) -> Iterator[None]:
    with up(home, AEGIS_BACKUP_SYNCHRONOUS="1"):
        yield


def test_aegis_up_waits_for_its_archive_from_its_first_commit_on() -> None:
    with folder("synchronous") as root:
        home = root / "home"
        with synchronous(home):
            database = opened(Home(home).database_url)
            assert value(database, "SHOW synchronous_standby_names") == "aegis_archive"
            engine = make_engine(database, RecordingRing())
            engine.start(Once(), id="o-1")
            said = run(home, "health", AEGIS_BACKUP_SYNCHRONOUS="1", AEGIS_HEALTH_TIMEOUT="20").stdout
            assert WAITS_FOR_IT in " ".join(said.split())
            assert run(home, "backup", "take").returncode == 0
            engine.start(Once(), id="o-2")
            database.close()
        done = run(home, "restore", "--to", "latest", "--in-place", AEGIS_BACKUP_SYNCHRONOUS="1")
        assert done.returncode == 0, done.stderr
        with synchronous(home):  # the archive goes on, on the new timeline
            database = opened(Home(home).database_url)
            make_engine(database, RecordingRing()).start(Once(), id="o-3")
            assert ids(database) == ["o-1", "o-2", "o-3"]
            database.close()
