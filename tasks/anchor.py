"""Anchoring: give committed transitions their places in the log, and tell the outside how it stands.

A statement is signed only after the log was seen to extend the last one that is kept outside. Any
number of processes may run this: one at a time has the log, the others go on to something else.
Whatever dies half-way is found by the next: what counts is what stands in the places outside.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ..config.keys import signing_key, trusted_keys
from ..config.logging import get_logger
from ..config.settings import Settings
from ..core import anchor as decide
from ..core.anchor import Anchor, Due, Entry, Sink
from ..core.errors import AegisError, DatabaseUnavailable, LogBroken, NotANote, SinkUnavailable
from ..core.merkle import Frontier, leaf_hash
from ..core.note import LogHead, SigningKey, VerifierKey, open_note
from ..persistence import database as databases
from ..persistence import log as logs
from ..persistence import schema
from ..persistence.database import Connection, Database
from .timestamp import Stamp, judge_by, stamp

log = get_logger(__name__)

# How many transitions get their places at once, and how many there are to one line.
_BATCH: Final = 5000


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How often there is an anchor: after ``interval``, or after ``every`` transitions, whichever comes first."""

    interval: timedelta
    every: int


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """What one run did: transitions that got their places, anchors that were written, places that are behind."""

    logged: int = 0
    written: int = 0
    behind: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Notary:
    """Who signs: the key, those whose earlier anchors are taken for ours, and who says what time it is."""

    key: SigningKey
    trusted: Sequence[VerifierKey]
    stamp: Stamp | None = None


def notary(settings: Settings) -> Notary | None:
    """Return who signs here; None if there is no key to sign with.

    Raises:
        ConfigurationError: a key cannot be used.

    """
    key = signing_key(settings.key_folder)
    if key is None:
        return None
    trusted = tuple(trusted_keys(settings.trusted)) if settings.trusted.exists() else ()
    return Notary(key=key, trusted=trusted, stamp=stamp(settings.timestamp_url, judge_by(settings.timestamp_roots)))


def anchor(
    database: Database, sinks: Sequence[Sink], notary: Notary | None, policy: Policy, *, now: bool = False
) -> Anchored:
    """Take up what has committed, and anchor it wherever that is due; ``now`` anchors in any case.

    Without a notary the log grows, and nothing is signed.

    Raises:
        DatabaseUnavailable: what was not done yet is done by the next run.

    """
    logged, written = 0, 0
    behind: list[str] = []
    alarms: list[str] = []
    if notary is not None and _is_short(database, sinks, notary, alarms):
        return Anchored(alarms=tuple(alarms))
    with _told("the log", behind, alarms):
        taken = _take_up(database, None if notary is None else _known[database].server)
        if taken is None:
            return Anchored()
        logged = taken
    if notary is not None:
        for sink in sinks:
            with _told(sink.name, behind, alarms):
                for _ in _bring_up(database, sink, notary, policy, now=now):
                    written += 1
    if logged or written:
        log.info("anchored", transitions=logged, anchors=written)
    return Anchored(logged=logged, written=written, behind=tuple(behind), alarms=tuple(alarms))


@contextmanager
def _told(place: str, behind: list[str], alarms: list[str]) -> Iterator[None]:
    """Tell of what one place is in the way of; the others are no worse for it."""
    try:
        yield
    except DatabaseUnavailable:
        raise
    except SinkUnavailable as error:
        log.warning("not anchored", place=place, reason=error.reason)
        behind.append(place)
    except AegisError as error:
        log.critical("not anchored", place=place, alarm=str(error))
        alarms.append(str(error))


@dataclass(frozen=True)
class _Known:
    """The log as it was when it was last held against what is outside: how long, and on which server."""

    size: int
    server: str


_known: weakref.WeakKeyDictionary[Database, _Known] = weakref.WeakKeyDictionary()


def _is_short(database: Database, sinks: Sequence[Sink], notary: Notary, alarms: list[str]) -> bool:
    """Whether the log is shorter than what is anchored of it: the database is another one, or an older copy.

    Then nothing is added to it: what is new would get places that others have in the anchors. Looked
    at when this process begins, whenever the log is shorter than it was, and when the server is another
    one: somebody else may have anchored what this one never had.
    """
    with database.snapshot() as connection:
        found = _Known(logs.state(connection).size, logs.server(connection))
        size, log_name = found.size, decide.log_name(schema.deployment_name(connection))
    known = _known.get(database)
    if known is None or known.server != found.server or size < known.size:
        for sink in sinks:
            with suppress(SinkUnavailable, NotANote):  # what is wrong with a place is told when it is written to
                last = _last(sink, notary, log_name)
                if last is not None and last.size > size:
                    with _told(sink.name, [], alarms):
                        raise _lost(last, size)
                    return True
    _known[database] = found
    return False


