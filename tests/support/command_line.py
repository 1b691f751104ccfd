"""The command ``aegis`` as a process of its own, in an environment without anybody else's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BESIDE = Path(sys.executable).with_name("aegis")
PROGRAM: tuple[str, ...] = (
    (str(_BESIDE),) if _BESIDE.exists() else (sys.executable, "-c", "from aegis.cli.main import main; main()")
)
_TIMEOUT = 90.0


@dataclass(frozen=True, kw_only=True)
class Said:
    """How a command ended, and what it said."""

    status: int
    stdout: str
    stderr: str

    def document(self) -> Any:
        """What ``--json`` printed: exactly one document, and nothing else anywhere."""
        assert not self.stderr, self.stderr
        return json.loads(self.stdout)

    def complaint(self) -> str:
        """The one line in which a command says why it could not do what it was asked."""
        assert self.status == 2, self
        assert not self.stdout, self
        assert self.stderr.startswith("aegis: "), self
        assert self.stderr.count("\n") == 1, self
        assert self.stderr.endswith("\n"), self
        assert "Traceback" not in self.stderr, self
        return self.stderr.removeprefix("aegis: ").strip()

    def complaint_as_json(self) -> dict[str, str]:
        """The same with ``--json``: one object with ``error`` and ``type``."""
        assert self.status == 2, self
        assert not self.stdout, self
        found: dict[str, str] = json.loads(self.stderr)
        assert set(found) == {"error", "type"}, self
        assert "Traceback" not in self.stderr, self
        return found


@dataclass(frozen=True)
class CommandLine:
    """Runs ``aegis`` in a folder, with these variables beside those that are not AEGIS's."""

    variables: Mapping[str, str]
    folder: Path

    def __call__(self, *arguments: str, stdin: str | None = None, **variables: str) -> Said:
        """Run a command to its end."""
        process = self.begin(*arguments, stdin=stdin, **variables)
        return self.end(process, stdin)

    def both(self, *arguments: str, stdin: str | None = None, **variables: str) -> tuple[Said, Said]:
        """Run a command for people, and with ``--json``, side by side."""
        plain = self.begin(*arguments, stdin=stdin, **variables)
        as_json = self.begin(*arguments, "--json", stdin=stdin, **variables)
        return self.end(plain, stdin), self.end(as_json, stdin)

    def begin(self, *arguments: str, stdin: str | None = None, **variables: str) -> subprocess.Popen[str]:
        """Start a command; whoever does must see it to its end."""
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment(**variables),
        )

    @staticmethod
    def end(process: subprocess.Popen[str], stdin: str | None = None) -> Said:
        """Wait for a command; it is ended if it takes for ever."""
        try:
            stdout, stderr = process.communicate(stdin, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return Said(status=process.returncode, stdout=stdout, stderr=stderr)

    def environment(self, **variables: str) -> dict[str, str]:
        """What the command is told."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}
        return {**others, **self.variables, **variables}
