"""Verification: where a stored history differs from what was committed, by transition.

The rows are somebody else's: every byte of them may have been edited, so nothing is read before it
is known to be readable, and each finding names the transition that was changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from .canonical import Json, is_canonical, load
from .chain import (
    ALGORITHM,
    ENGINE_EVENTS,
    SALT_BYTES,
    VERSION,
    checkpoint_commitment,
    genesis,
    payload_commitment,
    timestamp,
    transition_hash,
)

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_OPEN_STATUSES: Final = frozenset({"pending", "waiting", "completed"})


class Code(StrEnum):
    """What can be wrong with a history, by the names of the format."""

    HASH_MISMATCH = "HASH_MISMATCH"
    PREV_MISMATCH = "PREV_MISMATCH"
    SEQ_GAP = "SEQ_GAP"
    SEQ_DUPLICATE = "SEQ_DUPLICATE"
    HEAD_MISMATCH = "HEAD_MISMATCH"
    ROW_STATE_MISMATCH = "ROW_STATE_MISMATCH"
    PAYLOAD_MISMATCH = "PAYLOAD_MISMATCH"
    CHECKPOINT_MISMATCH = "CHECKPOINT_MISMATCH"
    NON_CANONICAL = "NON_CANONICAL"
    WRONG_WORKFLOW = "WRONG_WORKFLOW"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it was committed."""

    workflow_id: str
    seq: int
    code: Code
    expected: str | None
    actual: str | None

    def __str__(self) -> str:
        """Return one line that names the transition."""
        return (
            f"workflow {self.workflow_id!r}, transition {self.seq}: {self.code}: "
            f"expected {self.expected}, found {self.actual}"
        )


@dataclass(frozen=True, kw_only=True)
class StoredTransition:
    """A transition as the database holds it: the envelope, its hash, and the columns for searching."""

    workflow_id: str
    seq: int
    event: str
    from_state: str | None
    to_state: str
    actor: str
    attempt: int
    at: datetime
    envelope: bytes
    hash: bytes
    payload: bytes | None = None
    payload_salt: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint as the database holds it; ``number`` 0 is the transition's own."""

    workflow_id: str
    seq: int
    number: int
    body: bytes
    salt: bytes
    commitment: bytes


@dataclass(frozen=True, kw_only=True)
class StoredWorkflow:
    """What a workflow's row says of its history."""

    workflow_id: str
    type: str
    definition: str
    state: str
    status: str
    seq: int
    head: bytes


def verify(
    workflow: StoredWorkflow,
    transitions: Sequence[StoredTransition],
    checkpoints: Sequence[StoredCheckpoint],
    *,
    deployment: str,
) -> list[Finding]:
    """Return everything that is wrong with one history, in its order; nothing means intact.

    ``transitions`` come ordered by seq. Verification goes on after the first break, from the
    stored hash, so that each broken transition is named and no intact one.
    """
    audit = _Audit(workflow.workflow_id)
    by_place = {(c.seq, c.number): c for c in checkpoints}
    prev = genesis(deployment, workflow.workflow_id)
    expected_seq = 0
    progress: dict[int, frozenset[str]] = {}
    last: Mapping[str, Json] = {}
    for row in transitions:
        if row.seq > expected_seq:
            audit.found(expected_seq, Code.SEQ_GAP, f"seq {expected_seq}", f"seq {row.seq}")
        elif row.seq < expected_seq:
            audit.found(row.seq, Code.SEQ_DUPLICATE, f"seq {expected_seq}", f"seq {row.seq} again")
        envelope = audit.envelope(row)
        if envelope is not None:
            if row.seq == expected_seq:  # across a gap the link cannot be judged: the gap itself is named
                audit.link(row, envelope, prev)
            audit.payload(row, envelope)
            audit.checkpoint(row.seq, envelope, by_place.get((row.seq, 0)))
            progress[row.seq - 1] = _progress_of(row)
            last = envelope
        prev = row.hash
        expected_seq = row.seq + 1
    audit.checkpoints_between(checkpoints, progress, max(workflow.seq, expected_seq - 1))
    audit.row(workflow, last, prev, expected_seq - 1)
    return audit.findings


