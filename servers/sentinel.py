"""A Valkey with replicas, and the Sentinels that watch them, on this host: for tests, benchmarks and drills."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from ..config.settings import Settings
from .valkey import Valkey

MASTER: Final = "aegis"
"""The name under which the Sentinels know the server."""

_LOOPBACK: Final = "127.0.0.1"
# Below the ports that the kernel gives to outgoing connections: a server that comes back finds its own still free.
_PORTS: Final = range(20_000, 32_000)
_TRIES: Final = 200


@dataclass(frozen=True, kw_only=True)
class Node:
    """One process of the group: what runs it, and where it listens."""

    name: str
    port: int
    folder: Path
    argv: tuple[str, ...]

    def is_ready(self) -> bool:
        """Whether it answers."""
        return "".join(_ask(self.port, "PING")).startswith(("+PONG", "-NOAUTH"))


@dataclass(frozen=True, kw_only=True)
class SentinelGroup:
    """The servers, the first of which begins as the master, and their Sentinels; whoever has it runs its processes."""

    servers: tuple[Node, ...]
    sentinels: tuple[Node, ...]
    url: str
    password: str = ""

    @classmethod
    def prepare(
        cls, settings: Settings, *, replicas: int = 1, sentinels: int = 3, down_after: float = 1.0, password: str = ""
    ) -> SentinelGroup:
        """Find the program and free ports, and write what each process is told, below the settings' home.

        ``down_after`` is how long a server may be silent (seconds); with a ``password``, servers and Sentinels want it.

        Raises:
            ServerUnavailable: there is no program, or it does not work here.
            ConfigurationError: the home cannot be used.

        """
        program, root = str(Valkey.prepare(settings).program), settings.home
        ports = _free_ports(1 + replicas + sentinels)
        first = ports[0]
        servers = tuple(
            _server(program, root / f"server{number}", port, None if port == first else first, password)
            for number, port in enumerate(ports[: 1 + replicas])
        )
        watchers = tuple(
            _sentinel(program, root / f"sentinel{number}", port, _watched(first, sentinels, down_after, password))
            for number, port in enumerate(ports[1 + replicas :])
        )
        login = f":{password}@" if password else ""
        url = ";".join(f"sentinel://{login}{_LOOPBACK}:{node.port}/0" for node in watchers)
        return cls(servers=servers, sentinels=watchers, url=url, password=password)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of them, in the order in which to start them: the Sentinels once the servers are linked."""
        return self.servers + self.sentinels

    def is_linked(self) -> bool:
        """Whether every replica follows: Sentinels look for replicas when they start, and every ten seconds."""
        followed = str(len(self.servers) - 1)
        master = self.master() or self.servers[0]
        return _ask(master.port, f"WAIT {followed} 100", self.password) == [f":{followed}"]

    def is_complete(self) -> bool:
        """Whether each Sentinel knows the others and every replica: before that, none of them would fail over."""
        return all(self._knows_all(sentinel) for sentinel in self.sentinels)

    def master(self) -> Node | None:
        """The server that the first Sentinel that answers names; None if none does."""
        for sentinel in self.sentinels:
            port = self._told(sentinel).get("port")
            if port is not None:
                return next((node for node in self.servers if node.port == int(port)), None)
        return None

    def _knows_all(self, sentinel: Node) -> bool:
        told = self._told(sentinel)
        others, replicas = len(self.sentinels) - 1, len(self.servers) - 1
        return (told.get("num-other-sentinels"), told.get("num-slaves")) == (str(others), str(replicas))

    def _told(self, sentinel: Node) -> dict[str, str]:
        words = _ask(sentinel.port, f"SENTINEL MASTER {MASTER}", self.password)[2::2]
        return dict(zip(words[::2], words[1::2], strict=False))


def _ask(port: int, command: str, password: str = "") -> list[str]:
    """Return the lines of a server's answer as they stand on the wire; none, if there is no answer."""
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=1) as connection, connection.makefile("rb") as answer:
            if password:
                connection.sendall(f"AUTH {password}\r\n".encode())
                answer.readline()
            connection.sendall(f"{command}\r\n".encode())
            first = _line(answer)
            # An array: of each of its members the length, and the member.
            more = 2 * int(first[1:]) if first.startswith("*") else 0
            return [first, *(_line(answer) for _ in range(more))]
    except OSError:
        return []


def _line(answer: BinaryIO) -> str:
    return answer.readline().decode().removesuffix("\r\n")


def _server(program: str, folder: Path, port: int, master: int | None, password: str) -> Node:
    following = () if master is None else ("--replicaof", f"{_LOOPBACK} {master}")
    # Each of them may be master and replica: it wants the password, and gives it.
    login = ("--requirepass", password, "--masterauth", password) if password else ()
    argv = (
        *(program, "--bind", _LOOPBACK, "--port", str(port), "--dir", str(folder)),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"),
        *("--repl-diskless-sync-delay", "0", "--daemonize", "no", *following, *login),
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Node(name=folder.name, port=port, folder=folder, argv=argv)


def _watched(master: int, sentinels: int, down_after: float, password: str) -> list[str]:
    lines = [
        f"sentinel monitor {MASTER} {_LOOPBACK} {master} {sentinels // 2 + 1}",
        f"sentinel down-after-milliseconds {MASTER} {down_after * 1000:.0f}",
        f"sentinel failover-timeout {MASTER} 10000",
        f"sentinel parallel-syncs {MASTER} 1",
    ]
    login = [f"sentinel auth-pass {MASTER} {password}", f"requirepass {password}"] if password else []
    return lines + login


def _sentinel(program: str, folder: Path, port: int, watched: list[str]) -> Node:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # It writes what it learns into this file: it is no place for options.
    told = folder / "sentinel.conf"
    told.write_text("\n".join([f"port {port}", f"bind {_LOOPBACK}", f"dir {folder}", *watched, ""]))
    argv = (program, str(told), "--sentinel")
    return Node(name=folder.name, port=port, folder=folder, argv=argv)


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for _ in range(_TRIES):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        if port not in found and _is_free(port):
            found.append(port)
        if len(found) == count:
            break
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
    return True
