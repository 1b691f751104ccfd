"""The seam between AEGIS and a program that keeps backups: what is asked of it, and nothing of how it does that.

An adapter takes base backups, archives the WAL, and makes a data directory out of both again. Proving, going
back, alarms and what one need not keep are the same for all of them. Why: docs/adr/0021.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from ...persistence.cluster import Facts

AGAIN: Final = "take another with `aegis backup`, and verify it; older ones may be intact"


@dataclass(frozen=True, kw_only=True)
class Base:
    """One base backup as the repository has it; ``parent`` is the one that an incremental one builds on."""

    id: str
    parent: str | None
    began_at: datetime
    ended_at: datetime
    size: int
    """The room that it takes, in bytes."""
    obsolete: bool
    """Whether the time is over that one wants to be able to go back for."""
    begins: str | None = None
    """The segment of the WAL with which recovery of it begins, if the program says."""
    status: str = "DONE"
    tablespaces: bool = False

    @property
    def done(self) -> bool:
        """Whether it was taken to its end."""
        return self.status == "DONE"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose backups a repository has: the number that a cluster was given when it was made, and its version."""

    system: str
    major: int


class Adapter(Protocol):
    """A program that keeps backups, on one repository, with PostgreSQL's programs of the version that it keeps.

    Each method raises ``BackupFailed`` where it cannot do what it says.
    """

    @property
    def programs(self) -> Path:
        """The folder of PostgreSQL's programs."""

    def identity(self) -> Identity | None:
        """Return whose backups it has; None if it has none."""

    def need(self, facts: Facts, where: str) -> None:
        """Refuse a server that it cannot back up, and a repository that is not there and has been."""

    def begin(self) -> None:
        """Have a repository that the server can archive to, before there is a backup."""

    def bases(self) -> list[Base]:
        """Return the base backups, the newest first."""

    def take(self, facts: Facts, parent: Base | None, /) -> str:
        """Take a base backup, of what changed since ``parent`` where one is given; return its id."""

    def remove(self, base: Base) -> None:
        """Remove a backup, and those that build on it."""

    def tidy(self) -> None:
        """Remove the WAL that no backup needs any more."""

    def file_all(self) -> None:
        """Have everything archived that is committed by now."""

    def archived(self, since: int, /) -> list[str]:
        """Return the segments that are archived whole, of any timeline, from a number on."""

    def make(self, base: Base, data: Path, wal: Path) -> int:
        """Make the data directory of a backup, and a folder with all WAL that was archived since.

        Return the number of the last whole segment: recovery has to come at least there.
        """


def number(segment: str) -> int:
    """Return a segment's place among all: 16 MB each, as every server has them that was not made otherwise."""
    return int(segment[8:16], 16) * 0x100 + int(segment[16:24], 16)


def last_number(segments: Iterable[str]) -> int:
    """Return the place of the last segment of the newest timeline: recovery leaves an older one where that began."""
    return max(((name[:8], number(name)) for name in segments), default=("", 0))[1]
