"""How the history is kept provable: chains, append-only tables, codes, anchors."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from ..config.keys import active_mac_key, trusted_keys
from ..config.settings import Settings
from ..core.anchor import Sink
from ..core.errors import AegisError, DatabaseUnavailable, NotANote, SinkUnavailable
from ..core.note import VerifierKey, open_note
from ..persistence import database as databases
from ..persistence import log as logs
from ..persistence import schema
from ..persistence.database import Database
from ..persistence.guards import Guards
from ..persistence.scrub import Scrub
from ..persistence.vitals import Vitals
from .check import Check, State, degraded, down, ok, span, warning
from .sinks import sinks

# After so many of their intervals without one, anchors are not being written, whatever the reason.
_MISSED_ANCHORS: Final = 3
_SLOW_START: Final = timedelta(seconds=10)
# As people read it, too: it is no 100 %.
_NEARLY_ALL: Final = 0.99


def chains(found: Vitals, settings: Settings) -> Check:
    """Judge the histories: the newest, which were just verified, and all, as the scrubber has come to know them."""
    scrub = found.scrub
    broken = list(dict.fromkeys([*found.broken, *scrub.found, *scrub.findings]))
    if broken:
        more = f"; and {len(broken) - 1} more" if len(broken) > 1 else ""
        return down("chains", f"{broken[0]}{more}", "history was changed: see `aegis verify --all`")
    part = f"{coverage(found, settings):.0%} verified in the last {_within(settings)}"
    says = f"the {found.sampled} newest are intact, {part}{_beside(scrub)}"
    if hindered := list(dict.fromkeys([*scrub.hindered, *scrub.problems])):
        more = f"; and {len(hindered) - 1} more" if len(hindered) > 1 else ""
        remedy = "mend that; it is told until beat has gone round without it, or see `aegis verify --all`"
        return warning("chains", f"{says}; not verified: {hindered[0]}{more}", remedy)
    since = scrub.started_at if scrub.took_from is None else scrub.took_from
    if coverage(found, settings) < 1 and found.now - since > timedelta(seconds=settings.scrub_within):
        return warning(
            "chains", says, "see that beat runs; what it cannot do in time, `aegis verify --all` does at once"
        )
    return ok("chains", says)


def _beside(scrub: Scrub) -> str:
    """Say what the last whole round was compared with: what fits together by itself may still be a rewrite."""
    if scrub.finished_at is None:
        return ""
    return f", {scrub.compared} of the log beside anchors" if scrub.compared else ", beside no anchors"


def coverage(found: Vitals, settings: Settings) -> float:
    """Return which part of all transitions was verified within the time that the settings name."""
    scrub, within = found.scrub, timedelta(seconds=settings.scrub_within)
    if scrub.took_from is not None and found.now - scrub.took_from <= within:
        return 1.0
    # How many there are is an estimate, and only a round that is over has seen all of them.
    return min(_NEARLY_ALL, scrub.verified / found.transitions) if found.transitions else 0.0


def _within(settings: Settings) -> str:
    hours = settings.scrub_within / 3600
    return f"{hours:g} h" if hours >= 1 else f"{settings.scrub_within / 60:g} min"


def append_only(guards: Guards, settings: Settings) -> Check:
    """Judge what keeps the history append-only in the database."""
    if guards.unguarded:
        tables = ", ".join(guards.unguarded)
        return degraded(
            "append-only",
            f"the triggers of {tables} are not in force",
            "find out who switched them off, or put others in their place; `aegis verify --all`",
        )
    if settings.embedded:
        return ok("append-only", "triggers in force")
    if guards.may_switch_off:
        remedy = "have AEGIS_DATABASE_URL name a user that is a member of aegis_app, and owns no tables"
        return warning("append-only", f"triggers in force, but {guards.role} could switch them off", remedy)
    if guards.may_change:
        return warning(
            "append-only", f"triggers in force, but {guards.role} has rights to change", "grant it aegis_app alone"
        )
    return ok("append-only", f"triggers in force; {guards.role} may only add")


def mac(found: Vitals, settings: Settings) -> Check:
    """Judge whether transitions are authenticated."""
    active = active_mac_key(settings)
    if active is None and settings.embedded:
        return ok("mac", "off")
    if active is None:
        remedy = "`aegis keys new mac`, on all hosts; without it, what is not anchored yet can be rewritten"
        return warning("mac", "OFF: no key authenticates transitions", remedy)
    if not found.sealed and found.now >= active.required_from:
        return degraded("mac", f"key {active.id}, but the newest transition has no code", "restart what has no key yet")
    return ok("mac", f"key {active.id}")


# --- anchors --------------------------------------------------------------------------------


def ask_anchors(settings: Settings) -> Iterator[Check]:
    """Look at what is anchored, at all places."""
    if not settings.anchor_places:
        yield warning("anchors", "OFF: AEGIS_ANCHORS is none", "name a place outside of the database")
        return
    trusted = trusted_keys(settings.trusted) if settings.trusted.exists() else []
    if not trusted:
        remedy = "`aegis keys new anchor` where beat runs, and AEGIS_TRUSTED_KEYS where not"
        yield warning("anchors", "OFF: there is no key", remedy)
        return
    database = Database(settings.database, pool_size=1, pre_ping=False)
    try:
        with database.snapshot(timedelta(seconds=settings.health_timeout)) as connection:
            if schema.current(connection) != schema.wanted():
                return
            state, now = logs.state(connection), databases.now(connection)
            oldest = logs.oldest_outside(connection, state)
        found = [_anchor(sink, trusted, state.size, now, settings) for sink in sinks(settings)]
        if oldest is not None and now - oldest > _anchors_within(settings):
            found.append(_held_back(now - oldest))
        yield max(found, key=lambda check: list(State).index(check.state))
    except DatabaseUnavailable as error:
        yield warning("anchors", "not compared with the database", error.reason)
    except AegisError as error:
        yield down("anchors", str(error), "see the message")
    finally:
        database.close()


def _anchors_within(settings: Settings) -> timedelta:
    return max(timedelta(seconds=settings.anchor_interval * _MISSED_ANCHORS), _SLOW_START)


def _held_back(age: timedelta) -> Check:
    says = f"transitions from {span(age)} ago on have no place in the log yet"
    remedy = "see that beat runs, and end what has a transaction open for so long: pg_stat_activity, pg_prepared_xacts"
    return degraded("anchors", says, remedy)


def _anchor(sink: Sink, trusted: list[VerifierKey], size: int, now: datetime, settings: Settings) -> Check:
    try:
        last = sink.last()
        head = None if last is None else open_note(last.note, trusted)
    except SinkUnavailable as error:
        return degraded("anchors", f"{sink.name}: {error.reason}", "mend that, or AEGIS_ANCHORS")
    except NotANote as error:
        return down(
            "anchors", f"{sink.name}: {error.problem}", "find out who wrote it; AEGIS_TRUSTED_KEYS says who may"
        )
    if head is None:
        return warning("anchors", f"none at {sink.name} yet", "see that beat runs, and has a key")
    age = now - head.at
    if head.size > size:
        return down(
            "anchors",
            f"{sink.name} has {head.size} transitions, the database {size}: committed transitions were lost",
            "an older copy was restored, or a fail-over lost them; `aegis reconcile` lists them",
        )
    says = f"{head.size} of {size} logged transitions, {span(age)} ago"
    if age > _anchors_within(settings):
        return degraded("anchors", f"the last at {sink.name}: {says}", "see that beat runs, and its log")
    return ok("anchors", says)
