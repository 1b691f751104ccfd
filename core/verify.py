"""Verification: where a stored history differs from what was committed, by transition.

The rows are somebody else's: every byte of them may have been edited, so nothing is read before it
is known to be readable, and each finding names the transition that was changed.

A row is first compared, whole, with the one envelope that its columns, its checkpoint, its payload
and the transition before it allow. Where that fits there is nothing more to look at; only where it
does not is the envelope taken apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from .canonical import Json, is_canonical, load
from .chain import (
    ALGORITHM,
    ENGINE_EVENTS,
    SALT_BYTES,
    VERSION,
    MacKey,
    checkpoint_commitment,
    genesis,
    payload_commitment,
    transition_hash,
)
from .finding import Code, Finding
from .seal import flaw, inside_hash, required_from
from .tally import Tally

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_OPEN_STATUSES: Final = frozenset({"pending", "waiting", "completed"})
_SAY_THE_STATUS: Final = frozenset({"erased", "imported"})


class StoredTransition(NamedTuple):
    """A transition as the database holds it: the envelope, its hash, and the columns for searching.

    ``at`` is the column's value as the envelope writes it: UTC, with six decimals.
    """

    workflow_id: str
    seq: int
    event: str
    from_state: str | None
    to_state: str
    actor: str
    attempt: int
    at: str
    envelope: bytes
    hash: bytes
    mac: bytes | None = None
    mac_key: str | None = None
    payload: bytes | None = None
    payload_salt: bytes | None = None


class StoredCheckpoint(NamedTuple):
    """A checkpoint as the database holds it; ``number`` 0 is the transition's own."""

    workflow_id: str
    seq: int
    number: int
    body: bytes
    salt: bytes
    commitment: bytes
    mac: bytes | None = None
    mac_key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWorkflow:
    """What a workflow's row says of its history."""

    workflow_id: str
    type: str
    definition: str
    state: str
    status: str
    seq: int
    head: bytes
    version: int | None = None
    """Of its class; None: not known."""


class Leaf(NamedTuple):
    """The place of a transition in the log, and the hash that stands there."""

    place: int
    hash: bytes


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What else is known of the histories, beside the rows themselves.

    ``mac_keys`` are the keys at hand; what stands in the log at ``coded_from`` or after it needs a code of
    one, whatever time it says it is of. Of ``anchored`` entries of the log it is known from outside what
    they were; None: there is nothing to compare with. What is younger than ``fresh_from`` need not
    be anchored yet.
    """

    deployment: str
    mac_keys: Mapping[str, MacKey] = field(default_factory=dict)
    anchored: int | None = None
    fresh_from: str = ""
    coded_from: int | None = None

    @property
    def mac_required_from(self) -> str | None:
        """From when on every transition has to carry a code, as an envelope would write it."""
        return required_from(self.mac_keys)


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What was removed of a workflow on purpose, by the system's records (-1: nothing)."""

    pruned_through: int = -1
    purged_through: int = -1
    purged_head: bytes | None = None


NOTHING_REMOVED: Final = Removed()


