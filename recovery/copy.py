"""A server on a copy: it recovers from archived WAL up to a point, on a socket of its own, and is asked questions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ..config.home import NOBODY
from ..core.errors import DatabaseUnavailable, RestoreFailed
from ..persistence.cluster import is_recovered
from ..persistence.database import Database

_LOOK_EVERY: Final = 0.1
_STOPS_WITHIN: Final = 120.0
# Among what a server says when it gives up, the first of these words tells why.
_WHY: Final = ("FATAL:", "PANIC:", "ERROR:")
LATEST: Final = ("recovery_target_timeline=latest",)
# Nobody may come in but who opens its socket, nothing of it may reach the original, and a size that
# was set for another machine must not keep it from starting.
_OPTIONS: Final = (
    *("listen_addresses=", "unix_socket_permissions=0700", "port=5432", "ssl=off"),
    *("archive_mode=off", "synchronous_standby_names=", "primary_conninfo=", "primary_slot_name="),
    *("hot_standby=off", "recovery_target_action=promote", "shared_preload_libraries=", "shared_buffers=64MB"),
    *("log_destination=stderr", "logging_collector=off", "lc_messages=C", "autovacuum=off", "max_wal_size=4GB"),
)


class Copy:
    """A server on a data directory that recovers from a folder of WAL, or goes on from where it is."""

    def __init__(self, data: Path, programs: Path, log: Path) -> None:
        self.data, self._programs, self._log = data, programs, log
        self._sockets = Path(tempfile.mkdtemp(prefix="aegis-copy-"))
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(self._sockets, NOBODY, NOBODY)
            self._identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, user: str, database: str) -> str:
        """Return its address for a user: whoever may open its socket is trusted."""
        return f"postgresql+psycopg2://{quote(user)}@/{quote(database)}?host={quote(str(self._sockets))}"

    def recover(self, wal: Path, target: Sequence[str], *, user: str, durable: bool) -> None:
        """Start it, and wait until it has come to the target, which is where it begins to take what is written.

        Raises:
            RestoreFailed: it gave up; its own reason is in the message.

        """
        (self.data / "recovery.signal").touch()
        self._own(self.data / "recovery.signal")
        fetch = f'restore_command=cp "{wal}/%f" "%p"'
        self.start([fetch, *LATEST, *target], user=user, durable=durable)

    def start(self, options: Sequence[str] = (), *, user: str, durable: bool) -> None:
        """Start it, and wait until it takes what is written.

        Raises:
            RestoreFailed: it gave up; its own reason is in the message.

        """
        # Files of its own: the original's may not be in its data directory, and are made for another place.
        own = [f"unix_socket_directories={self._sockets}", f"fsync={'on' if durable else 'off'}"]
        for name, text in (("config", ""), ("hba", "local all all trust\n"), ("ident", "")):
            file = self._sockets / f"{name}.conf"
            file.write_text(text)
            self._own(file)
            own.append(f"{name}_file={file}")
        settings = [word for option in (*_OPTIONS, *own, *options) for word in ("-c", option)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self.data), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
                **self._identity,
            )
        self._await(user)

    def stop(self) -> None:
        """Stop it, with everything on its disk."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            try:
                self._process.wait(_STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stop it, and leave nothing of it but its data."""
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _await(self, user: str) -> None:
        assert self._process is not None, "it was just started"  # noqa: S101
        database = Database(self.url(user, "template1"), pool_size=1, pre_ping=False)
        try:
            while self._process.poll() is None:
                try:
                    with database.statement() as connection:
                        if is_recovered(connection):
                            return
                except DatabaseUnavailable:
                    pass  # not yet
                time.sleep(_LOOK_EVERY)
        finally:
            database.close()
        raise RestoreFailed("the copy", f"PostgreSQL gave up: {self._reason()}", f"see {self._log}")

    def _reason(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        for word in _WHY:
            for line in reversed(lines):
                if word in line:
                    return line.partition(word)[2].strip()
        return lines[-1] if lines else "it said nothing"

    def _own(self, file: Path) -> None:
        if os.geteuid() == 0:
            os.chown(file, NOBODY, NOBODY)


@contextmanager
def copied(data: Path, programs: Path, log: Path) -> Iterator[Copy]:
    """Give a server on a copy, which is stopped in any case."""
    made = Copy(data, programs, log)
    try:
        yield made
    finally:
        made.close()
