"""The WAL, as it is written: a receiver, with a slot that keeps what it does not have yet.

Where the server does not have any more what comes next, the archive has a gap. It begins anew then, and the ledger
says so until a backup that was begun later counts: nobody can go back across it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ....config.logging import get_logger
from ....config.settings import Settings
from ....core.errors import BackupFailed, ConfigurationError
from ....persistence import cluster
from ....persistence.cluster import Archive
from ....persistence.database import Database, reason_of
from ..adapter import number
from ..ledger import Ledger
from .program import SERVER, Barman, told

log = get_logger(__name__)

_LOOK_EVERY: Final = 0.1
_CONNECTS_WITHIN: Final = 30.0
_ENDS_WITHIN: Final = 15.0
_ARRIVES_WITHIN: Final = 60.0
_SEGMENT: Final = re.compile(r"([0-9A-F]{24})(\.partial)?")
# After every segment of every timeline. Barman files all that is received before it.
_AFTER_ALL: Final = f"{'F' * 8}{'0' * 16}.partial"
# What the server says to a receiver that asks for what it does not have: it threw that away; or it is another since
# a fail-over, and never had it.
_REFUSED: Final = (
    "has already been removed",
    "is not in this server's history",
    "is ahead of the WAL flush position of this server",
)


@contextmanager
def receiving(settings: Settings, barman: Barman) -> Iterator[None]:
    """Have the WAL archived: by whoever does it already, or by a process that ends with this."""
    database = Database(settings.backup_database, pool_size=1, pre_ping=False)
    try:
        if _has_a_receiver(database):
            yield
            return
        process = _connected(barman, database)
        try:
            yield
        finally:
            end(process)
    finally:
        database.close()


def _connected(barman: Barman, database: Database) -> subprocess.Popen[bytes]:
    """Start a receiver, and see that it receives; one that is refused what it asks for is started once more."""
    process = receiver(barman, database)
    try:
        _await(lambda: _has_a_receiver(database), process, barman)
    except BackupFailed:
        end(process)
        if _refusal(barman) is None:
            raise
        process = receiver(barman, database)
        try:
            _await(lambda: _has_a_receiver(database), process, barman)
        except BackupFailed:
            end(process)
            raise
    return process


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
    if found is None or found.lost or found.kept_from is None:
        _make_folder(barman)  # a slot without one is taken for an archive whose disk is away
        found = _slot(database)
    missing = _missing(barman, found)
    if missing is not None:
        _begin_anew(barman, missing)
    try:
        said = _log(barman).open("wb")
    except OSError as error:
        problem = f"{_log(barman)} cannot be written ({error.strerror})"
        raise BackupFailed("the archive", problem, "see that its disk is there, and has room") from None
    with said:
        return subprocess.Popen(
            barman.argv("receive-wal", SERVER),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )


def _make_folder(barman: Barman) -> None:
    try:
        barman.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{barman.folder} cannot be made ({error.strerror})"
        raise BackupFailed("the archive", problem, "see that its disk is there, has room, and is ours") from None


def _slot(database: Database) -> Archive:
    """Make a slot that keeps the WAL from now on; one that lost what it kept, or that keeps nothing, is given up."""
    problem = "it was dropped as soon as it was made"
    try:
        with database.statement() as connection:
            old = cluster.archive(connection)
            if old is not None and not old.active and (old.lost or old.kept_from is None):
                cluster.drop_slot(connection)
            cluster.make_slot(connection)
    except ConfigurationError as error:
        problem = str(error)
    except Exception as error:
        if not hasattr(error, "orig"):
            raise
        problem = reason_of(error)
    # Whatever was said: on a cluster, who runs it may have made it at the same time.
    with database.statement() as connection:
        found = cluster.archive(connection)
    if found is None or found.lost:
        remedy = "see that max_replication_slots has room for one, and that its user may replicate"
        raise BackupFailed("the archive", f"there can be no slot: {problem}", remedy)
    return found


# --- gaps -----------------------------------------------------------------------------------


def _missing(barman: Barman, slot: Archive) -> str | None:
    """Return what the server does not have any more and the archive does not have, in words; None if nothing is."""
    next_one = _next(barman)
    if next_one is None:
        return None  # nothing was archived yet
    if slot.kept_from is not None and slot.kept_from > next_one:
        return f"segments {next_one:X} to {slot.kept_from - 1:X}"
    return _refusal(barman)


def _next(barman: Barman) -> int | None:
    """Return the number of the first segment that is not archived whole; None if none is archived at all."""
    files = [*(barman.folder / "streaming").glob("*"), *(barman.folder / "wals").glob("*/*")]
    named = [found for file in files if (found := _SEGMENT.fullmatch(file.name)) is not None]
    return max((number(found[1]) + (found[2] is None) for found in named), default=None)


def _refusal(barman: Barman) -> str | None:
    """Return why the server refused the last receiver what it asked for, if it did."""
    lines = _lines(barman)
    return next((line.strip() for line in reversed(lines) if any(sign in line for sign in _REFUSED)), None)


def _begin_anew(barman: Barman, missing: str) -> None:
    """Note the gap, file what was received before it, and leave nothing that the next receiver would go on from."""
    if any((barman.folder / "base").glob("*")):
        Ledger(barman.repository).gap(missing)
    log.critical("the archive has a gap, and begins anew", missing=missing)
    try:
        streaming = barman.folder / "streaming"
        if streaming.is_dir():
            (streaming / _AFTER_ALL).touch()
            barman.call("the archive", "archive-wal", SERVER)
            for file in streaming.glob("*.partial"):
                file.unlink()
        _log(barman).unlink(missing_ok=True)  # what it says was answered
    except OSError as error:
        problem = f"{error.filename or barman.folder} cannot be changed ({error.strerror})"
        raise BackupFailed("the archive", problem, "see that its disk is there, has room, and is ours") from None


def end(process: subprocess.Popen[bytes]) -> None:
    """End a receiver, with PostgreSQL's program that it has started."""
    for one in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, one)
            process.wait(_ENDS_WITHIN)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def _has_a_receiver(database: Database) -> bool:
    with database.statement() as connection:
        found = cluster.archive(connection)
    return found is not None and found.active


def _await(arrived: Callable[[], bool], process: subprocess.Popen[bytes], barman: Barman) -> None:
    deadline = time.monotonic() + _CONNECTS_WITHIN
    while not arrived():
        if process.poll() is not None or time.monotonic() > deadline:
            problem = f"it receives no WAL: {last_words(barman)}"
            raise BackupFailed("the archive", problem, f"see {barman.repository}/barman.log")
        time.sleep(_LOOK_EVERY)


def _log(barman: Barman) -> Path:
    """Where the last receiver said what it had to say."""
    return barman.repository / "receiver.log"


def last_words(barman: Barman) -> str:
    """Return the end of what the last receiver said."""
    return "; ".join(_lines(barman)[-3:]) or "it said nothing"


def _lines(barman: Barman) -> list[str]:
    try:
        text = _log(barman).read_text(errors="replace")
    except OSError:
        return []
    return [line.removeprefix(f"{SERVER}: ").strip() for line in told(text) if line.strip()]