def _take_up(database: Database, server: str | None) -> int | None:
    """Give places in the log, batch by batch; None if another process does it, or the server is another one now."""
    logged = 0
    while True:
        with database.transaction() as session:
            connection = session.connection()
            if not logs.lock(connection) or (server is not None and logs.server(connection) != server):
                return logged or None
            batch = logs.take_up(connection, _BATCH)
        logged += batch
        if batch < _BATCH:
            return logged


def _bring_up(database: Database, sink: Sink, notary: Notary, policy: Policy, *, now: bool) -> Iterator[LogHead]:
    """Write to one place what it does not have yet; yield each anchor that was written, once that is committed."""
    written: LogHead | None = None
    while True:
        # One transaction each, with the log locked: two processes must not write to one place at once.
        with database.transaction() as session:
            connection = session.connection()
            if not logs.lock(connection):
                return
            log_name = decide.log_name(schema.deployment_name(connection))
            last = _last(sink, notary, log_name)
            size, moment = logs.state(connection).size, databases.now(connection)
            due = decide.due(size, last, now=moment, interval=policy.interval, every=policy.every)
            if due is Due.AHEAD and last is not None:
                raise _lost(last, size)
            # What was begun is brought to its end, in as many lines as that takes.
            if due is Due.NOTHING and not now and written is None:
                return
            written = _write(connection, sink, notary, last, _Next(name=log_name, size=size, at=moment))
        yield written
        if written.size >= size:
            return


@dataclass(frozen=True, kw_only=True)
class _Next:
    """What is to be said next, of a log of that name and size."""

    name: str
    size: int
    at: datetime


def _write(connection: Connection, sink: Sink, notary: Notary, last: LogHead | None, now: _Next) -> LogHead:
    """Write the next anchor to a place, and return what it says.

    Raises:
        LogBroken: it cannot be said, because the log does not extend what was said before.

    """
    first = 0 if last is None else last.size
    entries = tuple(logs.entries(connection, first, min(now.size, first + _BATCH)))
    root = _next_root(logs.Tree(connection), last, entries)
    # Not before the last one, however the clocks of two servers differ.
    at = now.at if last is None else max(now.at, last.at)
    head = LogHead(origin=now.name, size=first + len(entries), root=root, at=at)
    note = notary.key.sign(head.text())
    stamped = None if notary.stamp is None else notary.stamp(note)
    sink.add(Anchor(first=first, note=note, entries=entries, timestamp=stamped), head)
    # Last: if we die before, the next run finds it where it counts.
    logs.keep_anchor(connection, head, note)
    return head


def _next_root(tree: logs.Tree, last: LogHead | None, entries: Sequence[Entry]) -> bytes:
    """Return the root over the log up to these entries, which follow what the last anchor says.

    Raises:
        LogBroken: what was anchored is another log, or these entries are not what the tree was made of.

    """
    frontier = Frontier() if last is None else Frontier.of(last.size, tree.mth)
    if last is not None and frontier.root != last.root:
        problem = f"it no longer is what was anchored on {last.at:%Y-%m-%d %H:%M:%S} UTC"
        raise LogBroken(last.size, problem)
    # As whoever reads the anchors will do it: on top of what was said before, with these entries.
    frontier.extend(leaf_hash(entry.hash) for entry in entries)
    if frontier.root != tree.root(frontier.size):
        problem = "the entries that follow are not those that its tree was made of"
        raise LogBroken(frontier.size - len(entries), problem)
    return frontier.root


def _lost(last: LogHead, size: int) -> LogBroken:
    problem = f"the anchor of {last.at:%Y-%m-%d %H:%M:%S} UTC has {last.size} transitions, the log {size}"
    return LogBroken(size, f"committed transitions were lost: {problem}")


def _last(sink: Sink, notary: Notary, name: str) -> LogHead | None:
    """Return what the last anchor of a place says.

    Raises:
        NotANote: nobody trusted signed it, it is another log's, or its entries are not those it was signed with.

    """
    found = sink.last()
    if found is None:
        return None
    head = open_note(found.note, [*notary.trusted, notary.key.verifier])
    if head.origin != name:
        raise NotANote("the last anchor", f"it is of the log {head.origin!r}, and this one is {name!r}")
    if head.size != found.end:
        raise NotANote("the last anchor", f"its entries end at {found.end}, and what is signed says {head.size}")
    return head
