r"""The hash chain: what is hashed, and how.

``H(kind, *parts) = SHA-256("aegis/" + kind + "/v1\n" + parts)``. Each transition's envelope
holds the hash of the one before it, commits to its payload and its checkpoint (both salted, so
that they can be erased), and names its workflow and seq. Change the format only by adding a
version.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final

from .canonical import Json, canonical

VERSION: Final = 1
ALGORITHM: Final = "sha256"
SALT_BYTES: Final = 32
# An envelope holds a few hundred bytes; this bound is only there so that no setting can break one.
_ENVELOPE_BYTES: Final = 64 * 1024
_ANY_SIZE: Final = 2**30

# The engine's own events, and the status that each leaves behind (None: whatever comes next).
ENGINE_EVENTS: Final[Mapping[str, str | None]] = {
    "created": None,
    "resumed": None,
    "approved": None,
    "disregarded": None,
    "upgraded": None,
    "retried": None,
    "paused": "paused",
    "cancelled": "cancelled",
    "failed": "failed",
    "quarantined": "quarantined",
    # These two say themselves, in their payload, which status they leave.
    "imported": None,
    "erased": None,
    # Of the system's own chain alone.
    "pruned": None,
    "purged": None,
    "recovery_epoch": None,
    "loss_accepted": None,
}


def hash_of(kind: str, *parts: bytes) -> bytes:
    """Return ``H(kind, *parts)``, 32 bytes."""
    return hashlib.sha256(b"".join((_tag(kind), *parts))).digest()


@cache
def _tag(kind: str) -> bytes:
    return b"aegis/" + kind.encode() + b"/v1\n"


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
class MacKey:
    """A key that authenticates transitions; from ``required_from`` on every one has to carry a code."""

    id: str
    secret: bytes
    required_from: datetime

    def code(self, hash_: bytes) -> bytes:
        """Return the code of the transition of that hash: HMAC-SHA256, 32 bytes."""
        return hmac.digest(self.secret, b"aegis/mac/v1\n" + hash_, "sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One transition ready to be recorded: the envelope, and everything that it commits to."""

    envelope: Envelope
    body: bytes
    hash: bytes
    mac: bytes | None
    mac_key: str | None
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


def link(step: Step, prev: bytes, *, salts: tuple[bytes, bytes], max_bytes: int, mac_key: MacKey | None = None) -> Link:
    """Tie a transition to the one before it, whose hash is ``prev``; the salts are 32 random bytes each.

    ``max_bytes`` is for the state: the payload was bounded where it came in, and is not refused now.

    Raises:
        NotCanonical: the state or the payload is outside the domain, or the state is too large.

    """
    checkpoint_salt, payload_salt = salts
    checkpoint = checkpoint_body(step.workflow_id, step.seq, step.state, max_bytes=max_bytes)
    payload = None if step.payload is None else canonical(step.payload, max_bytes=_ANY_SIZE)
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
    digest = transition_hash(body)
    return Link(
        envelope=envelope,
        body=body,
        hash=digest,
        mac=None if mac_key is None else mac_key.code(digest),
        mac_key=None if mac_key is None else mac_key.id,
        checkpoint=checkpoint,
        checkpoint_salt=checkpoint_salt,
        payload=payload,
        payload_salt=None if payload is None else payload_salt,
    )


def transition_hash(envelope: bytes) -> bytes:
    """Return the hash of an envelope's canonical bytes."""
    return hash_of("transition", envelope)
