"""The scrubber: verify everything in turn, a little at a time, so that nothing stays unlooked at for long."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from ..config.keys import mac_keys, trusted_keys
from ..config.logging import get_logger
from ..config.settings import Settings
from ..core.finding import Code, Report
from ..persistence import scrub as scrubs
from ..persistence.auditor import Auditor, Sources
from ..persistence.database import Database
from .sinks import sinks
from .timestamp import judge_by

log = get_logger(__name__)

# In one go at the least: with few transitions a round is over at once, and begins anew the next time.
_LEAST: Final = 5000
# A round takes a half of the time that there is, so that one that is hindered is still in time.
_HURRY: Final = 2
_TIMES: Final = 288
_LONGEST_PAUSE: Final = 300.0


def pause(settings: Settings) -> float:
    """Return how long to wait between two goes (seconds)."""
    return min(settings.scrub_within / _TIMES, _LONGEST_PAUSE)


def sources(settings: Settings) -> Sources:
    """Return what is known outside of the database, as far as the settings name it.

    Raises:
        ConfigurationError: a key or a place cannot be used.

    """
    return Sources(
        mac_keys=mac_keys(settings.key_folder),
        sinks=sinks(settings),
        trusted=tuple(trusted_keys(settings.trusted)) if settings.trusted.exists() else (),
        anchor_interval=timedelta(seconds=settings.anchor_interval),
        judge=judge_by(settings.timestamp_roots),
    )


def scrub(settings: Settings, database: Database) -> int:
    """Verify the next few histories, and the log at the end of a round; return how many transitions.

    Raises:
        DatabaseUnavailable: the next go does it.
        ConfigurationError: a key or a place cannot be used.

    """
    with database.statement() as connection:
        before = scrubs.state(connection)
        total = scrubs.transitions(connection)
    most = max(_LEAST, round(total * _HURRY * pause(settings) / settings.scrub_within))
    auditor = Auditor(database, sources(settings))
    place, report = auditor.some(before.place, most)
    seen = _seen([report] if place else [report, auditor.log()])
    with database.statement() as connection:
        if place:
            scrubs.move_on(connection, before, place, seen)
        elif scrubs.finish(connection, before, seen):
            log.info(
                "all histories verified",
                transitions=before.verified + seen.verified,
                findings=len(seen.found),
                compared_with_anchors=seen.compared,
            )
    return seen.verified


def _seen(reports: list[Report]) -> scrubs.Seen:
    """Say what was found wrong, and what could not be looked at."""
    wrong = [str(finding) for report in reports for finding in report.failures if finding.code is not Code.ANCHOR_STALE]
    problems = [problem for report in reports for problem in report.problems]
    # It is no edit, and yet nothing outside vouches for these.
    if stale := sum(report.counts.get(Code.ANCHOR_STALE, 0) for report in reports):
        problems.append(f"{stale:,} transitions that should long be anchored are in no anchor")
    for line in wrong:
        log.critical("history was changed", finding=line)
    for problem in dict.fromkeys(problems):
        log.warning("not verified in full", problem=problem)
    return scrubs.Seen(
        verified=sum(report.transitions for report in reports),
        found=wrong,
        problems=problems,
        compared=max((witness.entries for report in reports for witness in report.witnesses), default=0),
    )