class Audit:
    """The verification of one history, transition by transition; it keeps nothing of what was in order."""

    def __init__(self, workflow_id: str, evidence: Evidence) -> None:
        self.workflow_id = workflow_id
        self.findings: list[Finding] = []
        self._evidence = evidence
        self._named = _quoted(workflow_id)
        self._end_of_body = f',"workflow_id":{self._named}}}'.encode()
        self._prev = genesis(evidence.deployment, workflow_id)
        self._expected_seq = 0
        self._last: _Last | None = None
        self._progress: dict[int, tuple[str, ...]] = {}
        self._unread: list[range] = []
        self._missing_payloads: list[tuple[int, str | None]] = []
        self._missing_checkpoints: list[tuple[int, str | None]] = []
        self._erased_through = -1
        self._status: str | None = None
        self._last_at = ""
        self._version: int | None = None
        """Of its class, as the last upgrade says."""
        self._foreign: tuple[str, str] | None = None
        self._mac_from = evidence.mac_required_from
        self._coded = False
        """Whether there was a transition that was made when each had to have a code: then each after it has to."""
        self._imported_at = -1
        self._unsealed: list[int] = []
        self._unanchored: list[tuple[int, int | None, str]] = []
        self._tally = Tally()

    # --- one transition -----------------------------------------------------------------

    def transition(self, row: StoredTransition, checkpoint: StoredCheckpoint | None, leaf: Leaf | None) -> None:
        """Verify the next transition, with its own checkpoint, and its place in the log."""
        if row.seq > self._expected_seq:
            self._found(self._expected_seq, Code.SEQ_GAP, f"seq {self._expected_seq}", f"seq {row.seq}")
            self._unread.append(range(self._expected_seq, row.seq))
            self._tally.lose()
        elif row.seq < self._expected_seq:
            self._found(row.seq, Code.SEQ_DUPLICATE, f"seq {self._expected_seq}", f"seq {row.seq} again")
        if not self._fits(row, checkpoint):
            self._take_apart(row, checkpoint)
        if self._evidence.mac_keys:
            self._mac(row, leaf)
        if self._evidence.anchored is not None or leaf is not None:
            self._anchored(row, leaf)
        self._prev, self._last_at = row.hash, row.at
        self._expected_seq = row.seq + 1

    def _fits(self, row: StoredTransition, checkpoint: StoredCheckpoint | None) -> bool:
        """Whether all of it is the one thing that it can be; most are, and cost nothing more."""
        last = self._last
        if (
            last is None
            or checkpoint is None
            or row.seq != self._expected_seq
            or row.event in ENGINE_EVENTS
            or (row.payload is None) != (row.payload_salt is None)
            or len(checkpoint.salt) != SALT_BYTES
        ):
            return False
        payload = "null"
        if row.payload is not None and row.payload_salt is not None:
            if len(row.payload_salt) != SALT_BYTES or b'"progress":' in row.payload:
                return False
            if not Tally.is_plain(row.payload):
                return False
            payload = f'"{payload_commitment(row.payload_salt, row.payload).hex()}"'
        committed = checkpoint_commitment(checkpoint.salt, checkpoint.body)
        expected = (
            f'{{"actor":{_quoted(row.actor)},"alg":"sha256","at":"{row.at}","attempt":{row.attempt},'
            f'"checkpoint":"{committed.hex()}","def":{last.definition_quoted},"event":{_quoted(row.event)},'
            f'"from":{_quoted(row.from_state)},"payload":{payload},"prev":"{self._prev.hex()}","seq":{row.seq},'
            f'"to":{_quoted(row.to_state)},"type":{last.type_quoted},"v":1,"wf":{self._named}}}'
        )
        if (
            row.envelope != expected.encode()
            or committed != checkpoint.commitment
            or transition_hash(row.envelope) != row.hash
            or not checkpoint.body.startswith(b'{"seq":%d,"state":' % row.seq)
            or not checkpoint.body.endswith(self._end_of_body)
        ):
            return False
        last.state, self._status = row.to_state, None
        self._tally.skip(row.payload)
        return True

    def _take_apart(self, row: StoredTransition, checkpoint: StoredCheckpoint | None) -> None:
        envelope = self._envelope(row)
        if envelope is None:
            self._unread.append(range(row.seq, row.seq + 1))
            self._tally.lose()
            return
        if row.seq == self._expected_seq:  # across a gap the link cannot be judged: the gap itself is named
            self._link(row, envelope)
        payload = load(row.payload) if row.payload is not None and is_canonical(row.payload) else None
        before = len(self.findings)
        self._payload(row, envelope)
        self._rules(row, envelope, payload, intact=len(self.findings) == before)
        self._checkpoint(row.seq, envelope, checkpoint)
        self._progress[row.seq - 1] = _progress_in(payload)
        self._engine_event(row, envelope, payload)
        self._last = _Last.of(envelope)

    def _rules(self, row: StoredTransition, envelope: Mapping[str, Json], payload: Json, *, intact: bool) -> None:
        """Check what the history says of its own rules; of what is not what was committed, nothing is concluded."""
        if not intact or (row.payload is None and envelope.get("payload") is not None):
            self._tally.lose()
            return
        for expected, actual in self._tally.count(envelope, payload if isinstance(payload, dict) else {}):
            self._found(row.seq, Code.RULE_BROKEN, expected, actual)

    def _engine_event(self, row: StoredTransition, envelope: Mapping[str, Json], payload: Json) -> None:
        """Take note of what the engine's own events say of the status, and of the history before them."""
        said = payload if isinstance(payload, dict) else {}
        # As text: whoever edited it may have put anything there.
        event, status = str(envelope.get("event")), said.get("status")
        self._status = ENGINE_EVENTS.get(event)
        if event in _SAY_THE_STATUS and isinstance(status, str):
            self._status = status
        version = said.get("to_version")
        if event == "upgraded" and isinstance(version, int):
            self._version = version
        match event, said.get("through"), said.get("deployment"):
            case "erased", int(through), _:
                self._erased_through = max(self._erased_through, min(through, row.seq - 1))
            case "imported", _, str(deployment):
                # What came before was made under the codes of another deployment, and came into this log with it.
                self._imported_at = row.seq
                self._unanchored = [(seq, place, row.at) for seq, place, _ in self._unanchored]
                if self._foreign is not None and genesis(deployment, self.workflow_id).hex() == self._foreign[1]:
                    self._foreign = None

    def _envelope(self, row: StoredTransition) -> Mapping[str, Json] | None:
        """Return the envelope's members where it can be read at all."""
        self._same(row.seq, Code.HASH_MISMATCH, transition_hash(row.envelope).hex(), row.hash.hex())
        if not is_canonical(row.envelope):
            self._found(row.seq, Code.NON_CANONICAL, "canonical bytes", f"{len(row.envelope)} other bytes")
            return None
        members = load(row.envelope)
        version = members.get("v") if isinstance(members, dict) else members
        if not isinstance(members, dict) or not _is(version, VERSION) or members.get("alg") != ALGORITHM:
            self._found(row.seq, Code.UNKNOWN_VERSION, f"{VERSION} with {ALGORITHM}", version)
            return None
        self._same(row.seq, Code.WRONG_WORKFLOW, self.workflow_id, members.get("wf"))
        for name, column in _columns(row).items():
            if not _is(members.get(name), column):
                self._found(row.seq, Code.HASH_MISMATCH, f"{name} {members.get(name)!r}", f"{name} {column!r}")
        return members

    def _link(self, row: StoredTransition, envelope: Mapping[str, Json]) -> None:
        """Check the link to the transition before, and name the one of the two that was changed.

        A row that still has its own hash speaks for what it was linked to: then it is the row
        before that was edited and rehashed.
        """
        linked, prev = envelope.get("prev"), self._prev.hex()
        intact = transition_hash(row.envelope) == row.hash
        if row.seq == 0 and linked != prev and isinstance(linked, str):
            self._foreign = (prev, linked)  # until it is known where it was imported from
        elif intact and row.seq > 0:
            self._same(row.seq - 1, Code.PREV_MISMATCH, linked, prev)
        else:
            self._same(row.seq, Code.PREV_MISMATCH, prev, linked)

    def _payload(self, row: StoredTransition, envelope: Mapping[str, Json]) -> None:
        committed = envelope.get("payload")
        if row.payload is None or row.payload_salt is None:
            if (row.payload is None) != (row.payload_salt is None):
                self._found(row.seq, Code.PAYLOAD_MISMATCH, "a payload and its salt", "one without the other")
                self._same(row.seq, Code.PAYLOAD_MISMATCH, committed, None)
            elif committed is not None:
                self._missing_payloads.append((row.seq, str(committed)))
            return
        self._salt(row.seq, Code.PAYLOAD_MISMATCH, row.payload_salt)
        self._same(row.seq, Code.PAYLOAD_MISMATCH, committed, payload_commitment(row.payload_salt, row.payload).hex())

    def _checkpoint(self, seq: int, envelope: Mapping[str, Json], stored: StoredCheckpoint | None) -> None:
        committed = envelope.get("checkpoint")
        if not (isinstance(committed, str) and _HEX.fullmatch(committed)):
            self._found(seq, Code.CHECKPOINT_MISMATCH, "64 hexadecimal digits", committed)
        if stored is None:
            self._missing_checkpoints.append((seq, None if committed is None else str(committed)))
            return
        self._same(seq, Code.CHECKPOINT_MISMATCH, committed, stored.commitment.hex())
        self._body(stored)

    def _salt(self, seq: int, code: Code, salt: bytes) -> None:
        """Check the length: H(salt || body) stays the same when bytes move from one to the other."""
        self._same(seq, code, f"a salt of {SALT_BYTES} bytes", f"a salt of {len(salt)} bytes")

    def _body(self, stored: StoredCheckpoint) -> None:
        self._salt(stored.seq, Code.CHECKPOINT_MISMATCH, stored.salt)
        computed = checkpoint_commitment(stored.salt, stored.body).hex()
        self._same(stored.seq, Code.CHECKPOINT_MISMATCH, computed, stored.commitment.hex())
        members = load(stored.body) if is_canonical(stored.body) else None
        if not isinstance(members, dict):
            self._found(stored.seq, Code.NON_CANONICAL, "canonical bytes", f"{len(stored.body)} other bytes")
            return
        self._same(stored.seq, Code.WRONG_WORKFLOW, self.workflow_id, members.get("workflow_id"))
        self._same(stored.seq, Code.CHECKPOINT_MISMATCH, stored.seq, members.get("seq"))

    # --- what vouches for it -----------------------------------------------------------------

    def _mac(self, row: StoredTransition, leaf: Leaf | None) -> None:
        """Check the code, and whether there has to be one: a time is what whoever writes it says.

        Times never run backwards in a chain, and what has its place in the log after an anchor is no older.
        """
        evidence = self._evidence
        self._coded = self._coded or (self._mac_from is not None and row.at >= self._mac_from)
        late = leaf is not None and evidence.coded_from is not None and leaf.place >= evidence.coded_from
        if row.mac is not None and row.mac_key is not None:
            wrong = flaw(row.mac, row.mac_key, row.hash, evidence.mac_keys, needed=True)
            if wrong is not None:
                self._found(row.seq, Code.MAC_INVALID, *wrong)
        elif self._coded or late:
            self._unsealed.append(row.seq)
            return
        if row.seq == self._imported_at:
            self._unsealed.clear()

    def _inside_mac(self, stored: StoredCheckpoint, *, listed: bool) -> None:
        """Check the code of a checkpoint inside a handler: until a transition lists it, nothing else vouches for it."""
        hash_ = inside_hash(self.workflow_id, stored.seq, stored.number, stored.commitment)
        last = stored.seq == self._expected_seq - 1
        needed = not listed and last and self._coded
        if (wrong := flaw(stored.mac, stored.mac_key, hash_, self._evidence.mac_keys, needed=needed)) is not None:
            self._found(stored.seq, Code.MAC_INVALID, *wrong)

    def _anchored(self, row: StoredTransition, leaf: Leaf | None) -> None:
        anchored = self._evidence.anchored
        if leaf is not None and leaf.hash != row.hash:
            self._found(row.seq, Code.LOG_INCONSISTENT, leaf.hash.hex(), row.hash.hex(), leaf.place)
        elif anchored is not None and (leaf is None or leaf.place >= anchored):
            self._unanchored.append((row.seq, None if leaf is None else leaf.place, row.at))

    # --- the end -----------------------------------------------------------------------------

    def close(
        self,
        workflow: StoredWorkflow | None,
        more: Sequence[StoredCheckpoint],
        *,
        removed: Removed = NOTHING_REMOVED,
        leaves: Mapping[int, Leaf] | None = None,
    ) -> list[Finding]:
        """Return all findings, once the last transition was seen.

        ``more`` are the checkpoints that no transition took for its own, ``leaves`` the places in the
        log of transitions that are not there. ``workflow`` is None where there is no such row.
        """
        end = self._expected_seq - 1
        self._settle_missing(removed)
        self._checkpoints_between(more, max(end, -1 if workflow is None else workflow.seq), removed)
        if self._foreign is not None:
            self._found(0, Code.PREV_MISMATCH, *self._foreign)
        for seq in self._unsealed:
            self._found(seq, Code.MAC_INVALID, "a code, as there is a key", None)
        self._settle_leaves(workflow, leaves or {}, end, removed)
        self._settle_unanchored()
        if workflow is not None:
            self._row(workflow, end)
        elif end >= 0:
            self._found(end, Code.MISSING_WORKFLOW, "the workflow's row", None)
        return self.findings

    def _settle_missing(self, removed: Removed) -> None:
        gone = _Span()
        for seq, committed in self._missing_payloads:
            if seq <= self._erased_through:
                gone.add(seq)
            else:
                self._found(seq, Code.PAYLOAD_MISMATCH, committed, None)
        self._tell(Code.PAYLOAD_ERASED, gone, "erased")
        pruned = _Span()
        for seq, committed in self._missing_checkpoints:
            # The first is never pruned: who starts the workflow again is compared with it.
            if seq <= self._erased_through or 0 < seq <= removed.pruned_through:
                pruned.add(seq)
            else:
                self._found(seq, Code.CHECKPOINT_MISMATCH, committed, None)
        self._tell(Code.CHECKPOINT_PRUNED, pruned, "removed")

    def _tell(self, code: Code, span: _Span, what: str) -> None:
        if span.count:
            self._found(span.first, code, f"seq {span.first} to {span.last}", f"{span.count} {what} on purpose")

    def _checkpoints_between(self, checkpoints: Sequence[StoredCheckpoint], end: int, removed: Removed) -> None:
        """Check the checkpoints beside the transitions' own: all that are there, and all that should be."""
        for stored in checkpoints:
            if stored.seq > end:
                self._found(stored.seq, Code.CHECKPOINT_MISMATCH, None, f"a checkpoint of transition {stored.seq}")
            elif stored.number:
                # The next transition lists it, if it is there already, and can be read.
                following = stored.seq + 1
                read = following < self._expected_seq and not any(following in span for span in self._unread)
                listed = stored.commitment.hex() in self._progress.get(stored.seq, ())
                if self._evidence.mac_keys:
                    self._inside_mac(stored, listed=listed)
                if read and not listed:
                    problem = "listed by the next transition"
                    self._found(stored.seq, Code.CHECKPOINT_MISMATCH, problem, "not listed")
                self._body(stored)
        self._listed(checkpoints, max(removed.pruned_through, self._erased_through))

    def _listed(self, checkpoints: Sequence[StoredCheckpoint], gone: int) -> None:
        """Check that what transitions list is there, in that order, but for what was removed up to ``gone``."""
        kept: dict[int, list[str]] = {}
        for stored in sorted(checkpoints, key=lambda stored: stored.number):
            if stored.number:
                kept.setdefault(stored.seq, []).append(stored.commitment.hex())
        for seq, commitments in self._progress.items():
            there = kept.get(seq, [])
            for commitment in commitments:
                if commitment not in there and seq > gone:
                    self._found(seq, Code.CHECKPOINT_MISMATCH, commitment, None)
            # The one with the highest number is what a handler goes on from.
            listed = [commitment for commitment in commitments if commitment in there]
            if listed != [commitment for commitment in there if commitment in commitments]:
                self._found(seq, Code.CHECKPOINT_MISMATCH, "in the order of the next transition's list", "in another")

    def _settle_leaves(
        self, workflow: StoredWorkflow | None, leaves: Mapping[int, Leaf], end: int, removed: Removed
    ) -> None:
        """Check what the log knows of and is not there."""
        purged = _Span()
        for seq, leaf in sorted(leaves.items()):
            if seq < removed.purged_through or (seq == removed.purged_through and leaf.hash == removed.purged_head):
                purged.add(seq)
            elif end < 0 and workflow is None:
                self._found(seq, Code.MISSING_WORKFLOW, leaf.hash.hex(), None, leaf.place)
            elif seq > end:
                self._found(seq, Code.TRUNCATED, leaf.hash.hex(), None, leaf.place)
            else:
                self._found(seq, Code.SEQ_GAP, leaf.hash.hex(), None, leaf.place)
        if purged.count:
            what = f"{purged.count} transitions purged on purpose"
            self._found(purged.last, Code.PURGED, f"seq {purged.first} to {purged.last}", what)

    def _settle_unanchored(self) -> None:
        young = []
        for seq, index, at in self._unanchored:
            if at < self._evidence.fresh_from:
                self._found(seq, Code.ANCHOR_STALE, "an anchor soon after it", f"none for what is of {at}", index)
            else:
                young.append((seq, index))
        if young:
            seq, index = young[0]
            self._found(seq, Code.UNANCHORED, "an anchor within a minute", f"{len(young)} without one yet", index)

    def _row(self, row: StoredWorkflow, end: int) -> None:
        """Check that the workflow's row is the fold of its transitions."""
        self._same(max(end, 0), Code.HEAD_MISMATCH, f"seq {end}", f"seq {row.seq}")
        self._same(max(end, 0), Code.HEAD_MISMATCH, self._prev.hex(), row.head.hex())
        last = self._last
        if last is None:
            return
        self._same(end, Code.ROW_STATE_MISMATCH, last.state, row.state)
        self._same(end, Code.ROW_STATE_MISMATCH, last.type, row.type)
        self._same(end, Code.ROW_STATE_MISMATCH, last.definition, row.definition)
        if self._version is not None and row.version is not None:
            self._same(end, Code.ROW_STATE_MISMATCH, f"version {self._version}", f"version {row.version}")
        allowed = _OPEN_STATUSES if self._status is None else {self._status}
        if row.status not in allowed:
            self._found(end, Code.ROW_STATE_MISMATCH, f"status {' or '.join(sorted(allowed))}", row.status)

    # --- finding -----------------------------------------------------------------------------

    def _found(self, seq: int | None, code: Code, expected: object, actual: object, index: int | None = None) -> None:
        self.findings.append(
            Finding(
                workflow_id=self.workflow_id,
                seq=seq,
                code=code,
                expected=None if expected is None else str(expected),
                actual=None if actual is None else str(actual),
                log_index=index,
            )
        )

    def _same(self, seq: int, code: Code, expected: object, actual: object) -> None:
        if expected != actual:
            self._found(seq, code, expected, actual)


