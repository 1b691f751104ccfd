"""Health: what works, what does not, and what to do about it; it waits for nobody for long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Final

from ..config.settings import Settings, safe_url
from ..core.errors import AegisError, DatabaseUnavailable
from ..persistence import replication as replicated
from ..persistence import schema, vitals
from ..persistence.database import Database, is_too_slow
from ..persistence.hosts import each_alone
from ..persistence.vitals import Vitals
from .backups import archive, ask_backups
from .broker_check import ask_broker
from .check import Check, State, degraded, down, ok, span, warning
from .drilled import drills
from .proof import append_only, ask_anchors, chains, mac
from .question import Question
from .replicas import Nodes, replication

# A sweep that has not run for so many of its intervals is not running, whatever the reason.
_MISSED_SWEEPS: Final = 10
_SLOW_START: Final = timedelta(seconds=10)


def health(settings: Settings) -> list[Check]:
    """Look at everything once and at the same time; what does not answer has ``health_timeout``."""
    within = settings.health_timeout
    broker = _question("broker", lambda: ask_broker(settings, within))
    anchors = _question("anchors", lambda: ask_anchors(settings))
    backups = _question("backup", lambda: ask_backups(settings))
    nodes = Nodes(settings.database)
    database = _question("database", lambda: _ask_database(settings))
    deadline = time.monotonic() + within
    checks, whole = database.answer(deadline)
    if not checks:
        checks.append(down("database", _silent(settings), "see that PostgreSQL is up and can be reached"))
    elif not whole:
        checks.append(_late(settings))
    checks += nodes.answer(deadline)
    answered, _ = broker.answer(deadline)
    checks += answered
    # Its Sentinels may have answered, and it has not.
    if all(check.name != "broker" for check in answered):
        remedy = "see that the broker is up; nothing is lost meanwhile"
        checks.append(degraded("broker", _silent(settings), remedy))
    found, whole = anchors.answer(deadline)
    checks += found
    if not whole:
        remedy = "see that the place that AEGIS_ANCHORS names can be reached"
        checks.append(warning("anchors", _silent(settings), remedy))
    found, whole = backups.answer(deadline)
    checks += found
    if not whole:
        remedy = "see that the place that AEGIS_BACKUP_REPOSITORY names can be reached"
        checks.append(degraded("backup", _silent(settings), remedy))
    checks.append(drills(settings))
    return checks


def worst(checks: list[Check]) -> State:
    """Return how the whole is."""
    order = list(State)
    return max((check.state for check in checks), key=order.index)


def _question(name: str, ask: Callable[[], Iterable[Check]]) -> Question[Check]:
    def failed(error: Exception) -> list[Check]:
        problem = f"it could not be looked at: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return [down(name, problem, "verify the histories with `aegis verify`, and report this")]

    return Question(ask, failed)


def _ask_database(settings: Settings) -> Iterator[Check]:
    database = Database(settings.database, pool_size=1, pre_ping=False)
    part = "database"
    try:
        # One moment throughout: what moves while it is looked at would seem to contradict itself.
        with database.snapshot(timedelta(seconds=settings.health_timeout)) as connection:
            found = schema.current(connection)
            yield ok("database", "answers")
            part = "figures"
            if found != schema.wanted():
                has = f"at {found}" if found else "missing"
                yield down("schema", f"{has}, this AEGIS needs {schema.wanted()}", "run `aegis db upgrade`")
                return
            yield ok("schema", f"at {schema.wanted()}")
            yield from _judge(vitals.read(connection, settings.queue, settings.recovery), settings)
            part = "archive"
            found_archive = archive(connection, settings)
            if found_archive is not None:
                yield found_archive
            part = "replication"
            yield from replication(replicated.read(connection), nodes=len(list(each_alone(settings.database))))
    except DatabaseUnavailable as error:
        if is_too_slow(error):
            yield _late(settings)
            return
        yield down(part, error.reason, f"start it with `aegis up`, or mend AEGIS_DATABASE_URL ({error.url})")
    except AegisError as error:
        yield down(part, str(error), "see the message")
    finally:
        database.close()


def _silent(settings: Settings) -> str:
    return f"no answer within {settings.health_timeout:g} s"


def _late(settings: Settings) -> Check:
    remedy = "the database is busy: see pg_stat_activity there, and look again"
    return degraded("figures", f"not read within {settings.health_timeout:g} s", remedy)


def _judge(found: Vitals, settings: Settings) -> list[Check]:
    return [
        _workers(found, settings),
        _beat(found, settings),
        _backlog(found),
        _due(found, settings),
        _rpo(found, settings),
        _troubled(found),
        chains(found, settings),
        append_only(found.guards, settings),
        mac(found, settings),
    ]


def _workers(found: Vitals, settings: Settings) -> Check:
    living = [
        worker
        for worker in found.workers
        if found.now - worker.seen_at <= timedelta(seconds=settings.heartbeat_timeout)
    ]
    if not living:
        return degraded("workers", "none alive", "start one with `aegis worker`; everything waits until then")
    silent = len(found.workers) - len(living)
    says = f"{len(living)} alive, {found.running} handlers running"
    if silent:
        return degraded("workers", f"{says}, {silent} silent", "beat's sweep takes over what they held; see their logs")
    here, theirs = safe_url(settings.broker), {worker.broker for worker in living}
    # A worker of an older version does not say where it listens.
    if None not in theirs and here not in theirs:
        elsewhere = ", ".join(sorted(map(str, theirs)))
        remedy = f"start one there, or have AEGIS_BROKER_URL name theirs, in the same spelling: {elsewhere}"
        return warning("workers", f"{says}, none of which listens at {here}", remedy)
    return ok("workers", says)


def _beat(found: Vitals, settings: Settings) -> Check:
    if found.swept_at is None:
        return degraded("beat", "the sweep has never run", "start it with `aegis beat`")
    ago = found.now - found.swept_at
    limit = max(timedelta(seconds=settings.sweep_interval * _MISSED_SWEEPS), timedelta(seconds=5))
    if ago > limit:
        return degraded(
            "beat",
            f"last sweep {span(ago)} ago",
            "start it with `aegis beat`; until then nothing that was lost is rung again",
        )
    return ok("beat", f"last sweep {span(ago)} ago")


def _backlog(found: Vitals) -> Check:
    says = f"{found.ready}{' or more' if found.ready == vitals.MOST_COUNTED else ''} ready to run"
    if found.strangers:
        types = ", ".join(f"{count} of {kind}" for kind, count in sorted(found.strangers.items()))
        return degraded(
            "backlog",
            f"{says}; no worker knows the type of {types}",
            "name its module in AEGIS_WORKFLOWS, and restart the workers",
        )
    if found.unheard:
        queues = ", ".join(f"{count} on {queue!r}" for queue, count in sorted(found.unheard.items()))
        return degraded(
            "backlog", f"{says}; no worker listens to the queue of {queues}", "start one with `aegis worker -Q QUEUE`"
        )
    return ok("backlog", says)


def _due(found: Vitals, settings: Settings) -> Check:
    if found.overdue > timedelta(seconds=settings.ring_grace) + _SLOW_START:
        return degraded("due", f"the oldest is {span(found.overdue)} overdue", "see that beat and enough workers run")
    return ok("due", f"the oldest is {span(found.overdue)} overdue" if found.overdue else "nothing overdue")


def _rpo(found: Vitals, settings: Settings) -> Check:
    says = f"transitions 0 s, running handlers {span(found.unsaved)}"
    if found.unsaved > timedelta(seconds=settings.checkpoint_interval) + _SLOW_START:
        return degraded("RPO now", says, "call ctx.progress() in handlers that run for long")
    return ok("RPO now", says)


def _troubled(found: Vitals) -> Check:
    if found.misfits:
        left = f"{found.misfits} left alone, as the code does not fit them"
        stopped = f"{found.troubled} failed or quarantined, " if found.troubled else ""
        return degraded("failures", stopped + left, "see `aegis check`, and `aegis show ID` of those that it names")
    if found.troubled:
        return degraded(
            "failures",
            f"{found.troubled} failed or quarantined",
            "see `aegis list --status failed` and `--status quarantined`; `aegis retry ID` once mended",
        )
    return ok("failures", "none")
