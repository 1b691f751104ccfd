"""From a decision to the move that is committed: the new link of the chain, and the row after it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from ..core.approval import APPROVED, DISREGARDED, Verdict
from ..core.bell import Bell
from ..core.canonical import Json, load
from ..core.chain import (
    SALT_BYTES,
    Link,
    MacKey,
    Step,
    checkpoint_body,
    checkpoint_commitment,
    genesis,
    link,
    timestamp,
)
from ..core.machine import Definition, Edge, WaitingEvent
from ..core.seal import inside_hash
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
    error: Mapping[str, Any] | None = None,
    effects: Sequence[Mapping[str, Json]] = (),
    mac_key: MacKey | None = None,
    attributes: Mapping[str, Attribute] | None = None,
) -> Move:
    """Return the move of a handler that succeeded, or, with an ``error``, failed for good.

    ``event`` is the one it took, if it took one; ``effects`` is what it did outside (``effects.told``).
    """
    payload = _told(event) | _rules(edge)
    if error is not None:
        payload |= {"error": {"type": error["type"], "message": error["message"]}, "gave_up": True}
    if progress:
        payload["progress"] = list(progress)
    if edge.deadline and position.deadline is not None:
        payload["deadline"] = timestamp(position.deadline)
    if attributes is not None:
        payload["attributes"] = dict(attributes)
    if effects:
        payload["effects"] = [dict(effect) for effect in effects]
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
        steered_by=None if event is None else event.sender,
    )


def _told(event: WaitingEvent | None) -> dict[str, Json]:
    """Return what the chain says of an event: its payload, its key, who sent it, and why."""
    if event is None:
        return {}
    told: dict[str, Json] = {"data": load(event.payload), "key": event.key, "sender": event.sender}
    return told if event.reason is None else told | {"reason": event.reason}


def _rules(edge: Edge) -> dict[str, Json]:
    """Return the rules that an edge was taken by, for whoever verifies the history without knowing the class."""
    rules: dict[str, Json] = {}
    if edge.approvals > 1:
        rules["approvals"] = edge.approvals
    if edge.four_eyes:
        rules["four_eyes"] = True
    return rules


def deliberate(
    position: Position,
    definition: Definition,
    edge: Edge,
    event: WaitingEvent,
    data: Mapping[str, Any],
    *,
    verdict: Verdict,
    approvals: int,
    progress: Sequence[str],
    actor: str,
    at: datetime,
    mac_key: MacKey | None = None,
) -> Move:
    """Return the move of an event that does not set its transition off: it counts as an approval, or for nothing.

    ``approvals`` is how many there are with this one. The state, and since when it counts, stay.
    """
    counts = verdict is Verdict.COUNT
    payload = _told(event) | {"transition": edge.name, "approvals": approvals}
    payload |= {"four_eyes": True} if edge.four_eyes else {}
    made = intervene(
        position,
        APPROVED if counts else DISREGARDED,
        data,
        status=None,
        payload=payload if counts else payload | {"rule": verdict.value},
        progress=progress,
        actor=actor,
        at=at,
        mac_key=mac_key,
    )
    following = Following.of(definition.pending(position.state, entered_at=position.entered_at))
    return replace(made, following=following, event_id=event.id)


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


def upgrade(
    position: Position,
    definition: Definition,
    state: str,
    data: Mapping[str, Any],
    *,
    progress: Sequence[str],
    effects: Sequence[Mapping[str, Json]],
    actor: str,
    at: datetime,
    max_bytes: int,
    mac_key: MacKey | None = None,
) -> Move:
    """Return the move that brings a workflow to the newest version of its class, before anything else happens to it.

    As long as its state keeps its name, its timers and its handler's key go on; in another one they begin anew.
    """
    stays = state == position.state
    payload: dict[str, Json] = {"from_version": position.version, "to_version": definition.version}
    if progress:
        payload["progress"] = list(progress)
    if effects and not stays:  # of a handler that is never recorded now
        payload["effects"] = [dict(effect) for effect in effects]
    step = Step(
        workflow_id=position.workflow_id,
        seq=position.seq + 1,
        type=position.type,
        definition=definition.fingerprint,
        event="upgraded",
        from_state=position.state,
        to_state=state,
        actor=actor,
        attempt=max(position.attempt, 1),
        at=at,
        state=dict(data),
        payload=payload,
    )
    entered_at = position.entered_at if stays else at
    return Move(
        link=link(step, position.head, salts=_salts(), max_bytes=max_bytes, mac_key=mac_key),
        claim=position.claim,
        version=definition.version,
        following=Following.of(definition.pending(state, entered_at=entered_at)),
        entered_at=entered_at,
        entered_seq=position.entered_seq if stays else position.seq + 1,
        priority=position.priority,
    )


def _salts() -> tuple[bytes, bytes]:
    drawn = os.urandom(2 * SALT_BYTES)
    return drawn[:SALT_BYTES], drawn[SALT_BYTES:]


def bell_after(move: Move, moved: Moved) -> Bell:
    """Return the bell for what follows a move."""
    kind, following = move.link.envelope.type, move.following
    label = f"{kind}.{following.name}" if following.at_once else kind
    return Bell(workflow_id=moved.workflow_id, seq=moved.seq, queue=moved.queue, label=label, priority=move.priority)


def snapshot_of(
    position: Position, data: Mapping[str, Any], number: int, *, max_bytes: int, mac_key: MacKey | None = None
) -> Snapshot:
    """Return a checkpoint of data that a handler has changed, with its commitment, and its code where there is a key.

    Raises:
        NotCanonical: the data is outside the domain, or larger than ``max_bytes``.

    """
    body = checkpoint_body(position.workflow_id, position.seq, dict(data), max_bytes=max_bytes)
    return _salted(position, body, number, mac_key)


def copy_of(position: Position, snapshot: Snapshot, mac_key: MacKey | None = None) -> Snapshot:
    """Return the next checkpoint of the same data, under a salt of its own."""
    return _salted(position, snapshot.body, snapshot.number + 1, mac_key)


def _salted(position: Position, body: bytes, number: int, mac_key: MacKey | None) -> Snapshot:
    salt = os.urandom(SALT_BYTES)
    commitment = checkpoint_commitment(salt, body)
    made = Snapshot(body=body, number=number, salt=salt, commitment=commitment)
    if mac_key is None:
        return made
    hash_ = inside_hash(position.workflow_id, position.seq, number, commitment)
    return replace(made, mac=mac_key.code(hash_), mac_key=mac_key.id)
