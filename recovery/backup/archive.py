"""The archive as a process: it receives the WAL as it is written, and files what is whole. ``aegis backup archive``.

Whether it tells the server of each commit at once, so that commits can wait for it, is decided when the
receiver starts: one that was started before the server was told to wait is started again. So is one that stays with
a server that leads no more.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Final

from ...config import logging as our_logging
from ...config.logging import get_logger
from ...config.settings import Settings, settings
from ...core.errors import AegisError, DatabaseUnavailable
from ...persistence import cluster
from ...persistence.database import Database
from ...tasks.backups import NAMES_IT, SINGLE
from .barman.adapter import WithBarman
from .barman.program import SERVER, Barman
from .barman.receiver import end, last_words, receiver
from .source import source

log = get_logger(__name__)

_LOOK_EVERY: Final = 0.5
_ASK_EVERY: Final = 2.0
_FILE_EVERY: Final = 30.0
# After a receiver that ended (seconds): the server may be gone for a while. Where commits wait for the next
# receiver, it is not much longer than that takes to start.
_PAUSE: Final = 2.0
_PAUSE_OF_COMMITS: Final = 0.5
# Who leads has a receiver within this time (seconds), or ours is with another.
_CONNECTS_WITHIN: Final = 15.0


class Archive:
    """Keeps a receiver running until it is told to stop."""

    def __init__(self, configured: Settings) -> None:
        self._settings = configured
        self.stopping = False

    def run(self) -> None:
        """Archive until told to stop; what is away is waited for, and said."""
        while not self.stopping:
            try:
                self._session()
            except (AegisError, OSError) as error:  # a disk that is away may be back before anybody looks
                log.critical("the WAL is not archived", reason=str(error))
            pause = _PAUSE_OF_COMMITS if self._settings.backup_synchronous else _PAUSE
            self._wait(time.monotonic() + pause)

    def _session(self) -> None:
        adapter = source(self._settings).adapter
        assert isinstance(adapter, WithBarman), "main() has seen to that"  # noqa: S101
        barman = adapter.barman
        database = Database(self._settings.backup_database, pool_size=1, pre_ping=False)
        try:
            waited_for = _is_waited_for(database)
            process = receiver(barman, database)
            try:
                self._receive(barman, database, process, waited_for=waited_for)
            finally:
                end(process)
        finally:
            database.close()

    def _receive(
        self, barman: Barman, database: Database, process: subprocess.Popen[bytes], *, waited_for: bool
    ) -> None:
        """Look after a receiver until it ends, or has to be started in another way."""
        log.info("archiving the WAL", repository=str(barman.repository), commits_wait=waited_for)
        if self._settings.backup_synchronous and not waited_for:
            remedy = SINGLE if _has_standbys(database) else f"{NAMES_IT}; SELECT pg_reload_conf()"
            log.critical("commits do not wait for the archive", remedy=remedy)
        file_at, seen_at = 0.0, time.monotonic()
        while not self.stopping and process.poll() is None:
            if time.monotonic() >= file_at:
                self._file(barman)
                file_at, seen_at = time.monotonic() + _FILE_EVERY, time.monotonic()  # filing may take long
            if _is_received(database):
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at > _CONNECTS_WITHIN:
                log.critical("the receiver is not with whoever leads, and is started again")
                return
            if _is_waited_for(database, otherwise=waited_for) != waited_for:
                log.info("the receiver is started again", commits_wait=not waited_for)
                return
            self._wait(time.monotonic() + _ASK_EVERY, process)
        if not self.stopping:
            log.critical("the receiver of the WAL ended", reason=last_words(barman))

    def _file(self, barman: Barman) -> None:
        try:
            barman.call("the archive", "archive-wal", SERVER)
        except AegisError as error:
            log.critical("the WAL is not filed", reason=str(error))

    def _wait(self, until: float, process: subprocess.Popen[bytes] | None = None) -> None:
        while not self.stopping and time.monotonic() < until and (process is None or process.poll() is None):
            time.sleep(_LOOK_EVERY)


def _is_waited_for(database: Database, *, otherwise: bool = False) -> bool:
    """Whether the server lets commits wait for the archive; ``otherwise`` where it does not answer."""
    try:
        with database.statement() as connection:
            return cluster.waits_for_archive(connection)
    except DatabaseUnavailable:
        return otherwise


def _has_standbys(database: Database) -> bool:
    try:
        with database.statement() as connection:
            return cluster.has_standbys(connection)
    except DatabaseUnavailable:
        return False


def _is_received(database: Database) -> bool:
    """Whether the server's WAL is received; as long as it does not answer, it is."""
    try:
        with database.statement() as connection:
            found = cluster.archive(connection)
    except DatabaseUnavailable:
        return True
    return found is not None and found.active


def main() -> None:
    """Archive until a signal comes."""
    our_logging.configure(settings())
    if settings().backup_with != "barman":
        sys.exit("AEGIS_BACKUP_WITH=pgbackrest: the server hands over its WAL by itself; there is nothing to run")
    archive = Archive(settings())

    def stop(_signal: int, _frame: FrameType | None) -> None:
        archive.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    archive.run()
    sys.exit(0)


if __name__ == "__main__":
    main()
