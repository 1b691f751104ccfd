"""The figures of a deployment for Prometheus, in its text format: what health judges, as numbers.

https://prometheus.io/docs/instrumenting/exposition_formats/ has the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from ..config.settings import Settings
from ..persistence import log, schema, vitals
from ..persistence.database import Connection, Database
from .health import health
from .proof import coverage

_PATIENCE: Final = timedelta(seconds=5)


def metrics(settings: Settings) -> str:
    """Return all figures.

    Raises:
        DatabaseUnavailable: there are none without it.
        SchemaMismatch: `aegis db upgrade` has to be run.

    """
    registry = CollectorRegistry()
    database = Database(settings.database, pool_size=1, pre_ping=False)
    try:
        schema.check(database)
        with database.snapshot(_PATIENCE) as connection:
            for name, help_, value in _figures(connection, settings):
                Gauge(f"aegis_{name}", help_, registry=registry).set(value)
    finally:
        database.close()
    states = Gauge("aegis_check", "1 for the state that a part of health is in", ["part", "state"], registry=registry)
    for check in health(settings):
        states.labels(part=check.name.replace(" ", "_"), state=check.state).set(1)
    return generate_latest(registry).decode()


def _figures(connection: Connection, settings: Settings) -> Iterator[tuple[str, str, float]]:
    found = vitals.read(connection, settings.queue, settings.recovery)
    state = log.state(connection)
    yield "workers", "workers that have given a sign of life", len(found.workers)
    yield "handlers_running", "handlers that run now", found.running
    yield "workflows_ready", f"workflows that could run now, counted up to {vitals.MOST_COUNTED}", found.ready
    yield "workflows_troubled", "workflows that failed, or are quarantined", found.troubled
    yield "overdue_seconds", "how long the oldest due workflow has been due", found.overdue.total_seconds()
    yield "unsaved_seconds", "the longest that a handler has run without a checkpoint", found.unsaved.total_seconds()
    if found.swept_at is not None:
        yield "sweep_age_seconds", "time since the last recovery sweep", (found.now - found.swept_at).total_seconds()
    yield (
        "transitions",
        "transitions recorded, about: as many as have a place in the log, at the least",
        found.transitions,
    )
    yield "log_entries", "transitions that have a place in the log", state.size
    if (anchored := log.last_anchored(connection)) is not None:
        yield "anchored_entries", "entries of the log that the newest anchor is about", anchored.size
        yield "anchor_age_seconds", "time since the newest anchor", (found.now - anchored.at).total_seconds()
    yield "scrub_coverage_ratio", "part of all transitions verified in time", coverage(found, settings)
    findings = len(found.broken) + len(found.scrub.found) + len(found.scrub.findings)
    yield "scrub_findings", "what verification found wrong; 0 is intact", findings
    problems = len(dict.fromkeys([*found.scrub.hindered, *found.scrub.problems]))
    yield "scrub_problems", "what verification could not look at; 0 is nothing", problems
    yield "scrub_anchored_entries", "entries of the log that the last round compared with anchors", found.scrub.compared
