"""A cluster that tests do things to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
from local_engine import eventually

from aegis.config.settings import read
from aegis.recovery.cluster import patroni
from aegis.recovery.cluster.cluster import Cluster, is_whole
from aegis.recovery.cluster.layout import Node
from aegis.servers.supervisor import Supervisor


@dataclass
class Site:
    """The cluster, and what a test does to it."""

    cluster: Cluster
    supervisor: Supervisor
    stopping: bool = False
    told: list[tuple[str, str]] = field(default_factory=list)

    def look_after(self) -> None:
        """Start again what ended, as `aegis cluster up` does."""
        while not self.stopping:
            self.supervisor.look()
            time.sleep(0.1)

    @property
    def url(self) -> str:
        return read({"AEGIS_DATABASE_URL": self.cluster.layout.url(), "AEGIS_BROKER_URL": "redis://x"}).database_url

    def url_of(self, nodes: Sequence[Node], target: str = "any") -> str:
        return self.cluster.layout.url(nodes, target)

    def leader(self) -> str:
        found = patroni.leader(self.cluster.members())
        return "" if found is None else found.name

    def node(self, name: str) -> Node:
        return next(node for node in self.cluster.layout.nodes if node.name == name)

    def postmaster(self, name: str) -> psutil.Process:
        return psutil.Process(self.node(name).postmaster())

    def receivers(self, leader: str) -> list[psutil.Process]:
        """The processes that receive the standbys' WAL."""
        return [
            child
            for node in self.cluster.layout.nodes
            if node.name != leader
            for child in self.postmaster(node.name).children()
            if "walreceiver" in " ".join(child.cmdline())
        ]

    def replayer(self, standby: str) -> psutil.Process:
        """The process of a standby that replays what it receives."""
        children = self.postmaster(standby).children()
        return next(child for child in children if ": startup " in " ".join(child.cmdline()))

    def await_another_leader(self, before: str) -> None:
        eventually("another node leads", lambda: self.leader() not in {"", before}, within=60)

    def await_whole(self) -> None:
        eventually("every node leads or follows", lambda: is_whole(self.cluster.members()), within=120)
