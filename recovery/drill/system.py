"""What a drill is held on, as far as the drill itself goes: a database, an engine, commands that are typed, anchors.

A sandbox is one, and so is a staging system that somebody names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from celery import Celery

from ...config.settings import Settings
from ...core.errors import AegisError, ServerUnavailable
from ...persistence import watch
from ...persistence.database import Database
from ...persistence.durable import DurableWorkflowEngine
from ...persistence.operations import Terms
from ...tasks.broker import Broker
from ...tasks.scrub import sources
from ...workers.factory import make_app

# A command of the runbook: verifying a million transitions takes a minute. One that was given may restore a server.
_COMMAND_TIMEOUT: Final = 600.0
_GIVEN_TIMEOUT: Final = 3600.0
# Heartbeats that a worker may miss before it is not counted.
_SILENT: Final = 2.5
_NOT_RUN: Final = 127
_TOO_LONG: Final = 124

Tell = Callable[[str], None]
Done = subprocess.CompletedProcess[str]


class System(ABC):
    """One deployment, that works; ``outside`` is a folder that nothing of it depends on."""

    name: str
    """What a report calls it."""
    shared = False
    """Whether others work with it, too: of their workflows a drill says nothing but that they verify."""
    effects: str
    """The folder in which its handlers note that they ran, for the drill to read; empty where there is none."""

    def __init__(self, root: Path, settings: Settings, environment: Mapping[str, str], tell: Tell) -> None:
        self.root, self.settings, self.tell = root, settings, tell
        self.outside = root / "outside"
        self.outside.mkdir(mode=0o777)
        self.environment = dict(environment)
        self.database = Database(settings.database, pool_size=4)
        self.app: Celery = make_app(settings)
        self.broken: ServerUnavailable | None = None
        """Why a service does not come up any more, if that is so."""

    @abstractmethod
    def anchor(self) -> int:
        """Have the outside know how the log stands; return how much of it is known there.

        Raises:
            ServerUnavailable: it cannot be told.

        """

    @abstractmethod
    def leave_running(self, argv: Sequence[str]) -> None:
        """Start a command that runs on: a worker, or everything."""

    @abstractmethod
    def restore(self) -> None:
        """Have it as it was before the drill.

        Raises:
            AegisError: it does not come to that.

        """

    def living(self) -> int:
        """Return how many workers live: one that was killed a moment ago is not taken for one.

        Raises:
            DatabaseUnavailable: nobody can say.

        """
        silent = timedelta(seconds=_SILENT * self.settings.heartbeat_interval)
        with self.database.statement() as connection:
            return watch.living(connection, silent)

    def engine(self, database: Database | None = None, app: Celery | None = None) -> DurableWorkflowEngine:
        """Return an engine for a client of this deployment, who may have a way of its own to all of it."""
        grace = timedelta(seconds=self.settings.ring_grace)
        terms = Terms(actor="app:drill", grace=grace, max_bytes=self.settings.max_bytes)
        ring = Broker(app or self.app).ring
        return DurableWorkflowEngine(database or self.database, ring, terms, sources(self.settings))

    def run(self, argv: Sequence[str], desk: str) -> Done:
        """Run a command as somebody would type it here, in a folder of that name."""
        folder = self.root / desk
        folder.mkdir(exist_ok=True)
        return ended(program(argv), _COMMAND_TIMEOUT, cwd=folder, env={**os.environ, **self.environment})

    def carry_out(self, argv: Sequence[str]) -> Done:
        """Run a command that was given for this drill: where, and as whoever called it."""
        return ended(argv, _GIVEN_TIMEOUT)

    def unless_broken(self) -> None:
        """Go on only while everything that is supervised can be started.

        Raises:
            AegisError: something does not come up any more.

        """
        if self.broken is not None:
            error: AegisError = self.broken
            raise error


def ended(argv: Sequence[str], within: float, *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    """Run a program to its end, out of reach of this terminal's Ctrl-C; it is killed where it takes for ever.

    What cannot be run, or does not end in time, has a status as a shell would give it, and says so.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        return subprocess.CompletedProcess(list(argv), _NOT_RUN, "", error.strerror or str(error))
    try:
        stdout, stderr = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(list(argv), _TOO_LONG, stdout, f"{stderr}it took more than {within:g} s")
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)


def program(argv: Sequence[str]) -> list[str]:
    """Return a command as it can be run: with the `aegis` of this very installation."""
    if argv[0] != "aegis":
        return list(argv)
    beside = Path(sys.executable).with_name("aegis")
    if beside.exists():
        return [str(beside), *argv[1:]]
    return [sys.executable, "-c", "from aegis.cli.main import main; main()", *argv[1:]]
