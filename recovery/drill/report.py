"""The report of a drill: what was declared, what was measured, on which machine; as records and as JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from ...config.settings import Settings
from ...core.errors import AegisError
from ...core.objective import Objective
from ...servers.postgres import server_programs
from ...servers.valkey import Valkey
from ..cluster import programs

FORMAT: Final = "aegis-drill/1"
PASS: Final = "PASS"  # noqa: S105 - a verdict
FAIL: Final = "FAIL"
_PACKAGES: Final = ("aegis-workflows", "celery", "kombu", "sqlalchemy", "psycopg2-binary", "pydantic")
# What a cluster and an archive are made of: not there where no scenario can need it.
_EXTRAS: Final = ("patroni", "barman")
_TELLING: Final = (
    *("heartbeat_interval", "heartbeat_timeout", "sweep_interval", "ring_grace", "checkpoint_interval"),
    *("anchor_interval", "anchor_every"),
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was declared, and what was found."""

    name: str
    declared: str
    measured: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command of the runbook, as it was typed, and how it ended; None: it runs on.

    ``said`` is what it printed, where that was not as the page says.
    """

    command: str
    stage: str
    status: int | None
    seconds: float
    passed: bool
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What happened in each span of ``width`` seconds, from ``start`` on; the fault is at 0."""

    start: float
    width: float
    acknowledged: Sequence[int]
    refused: Sequence[int]
    transitions: Sequence[int]
    healed: float | None
    first: float | None
    last: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One repetition; times in seconds."""

    number: int
    told: str
    met: int
    acknowledged: int
    refused: int
    ambiguous: int
    """Requests that were answered with an error, and had been carried out."""
    lost: int
    doubled: int
    transitions: int
    repeated: int | None
    """Handlers that had their effect more than once: what at-least-once cost; None: they left no trace here."""
    rpo: float | None
    first: float | None
    rto: float | None
    gap: float
    """The longest that the client had no acknowledgement."""
    checks: Sequence[Check]
    commands: Sequence[Ran]
    timeline: Timeline

    @property
    def passed(self) -> bool:
        """Whether everything was as it is declared."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a scenario came to, in all its repetitions."""

    scenario: str
    system: str
    """What was drilled."""
    title: str
    injects: str
    objective: Objective
    seed: int
    load: float
    started_at: datetime
    finished_at: datetime
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, float]
    outcomes: Sequence[Outcome]

    @property
    def passed(self) -> bool:
        """Whether every repetition did."""
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def rpo(self) -> float | None:
        """The most that was lost."""
        return _most([outcome.rpo for outcome in self.outcomes])

    @property
    def rto(self) -> float | None:
        """The longest that it took."""
        return _most([outcome.rto for outcome in self.outcomes])

    def document(self) -> dict[str, Any]:
        """Return what JSON says of it."""
        body = asdict(self)
        for name in ("started_at", "finished_at"):
            body[name] = body[name].isoformat(timespec="seconds")
        for outcome, record in zip(self.outcomes, body["outcomes"], strict=True):
            record["verdict"] = PASS if outcome.passed else FAIL
        return {
            "format": FORMAT,
            "verdict": PASS if self.passed else FAIL,
            "measured": {"rpo": self.rpo, "rto": self.rto, "lost": sum(each.lost for each in self.outcomes)},
            **body,
        }


def _most(values: Sequence[float | None]) -> float | None:
    """Return the largest; None, which is for ever, is larger than any."""
    numbers = [value for value in values if value is not None]
    return max(numbers) if numbers and len(numbers) == len(values) else None


def machine() -> dict[str, str]:
    """Return what the times depend on; nothing that tells whose machine it is."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _processor() -> str:
    """Return the processor's name, where the system has a file that says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def packages() -> dict[str, str]:
    """Return the versions of Python and of what is installed in it."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_EXTRAS):
        try:
            found[package] = version(package)
        except ImportError:
            if package in _PACKAGES:
                found[package] = "unknown"
    return found


def servers(settings: Settings) -> dict[str, str]:
    """Return the versions of the servers that a sandbox has."""
    found = {}
    with suppress(AegisError):
        found["etcd"] = _said([str(programs.etcd(settings)), "--version"])
    found["postgresql"] = _said([str(server_programs(settings) / "postgres"), "--version"])
    found["valkey"] = _said([str(Valkey.prepare(settings).program), "--version"])
    return found


def _said(argv: list[str]) -> str:
    """Return the number in what a program says of itself."""
    try:
        text = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/").stdout
    except (OSError, AegisError):
        return "unknown"
    words = [word.removeprefix("v=") for word in text.split()]
    return next((word for word in words if word[:1].isdigit()), text.strip()[:40])


def telling(settings: Settings) -> dict[str, float]:
    """Return the settings that the times depend on."""
    return {f"AEGIS_{name.upper()}": float(getattr(settings, name)) for name in _TELLING}


def now() -> datetime:
    """Return the host's time."""
    return datetime.now(UTC)
