r"""The hash chain: what is hashed, how, and where a history differs from what was committed.

``H(kind, *parts) = SHA-256("aegis/" + kind + "/v1\n" + parts)``. Each transition's envelope
holds the hash of the one before it, commits to its payload and its checkpoint (both salted, so
that they can be erased), and names its workflow and seq. Change the format only by adding a
version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from .canonical import Json, canonical, is_canonical, load

VERSION: Final = 1
ALGORITHM: Final = "sha256"
SALT_BYTES: Final = 32
# An envelope holds a few hundred bytes; this bound is only there so that no setting can break one.
_ENVELOPE_BYTES: Final = 64 * 1024
_HEX: Final = re.compile(r"[0-9a-f]{64}")

# The engine's own events, and the status that each leaves behind (None: whatever comes next).
ENGINE_EVENTS: Final[Mapping[str, str | None]] = {
    "created": None,
    "resumed": None,
    "retried": None,
    "paused": "paused",
    "cancelled": "cancelled",
    "failed": "failed",
    "quarantined": "quarantined",
    # Not written yet; kept from user code, because the format gives them a meaning.
    "imported": None,
    "erased": None,
}
_OPEN_STATUSES: Final = frozenset({"pending", "waiting", "completed"})


def hash_of(kind: str, *parts: bytes) -> bytes:
    """Return ``H(kind, *parts)``, 32 bytes."""
    digest = hashlib.sha256(b"aegis/" + kind.encode() + b"/v1\n")
    for part in parts:
        digest.update(part)
    return digest.digest()


def genesis(deployment: str, workflow_id: str) -> bytes:
    """Return what ``prev`` of transition 0 holds."""
    return hash_of("genesis", canonical({"deployment": deployment, "workflow_id": workflow_id}))


def payload_commitment(salt: bytes, body: bytes) -> bytes:
    """Return the commitment to a payload's canonical bytes."""
    return hash_of("payload", salt, body)


def checkpoint_body(workflow_id: str, seq: int, state: Json, *, max_bytes: int) -> bytes:
    """Return the canonical bytes of a checkpoint; ``state`` is the workflow's data."""
    return canonical({"seq": seq, "state": state, "workflow_id": workflow_id}, max_bytes=max_bytes)


def checkpoint_commitment(salt: bytes, body: bytes) -> bytes:
    """Return the commitment to a checkpoint's canonical bytes."""
    return hash_of("checkpoint", salt, body)


def timestamp(moment: datetime) -> str:
    """Return RFC 3339 in UTC with exactly six decimals."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """One transition, as it is hashed: no floats, no personal data."""

    workflow_id: str
    seq: int
    prev: bytes
    type: str
    definition: str
    event: str
    from_state: str | None
    to_state: str
    actor: str
    attempt: int
    at: datetime
    payload: bytes | None
    checkpoint: bytes

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return canonical(
            {
                "v": VERSION,
                "alg": ALGORITHM,
                "wf": self.workflow_id,
                "seq": self.seq,
                "prev": self.prev.hex(),
                "type": self.type,
                "def": self.definition,
                "event": self.event,
                "from": self.from_state,
                "to": self.to_state,
                "actor": self.actor,
                "attempt": self.attempt,
                "at": timestamp(self.at),
                "payload": None if self.payload is None else self.payload.hex(),
                "checkpoint": self.checkpoint.hex(),
            },
            max_bytes=_ENVELOPE_BYTES,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One transition ready to be recorded: the envelope, and everything that it commits to."""

    envelope: Envelope
    body: bytes
    hash: bytes
    checkpoint: bytes
    checkpoint_salt: bytes
    payload: bytes | None
    payload_salt: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a transition says of itself, before anything is hashed; ``state`` is the workflow's data."""

    workflow_id: str
    seq: int
    type: str
    definition: str
    event: str
    from_state: str | None
    to_state: str
    actor: str
    attempt: int
    at: datetime
    state: Json
    payload: Json = None


def link(step: Step, prev: bytes, *, salts: tuple[bytes, bytes], max_bytes: int) -> Link:
    """Tie a transition to the one before it, whose hash is ``prev``; the salts are 32 random bytes each.

    Raises:
        NotCanonical: the state or the payload is outside the domain, or larger than ``max_bytes``.

    """
    checkpoint_salt, payload_salt = salts
    checkpoint = checkpoint_body(step.workflow_id, step.seq, step.state, max_bytes=max_bytes)
    payload = None if step.payload is None else canonical(step.payload, max_bytes=max_bytes)
    envelope = Envelope(
        workflow_id=step.workflow_id,
        seq=step.seq,
        prev=prev,
        type=step.type,
        definition=step.definition,
        event=step.event,
        from_state=step.from_state,
        to_state=step.to_state,
        actor=step.actor,
        attempt=step.attempt,
        at=step.at,
        payload=None if payload is None else payload_commitment(payload_salt, payload),
        checkpoint=checkpoint_commitment(checkpoint_salt, checkpoint),
    )
    body = envelope.to_bytes()
    return Link(
        envelope=envelope,
        body=body,
        hash=transition_hash(body),
        checkpoint=checkpoint,
        checkpoint_salt=checkpoint_salt,
        payload=payload,
        payload_salt=None if payload is None else payload_salt,
    )


def transition_hash(envelope: bytes) -> bytes:
    """Return the hash of an envelope's canonical bytes."""
    return hash_of("transition", envelope)


# --- verifying ------------------------------------------------------------------------


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
    for stored in checkpoints:
        if stored.number:
            audit.progress(stored, progress.get(stored.seq))
    audit.row(workflow, last, prev, expected_seq - 1)
    return audit.findings


def _progress_of(row: StoredTransition) -> frozenset[str]:
    """Return the commitments of the checkpoints between the transition before and this one."""
    payload = load(row.payload) if row.payload is not None else None
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
        if not isinstance(members, dict) or (members.get("v"), members.get("alg")) != (VERSION, ALGORITHM):
            version = members.get("v") if isinstance(members, dict) else members
            self.found(row.seq, Code.UNKNOWN_VERSION, f"{VERSION} with {ALGORITHM}", version)
            return None
        self.same(row.seq, Code.WRONG_WORKFLOW, self.workflow_id, members.get("wf"))
        for name, column in _columns(row).items():
            if members.get(name) != column:
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
            return
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

    def progress(self, stored: StoredCheckpoint, listed: frozenset[str] | None) -> None:
        """Check a checkpoint taken inside a handler; the next transition lists it (None: not there yet)."""
        if listed is not None and stored.commitment.hex() not in listed:
            self.found(stored.seq, Code.CHECKPOINT_MISMATCH, "listed by the next transition", "not listed")
        self.body(stored)

    def body(self, stored: StoredCheckpoint) -> None:
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