@dataclass(kw_only=True, slots=True)
class _Last:
    """What the last readable envelope says of where the workflow is."""

    type: Json
    definition: Json
    state: Json
    type_quoted: str
    definition_quoted: str

    @classmethod
    def of(cls, envelope: Mapping[str, Json]) -> _Last:
        kind, definition = envelope.get("type"), envelope.get("def")
        return cls(
            type=kind,
            definition=definition,
            state=envelope.get("to"),
            # Where they are no texts, nothing will ever fit what is made of these.
            type_quoted=_quoted(kind) if isinstance(kind, str) else "",
            definition_quoted=_quoted(definition) if isinstance(definition, str) else "",
        )


@dataclass(slots=True)
class _Span:
    """The first, the last and the number of the seqs that something is true of."""

    first: int = -1
    last: int = -1
    count: int = 0

    def add(self, seq: int) -> None:
        self.first, self.last, self.count = self.first if self.count else seq, seq, self.count + 1


def _progress_in(payload: Json) -> tuple[str, ...]:
    """Return the commitments of the checkpoints between the transition before and this one."""
    listed = payload.get("progress") if isinstance(payload, dict) else None
    return tuple(item for item in listed if isinstance(item, str)) if isinstance(listed, list) else ()


def _is(found: Json, wanted: Json) -> bool:
    """Whether both are the same JSON value: to Python, ``True == 1`` and ``1 == 1.0``."""
    return type(found) is type(wanted) and found == wanted


@lru_cache(maxsize=4096)
def _quoted(text: str | None) -> str:
    return json.dumps(text, ensure_ascii=False)


def _columns(row: StoredTransition) -> dict[str, Json]:
    """Return the columns for searching under the names that they have in the envelope."""
    return {
        "seq": row.seq,
        "event": row.event,
        "from": row.from_state,
        "to": row.to_state,
        "actor": row.actor,
        "attempt": row.attempt,
        "at": row.at,
    }
