"""Real servers for tests: PostgreSQL and Valkey as `aegis up` runs them, each in a folder of its own."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from local_engine import LocalProcess, eventually

from aegis.config.home import Home
from aegis.config.settings import Settings
from aegis.servers.postgres import Postgres
from aegis.servers.sentinel import MASTER, Node, SentinelGroup
from aegis.servers.valkey import Valkey

# The database with AEGIS's schema that every test gets a copy of.
TEMPLATE = "aegis_template"
DEPLOYMENT = "aegis.example/test"
# Where files are in memory, and the room that there has to be (bytes).
MEMORY = Path("/dev/shm")  # noqa: S108 - nothing in it is anybody's secret
ROOM = 4 * 1024**3


@contextmanager
def folder(name: str, *, in_memory: bool = False) -> Iterator[Path]:
    """A folder that other users may pass through, unlike pytest's own: PostgreSQL is not run by root.

    ``in_memory``, where there is room: for what is never lost, a disk costs nothing but time.
    """
    place = str(MEMORY) if in_memory and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None
    made = Path(tempfile.mkdtemp(prefix=f"aegis-{name}-", dir=place))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class PrivatePostgres:
    """A PostgreSQL server that a test may stop, kill and start."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.home = Home(root)
        self._server = Postgres.prepare(Settings(home=root, **changes))
        self.container = LocalProcess(
            "postgresql", lambda: self._server.argv, self.home.logs, identity={**self._server.identity, "cwd": "/"}
        )

    @property
    def programs(self) -> Path:
        """The folder with PostgreSQL's programs."""
        return self._server.programs

    def start(self) -> None:
        self.container.start()
        eventually("PostgreSQL answers", self._server.is_ready)

    def stop(self) -> None:
        """Stop it as an operator would: fast, with every connection broken off."""
        self.container.signal(signal.SIGINT)
        assert self.container.process is not None
        self.container.process.wait(20)

    def kill(self) -> None:
        """End it with SIGKILL, with all its processes."""
        self.container.kill()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://aegis@/{database}?host={self.home.sockets}"

    def execute(self, statement: str) -> None:
        connection = psycopg2.connect(host=str(self.home.sockets), user="aegis", dbname="postgres")
        connection.autocommit = True
        try:
            connection.cursor().execute(statement)
        finally:
            connection.close()

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """A database of one's own, made from a template; gives its address."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url(name)
        finally:
            self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class PrivateBroker:
    """A Valkey server that a test may stop, kill, wipe and start."""

    def __init__(self, root: Path, *options: str) -> None:
        self.home = Home(root)
        self._server = Valkey.prepare(Settings(home=root))
        self.container = LocalProcess("valkey", lambda: [*self._server.argv, *options], self.home.logs)

    @property
    def socket(self) -> Path:
        return self._server.socket

    @property
    def url(self) -> str:
        return self.home.broker_url

    def start(self) -> None:
        self.container.start()
        eventually("Valkey answers", self._server.is_ready)

    def kill(self) -> None:
        self.container.kill()

    def forget(self) -> None:
        """Lose what it kept on disk; to be called while it is down."""
        shutil.rmtree(self.home.valkey)
        self.home.make(self.home.valkey, mode=0o700)


class PrivateSentinels:
    """A Valkey, its replica and three Sentinels, each of which a test may kill and start."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.group = SentinelGroup.prepare(Settings(home=root), **options)
        self.containers = {node.name: self._process(node) for node in self.group.nodes}

    def start(self) -> None:
        self._start(self.group.servers)
        eventually("the replica follows", self.group.is_linked)
        self._start(self.group.sentinels)
        eventually("the Sentinels know each other", self.group.is_complete)

    def _start(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.containers[node.name].start()
        for node in nodes:
            eventually(f"{node.name} answers", node.is_ready)

    def master(self) -> str:
        """The name of the server that the Sentinels name."""
        found = self.group.master()
        assert found is not None
        return found.name

    def environment(self) -> dict[str, str]:
        return {"AEGIS_BROKER_MASTER": MASTER}

    def stop(self) -> None:
        for container in self.containers.values():
            container.kill()

    @staticmethod
    def _process(node: Node) -> LocalProcess:
        return LocalProcess(node.name, lambda: node.argv, node.folder)
