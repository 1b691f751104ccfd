"""Local processes in the place of containers: what pytest-celery's nodes ask of docker, asked of a process.

pytest-celery's nodes never speak to docker themselves; they call a wrapper, which calls a
container. ``LocalProcess`` is such a container: one process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import psutil
from docker.errors import DockerException
from pytest_celery import CeleryTestWorker, CeleryWorkerContainer, RedisContainer
from pytest_docker_tools.exceptions import ContainerFailed


def docker_is_here() -> bool:
    """Whether a container engine answers."""
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False  # asking all the same would leave sockets open
    try:
        client = docker.from_env(timeout=2)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except DockerException:
        return False
    finally:
        client.close()


class LocalProcess:
    """A process group that answers like a container of docker's."""

    def __init__(
        self,
        name: str,
        argv: Callable[[], Sequence[str]],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex * 2
        self.name = name
        self.log = folder / f"{name}-{self.id[:6]}.log"
        self._argv, self._folder = argv, folder
        self._environment, self._identity = dict(environment or {}), dict(identity or {})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> LocalProcess:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                list(self._argv()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._environment},
                **({"cwd": self._folder} | self._identity),
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def status(self) -> str:
        if self.process is None:
            return "created"
        return "running" if self.process.poll() is None else "exited"

    @property
    def attrs(self) -> dict[str, Any]:
        return {"Config": {"Hostname": "127.0.0.1", "Env": [], "Labels": {}}, "NetworkSettings": {"Networks": {}}}

    def reload(self) -> None:
        """A process needs no asking: its status is always fresh."""

    def logs(self, **_: Any) -> bytes:
        return self.log.read_bytes() if self.log.exists() else b""

    def kill(self, signal: str | int | None = None) -> None:
        number = _number("SIGKILL" if signal is None else signal)
        # Like docker: SIGKILL takes everything in the container, any other signal meets its first process.
        (self.signal_group if number == _number("SIGKILL") else self.signal)(number)
        if number == _number("SIGKILL") and self.process is not None:
            self.process.wait(10)

    def signal(self, number: int) -> None:
        if self.status == "running":
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def stop(self, timeout: float = 10) -> None:
        if self.process is None:
            return
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        self.signal_group(signal.SIGKILL)
        self.process.wait(10)

    def restart(self, timeout: float = 10) -> None:
        self.stop(timeout)
        self.start()

    def remove(self, **_: Any) -> None:
        self.stop(5)


def _number(name: str | int) -> int:
    return int(getattr(signal, name)) if isinstance(name, str) else int(name)


class _Local:
    """A wrapper around a process: readiness without docker's network; the rest stays pytest-celery's."""

    _container: LocalProcess

    def ready(self) -> bool:
        if self._container.status == "exited":
            last = self._container.logs()[-2000:].decode(errors="replace")
            raise ContainerFailed(self, f"{self._container.name} ended: {last}")
        return self._container.status == "running" and self._wait_ready()  # type: ignore[attr-defined]

    def kill(self, signal: str | int | None = None) -> None:
        self._container.kill(signal)

    def teardown(self) -> None:
        self._container.remove()


class LocalRedisContainer(_Local, RedisContainer):
    """pytest-celery's Redis, on a Valkey that listens on a socket."""

    def __init__(self, container: LocalProcess, socket: Path) -> None:
        super().__init__(container)
        self._socket = socket

    @property
    def url(self) -> str:
        return f"redis+socket://{self._socket}"

    @property
    def host_url(self) -> str:
        return self.url

    @property
    def port(self) -> int:
        return 0


class LocalWorkerContainer(_Local, CeleryWorkerContainer):
    """pytest-celery's worker, running AEGIS's app."""

    @property
    def pid(self) -> int:
        return self._container.pid


class AegisWorker(CeleryTestWorker):
    """A worker node, and what faults need to know of its processes."""

    def hostname(self) -> str:
        return self.container.name

    @property
    def pid(self) -> int:
        return self.container.pid

    def _children(self) -> Iterator[tuple[psutil.Process, bool]]:
        """Each child that lives, and whether it writes the heartbeat."""
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                yield child, "aegis.workers.pulse" in child.cmdline()

    def pulse(self) -> psutil.Process:
        """The process that writes the worker's heartbeat."""
        return next(child for child, is_pulse in self._children() if is_pulse)

    def handlers(self) -> list[psutil.Process]:
        """The processes that run its handlers."""
        return [child for child, is_pulse in self._children() if not is_pulse]

    def freeze(self) -> None:
        """Stop it with its handlers, but not the process that writes its heartbeat."""
        for process in [psutil.Process(self.pid), *self.handlers()]:
            with contextlib.suppress(psutil.Error):
                process.suspend()

    def thaw(self) -> None:
        """Let it go on."""
        for process in [*self.handlers(), psutil.Process(self.pid)]:
            with contextlib.suppress(psutil.Error):
                process.resume()

    def kill_host(self) -> None:
        """End it with its heartbeat, as a host that is lost does."""
        pulse = self.pulse()
        pulse.suspend()  # before the worker dies: it must not see that
        self.kill()
        pulse.kill()


def eventually(what: str, holds: Callable[[], bool], within: float = 30.0) -> None:
    """Wait until something holds; fail with its name if it does not."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(0.02)
