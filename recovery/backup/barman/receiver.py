"""The WAL, as it is written: a receiver, with a slot that keeps what it does not have yet."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ....config.settings import Settings
from ....core.errors import BackupFailed
from ....persistence import cluster
from ....persistence.database import Database
from .program import SERVER, Barman

_LOOK_EVERY: Final = 0.1
_CONNECTS_WITHIN: Final = 30.0
_ENDS_WITHIN: Final = 15.0
_ARRIVES_WITHIN: Final = 60.0


@contextmanager
def receiving(settings: Settings, barman: Barman) -> Iterator[None]:
    """Have the WAL archived: by whoever does it already, or by a process that ends with this."""
    database = Database(settings.backup_database, pool_size=1, pre_ping=False)
    try:
        if _has_a_receiver(database):
            yield
            return
        process = receiver(barman, database)
        try:
            _await(lambda: _has_a_receiver(database), process, barman)
            yield
        finally:
            end(process)
    finally:
        database.close()


def file_all(settings: Settings, barman: Barman) -> None:
    """Have everything archived that is committed by now.

    Raises:
        BackupFailed: it does not arrive.

    """
    database = Database(settings.backup_database, pool_size=1, pre_ping=False)
    try:
        with receiving(settings, barman):
            with database.statement() as connection:
                segment = cluster.switch(connection)
            deadline = time.monotonic() + _ARRIVES_WITHIN
            while not (barman.folder / "wals" / segment[:16] / segment).exists():
                if time.monotonic() > deadline:
                    problem = f"segment {segment} has not arrived after {_ARRIVES_WITHIN:g} s"
                    raise BackupFailed("the archive", problem, f"see {barman.repository}/barman.log")
                time.sleep(_LOOK_EVERY)
                barman.call("the archive", "archive-wal", SERVER)
    finally:
        database.close()


def receiver(barman: Barman, database: Database) -> subprocess.Popen[bytes]:
    """Start a process that archives the WAL, with a slot that keeps it for the time when it does not run.

    Raises:
        BackupFailed, DatabaseUnavailable: there can be no slot.

    """
    with database.statement() as connection:
        found = cluster.archive(connection)
        if found is not None and found.lost:
            cluster.drop_slot(connection)
    if found is None or found.lost:
        barman.call("the archive", "receive-wal", "--create-slot", SERVER)
        if _is_left(barman):
            # What was being received before belongs to a gap, or to another timeline.
            barman.call("the archive", "receive-wal", "--reset", SERVER)
    log = (barman.repository / "receiver.log").open("wb")
    with log:
        return subprocess.Popen(
            barman.argv("receive-wal", SERVER),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a receiver, with PostgreSQL's program that it has started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_ENDS_WITHIN)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def _is_left(barman: Barman) -> bool:
    return any((barman.folder / "streaming").glob("*.partial"))


def _has_a_receiver(database: Database) -> bool:
    with database.statement() as connection:
        found = cluster.archive(connection)
    return found is not None and found.active


def _await(arrived: Callable[[], bool], process: subprocess.Popen[bytes], barman: Barman) -> None:
    deadline = time.monotonic() + _CONNECTS_WITHIN
    while not arrived():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = _last_lines(barman.repository / "receiver.log")
            raise BackupFailed("the archive", f"it receives no WAL: {lines}", f"see {barman.repository}/barman.log")
        time.sleep(_LOOK_EVERY)


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "it said nothing"