def _progress_of(row: StoredTransition) -> frozenset[str]:
    """Return the commitments of the checkpoints between the transition before and this one."""
    payload = load(row.payload) if row.payload is not None and is_canonical(row.payload) else None
    listed = payload.get("progress") if isinstance(payload, dict) else None
    return frozenset(item for item in listed if isinstance(item, str)) if isinstance(listed, list) else frozenset()


class _Audit:
    """The findings of one workflow, and the checks that add to them."""

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self.findings: list[Finding] = []

    def found(self, seq: int, code: Code, expected: object, actual: object) -> None:
        self.findings.append(
            Finding(
                workflow_id=self.workflow_id,
                seq=seq,
                code=code,
                expected=None if expected is None else str(expected),
                actual=None if actual is None else str(actual),
            )
        )

    def same(self, seq: int, code: Code, expected: object, actual: object) -> None:
        if expected != actual:
            self.found(seq, code, expected, actual)

    def envelope(self, row: StoredTransition) -> Mapping[str, Json] | None:
        """Return the envelope's members where it can be read at all."""
        self.same(row.seq, Code.HASH_MISMATCH, transition_hash(row.envelope).hex(), row.hash.hex())
        if not is_canonical(row.envelope):
            self.found(row.seq, Code.NON_CANONICAL, "canonical bytes", f"{len(row.envelope)} other bytes")
            return None
        members = load(row.envelope)
        version = members.get("v") if isinstance(members, dict) else members
        if not isinstance(members, dict) or not _is(version, VERSION) or members.get("alg") != ALGORITHM:
            self.found(row.seq, Code.UNKNOWN_VERSION, f"{VERSION} with {ALGORITHM}", version)
            return None
        self.same(row.seq, Code.WRONG_WORKFLOW, self.workflow_id, members.get("wf"))
        for name, column in _columns(row).items():
            if not _is(members.get(name), column):
                self.found(row.seq, Code.HASH_MISMATCH, f"{name} {members.get(name)!r}", f"{name} {column!r}")
        return members

    def link(self, row: StoredTransition, envelope: Mapping[str, Json], prev: bytes) -> None:
        """Check the link to the transition before, and name the one of the two that was changed.

        A row that still has its own hash speaks for what it was linked to: then it is the row
        before that was edited and rehashed.
        """
        linked = envelope.get("prev")
        intact = transition_hash(row.envelope) == row.hash
        if intact and row.seq > 0:
            self.same(row.seq - 1, Code.PREV_MISMATCH, linked, prev.hex())
        else:
            self.same(row.seq, Code.PREV_MISMATCH, prev.hex(), linked)

    def payload(self, row: StoredTransition, envelope: Mapping[str, Json]) -> None:
        committed = envelope.get("payload")
        if row.payload is None or row.payload_salt is None:
            self.same(row.seq, Code.PAYLOAD_MISMATCH, committed, None)
            if (row.payload is None) != (row.payload_salt is None):
                self.found(row.seq, Code.PAYLOAD_MISMATCH, "a payload and its salt", "one without the other")
            return
        self.salt(row.seq, Code.PAYLOAD_MISMATCH, row.payload_salt)
        self.same(row.seq, Code.PAYLOAD_MISMATCH, committed, payload_commitment(row.payload_salt, row.payload).hex())

    def checkpoint(self, seq: int, envelope: Mapping[str, Json], stored: StoredCheckpoint | None) -> None:
        committed = envelope.get("checkpoint")
        if not (isinstance(committed, str) and _HEX.fullmatch(committed)):
            self.found(seq, Code.CHECKPOINT_MISMATCH, "64 hexadecimal digits", committed)
        if stored is None:
            self.found(seq, Code.CHECKPOINT_MISMATCH, committed, None)
            return
        self.same(seq, Code.CHECKPOINT_MISMATCH, committed, stored.commitment.hex())
        self.body(stored)

    def checkpoints_between(
        self, checkpoints: Sequence[StoredCheckpoint], listed: Mapping[int, frozenset[str]], end: int
    ) -> None:
        """Check the checkpoints beside the transitions' own: all that are there, and all that should be."""
        for stored in checkpoints:
            if stored.seq > end:
                self.found(stored.seq, Code.CHECKPOINT_MISMATCH, None, f"a checkpoint of transition {stored.seq}")
            elif stored.number:
                self.progress(stored, listed.get(stored.seq))
        kept = {(stored.seq, stored.commitment.hex()) for stored in checkpoints if stored.number}
        for seq, commitments in listed.items():
            for commitment in sorted(commitments):
                if (seq, commitment) not in kept:
                    self.found(seq, Code.CHECKPOINT_MISMATCH, commitment, None)

    def progress(self, stored: StoredCheckpoint, listed: frozenset[str] | None) -> None:
        """Check a checkpoint taken inside a handler; the next transition lists it (None: not there yet)."""
        if listed is not None and stored.commitment.hex() not in listed:
            self.found(stored.seq, Code.CHECKPOINT_MISMATCH, "listed by the next transition", "not listed")
        self.body(stored)

    def salt(self, seq: int, code: Code, salt: bytes) -> None:
        """Check the length: H(salt || body) stays the same when bytes move from one to the other."""
        self.same(seq, code, f"a salt of {SALT_BYTES} bytes", f"a salt of {len(salt)} bytes")

    def body(self, stored: StoredCheckpoint) -> None:
        self.salt(stored.seq, Code.CHECKPOINT_MISMATCH, stored.salt)
        computed = checkpoint_commitment(stored.salt, stored.body).hex()
        self.same(stored.seq, Code.CHECKPOINT_MISMATCH, computed, stored.commitment.hex())
        members = load(stored.body) if is_canonical(stored.body) else None
        if not isinstance(members, dict):
            self.found(stored.seq, Code.NON_CANONICAL, "canonical bytes", f"{len(stored.body)} other bytes")
            return
        self.same(stored.seq, Code.WRONG_WORKFLOW, self.workflow_id, members.get("workflow_id"))
        self.same(stored.seq, Code.CHECKPOINT_MISMATCH, stored.seq, members.get("seq"))

    def row(self, row: StoredWorkflow, last: Mapping[str, Json], head: bytes, seq: int) -> None:
        """Check that the workflow's row is the fold of its transitions."""
        self.same(max(seq, 0), Code.HEAD_MISMATCH, f"seq {seq}", f"seq {row.seq}")
        self.same(max(seq, 0), Code.HEAD_MISMATCH, head.hex(), row.head.hex())
        if not last:
            return
        self.same(seq, Code.ROW_STATE_MISMATCH, last.get("to"), row.state)
        self.same(seq, Code.ROW_STATE_MISMATCH, last.get("type"), row.type)
        self.same(seq, Code.ROW_STATE_MISMATCH, last.get("def"), row.definition)
        status = ENGINE_EVENTS.get(str(last.get("event")))
        allowed = _OPEN_STATUSES if status is None else {status}
        if row.status not in allowed:
            self.found(seq, Code.ROW_STATE_MISMATCH, f"status {' or '.join(sorted(allowed))}", row.status)


def _is(found: Json, wanted: Json) -> bool:
    """Whether both are the same JSON value: to Python, ``True == 1`` and ``1 == 1.0``."""
    return type(found) is type(wanted) and found == wanted


def _columns(row: StoredTransition) -> dict[str, Json]:
    """Return the columns for searching under the names that they have in the envelope."""
    return {
        "seq": row.seq,
        "event": row.event,
        "from": row.from_state,
        "to": row.to_state,
        "actor": row.actor,
        "attempt": row.attempt,
        "at": timestamp(row.at),
    }
