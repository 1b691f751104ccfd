"""What was declared, beside what was last measured: the newest report of each drill, as it is kept below the home."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from ..config.settings import Settings
from ..core.objective import Objective
from .check import Check, ok, span, warning

NAME: Final = "drills"
_DRILL: Final = "`aegis drill quick` measures four of them on a sandbox of its own, in about two minutes"
_LARGEST: Final = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a drill came to, in seconds; None: it never came to that."""

    scenario: str
    objective: str
    at: datetime
    passed: bool
    rpo: float | None
    rto: float | None

    def misses(self, declared: Objective) -> str:
        """Return in words what is declared and was not reached; nothing if all was."""
        if self.rpo is None or self.rpo > declared.rpo:
            return f"{self.scenario} lost {_seconds(self.rpo)} of {declared.rpo:g} s"
        if self.rto is None or self.rto > declared.rto:
            return f"{self.scenario} took {_seconds(self.rto)} of {declared.rto:g} s"
        return "" if self.passed else f"{self.scenario} failed"


def measured(folder: Path) -> tuple[list[Measured], list[str]]:
    """Return what was measured, by scenario, and the names of the files that are no report."""
    found, unreadable = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_read(json.loads(path.read_bytes()[:_LARGEST])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            unreadable.append(path.name)
    return found, unreadable


def _read(body: dict[str, object]) -> Measured:
    figures = body["measured"]
    objective = body["objective"]
    at = datetime.fromisoformat(str(body["finished_at"]))
    if not isinstance(figures, dict) or not isinstance(objective, dict) or at.tzinfo is None:
        raise TypeError
    return Measured(
        scenario=str(body["scenario"]),
        objective=str(objective["name"]),
        at=at,
        passed=body["verdict"] == "PASS",
        rpo=_number(figures["rpo"]),
        rto=_number(figures["rto"]),
    )


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def drills(settings: Settings) -> Check:
    """Judge what was measured: whether it is what is declared, and whether it is old."""
    found, unreadable = measured(settings.places.drills)
    if unreadable:
        return warning(NAME, f"{', '.join(unreadable)} in {settings.places.drills} cannot be read", "drill it again")
    if not found:
        # Whoever tries AEGIS out has declared nothing to anybody yet.
        says = f"no objective was measured yet: {_DRILL}"
        return ok(NAME, says) if settings.embedded else warning(NAME, "no objective was ever measured", _DRILL)
    now = datetime.now(UTC)
    problems = list(_problems(found, settings, now))
    if problems:
        return warning(NAME, "; ".join(problems), "`aegis drill --list` shows all; drill again what is mended")
    return ok(NAME, "; ".join(_lines(found, settings, now)))


def _problems(found: list[Measured], settings: Settings, now: datetime) -> Iterator[str]:
    declared = {objective.name: objective for objective in settings.declared}
    for each in found:
        if each.objective in declared and (missed := each.misses(declared[each.objective])):
            yield missed
        elif now - each.at > timedelta(seconds=settings.drill_within):
            yield f"{each.scenario} was drilled {_days(now - each.at)} ago"


def _lines(found: list[Measured], settings: Settings, now: datetime) -> Iterator[str]:
    """Name the slowest of each objective; and those that were never measured."""
    never = []
    for objective in settings.declared:
        of_it = [each for each in found if each.objective == objective.name]
        if not of_it:
            never.append(objective.name)
            continue
        slowest = max(of_it, key=lambda each: each.rto or 0)
        yield f"{objective.name} {_seconds(slowest.rto)} of {objective.rto:g} s"
    yield f"the oldest {_days(now - min(each.at for each in found))} ago"
    if never:
        yield f"never: {', '.join(never)}"


def _seconds(value: float | None) -> str:
    return "no end" if value is None else f"{value:.1f} s"


def _days(length: timedelta) -> str:
    return f"{length.days} d" if length.days > 1 else span(max(length, timedelta(0)))
