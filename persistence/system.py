"""The system's own chain: it tells, record by record, what was removed on purpose, and what a recovery lost.

To whoever verifies it, it is a workflow like any other; but nobody starts it, steers it, or takes
anything away from it. It begins with the first removal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import insert
from sqlalchemy.orm import Session

from ..core.canonical import Json
from ..core.chain import SALT_BYTES, Link, Step, genesis, hash_of, link
from ..core.errors import WorkflowNotFound
from ..core.names import SYSTEM, SYSTEM_TYPE
from ..core.removal import removals_digest
from . import database as databases
from . import moves, sql
from .database import in_transaction
from .models import RemovalRow, WorkflowRow
from .operations import Terms, lock
from .records import Position
from .repository import commit, progress_of
from .schema import deployment_name
from .starting import write_first

_VERSION: Final = 1
_STATE: Final = "open"
# Nothing ever follows, and that is all that the other verbs ask of a workflow that they leave alone.
_STATUS: Final = "completed"
_DEFINITION: Final = "sha256:" + hash_of("definition", SYSTEM_TYPE.encode()).hex()


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What was removed of one workflow: up to which transition; ``head`` is the hash of that, if it was purged."""

    workflow_id: str
    through_seq: int
    head: bytes | None = None


def hold(session: Session, terms: Terms) -> Position:
    """Lock the system's chain, which is begun if there is none yet; return where it is.

    To be called before anything that is removed is locked: removals wait for each other here, and
    nowhere else.
    """
    try:
        position, _, _ = lock(session, SYSTEM)
    except WorkflowNotFound:
        _begin(session, terms)
        position, _, _ = lock(session, SYSTEM)
    return position


def record(
    session: Session, system: Position, kind: str, removals: Sequence[Removal], reason: str, terms: Terms
) -> None:
    """Write down that something is removed; ``system`` is locked, and ``kind`` is ``pruned`` or ``purged``."""
    connection = session.connection()
    rows = [
        {
            "workflow_id": one.workflow_id,
            "system_seq": system.seq + 1,
            "kind": kind,
            "through_seq": one.through_seq,
            "head": one.head,
        }
        for one in removals
    ]
    connection.execute(insert(RemovalRow), rows)
    digest = removals_digest((one.workflow_id, kind, one.through_seq, one.head) for one in removals)
    append(session, system, kind, {"reason": reason, "workflows": len(removals), "digest": digest.hex()}, terms)


def append(session: Session, system: Position, event: str, payload: Mapping[str, Json], terms: Terms) -> int:
    """Add a record to the locked chain; return its seq."""
    connection = session.connection()
    move = moves.intervene(
        system,
        event,
        {"state": _STATE},
        status=_STATUS,
        payload=payload,
        progress=progress_of(connection, SYSTEM, system.seq),
        actor=terms.actor,
        at=max(databases.now(connection), system.moved_at),
        mac_key=terms.mac_key,
    )
    moved = commit(in_transaction(session), move, grace=terms.grace)
    assert moved is not None, "the row is locked: nobody can have moved it"  # noqa: S101
    return system.seq + 1


def _begin(session: Session, terms: Terms) -> None:
    first = _first(session, terms)
    now = first.envelope.at
    begun = session.execute(
        sql.upsert(WorkflowRow)
        .values(
            id=SYSTEM,
            type=SYSTEM_TYPE,
            version=_VERSION,
            definition=_DEFINITION,
            state=_STATE,
            status=_STATUS,
            seq=0,
            head=first.hash,
            accepts=[],
            moved_at=now,
            entered_at=now,
            checkpointed_at=now,
            created_at=now,
            updated_at=now,
        )
        # Another process may begin it at this moment: this waits for that one, and leaves it what it is.
        .on_conflict_do_nothing()
        .returning(WorkflowRow.id)
    ).one_or_none()
    if begun is not None:
        write_first(session, [first])


def _first(session: Session, terms: Terms) -> Link:
    connection = session.connection()
    step = Step(
        workflow_id=SYSTEM,
        seq=0,
        type=SYSTEM_TYPE,
        definition=_DEFINITION,
        event="created",
        from_state=None,
        to_state=_STATE,
        actor=terms.actor,
        attempt=1,
        at=databases.now(connection),
        state={"state": _STATE},
    )
    salts = os.urandom(SALT_BYTES), os.urandom(SALT_BYTES)
    prev = genesis(deployment_name(connection), SYSTEM)
    return link(step, prev, salts=salts, max_bytes=terms.max_bytes, mac_key=terms.mac_key)
