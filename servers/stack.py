"""Everything that `aegis up` runs: the two private servers, where they are used, and AEGIS's own processes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config.settings import Settings
from ..core.errors import ConfigurationError, DatabaseUnavailable
from ..persistence import cluster
from ..persistence.database import Database
from .postgres import Postgres
from .supervisor import Service
from .valkey import Valkey

_FLOWER_PORT: Final = 5555
_APP: Final = "aegis.workers.app"
# Celery warns root at every start; who runs `aegis up` as root knows.
_QUIET: Final = {"PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges"}
# What a worker needs beyond its handlers' grace, to hand its messages back and end.
_WORKER_ENDS_WITHIN: Final = 10.0


@dataclass
class Flower:
    """Celery's monitor, on loopback; its port is chosen anew where the last one was taken."""

    port: int = 0

    def argv(self) -> list[str]:
        """Return the command, with a port that is free now."""
        self.port = free_port(_FLOWER_PORT)
        return [
            *_celery("flower"),
            "--address=127.0.0.1",
            f"--port={self.port}",
            # The workflow's id stands in the arguments.
            "--tasks_columns=name,args,state,received,runtime,worker,uuid",
        ]

    @property
    def url(self) -> str:
        """Where it shows its pages."""
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def sees(self) -> int:
        """Return from how many workers it has heard; what they did before that, it does not know."""
        try:
            with urllib.request.urlopen(f"{self.url}/workers?json=1", timeout=1) as answer:  # noqa: S310 - loopback
                return len(json.load(answer)["data"])
        except (OSError, ValueError):
            return 0


def servers(settings: Settings) -> list[Service]:
    """Return the private servers, prepared; none where addresses are set.

    Raises:
        ServerUnavailable, ConfigurationError: one cannot be had here.

    """
    if not settings.embedded:
        return []
    postgres = Postgres.prepare(settings)
    database = Service(
        name="postgresql",
        argv=lambda: postgres.argv,
        log=settings.places.logs / "postgresql.log",
        stage=0,
        stop=signal.SIGINT,  # PostgreSQL's fast shutdown
        grace=30,
        ready=postgres.is_ready,
        identity={**postgres.identity, "cwd": "/"},
    )
    return [database, broker(settings)]


def broker(settings: Settings) -> Service:
    """Return the private broker, prepared.

    Raises:
        ServerUnavailable, ConfigurationError: it cannot be had here.

    """
    valkey = Valkey.prepare(settings)
    return Service(
        name="valkey",
        argv=lambda: valkey.argv,
        log=settings.places.logs / "valkey.log",
        stage=0,
        ready=valkey.is_ready,
        identity={"cwd": "/"},
    )


def worker(
    settings: Settings,
    logs: Path,
    number: int,
    concurrency: int,
    *,
    watched: bool = False,
    told: Mapping[str, str] | None = None,
) -> Service:
    """Return a worker; ``concurrency`` is how many handlers it runs at once.

    ``watched`` by Flower, it sends events from its first task on, without being asked to. ``told`` are
    variables that are not those of this process.
    """
    return Service(
        name=f"worker-{number}",
        # A name of its own at each start: Celery's neighbours must not take it for its predecessor.
        argv=lambda: [
            *_celery("worker"),
            f"--hostname=worker-{number}-{secrets.token_hex(2)}@%h",
            f"--concurrency={concurrency}",
            "--without-mingle",
            "--without-gossip",
            *(["--task-events"] if watched else []),
        ],
        log=logs / f"worker-{number}.log",
        stage=2,
        grace=settings.stop_grace + _WORKER_ENDS_WITHIN,
        environment={**_QUIET, **(told or {})},
    )


def beat(logs: Path, *, told: Mapping[str, str] | None = None) -> Service:
    """Return beat: the recovery sweep and the periodic checkpoint; ``told`` as for a worker."""
    return Service(
        name="beat", argv=lambda: _celery("beat"), log=logs / "beat.log", stage=2, environment=dict(told or {})
    )


def archive(settings: Settings) -> Service:
    """Return the archive of what the database writes; it ends before the database does.

    Where commits wait for it, it is ready once they need not wait any more.
    """
    return Service(
        name="archive",
        argv=lambda: [sys.executable, "-m", "aegis.recovery.backup.archive"],
        log=settings.places.logs / "archive.log",
        ready=(lambda: _receives(settings)) if settings.backup_synchronous else None,
    )


def _receives(settings: Settings) -> bool:
    database = Database(settings.database, pool_size=1, pre_ping=False)
    try:
        with database.statement() as connection:
            found = cluster.archive(connection)
    except DatabaseUnavailable:
        return False
    finally:
        database.close()
    return found is not None and found.active and (found.synchronous or not found.named)


def flower(logs: Path) -> tuple[Service, Flower]:
    """Return Flower, and where it is to be found."""
    monitor = Flower()
    service = Service(
        name="flower", argv=monitor.argv, log=logs / "flower.log", stage=2, grace=3, ready=monitor.is_ready
    )
    return service, monitor


def _celery(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "--quiet", "-A", _APP, *arguments]


def free_port(preferred: int) -> int:
    """Return the preferred port of the loopback interface if it is free, or any other."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            # As servers do: connections of the one before, that are still winding down, do not hold its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("127.0.0.1", "no port is free", "end something that listens there")


@contextmanager
def lock(settings: Settings) -> Iterator[None]:
    """Hold the home: two supervisors on the same data would kill each other's servers.

    Raises:
        ConfigurationError: another `aegis up` holds it.

    """
    home = settings.places
    home.make(home.logs)
    with home.lock.open("a+") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.seek(0)
            owner = held.read().strip() or "unknown"
            raise ConfigurationError(
                f"AEGIS_HOME={home.root}",
                f"another `aegis up` (pid {owner}) runs there",
                "stop it, or set AEGIS_HOME to another directory",
            ) from None
        held.truncate(0)
        held.write(str(os.getpid()))
        held.flush()
        yield
