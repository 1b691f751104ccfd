"""The servers that a sandbox stands on: one of each, a broker that Sentinels watch, three nodes, or three regions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from ...config.settings import Settings
from ...core.errors import ServerUnavailable
from ...servers import sentinel, stack
from ...servers.sentinel import SentinelGroup
from ...servers.supervisor import Service, Supervisor
from ..cluster.cluster import Cluster
from ..regions.regions import regions
from .regional import Regional

WORKERS: Final = ("worker-1", "worker-2")
"""Those of a sandbox with one broker."""
HANDLERS: Final = 2
_WHOLE_WITHIN: Final = 60.0
_LOOK_EVERY: Final = 0.1

Start = Callable[[Service], None]


class Kind(StrEnum):
    """What a scenario needs."""

    SINGLE = "single"
    ARCHIVED = "archived"
    SENTINELS = "sentinels"
    CLUSTER = "cluster"
    REGIONS = "regions"


class Servers(Protocol):
    """Servers that are prepared, and run by whoever has them; ``settings`` name their addresses."""

    @property
    def settings(self) -> Settings:
        """What works with them is told these."""

    def start(self, start: Start, supervisor: Supervisor) -> None:
        """Start them, and wait until all is as it should be.

        Raises:
            ServerUnavailable: it does not come to that.

        """

    def processes(self) -> Iterable[Service]:
        """Return the workers and beat that work with them."""

    def make_whole(self, supervisor: Supervisor) -> None:
        """Wait until all is as it should be again, once everything runs.

        Raises:
            ServerUnavailable: it does not come to that.

        """


@contextmanager
def prepared(kind: Kind, settings: Settings) -> Iterator[Servers]:
    """Give servers below the settings' home: their programs found, and what they are told written.

    Raises:
        ServerUnavailable, ConfigurationError: they cannot be had here.

    """
    if kind is Kind.REGIONS:
        with regions(settings) as made:
            yield Regional(made)
    else:
        yield _prepare(kind, settings)


def _prepare(kind: Kind, settings: Settings) -> Servers:
    if kind is Kind.CLUSTER:
        return Clustered.prepare(settings)
    if kind is Kind.SENTINELS:
        return Watched.prepare(settings)
    if kind is Kind.ARCHIVED:
        return Archived.prepare(settings)
    return Single(settings)


def _beside(settings: Settings) -> Iterator[Service]:
    """Give two workers and beat, who share one broker."""
    for number in range(1, len(WORKERS) + 1):
        yield stack.worker(settings, settings.places.logs, number, HANDLERS)
    yield stack.beat(settings.places.logs)


@dataclass(frozen=True)
class Single:
    """One PostgreSQL and one broker, as `aegis up` has them."""

    settings: Settings

    def start(self, start: Start, _supervisor: Supervisor) -> None:
        """Start them: each is ready when it answers."""
        for service in stack.servers(self.settings):
            start(service)

    def processes(self) -> Iterator[Service]:
        """Give two workers and beat."""
        return _beside(self.settings)

    def make_whole(self, _supervisor: Supervisor) -> None:
        """Do nothing: they have nobody beside them."""


@dataclass(frozen=True)
class Archived(Single):
    """The same, with an archive that commits wait for, and its repository on what stands for another disk."""

    @classmethod
    def prepare(cls, settings: Settings) -> Archived:
        """Choose the place of the repository."""
        repository = str(settings.home.with_name("repository"))
        return cls(_told(settings, backup_repository=repository, backup_synchronous="1"))

    def start(self, start: Start, supervisor: Supervisor) -> None:
        """Start the archive before anything is written: commits wait for it."""
        super().start(start, supervisor)
        start(stack.archive(self.settings))


@dataclass(frozen=True)
class Watched:
    """One PostgreSQL, and a broker with a replica and three Sentinels."""

    settings: Settings
    group: SentinelGroup
    _database: Service

    @classmethod
    def prepare(cls, settings: Settings) -> Watched:
        """Choose ports, and write what they are told."""
        database, _ = stack.servers(settings)
        group = SentinelGroup.prepare(settings)
        return cls(
            _told(settings, database_url=settings.database, broker_url=group.url, broker_master=sentinel.MASTER),
            group,
            database,
        )

    def start(self, start: Start, supervisor: Supervisor) -> None:
        """Start the servers before the Sentinels, which look for replicas when they start."""
        start(self._database)
        for node in self.group.servers:
            start(self._service(node))
        _await(supervisor, self.group.is_linked, "the replica does not follow")
        for node in self.group.sentinels:
            start(self._service(node))
        self.make_whole(supervisor)

    def processes(self) -> Iterator[Service]:
        """Give two workers and beat."""
        return _beside(self.settings)

    def make_whole(self, supervisor: Supervisor) -> None:
        """Wait until every Sentinel knows the others, and the replica follows the server of the moment."""
        _await(supervisor, self.group.is_complete, "the Sentinels do not know each other and the replica")
        _await(supervisor, self.group.is_linked, "the replica does not follow")

    def _service(self, node: sentinel.Node) -> Service:
        logs = self.settings.places.logs
        return Service(
            name=node.name, argv=lambda: node.argv, log=logs / f"{node.name}.log", stage=0, ready=node.is_ready
        )


@dataclass(frozen=True)
class Clustered:
    """Three PostgreSQL under Patroni, synchronous, and one broker."""

    settings: Settings
    cluster: Cluster
    _broker: Service

    @classmethod
    def prepare(cls, settings: Settings) -> Clustered:
        """Choose ports and passwords, and write the configuration."""
        cluster, broker = Cluster.prepare(settings), stack.broker(settings)
        return cls(
            _told(settings, database_url=cluster.layout.url(), broker_url=settings.places.broker_url), cluster, broker
        )

    def start(self, start: Start, supervisor: Supervisor) -> None:
        """Start them; a commit is on two nodes before it is acknowledged."""
        self.cluster.start(supervisor, run=start)
        start(self._broker)

    def processes(self) -> Iterator[Service]:
        """Give two workers and beat."""
        return _beside(self.settings)

    def make_whole(self, supervisor: Supervisor) -> None:
        """Wait until one node leads and the others have what was acknowledged."""
        self.cluster.await_whole(supervisor)


def _told(settings: Settings, **addresses: str) -> Settings:
    return Settings.model_validate(settings.model_dump() | addresses)


def _await(supervisor: Supervisor, holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _WHOLE_WITHIN
    while not holds():
        supervisor.look()
        if time.monotonic() > deadline:
            problem = f"{otherwise} after {_WHOLE_WITHIN:g} s"
            raise ServerUnavailable("the broker", problem, "look at the load of the machine")
        time.sleep(_LOOK_EVERY)
