"""The supervisor: starts services in their order, restarts what ends, and leaves no orphan.

Services are stopped stage by stage, the last stage first, each with its own signal and deadline;
a watchdog process does the same when the supervisor itself was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..core.errors import ServerUnavailable
from . import watchdog

# A service that ends so often, each time within so many seconds of its start, will not come up.
_MOST_FAILURES: Final = 5
_FAILED_WITHIN: Final = 10.0
_LONGEST_PAUSE: Final = 3.0
_LOOK_EVERY: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Service:
    """Something to be run. ``argv`` is made anew at each start; ``stage`` says who is stopped first.

    ``leaves`` is the pid file of a server that it starts outside of its own group, as Patroni does: that
    outlives it, and is ended with it here.
    """

    name: str
    argv: Callable[[], Sequence[str]]
    log: Path
    stage: int = 1
    stop: signal.Signals = signal.SIGTERM
    grace: float = 10.0
    ready: Callable[[], bool] | None = None
    ready_within: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    leaves: Path | None = None


@dataclass
class Running:
    """A service and its process of the moment."""

    service: Service
    process: subprocess.Popen[bytes]
    started: float
    starts: int = 1
    failures: int = 0
    killed: bool = False
    down: bool = False
    restart_at: float | None = None


class Supervisor:
    """Runs services. ``tell`` is called with ``(service name, what happened)``."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self.tell = tell
        self._lock = threading.RLock()
        self._running: dict[str, Running] = {}
        self._stopping = False
        self._hurry = False
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    # --- running ------------------------------------------------------------------------

    def start(self, service: Service) -> None:
        """Start a service and wait until it is ready.

        Raises:
            ServerUnavailable: it ended, or was not ready in time; its log's last line is in the message.

        """
        with self._lock:
            running = Running(service=service, process=self._spawn(service), started=time.monotonic())
            self._running[service.name] = running
        if service.ready is None:
            return
        deadline = time.monotonic() + service.ready_within
        while not service.ready():
            if running.process.poll() is not None:
                raise ServerUnavailable(service.name, f"it ended: {last_line(service.log)}", f"see {service.log}")
            if time.monotonic() > deadline:
                problem = f"it was not ready after {service.ready_within:g} s: {last_line(service.log)}"
                raise ServerUnavailable(service.name, problem, f"see {service.log}")
            time.sleep(_LOOK_EVERY)

    def pid(self, name: str) -> int:
        """Return the process id of a service, which is also its group's."""
        return self._running[name].process.pid

    def starts(self, name: str) -> int:
        """Return how often a service was started."""
        return self._running[name].starts

    def names(self) -> list[str]:
        """Return the services in the order of their start."""
        return list(self._running)

    def kill(self, name: str, *, stay_down: bool = False) -> int:
        """End a service with SIGKILL, with all that it started. Return the pid it had.

        It is started again, or left as it is until ``revive``.
        """
        running = self._running[name]
        with self._lock:
            running.killed, running.down = True, stay_down
            watchdog.send(running.process.pid, signal.SIGKILL)
            _end_left(running.service)
        return running.process.pid

    def revive(self, name: str) -> None:
        """Let a service come up again that was to stay down."""
        self._running[name].down = False

    def take_away(self, name: str) -> None:
        """End a service with SIGKILL, with all its children, and do not start it again."""
        with self._lock:
            running = self._running.pop(name)
            watchdog.send(running.process.pid, signal.SIGKILL)
            running.process.wait()
            self._ended(running)

    def look(self) -> None:
        """Restart what has ended.

        Raises:
            ServerUnavailable: a service does not come up any more.

        """
        with self._lock:
            if self._stopping:
                return
            for running in self._running.values():
                self._look_at(running)

    def _look_at(self, running: Running) -> None:
        if running.down:
            return
        now = time.monotonic()
        if running.restart_at is not None:
            if now >= running.restart_at:
                running.process = self._spawn(running.service)
                running.started, running.restart_at = now, None
                running.starts += 1
            return
        status = running.process.poll()
        if status is None:
            return
        service = running.service
        self._ended(running)
        failed_again = now - running.started < _FAILED_WITHIN and not running.killed
        running.failures, running.killed = running.failures + 1 if failed_again else 1, False
        if running.failures >= _MOST_FAILURES:
            raise ServerUnavailable(
                service.name, f"it ended {running.failures} times: {last_line(service.log)}", f"see {service.log}"
            )
        running.restart_at = now + min(0.1 * 2 ** (running.failures - 1), _LONGEST_PAUSE)
        self.tell(service.name, f"{_how(status)}; starting it again")

    # --- stopping -----------------------------------------------------------------------

    def hurry(self) -> None:
        """Let every deadline pass now; may be called from a signal handler while ``stop`` runs."""
        self._hurry = True

    def stop(self) -> None:
        """Stop everything, the last stage first; whoever passes its deadline is killed."""
        with self._lock:
            self._stopping = True
        for stage in sorted({running.service.stage for running in self._running.values()}, reverse=True):
            self._stop_stage([r for r in self._running.values() if r.service.stage == stage])
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait()

    def _stop_stage(self, stage: Sequence[Running]) -> None:
        waiting = [running for running in stage if running.process.poll() is None]
        began = time.monotonic()
        for running in waiting:
            watchdog.ask(running.process.pid, running.service.stop)
        while waiting:
            for running in list(waiting):
                waited = time.monotonic() - began
                if running.process.poll() is None and (self._hurry or waited > running.service.grace):
                    self.tell(running.service.name, f"had not stopped after {waited:.0f} s; killed")
                    watchdog.send(running.process.pid, signal.SIGKILL)
                    running.process.wait()
                if running.process.poll() is not None:
                    waiting.remove(running)
                    self._ended(running)
                    _end_left(running.service)
            time.sleep(_LOOK_EVERY)

    # --- processes ----------------------------------------------------------------------

    def _spawn(self, service: Service) -> subprocess.Popen[bytes]:
        with service.log.open("ab") as output:
            process = subprocess.Popen(
                list(service.argv()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C in the terminal is for the supervisor alone.
                start_new_session=True,
                env={**os.environ, **service.environment},
                **service.identity,
            )
        self._say(f"+ {process.pid} {int(service.stop)} {service.grace} {service.stage} {service.leaves or ''}")
        return process

    def _ended(self, running: Running) -> None:
        # Whatever it left of its group goes too: a killed parent's children.
        watchdog.send(running.process.pid, signal.SIGKILL)
        self._say(f"- {running.process.pid}")

    def _say(self, line: str) -> None:
        if self._watchdog.stdin is not None and self._watchdog.poll() is None:
            self._watchdog.stdin.write(line + "\n")
            self._watchdog.stdin.flush()


def _end_left(service: Service) -> None:
    if service.leaves is not None:
        watchdog.end_left(str(service.leaves))


def last_line(log: Path) -> str:
    """Return the last line of a log that says anything."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
