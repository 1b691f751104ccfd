"""The home: where the private servers keep their data, sockets and logs."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ..core.errors import ConfigurationError

# The kernel's limit for the path of a socket is 108 bytes on Linux and 104 on macOS; PostgreSQL
# adds its own file name.
_LONGEST_SOCKET_FOLDER: Final = 80

NOBODY: Final = 65534
"""Who runs PostgreSQL where root starts it: it refuses to run as root."""


def default_home() -> Path:
    """Return the directory used where ``AEGIS_HOME`` is not set.

    For root it is not below /root: PostgreSQL refuses to run as root, and the user it runs as
    instead could not reach its files there.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/aegis")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "aegis"


@dataclass(frozen=True)
class Home:
    """The places below one ``AEGIS_HOME``."""

    root: Path

    @property
    def postgres(self) -> Path:
        """PostgreSQL's data."""
        return self.root / "postgres"

    @property
    def valkey(self) -> Path:
        """The broker's append-only file."""
        return self.root / "valkey"

    @property
    def logs(self) -> Path:
        """The logs of everything that `aegis up` runs."""
        return self.root / "logs"

    @property
    def cluster(self) -> Path:
        """The cluster of `aegis cluster up`: its nodes, and what they were told."""
        return self.root / "cluster"

    @property
    def scratch(self) -> Path:
        """Where backups are restored to be verified, and nothing stays."""
        return self.root / "scratch"

    @property
    def pgbackrest(self) -> Path:
        """What pgBackRest needs here: its configuration, with what opens the repository, its locks and its log."""
        return self.root / "pgbackrest"

    @property
    def drills(self) -> Path:
        """The newest report of each drill."""
        return self.root / "drills"

    @property
    def lock(self) -> Path:
        """Held by the `aegis up` that runs here."""
        return self.root / "up.lock"

    @property
    def sockets(self) -> Path:
        """The folder of the sockets: below the home, or, where that path is too long, a private one of its own."""
        folder = self.root / "run"
        if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER:
            return folder
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"aegis-{os.getuid()}-{name}"

    @property
    def database_url(self) -> str:
        """The private PostgreSQL's address."""
        return f"postgresql+psycopg2://aegis@/postgres?host={quote(str(self.sockets))}"

    @property
    def broker_url(self) -> str:
        """The private broker's address."""
        return f"redis+socket://{quote(str(self.sockets / 'valkey.sock'))}"

    def make(self, *parts: Path, mode: int = 0o755) -> None:
        """Make folders below the home.

        Raises:
            ConfigurationError: the place cannot be written, or somebody else was there first.

        """
        for folder in (self.root, *parts):
            try:
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"AEGIS_HOME={self.root}", f"{folder} cannot be made ({error.strerror})", "name one you can write"
                ) from None
            if not folder.is_relative_to(self.root):
                self._refuse_what_is_not_ours(folder)

    def _refuse_what_is_not_ours(self, folder: Path) -> None:
        # Anybody can make a folder in the temporary one: who owns it could put servers of his own behind its sockets.
        found = folder.lstat()
        owners = {os.geteuid(), NOBODY} if os.geteuid() == 0 else {os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o077:
            raise ConfigurationError(
                f"AEGIS_HOME={self.root}",
                f"its path is too long for a socket, and {folder} is not a folder of this user's alone",
                "remove that, or name a shorter home",
            )
