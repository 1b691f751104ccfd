"""From a decision to the move that is committed: the new link of the chain, and the row after it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ..core.bell import Bell
from ..core.canonical import Json, load
from ..core.chain import SALT_BYTES, Link, MacKey, Step, checkpoint_body, checkpoint_commitment, genesis, link, timestamp
from ..core.machine import Definition, Edge, WaitingEvent
from ..core.starting import Attribute, Conditions
from .records import Following, Move, Moved, Position, Snapshot

# The data was accepted before; a bound that was lowered since must not keep anybody from stopping it.
_AS_IT_WAS: Final = 2**30
_NONE: Final = Conditions()


def begin(
    definition: Definition,
    workflow_id: str,
    state: str,
    data: Mapping[str, Any],
    *,
    deployment: str,
    actor: str,
    at: datetime,
    max_bytes: int,
    conditions: Conditions = _NONE,
    mac_key: MacKey | None = None,
) -> tuple[Link, Following]:
    """Return transition 0, ``created``, and what it leaves to come."""
    step = Step(
        workflow_id=workflow_id,
        seq=0,
        type=definition.type,
        definition=definition.fingerprint,
        event="created",
        from_state=None,
        to_state=state,
        actor=actor,
        attempt=1,
        at=at,
        state=dict(data),
        payload=conditions.said() or None,
    )
    made = link(step, genesis(deployment, workflow_id), salts=_salts(), max_bytes=max_bytes, mac_key=mac_key)
    return made, Following.of(definition.pending(state, entered_at=conditions.begins_at or at))


def advance(
    position: Position,
    definition: Definition,
    edge: Edge,
    target: str,
    data: Mapping[str, Any],
    *,
    event: WaitingEvent | None,
    progress: Sequence[str],
    actor: str,
    at: datetime,
    max_bytes: int,
    mac_key: MacKey | None = None,
    attributes: Mapping[str, Attribute] | None = None,
) -> Move:
    """Return the move of a handler that succeeded; ``event`` is the one it took, if it took one."""
    payload: dict[str, Json] = {}
    if event is not None:
        payload |= {"data": load(event.payload), "key": event.key, "sender": event.sender}
    if progress:
        payload["progress"] = list(progress)
    if edge.deadline and position.deadline is not None:
        payload["deadline"] = timestamp(position.deadline)
    if attributes is not None:
        payload["attributes"] = dict(attributes)
    step = Step(
        workflow_id=position.workflow_id,
        seq=position.seq + 1,
        type=position.type,
        definition=definition.fingerprint,
        event=edge.name,
        from_state=position.state,
        to_state=target,
        actor=actor,
        attempt=position.attempt,
        at=at,
        state=dict(data),
        payload=payload or None,
    )
    return Move(
        link=link(step, position.head, salts=_salts(), max_bytes=max_bytes, mac_key=mac_key),
        claim=position.claim,
        version=definition.version,
        following=Following.of(definition.pending(target, entered_at=at)),
        entered_at=at,
        entered_seq=position.seq + 1,
        event_id=None if event is None else event.id,
        priority=position.priority,
        deadline_met=edge.deadline,
        attributes=attributes,
    )


def intervene(
    position: Position,
    event: str,
    data: Mapping[str, Any],
    *,
    status: str | None,
    payload: Mapping[str, Json],
    progress: Sequence[str],
    actor: str,
    at: datetime,
    error: Mapping[str, Any] | None = None,
    mac_key: MacKey | None = None,
) -> Move:
    """Return the move of the engine's own event: paused, failed, cancelled ... The state stays."""
    full: dict[str, Json] = dict(payload)
    if progress:
        full["progress"] = list(progress)
    step = Step(
        workflow_id=position.workflow_id,
        seq=position.seq + 1,
        type=position.type,
        definition=position.definition,
        event=event,
        from_state=position.state,
        to_state=position.state,
        actor=actor,
        attempt=max(position.attempt, 1),
        at=at,
        state=dict(data),
        payload=full or None,
    )
    return Move(
        link=link(step, position.head, salts=_salts(), max_bytes=_AS_IT_WAS, mac_key=mac_key),
        claim=position.claim,
        version=position.version,
        following=position.following,
        entered_at=position.entered_at,
        entered_seq=position.entered_seq,
        status=status,
        error=error,
        priority=position.priority,
    )


def _salts() -> tuple[bytes, bytes]:
    drawn = os.urandom(2 * SALT_BYTES)
    return drawn[:SALT_BYTES], drawn[SALT_BYTES:]


def bell_after(move: Move, moved: Moved) -> Bell:
    """Return the bell for what follows a move."""
    kind, following = move.link.envelope.type, move.following
    label = f"{kind}.{following.name}" if following.at_once else kind
    return Bell(
        workflow_id=moved.workflow_id, seq=moved.seq, queue=moved.queue, label=label, priority=move.priority
    )


def snapshot_of(position: Position, data: Mapping[str, Any], number: int, *, max_bytes: int) -> Snapshot:
    """Return a checkpoint of data that a handler has changed, with its commitment.

    Raises:
        NotCanonical: the data is outside the domain, or larger than ``max_bytes``.

    """
    body = checkpoint_body(position.workflow_id, position.seq, dict(data), max_bytes=max_bytes)
    return _salted(body, number)


def copy_of(snapshot: Snapshot) -> Snapshot:
    """Return the next checkpoint of the same data, under a salt of its own."""
    return _salted(snapshot.body, snapshot.number + 1)


def _salted(body: bytes, number: int) -> Snapshot:
    salt = os.urandom(SALT_BYTES)
    return Snapshot(body=body, number=number, salt=salt, commitment=checkpoint_commitment(salt, body))
