"""The layout of a cluster: who is called what, listens where, and is let in with what.

It is made once and kept: after a restart every node is where its neighbours expect it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ...config.home import Home
from ...core.errors import ConfigurationError, ServerUnavailable

NODES: Final = 3
LOOPBACK: Final = "127.0.0.1"
USER: Final = "aegis"
DATABASE: Final = "postgres"
# Below the ports that the system gives to whoever connects: one of those may be taken when a server comes back.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
# Of each node PostgreSQL's and Patroni's, of each etcd that for clients and that for its peers.
_BLOCK: Final = 4 * NODES
_MOST_TRIES: Final = 50


@dataclass(frozen=True, kw_only=True)
class Node:
    """One PostgreSQL under one Patroni; ``folder`` holds its data and configuration."""

    name: str
    host: str
    port: int
    api_port: int
    folder: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's data."""
        return self.folder / "data"

    @property
    def pid_file(self) -> Path:
        """Where its PostgreSQL says which process it is."""
        return self.data / "postmaster.pid"

    def postmaster(self) -> int:
        """Return the pid of its PostgreSQL, which runs.

        Raises:
            FileNotFoundError: it does not.

        """
        return int(self.pid_file.read_text().splitlines()[0])

    @property
    def api(self) -> str:
        """Where its Patroni answers."""
        return f"http://{self.host}:{self.api_port}"


@dataclass(frozen=True, kw_only=True)
class Etcd:
    """One member of etcd, which knows who leads."""

    name: str
    host: str
    client_port: int
    peer_port: int
    folder: Path

    @property
    def client(self) -> str:
        """Where it answers those who ask who leads."""
        return f"http://{self.host}:{self.client_port}"

    @property
    def peer(self) -> str:
        """Where it answers the others of its kind."""
        return f"http://{self.host}:{self.peer_port}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A cluster's layout below ``root``; ``password`` is that of the database's user and of Patroni's own doors.

    ``hosts`` are those of the nodes, each of which has a member of etcd beside it; ``guests`` are others that may
    connect.
    """

    root: Path
    first_port: int
    password: str
    hosts: tuple[str, ...] = (LOOPBACK,) * NODES
    guests: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, in the order of their names."""
        return tuple(
            Node(
                name=f"node-{number + 1}",
                host=host,
                port=self.first_port + number,
                api_port=self.first_port + NODES + number,
                folder=self.root / f"node-{number + 1}",
            )
            for number, host in enumerate(self.hosts)
        )

    @property
    def etcds(self) -> tuple[Etcd, ...]:
        """The members of etcd."""
        return tuple(
            Etcd(
                name=f"etcd-{number + 1}",
                host=host,
                client_port=self.first_port + 2 * NODES + number,
                peer_port=self.first_port + 3 * NODES + number,
                folder=self.root / f"etcd-{number + 1}",
            )
            for number, host in enumerate(self.hosts)
        )

    @property
    def passfile(self) -> Path:
        """Where libpq finds the password, so that no address has to hold it."""
        return self.root / "pgpass"

    def url(self, nodes: Sequence[Node] | None = None, target: str = "read-write") -> str:
        """Return the address of whoever of these nodes is what is asked for."""
        hosts = ",".join(f"{node.host}:{node.port}" for node in nodes or self.nodes)  # as psql takes it, too
        passfile = quote(str(self.passfile))
        return f"postgresql://{USER}@{hosts}/{DATABASE}?target_session_attrs={target}&passfile={passfile}"


def load(home: Home) -> Layout | None:
    """Return the layout that is kept below a home; None if there is none.

    Raises:
        ConfigurationError: what is kept there is none.

    """
    kept = home.cluster / "cluster.json"
    try:
        known = json.loads(kept.read_bytes())
        return Layout(
            root=home.cluster,
            first_port=int(known["first_port"]),
            password=str(known["password"]),
            hosts=tuple(known.get("hosts", (LOOPBACK,) * NODES)),
            guests=tuple(known.get("guests", ())),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{kept} cannot be read ({type(error).__name__}: {error})"
        raise ConfigurationError(
            f"AEGIS_HOME={home.root}", problem, "mend it, or remove the folder: the cluster begins anew"
        ) from None


def make(home: Home, hosts: Sequence[str] = (LOOPBACK,) * NODES, guests: Sequence[str] = ()) -> Layout:
    """Return the layout below a home: the one that is kept, or a new one on these hosts.

    Raises:
        ConfigurationError: the home cannot be used, or what is kept there.
        ServerUnavailable: no ports are free.

    """
    home.make(home.cluster)
    layout = load(home)
    if layout is None:
        layout = Layout(
            root=home.cluster,
            first_port=_free_block(),
            password=secrets.token_hex(16),
            hosts=tuple(hosts),
            guests=tuple(guests),
        )
        write_private(layout.passfile, f"*:*:*:{USER}:{layout.password}\n")
        kept = {name: getattr(layout, name) for name in ("first_port", "password", "hosts", "guests")}
        write_private(home.cluster / "cluster.json", json.dumps(kept) + "\n")
    elif layout.hosts != tuple(hosts):
        problem = f"the cluster there is on other hosts: {', '.join(layout.hosts)}"
        raise ConfigurationError(f"AEGIS_HOME={home.root}", problem, "name another home, or remove the folder")
    return layout


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else can read, whole or not at all."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


def _free_block() -> int:
    for _ in range(_MOST_TRIES):
        first = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT - _BLOCK)
        if not any(taken(range(first, first + _BLOCK))):
            return first
    raise ServerUnavailable(
        "the cluster", f"no {_BLOCK} ports in a row are free from {_FIRST_PORT} to {_LAST_PORT}", "free some"
    )


def taken(ports: Sequence[int]) -> Iterator[int]:
    """Give those ports of the loopback interface on which something listens."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                yield port
