"""The archive as a process: it receives the WAL as it is written, and files what is whole. ``aegis backup archive``."""

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
from ...core.errors import AegisError
from ...persistence.database import Database
from .barman import SERVER, Barman
from .take import end, receiver, source

log = get_logger(__name__)

_LOOK_EVERY: Final = 0.5
_FILE_EVERY: Final = 30.0
# After a receiver that ended (seconds): the server may be gone for a while.
_PAUSE: Final = 2.0


class Archive:
    """Keeps a receiver running until it is told to stop."""

    def __init__(self, configured: Settings) -> None:
        self._settings = configured
        self._process: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self) -> None:
        """Archive until told to stop; what is away is waited for, and said."""
        while not self.stopping:
            try:
                self._session()
            except AegisError as error:
                log.critical("the WAL is not archived", reason=str(error))
            self._wait(_PAUSE)

    def _session(self) -> None:
        barman = source(self._settings).barman
        database = Database(self._settings.backup_database, pool_size=1, pre_ping=False)
        try:
            process = receiver(barman, database)
        finally:
            database.close()
        log.info("archiving the WAL", repository=str(barman.repository))
        try:
            while not self.stopping and process.poll() is None:
                self._file(barman)
                self._wait(_FILE_EVERY, process)
        finally:
            end(process)
        if not self.stopping:
            said = (barman.repository / "receiver.log").read_text(errors="replace").strip().splitlines()
            log.critical("the receiver of the WAL ended", reason=said[-1] if said else "it said nothing")

    def _file(self, barman: Barman) -> None:
        try:
            barman.call("the archive", "archive-wal", SERVER)
        except AegisError as error:
            log.critical("the WAL is not filed", reason=str(error))

    def _wait(self, seconds: float, process: subprocess.Popen[bytes] | None = None) -> None:
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until and (process is None or process.poll() is None):
            time.sleep(_LOOK_EVERY)


def main() -> None:
    """Archive until a signal comes."""
    our_logging.configure(settings())
    archive = Archive(settings())

    def stop(_signal: int, _frame: FrameType | None) -> None:
        archive.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    archive.run()
    sys.exit(0)


if __name__ == "__main__":
    main()
