"""Retention: what is old enough is pruned and purged, a bounded part of it each time, where that is set."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from ..config.keys import active_mac_key
from ..config.logging import get_logger
from ..config.settings import Settings
from ..persistence import removal
from ..persistence.database import Database, Session, in_one_transaction
from ..persistence.operations import Terms
from ..persistence.walk import BEGINNING, Piece, Place, walk

RETAIN: Final = "aegis.retain"

log = get_logger(__name__)

# 10,000 workflows are looked at each time: the next run goes on with the rest.
_MOST_PIECES: Final = 20
_ACTOR: Final = "system:retention"


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What one run removed: workflows for good, and checkpoints of others."""

    purged: int = 0
    pruned: int = 0


@dataclass(kw_only=True)
class _Places:
    """Where the next run goes on; whoever forgets it begins anew, and finds little left to do."""

    purge: Place = field(default=BEGINNING)
    prune: Place = field(default=BEGINNING)


_places: weakref.WeakKeyDictionary[Database, _Places] = weakref.WeakKeyDictionary()


def retain(settings: Settings, database: Database) -> Retained:
    """Prune and purge as ``AEGIS_PRUNE_KEEP``, ``AEGIS_PRUNE_AFTER`` and ``AEGIS_PURGE_AFTER`` say; unset, nothing.

    Raises:
        DatabaseUnavailable: what was not done yet is done by the next run.

    """
    if not (settings.prune_keep or settings.purge_after):
        return Retained()
    places = _places.setdefault(database, _Places())
    terms = _terms(settings)
    purged = pruned = 0
    if settings.purge_after:
        span = timedelta(seconds=settings.purge_after)
        purged, places.purge = _some(
            database, places.purge, lambda session, place: removal.purge(session, place, terms, older_than=span)
        )
    if settings.prune_keep:
        keep, age = settings.prune_keep, timedelta(seconds=settings.prune_after)
        pruned, places.prune = _some(
            database,
            places.prune,
            lambda session, place: removal.prune(session, place, terms, keep=keep, older_than=age),
        )
    if purged or pruned:
        log.info("removed what is old", purged=purged, pruned=pruned)
    return Retained(purged=purged, pruned=pruned)


def _some(database: Database, place: Place, piece: Callable[[Session, Place], Piece]) -> tuple[int, Place]:
    removed, following = walk(
        lambda at: in_one_transaction(database, lambda session: piece(session, at)), place=place, most=_MOST_PIECES
    )
    return removed, BEGINNING if following is None else following


def _terms(settings: Settings) -> Terms:
    return Terms(
        actor=_ACTOR,
        grace=timedelta(seconds=settings.ring_grace),
        max_bytes=settings.max_bytes,
        mac_key=active_mac_key(settings),
    )
