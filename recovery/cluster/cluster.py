"""The cluster itself: its services for the supervisor, and bringing them up to where nothing can be lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Final

from ...config.home import NOBODY, Home
from ...config.settings import Settings
from ...core.errors import ServerUnavailable
from ...servers.postgres import server_identity, server_programs
from ...servers.supervisor import Service, Supervisor, last_line
from . import layout as layouts
from . import patroni, programs
from .layout import LOOPBACK, Etcd, Layout, Node
from .patroni import Member

_ETCD_WITHIN: Final = 30.0
# The first start makes the database and copies it twice; after a crash, standbys may be rewound.
_UP_WITHIN: Final = 180.0
_LOOK_EVERY: Final = 0.2


def where_we_are(_host: str, service: Service) -> Service:
    """Return a service as it is: every host is this one."""
    return service


@dataclass(frozen=True)
class Cluster:
    """A cluster below one home, ready to be started; ``move`` returns a service as it runs on its host."""

    layout: Layout
    logs: Path
    etcd: Path
    python: programs.Python
    postgres: Path
    move: Callable[[str, Service], Service] = where_we_are

    @classmethod
    def prepare(
        cls,
        settings: Settings,
        hosts: Sequence[str] = (LOOPBACK,) * layouts.NODES,
        guests: Sequence[str] = (),
        move: Callable[[str, Service], Service] = where_we_are,
    ) -> Cluster:
        """Find the programs, choose ports and passwords where there are none yet, write the configuration.

        Raises:
            ServerUnavailable: a program is not to be had, or there are no free ports.
            ConfigurationError: the home cannot be used, or a setting.

        """
        home = settings.places
        etcd, python, postgres = programs.etcd(settings), programs.python(home), server_programs(settings)
        home.make(home.logs)
        cluster = cls(layouts.make(home, hosts, guests), home.logs, etcd, python, postgres, move)
        cluster._refuse_taken_ports()
        for node in cluster.layout.nodes:
            cluster._configure(home, node)
        return cluster

    def _refuse_taken_ports(self) -> None:
        if set(self.layout.hosts) != {LOOPBACK}:
            return  # each has ports of its own, which cannot be seen from here
        first = self.layout.first_port
        taken = list(layouts.taken(range(first, first + 4 * layouts.NODES)))
        if taken:
            problem = f"something listens on port {taken[0]}, which is one of its own"
            raise ServerUnavailable("the cluster", problem, "end it: a cluster that was killed, perhaps")

    def _configure(self, home: Home, node: Node) -> None:
        home.make(node.folder, mode=0o700)
        told = self.configuration_of(node)
        text = json.dumps(patroni.configuration(self.layout, node, self.postgres), indent=2)  # which is YAML, too
        layouts.write_private(told, text + "\n")
        if os.geteuid() == 0:
            for path in (node.folder, told):
                os.chown(path, NOBODY, NOBODY)

    @staticmethod
    def configuration_of(node: Node) -> Path:
        """Return where a node's configuration is."""
        return node.folder / "patroni.yml"

    # --- services -----------------------------------------------------------------------

    def services(self) -> list[Service]:
        """Return what is to run; nobody is ready before the others are there."""
        members = [self._etcd_service(etcd, stage) for stage, etcd in enumerate(self.layout.etcds, -layouts.NODES)]
        return [*members, *(self._node_service(node) for node in self.layout.nodes)]

    def _etcd_service(self, etcd: Etcd, stage: int) -> Service:
        service = Service(
            name=etcd.name,
            argv=lambda: [str(self.etcd), *_etcd_options(self.layout, etcd)],
            log=self.logs / f"{etcd.name}.log",
            # After the nodes, which hand the lead back there; and one by one: each looks for a successor first.
            stage=stage,
            identity={"cwd": "/"},
        )
        return self.move(etcd.host, service)

    def _node_service(self, node: Node) -> Service:
        service = Service(
            name=node.name,
            argv=lambda: [str(self.python.program), "-m", "patroni", str(self.configuration_of(node))],
            log=self.logs / f"{node.name}.log",
            stage=0,
            stop=signal.SIGTERM,  # it stops its PostgreSQL first
            grace=40,
            environment={**self.python.environment, "PYTHONUNBUFFERED": "1"},
            identity={**server_identity(), "cwd": "/"},
            # Its PostgreSQL is in a session of its own, and would go on without it.
            leaves=node.pid_file,
        )
        return self.move(node.host, service)

    # --- coming up ----------------------------------------------------------------------

    def start(
        self,
        supervisor: Supervisor,
        tell: Callable[[str], None] = lambda _: None,
        run: Callable[[Service], None] | None = None,
    ) -> None:
        """Start everything; return once a commit is on two machines before it is acknowledged.

        ``run`` starts a service otherwise than the supervisor by itself does.

        Raises:
            ServerUnavailable: something does not come up; its log's last line is in the message.

        """
        tell("etcd")
        run = run or supervisor.start
        services = self.services()
        for service in services[: layouts.NODES]:
            run(service)
        self._await(supervisor, "etcd has no leader", self._etcd_leads, _ETCD_WITHIN, services[0])
        tell("a primary")
        for service in services[layouts.NODES :]:
            run(service)
        first = services[layouts.NODES]
        self._await(supervisor, "nobody leads", lambda: patroni.leader(self.members()) is not None, _UP_WITHIN, first)
        tell("two standbys")
        self.await_whole(supervisor)

    def await_whole(self, supervisor: Supervisor, within: float = _UP_WITHIN) -> None:
        """Wait until one node leads and all others follow synchronously.

        Raises:
            ServerUnavailable: they did not by then.

        """
        service = self._node_service(self.layout.nodes[-1])
        self._await(supervisor, "not every standby follows", lambda: is_whole(self.members()), within, service)

    def members(self) -> list[Member]:
        """Return the nodes as they see each other."""
        return patroni.members(self.layout)

    def _etcd_leads(self) -> bool:
        answers = 0
        for etcd in self.layout.etcds:
            try:
                answers += '"true"' in patroni.ask(f"{etcd.client}/health")[1]
            except (OSError, HTTPException):
                continue
        return answers == layouts.NODES

    @staticmethod
    def _await(
        supervisor: Supervisor, otherwise: str, holds: Callable[[], bool], within: float, service: Service
    ) -> None:
        deadline = time.monotonic() + within
        while not holds():
            supervisor.look()
            if time.monotonic() > deadline:
                problem = f"{otherwise} after {within:g} s: {last_line(service.log)}"
                raise ServerUnavailable("the cluster", problem, f"see {service.log.parent}")
            time.sleep(_LOOK_EVERY)


def is_whole(members: Sequence[Member]) -> bool:
    """Whether one node leads, and all others have what was acknowledged."""
    follow = sum(member.follows for member in members)
    return patroni.leader(members) is not None and follow == layouts.NODES - 1


def remove(home: Home) -> None:
    """Remove a cluster that does not run, with its data."""
    shutil.rmtree(home.cluster, ignore_errors=True)


def _etcd_options(layout: Layout, etcd: Etcd) -> list[str]:
    everybody = ",".join(f"{one.name}={one.peer}" for one in layout.etcds)
    return [
        *("--name", etcd.name, "--data-dir", str(etcd.folder)),
        *("--listen-client-urls", etcd.client, "--advertise-client-urls", etcd.client),
        *("--listen-peer-urls", etcd.peer, "--initial-advertise-peer-urls", etcd.peer),
        *("--initial-cluster", everybody, "--initial-cluster-state", "new"),
        *("--initial-cluster-token", f"aegis-{layout.first_port}"),
        # A busy machine must not look like a dead member: patient with each other, well within Patroni's ttl.
        *("--heartbeat-interval", "300", "--election-timeout", "3000"),
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
        *("--logger", "zap", "--log-level", "warn"),
    ]
