"""A note of our own of where backups were begun: an empty mount point must not be taken for a new repository."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import BackupFailed


@dataclass(frozen=True)
class Begun:
    """The note in ``file``, about the repository at ``place``."""

    file: Path
    place: str

    def refuse_empty(self, system: str, where: str) -> None:
        """Refuse a repository that is empty, though that system's backups were begun in it.

        Raises:
            BackupFailed: its disk is away.

        """
        if self._system != system:
            return
        problem = f"it is empty, and {where} has been backed up to it"
        remedy = f"see that its disk is there; to begin anew, remove {self.file}"
        raise BackupFailed(self.place, problem, remedy)

    def note(self, system: str) -> None:
        """Note that a system's backups are begun here.

        Raises:
            BackupFailed: it cannot be written.

        """
        if self._system == system:
            return
        try:
            self.file.write_text(json.dumps({"place": self.place, "system": system}) + "\n")
        except OSError as error:
            problem = f"{self.file} cannot be written ({error.strerror})"
            raise BackupFailed(str(self.file.parent), problem, "see that it has room, and is ours") from None

    @property
    def _system(self) -> str | None:
        try:
            noted = json.loads(self.file.read_text())
            return str(noted["system"]) if noted["place"] == self.place else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
