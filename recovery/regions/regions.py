"""Three regions, each with a database node, a member of etcd, a broker, workers and beat, and what befalls them.

The broker is disposable: a region's bells go to its own, and what one of them forgets any region's sweep rings.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from ...config.home import Home
from ...config.settings import Settings
from ...core.errors import ServerUnavailable
from ...servers import stack
from ...servers.supervisor import Service, Supervisor
from ..cluster import patroni
from ..cluster.cluster import Cluster
from ..cluster.layout import Node
from .network import Network, joined

NAMES: Final = ("region-1", "region-2", "region-3")
OUTSIDE: Final = "outside"
"""Where whoever looks on is: next to each region, and part of none."""
_LOOK_EVERY: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Region:
    """One of them; ``settings`` are those of whoever works there."""

    name: str
    number: int
    node: Node
    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead to the database, wherever it is, and to the region's own broker."""
        return {"AEGIS_DATABASE_URL": self.settings.database_url, "AEGIS_BROKER_URL": self.settings.broker_url}


class Regions:
    """All of them, prepared; made by ``regions``, and run by whoever has the supervisor."""

    def __init__(self, network: Network, cluster: Cluster, settings: Settings) -> None:
        self.network, self.cluster, self.settings = network, cluster, settings
        self.all = {
            name: self._region(number, name, node)
            for number, (name, node) in enumerate(zip(NAMES, cluster.layout.nodes, strict=True), 1)
        }
        self._services = {
            name: [etcd.name, self.all[name].node.name] for name, etcd in zip(NAMES, cluster.layout.etcds, strict=True)
        }
        self._workers = 0

    def _region(self, number: int, name: str, node: Node) -> Region:
        nearest_first = sorted(self.cluster.layout.nodes, key=lambda each: each != node)
        settings = changed(
            self.settings,
            database_url=self.cluster.layout.url(nearest_first),
            broker_url=Home(self.settings.home / name).broker_url,
        )
        return Region(name=name, number=number, node=node, settings=settings)

    @property
    def url(self) -> str:
        """The database's address, for whoever is in none of them."""
        return self.cluster.layout.url()

    # --- what runs ----------------------------------------------------------------------

    def start(
        self,
        supervisor: Supervisor,
        tell: Callable[[str], None] = lambda _: None,
        run: Callable[[Service], None] | None = None,
    ) -> None:
        """Start the databases and the brokers; return once what is acknowledged is in two regions.

        ``run`` starts a service otherwise than the supervisor by itself does.

        Raises:
            ServerUnavailable: something does not come up.

        """
        run = run or supervisor.start
        self.cluster.start(supervisor, tell, run)
        for name in NAMES:
            run(self._broker(name))

    def _broker(self, name: str) -> Service:
        service = stack.broker(changed(self.settings, home=self.settings.home / name))
        return self._in(name, replace(service, name=f"valkey-{self.all[name].number}"))

    def workers(
        self, name: str, count: int, concurrency: int, told: Mapping[str, str] | None = None
    ) -> Iterator[Service]:
        """Give a region's workers; ``told`` are more variables of theirs."""
        region = self.all[name]
        for _ in range(count):
            self._workers += 1
            environment = {**(told or {}), **region.environment}
            logs = self.settings.places.logs
            yield self._in(name, stack.worker(region.settings, logs, self._workers, concurrency, told=environment))

    def beat(self, name: str, told: Mapping[str, str] | None = None) -> Service:
        """Return a region's beat; ``told`` are more variables of its."""
        region, logs = self.all[name], self.settings.places.logs
        service = stack.beat(logs, told={**(told or {}), **region.environment})
        own = f"beat-{region.number}"
        return self._in(name, replace(service, name=own, log=logs / f"{own}.log"))

    def _in(self, name: str, service: Service) -> Service:
        self._services[name].append(service.name)
        return self.network.service(name, service)

    def services(self, name: str) -> tuple[str, ...]:
        """Return the names of what runs in a region."""
        return tuple(self._services[name])

    # --- what befalls them --------------------------------------------------------------

    def leader(self) -> str | None:
        """Return the region with the primary, as the others see it; None if there is none."""
        found = patroni.leader(self.cluster.members())
        return next((name for name, each in self.all.items() if found and each.node.name == found.name), None)

    def cut(self, name: str) -> None:
        """Cut a region off from all others, in both directions; everything in it goes on."""
        self.network.cut(name)

    def kill(self, name: str, supervisor: Supervisor) -> None:
        """Lose a region: it falls silent at once, and none of its processes is left."""
        # Before they die: the kernel would say goodbye for them.
        self.network.cut(name)
        for service in self._up(name, supervisor):
            supervisor.kill(service, stay_down=True)
        self.network.kill(name)

    def heal(self, name: str, supervisor: Supervisor) -> None:
        """Have a region back: its lines, and what was killed, once the supervisor looks."""
        self.network.mend(name)
        for service in self._up(name, supervisor):
            supervisor.revive(service)

    def _up(self, name: str, supervisor: Supervisor) -> list[str]:
        return [service for service in self._services[name] if service in supervisor.names()]

    def mend(self) -> None:
        """Mend all lines."""
        for name in NAMES:
            self.network.mend(name)


@contextmanager
def regions(settings: Settings) -> Iterator[Regions]:
    """Give three regions below ``AEGIS_HOME`` that are not started yet; in the end nothing of them runs.

    Meanwhile the calling thread is outside of them, and next to each.

    Raises:
        ServerUnavailable: there can be none here, or a program is not to be had.
        ConfigurationError: the home cannot be used.

    """
    with joined(NAMES, [OUTSIDE]) as network, network.inside(OUTSIDE):
        places = {network.address(name): name for name in NAMES}
        cluster = Cluster.prepare(
            settings,
            hosts=tuple(places),
            guests=(network.address(OUTSIDE),),
            move=lambda host, service: network.service(places[host], service),
        )
        yield Regions(network, cluster, settings)


@contextmanager
def running(
    settings: Settings, tell: Callable[[str, str], None] = lambda *_: None
) -> Iterator[tuple[Regions, Supervisor]]:
    """Give three regions that are up, with a supervisor that starts again what ends; stop everything in the end.

    Raises:
        ServerUnavailable: as ``regions``; or something does not come up.
        ConfigurationError: the home cannot be used.

    """
    with regions(settings) as made:
        supervisor, ending = Supervisor(tell), threading.Event()
        keeper = threading.Thread(target=_keep, args=(supervisor, ending, tell), name="regions keeper", daemon=True)
        try:
            made.start(supervisor)
            keeper.start()
            yield made, supervisor
        finally:
            ending.set()
            if keeper.is_alive():
                keeper.join()
            # What is cut off could not hand its work back.
            made.mend()
            supervisor.stop()


def _keep(supervisor: Supervisor, ending: threading.Event, tell: Callable[[str, str], None]) -> None:
    while not ending.wait(_LOOK_EVERY):
        try:
            supervisor.look()
        except ServerUnavailable as error:
            tell(error.server, str(error))
            return


def changed(settings: Settings, **changes: object) -> Settings:
    """Return settings that are otherwise the same."""
    return Settings.model_validate(settings.model_dump() | changes)
