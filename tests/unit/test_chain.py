"""The hash chain: the format to the byte, and every edit of a history found at its transition."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import pytest

from aegis.core.canonical import Json, canonical
from aegis.core.chain import (
    ENGINE_EVENTS,
    Envelope,
    Link,
    Step,
    checkpoint_body,
    checkpoint_commitment,
    genesis,
    hash_of,
    link,
    payload_commitment,
    timestamp,
    transition_hash,
)
from aegis.core.errors import NotCanonical
from aegis.core.finding import Code, Finding
from aegis.core.verify import Audit, Evidence, StoredCheckpoint, StoredTransition, StoredWorkflow

DEPLOYMENT: Final = "aegis.example/prod"
WORKFLOW: Final = "018f6d1e-7b6a-7c3e-9a10-3f3b2c1d0e9f"
DEFINITION: Final = "sha256:" + "ab" * 32
GENESIS: Final = "e459c0d1124eaa37d3584dcaf6bdefe8399f862a7a3bd58c16c871a52a4f939d"
TRANSITIONS: Final = [
    "e12d15bf467980026480845f908fdb720e38baf1a22f3861137985620163f8b3",
    "18d23815557fdc3cc9e065f0695ac6f8c373932d1085e9a17c00188e1ef04166",
]
MAX_BYTES: Final = 256 * 1024


def replace(record: Any, **changes: Any) -> Any:
    """Return the record with other values: stored rows are named tuples, everything else is a dataclass."""
    return record._replace(**changes) if isinstance(record, tuple) else dataclasses.replace(record, **changes)


def verify(
    workflow: StoredWorkflow,
    transitions: Iterable[StoredTransition],
    checkpoints: Sequence[StoredCheckpoint],
    *,
    deployment: str,
) -> list[Finding]:
    """Return everything that is wrong with one history by itself; nothing means intact.

    ``transitions`` come ordered by seq. Verification goes on after the first break, from the
    stored hash, so that each broken transition is named and no intact one.
    """
    audit = Audit(workflow.workflow_id, Evidence(deployment=deployment))
    own = {stored.seq: stored for stored in checkpoints if stored.number == 0}
    taken = set()
    for row in transitions:
        audit.transition(row, own.get(row.seq), None)
        taken.add(row.seq)
    return audit.close(workflow, [stored for stored in checkpoints if stored.number or stored.seq not in taken])


# --- the fixed vectors of the format ------------------------------------------------------


def salt_of(seq: int, kind: str) -> bytes:
    return hashlib.sha256(f"{WORKFLOW}{seq}{kind}".encode()).digest()


def vector_step(seq: int) -> Step:
    return Step(
        workflow_id=WORKFLOW,
        seq=seq,
        type="order",
        definition=DEFINITION,
        event="advance" if seq else "created",
        from_state=f"s{seq - 1}" if seq else None,
        to_state=f"s{seq}",
        actor="svc:worker",
        attempt=1,
        at=datetime(2026, 11, 22, 10, 11, 12, seq, tzinfo=UTC),
        state={"total": 10 * seq},
        payload={"amount": f"10.0{seq}", "note": "päy €"},
    )


def vector_link(seq: int, prev: bytes) -> Link:
    return link(vector_step(seq), prev, salts=(salt_of(seq, "s"), salt_of(seq, "p")), max_bytes=MAX_BYTES)


def test_the_genesis_is_that_of_the_format() -> None:
    assert genesis(DEPLOYMENT, WORKFLOW).hex() == GENESIS


def test_the_first_two_transitions_have_the_hashes_of_the_format() -> None:
    first = vector_link(0, bytes.fromhex(GENESIS))
    second = vector_link(1, first.hash)
    assert [first.hash.hex(), second.hash.hex()] == TRANSITIONS


def test_every_kind_of_hash_is_sha_256_under_its_own_tag() -> None:
    def tagged(tag: bytes, content: bytes) -> bytes:
        return hashlib.sha256(tag + content).digest()

    ids = b'{"deployment":"d","workflow_id":"w"}'
    assert genesis("d", "w") == tagged(b"aegis/genesis/v1\n", ids)
    assert payload_commitment(b"salt", b"body") == tagged(b"aegis/payload/v1\n", b"saltbody")
    assert checkpoint_commitment(b"salt", b"body") == tagged(b"aegis/checkpoint/v1\n", b"saltbody")
    assert transition_hash(b"envelope") == tagged(b"aegis/transition/v1\n", b"envelope")
    assert hash_of("any", b"a", b"b", b"c") == tagged(b"aegis/any/v1\n", b"abc")


def test_a_checkpoint_says_whose_it_is_and_where() -> None:
    assert checkpoint_body("w", 3, {"b": 1, "a": "é"}, max_bytes=100) == (
        '{"seq":3,"state":{"a":"é","b":1},"workflow_id":"w"}'.encode()
    )


def test_an_envelope_is_these_bytes() -> None:
    made = vector_link(1, bytes.fromhex(TRANSITIONS[0]))
    payload = '{"amount":"10.01","note":"päy €"}'.encode()
    checkpoint = f'{{"seq":1,"state":{{"total":10}},"workflow_id":"{WORKFLOW}"}}'.encode()
    payload_hash = hashlib.sha256(b"aegis/payload/v1\n" + salt_of(1, "p") + payload).hexdigest()
    checkpoint_hash = hashlib.sha256(b"aegis/checkpoint/v1\n" + salt_of(1, "s") + checkpoint).hexdigest()
    assert made.body.decode() == (
        f'{{"actor":"svc:worker","alg":"sha256","at":"2026-11-22T10:11:12.000001Z","attempt":1,'
        f'"checkpoint":"{checkpoint_hash}","def":"{DEFINITION}","event":"advance","from":"s0",'
        f'"payload":"{payload_hash}","prev":"{TRANSITIONS[0]}","seq":1,"to":"s1","type":"order","v":1,'
        f'"wf":"{WORKFLOW}"}}'
    )
    assert made.envelope.to_bytes() == made.body
    assert (made.payload, made.checkpoint) == (payload, checkpoint)
    assert (made.payload_salt, made.checkpoint_salt) == (salt_of(1, "p"), salt_of(1, "s"))


def test_a_transition_without_payload_commits_to_none() -> None:
    made = link(replace(vector_step(0), payload=None), b"\0" * 32, salts=(b"s" * 32, b"p" * 32), max_bytes=MAX_BYTES)
    assert json.loads(made.body)["payload"] is None
    assert (made.payload, made.payload_salt) == (None, None)


@pytest.mark.parametrize("empty", [{}, [], "", 0, False])
def test_an_empty_payload_is_a_payload(empty: Json) -> None:
    made = link(replace(vector_step(0), payload=empty), b"\0" * 32, salts=(b"s" * 32, b"p" * 32), max_bytes=MAX_BYTES)
    assert made.payload == canonical(empty)
    assert json.loads(made.body)["payload"] == payload_commitment(b"p" * 32, canonical(empty)).hex()


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"state": {"total": float("nan")}}, "/state/total"),
        ({"payload": {"amount": 2**53}}, "/amount"),
        ({"state": {"text": "x" * 1000}}, ""),
    ],
)
def test_what_cannot_be_hashed_is_not_linked(changed: dict[str, Any], pointer: str) -> None:
    with pytest.raises(NotCanonical) as refused:
        link(replace(vector_step(0), **changed), b"\0" * 32, salts=(b"s" * 32, b"p" * 32), max_bytes=1000)
    assert refused.value.pointer == pointer


def test_a_payload_that_was_let_in_is_linked_whatever_the_limit_is_by_now() -> None:
    made = link(replace(vector_step(0), payload="x" * 1000), b"\0" * 32, salts=(b"s" * 32, b"p" * 32), max_bytes=1000)
    assert made.payload == canonical("x" * 1000)


def test_the_limit_of_documents_does_not_touch_envelopes() -> None:
    step = replace(vector_step(0), actor="user:" + "x" * 200, payload=None)
    made = link(step, b"\0" * 32, salts=(b"s" * 32, b"p" * 32), max_bytes=100)
    assert len(made.body) > 100


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2026, 11, 22, 10, 11, 12, 0, tzinfo=UTC), "2026-11-22T10:11:12.000000Z"),
        (datetime(2026, 11, 22, 10, 11, 12, 7, tzinfo=UTC), "2026-11-22T10:11:12.000007Z"),
        (datetime(2026, 11, 22, 10, 11, 12, 999_999, tzinfo=UTC), "2026-11-22T10:11:12.999999Z"),
        (datetime(2026, 11, 22, 10, 11, 12, 120_000, tzinfo=UTC), "2026-11-22T10:11:12.120000Z"),
        (datetime(2027, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))), "2026-12-31T23:30:00.000000Z"),
        (datetime(2026, 12, 31, 20, tzinfo=timezone(-timedelta(hours=5, minutes=30))), "2027-01-01T01:30:00.000000Z"),
    ],
)
def test_a_timestamp_is_utc_with_exactly_six_decimals(moment: datetime, written: str) -> None:
    assert timestamp(moment) == written


# --- an intact history ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class History:
    """One workflow as the database holds it; the methods give an edited one."""

    row: StoredWorkflow
    transitions: tuple[StoredTransition, ...]
    checkpoints: tuple[StoredCheckpoint, ...]

    def findings(self, deployment: str = DEPLOYMENT) -> list[Finding]:
        return verify(self.row, self.transitions, self.checkpoints, deployment=deployment)

    def with_row(self, **changes: Any) -> History:
        return replace(self, row=replace(self.row, **changes))

    def with_transition(self, seq: int, /, **changes: Any) -> History:
        edited = [replace(t, **changes) if t.seq == seq else t for t in self.transitions]
        return replace(self, transitions=tuple(sorted(edited, key=lambda t: t.seq)))

    def with_transitions(self, seqs: Sequence[int]) -> History:
        """Keep these, in this order."""
        return replace(self, transitions=tuple(self.transition(seq) for seq in seqs))

    def with_checkpoint(self, place: tuple[int, int], **changes: Any) -> History:
        edited = [replace(c, **changes) if (c.seq, c.number) == place else c for c in self.checkpoints]
        return replace(self, checkpoints=tuple(edited))

    def with_more(self, checkpoint: StoredCheckpoint) -> History:
        return replace(self, checkpoints=(*self.checkpoints, checkpoint))

    def without_checkpoint(self, place: tuple[int, int]) -> History:
        return replace(self, checkpoints=tuple(c for c in self.checkpoints if (c.seq, c.number) != place))

    def transition(self, seq: int) -> StoredTransition:
        return next(t for t in self.transitions if t.seq == seq)

    def checkpoint(self, place: tuple[int, int]) -> StoredCheckpoint:
        return next(c for c in self.checkpoints if (c.seq, c.number) == place)

    def with_member(self, seq: int, name: str, value: Json, *, rehashed: bool) -> History:
        """Change one member of an envelope, and its row's hash with it or not."""
        members = json.loads(self.transition(seq).envelope) | {name: value}
        return self.with_envelope(seq, canonical(members), rehashed=rehashed)

    def with_envelope(self, seq: int, body: bytes, *, rehashed: bool) -> History:
        hashed = transition_hash(body) if rehashed else self.transition(seq).hash
        return self.with_transition(seq, envelope=body, hash=hashed)


def stored_checkpoint(workflow_id: str, seq: int, number: int, state: Json) -> StoredCheckpoint:
    salt = hashlib.sha256(f"{workflow_id}/{seq}/{number}".encode()).digest()
    body = checkpoint_body(workflow_id, seq, state, max_bytes=MAX_BYTES)
    commitment = checkpoint_commitment(salt, body)
    return StoredCheckpoint(
        workflow_id=workflow_id, seq=seq, number=number, body=body, salt=salt, commitment=commitment
    )


def stored_transition(made: Link) -> StoredTransition:
    envelope = made.envelope
    return StoredTransition(
        workflow_id=envelope.workflow_id,
        seq=envelope.seq,
        event=envelope.event,
        from_state=envelope.from_state,
        to_state=envelope.to_state,
        actor=envelope.actor,
        attempt=envelope.attempt,
        at=timestamp(envelope.at),
        envelope=made.body,
        hash=made.hash,
        payload=made.payload,
        payload_salt=made.payload_salt,
    )


def history(
    workflow_id: str = WORKFLOW, *, length: int = 6, last_event: str = "advance", status: str = "waiting"
) -> History:
    """Return transitions 0 to 5: with payloads but at 4, and two checkpoints inside the handler of 3.

    Transition 5 is under way to the next: its handler has taken one checkpoint, which nothing lists yet.
    """
    inside = [stored_checkpoint(workflow_id, 2, number, {"done": number}) for number in (1, 2)]
    payloads: dict[int, Json] = {
        0: {"input": "päy €"},
        1: {"data": {"amount": "10.01"}, "key": "mail-1", "sender": "user:ada"},
        2: {"data": [1, 2.5, None]},
        3: {"data": None, "progress": [checkpoint.commitment.hex() for checkpoint in inside]},
        4: None,
        5: {"data": 5},
    }
    checkpoints = list(inside) if length > 2 else []
    transitions: list[StoredTransition] = []
    prev = genesis(DEPLOYMENT, workflow_id)
    for seq in range(length):
        made = link(
            replace(
                vector_step(seq),
                workflow_id=workflow_id,
                payload=payloads[seq],
                event=last_event if seq == length - 1 else vector_step(seq).event,
                attempt=1 + seq % 2,
            ),
            prev,
            salts=(salt_of(seq, "s"), salt_of(seq, "p")),
            max_bytes=MAX_BYTES,
        )
        transitions.append(stored_transition(made))
        checkpoints.append(
            StoredCheckpoint(
                workflow_id=workflow_id,
                seq=seq,
                number=0,
                body=made.checkpoint,
                salt=made.checkpoint_salt,
                commitment=made.envelope.checkpoint,
            )
        )
        prev = made.hash
    checkpoints.append(stored_checkpoint(workflow_id, length - 1, 1, {"done": "half"}))
    row = StoredWorkflow(
        workflow_id=workflow_id,
        type="order",
        definition=DEFINITION,
        state=f"s{length - 1}",
        status=status,
        seq=length - 1,
        head=prev,
    )
    return History(row=row, transitions=tuple(transitions), checkpoints=tuple(checkpoints))


def named(findings: Sequence[Finding]) -> set[tuple[Code, int | None]]:
    return {(finding.code, finding.seq) for finding in findings}


def test_an_intact_history_has_no_findings() -> None:
    assert history().findings() == []
    assert len(history().transitions) == 6
    assert sum(1 for checkpoint in history().checkpoints if checkpoint.number) == 3


def test_a_workflow_that_was_only_just_created_has_no_findings() -> None:
    assert history(length=1, last_event="created").findings() == []


def test_the_order_of_checkpoints_does_not_matter() -> None:
    intact = history()
    assert replace(intact, checkpoints=intact.checkpoints[::-1]).findings() == []


@pytest.mark.parametrize("status", ["pending", "waiting", "completed"])
def test_after_a_transition_of_its_own_a_workflow_may_have_any_open_status(status: str) -> None:
    assert history(status=status).findings() == []


@pytest.mark.parametrize(("event", "status"), [(e, s) for e, s in ENGINE_EVENTS.items() if s is not None])
def test_after_an_event_of_the_engine_the_row_has_the_status_that_it_leaves(event: str, status: str) -> None:
    assert history(last_event=event, status=status).findings() == []
    for other in {"pending", "completed", "paused", "failed", "cancelled", "quarantined"} - {status}:
        assert named(history(last_event=event, status=other).findings()) == {(Code.ROW_STATE_MISMATCH, 5)}


# --- edits --------------------------------------------------------------------------------------

Edit = Callable[[History], History]
Expected = set[tuple[Code, int | None]]
OTHER: Final = b"\x07" * 32
OTHER_HEX: Final = OTHER.hex()
LATER: Final = datetime(2027, 1, 1, tzinfo=UTC)

HASH, PREV, HEAD = Code.HASH_MISMATCH, Code.PREV_MISMATCH, Code.HEAD_MISMATCH
GAP, TWICE, ROW = Code.SEQ_GAP, Code.SEQ_DUPLICATE, Code.ROW_STATE_MISMATCH
PAYLOAD, CHECKPOINT = Code.PAYLOAD_MISMATCH, Code.CHECKPOINT_MISMATCH
NON_CANONICAL, WRONG, VERSION = Code.NON_CANONICAL, Code.WRONG_WORKFLOW, Code.UNKNOWN_VERSION


def body_of(seq: int, state: Json, workflow_id: str = WORKFLOW) -> bytes:
    return checkpoint_body(workflow_id, seq, state, max_bytes=MAX_BYTES)


def rewritten(place: tuple[int, int], body: bytes) -> Edit:
    """Change a checkpoint together with its own commitment."""
    return lambda h: h.with_checkpoint(
        place, body=body, commitment=checkpoint_commitment(h.checkpoint(place).salt, body)
    )


def swapped_checkpoints(one: int, other: int) -> Edit:
    def edit(h: History) -> History:
        first, second = h.checkpoint((one, 0)), h.checkpoint((other, 0))
        return (
            h.without_checkpoint((one, 0))
            .without_checkpoint((other, 0))
            .with_more(replace(first, seq=other))
            .with_more(replace(second, seq=one))
        )

    return edit


def swapped_payloads(one: int, other: int) -> Edit:
    def edit(h: History) -> History:
        first, second = h.transition(one), h.transition(other)
        return h.with_transition(one, payload=second.payload, payload_salt=second.payload_salt).with_transition(
            other, payload=first.payload, payload_salt=first.payload_salt
        )

    return edit


def swapped_transitions(one: int, other: int) -> Edit:
    def edit(h: History) -> History:
        first, second = h.transition(one), h.transition(other)
        kept = [t for t in h.transitions if t.seq not in {one, other}]
        moved = [replace(first, seq=other), replace(second, seq=one)]
        return replace(h, transitions=tuple(sorted([*kept, *moved], key=lambda t: t.seq)))

    return edit


# The columns for searching, and what somebody with write access might put there.
COLUMNS: Final[dict[str, Any]] = {
    "event": "refund",
    "from_state": "s9",
    "to_state": "s9",
    "actor": "user:mallory",
    "attempt": 9,
    "at": timestamp(LATER),
}
# The members of an envelope, what might be put there, and what that contradicts beside the hash.
MEMBERS: Final[dict[str, tuple[Json, Expected]]] = {
    "v": (2, {(VERSION, 3)}),
    "alg": ("md5", {(VERSION, 3)}),
    "wf": ("another", {(WRONG, 3)}),
    "seq": (9, {(HASH, 3)}),
    "type": ("invoice", set()),
    "def": ("sha256:" + "cd" * 32, set()),
    "event": ("refund", {(HASH, 3)}),
    "from": ("s9", {(HASH, 3)}),
    "to": ("s9", {(HASH, 3)}),
    "actor": ("user:mallory", {(HASH, 3)}),
    "attempt": (9, {(HASH, 3)}),
    "at": ("2027-01-01T00:00:00.000000Z", {(HASH, 3)}),
    "payload": (OTHER_HEX, {(PAYLOAD, 3)}),
    "checkpoint": (OTHER_HEX, {(CHECKPOINT, 3)}),
}

EDITS: Final[dict[str, tuple[Edit, Expected]]] = {
    # a column
    **{
        f"column {name} of {seq}": (lambda h, s=seq, n=name, v=value: h.with_transition(s, **{n: v}), {(HASH, seq)})
        for name, value in COLUMNS.items()
        for seq in (0, 3, 5)
    },
    "column from_state of 3 emptied": (lambda h: h.with_transition(3, from_state=None), {(HASH, 3)}),
    "column at of 3 by a microsecond": (
        lambda h: h.with_transition(3, at=h.transition(3).at.replace("000003Z", "000004Z")),
        {(HASH, 3)},
    ),
    "column hash of the first": (lambda h: h.with_transition(0, hash=OTHER), {(HASH, 0), (PREV, 0)}),
    "column hash of 3": (lambda h: h.with_transition(3, hash=OTHER), {(HASH, 3), (PREV, 3)}),
    "column hash of the last": (lambda h: h.with_transition(5, hash=OTHER), {(HASH, 5), (HEAD, 5)}),
    # an envelope, its row's hash left as it was
    **{
        f"member {name}": (
            lambda h, n=name, v=value: h.with_member(3, n, v, rehashed=False),
            {(HASH, 3), *contradicted},
        )
        for name, (value, contradicted) in MEMBERS.items()
    },
    "member prev": (lambda h: h.with_member(3, "prev", OTHER_HEX, rehashed=False), {(HASH, 3), (PREV, 3)}),
    "member prev of the first": (lambda h: h.with_member(0, "prev", "00" * 32, rehashed=False), {(HASH, 0), (PREV, 0)}),
    "member to, and its column": (
        lambda h: h.with_member(3, "to", "s9", rehashed=False).with_transition(3, to_state="s9"),
        {(HASH, 3)},
    ),
    "a member more": (lambda h: h.with_member(3, "note", "x", rehashed=False), {(HASH, 3)}),
    # an envelope and its row's hash: the next transition still holds the old one
    **{
        f"member {name}, rehashed": (
            lambda h, n=name, v=value: h.with_member(3, n, v, rehashed=True),
            {(PREV, 3), *contradicted},
        )
        for name, (value, contradicted) in MEMBERS.items()
    },
    "member to, and its column, rehashed": (
        lambda h: h.with_member(3, "to", "s9", rehashed=True).with_transition(3, to_state="s9"),
        {(PREV, 3)},
    ),
    "a member more, rehashed": (lambda h: h.with_member(3, "note", "x", rehashed=True), {(PREV, 3)}),
    "member actor and column of the first, rehashed": (
        lambda h: h.with_member(0, "actor", "user:eve", rehashed=True).with_transition(0, actor="user:eve"),
        {(PREV, 0)},
    ),
    "member prev of the first, rehashed": (
        lambda h: h.with_member(0, "prev", "00" * 32, rehashed=True),
        {(PREV, 0)},
    ),
    "member actor and column of the last, rehashed": (
        lambda h: h.with_member(5, "actor", "user:eve", rehashed=True).with_transition(5, actor="user:eve"),
        {(HEAD, 5)},
    ),
    "members of 1 and 4, rehashed": (
        lambda h: h.with_member(1, "type", "x", rehashed=True).with_member(4, "type", "x", rehashed=True),
        {(PREV, 1), (PREV, 4)},
    ),
    "the commitment to a payload in upper case": (
        lambda h: h.with_member(1, "payload", json.loads(h.transition(1).envelope)["payload"].upper(), rehashed=True),
        {(PAYLOAD, 1), (PREV, 1)},
    ),
    "the commitment to a checkpoint in upper case": (
        lambda h: h.with_member(
            1, "checkpoint", json.loads(h.transition(1).envelope)["checkpoint"].upper(), rehashed=True
        ),
        {(CHECKPOINT, 1), (PREV, 1)},
    ),
    "the commitment to a checkpoint taken out with it": (
        lambda h: h.with_member(1, "checkpoint", None, rehashed=True).without_checkpoint((1, 0)),
        {(CHECKPOINT, 1), (PREV, 1)},
    ),
    # bytes that are not canonical
    "blanks in an envelope": (
        lambda h: h.with_envelope(3, h.transition(3).envelope.replace(b":", b": "), rehashed=False),
        {(HASH, 3), (NON_CANONICAL, 3)},
    ),
    "blanks in an envelope, rehashed": (
        lambda h: h.with_envelope(3, h.transition(3).envelope.replace(b":", b": "), rehashed=True),
        {(PREV, 3), (NON_CANONICAL, 3)},
    ),
    "1 becomes 1.0": (
        lambda h: h.with_envelope(2, h.transition(2).envelope.replace(b'"v":1', b'"v":1.0'), rehashed=True),
        {(PREV, 2), (NON_CANONICAL, 2)},
    ),
    "a member stands twice": (
        lambda h: h.with_envelope(2, h.transition(2).envelope.replace(b'"wf"', b'"v":1,"wf"'), rehashed=True),
        {(PREV, 2), (NON_CANONICAL, 2)},
    ),
    "an envelope cut short": (
        lambda h: h.with_envelope(1, h.transition(1).envelope[:-1], rehashed=False),
        {(HASH, 1), (NON_CANONICAL, 1)},
    ),
    "an envelope that is not UTF-8": (
        lambda h: h.with_envelope(1, b"\xff\xfe", rehashed=False),
        {(HASH, 1), (NON_CANONICAL, 1)},
    ),
    "an empty envelope": (lambda h: h.with_envelope(1, b"", rehashed=False), {(HASH, 1), (NON_CANONICAL, 1)}),
    "an envelope that is no object": (
        lambda h: h.with_envelope(1, b"[]", rehashed=False),
        {(HASH, 1), (VERSION, 1)},
    ),
    # transitions taken out, doubled, moved
    "the first dropped": (lambda h: h.with_transitions([1, 2, 3, 4, 5]), {(GAP, 0)}),
    "one in the middle dropped": (lambda h: h.with_transitions([0, 1, 3, 4, 5]), {(GAP, 2)}),
    "two in a row dropped": (lambda h: h.with_transitions([0, 1, 4, 5]), {(GAP, 2)}),
    "two apart dropped": (lambda h: h.with_transitions([0, 2, 3, 5]), {(GAP, 1), (GAP, 4)}),
    "the last dropped": (lambda h: h.with_transitions([0, 1, 2, 3, 4]), {(HEAD, 4), (ROW, 4)}),
    "all dropped": (lambda h: h.with_transitions([]), {(HEAD, 0)}),
    "one doubled": (lambda h: h.with_transitions([0, 1, 2, 3, 3, 4, 5]), {(TWICE, 3)}),
    "the first doubled": (lambda h: h.with_transitions([0, 0, 1, 2, 3, 4, 5]), {(TWICE, 0)}),
    "the last doubled": (lambda h: h.with_transitions([0, 1, 2, 3, 4, 5, 5]), {(TWICE, 5)}),
    # payloads
    "a payload changed": (
        lambda h: h.with_transition(1, payload=b'{"data":{"amount":"99.99"}}'),
        {(PAYLOAD, 1)},
    ),
    "a payload's salt changed": (lambda h: h.with_transition(1, payload_salt=OTHER), {(PAYLOAD, 1)}),
    "a payload taken out": (lambda h: h.with_transition(1, payload=None, payload_salt=None), {(PAYLOAD, 1)}),
    "a payload taken out, its salt left": (lambda h: h.with_transition(1, payload=None), {(PAYLOAD, 1)}),
    "a payload's salt taken out": (lambda h: h.with_transition(1, payload_salt=None), {(PAYLOAD, 1)}),
    "a payload put in": (lambda h: h.with_transition(4, payload=b"{}", payload_salt=OTHER), {(PAYLOAD, 4)}),
    "two payloads swapped": (swapped_payloads(1, 2), {(PAYLOAD, 1), (PAYLOAD, 2)}),
    "a blank more in a payload": (
        lambda h: h.with_transition(1, payload=(h.transition(1).payload or b"") + b" "),
        {(PAYLOAD, 1)},
    ),
    # checkpoints of transitions
    "a checkpoint's body changed": (
        lambda h: h.with_checkpoint((2, 0), body=body_of(2, {"total": 99})),
        {(CHECKPOINT, 2)},
    ),
    "a checkpoint's body and commitment changed": (rewritten((2, 0), body_of(2, {"total": 99})), {(CHECKPOINT, 2)}),
    "a checkpoint's salt changed": (lambda h: h.with_checkpoint((2, 0), salt=OTHER), {(CHECKPOINT, 2)}),
    "a checkpoint's commitment changed": (lambda h: h.with_checkpoint((2, 0), commitment=OTHER), {(CHECKPOINT, 2)}),
    "a checkpoint dropped": (lambda h: h.without_checkpoint((2, 0)), {(CHECKPOINT, 2)}),
    "two checkpoints swapped": (swapped_checkpoints(1, 4), {(CHECKPOINT, 1), (CHECKPOINT, 4)}),
    "a checkpoint of another workflow": (
        rewritten((2, 0), body_of(2, {"total": 20}, "another")),
        {(CHECKPOINT, 2), (WRONG, 2)},
    ),
    "blanks in a checkpoint": (
        lambda h: rewritten((2, 0), h.checkpoint((2, 0)).body.replace(b":", b": "))(h),
        {(CHECKPOINT, 2), (NON_CANONICAL, 2)},
    ),
    "a checkpoint that is no object": (rewritten((2, 0), b"[]"), {(CHECKPOINT, 2), (NON_CANONICAL, 2)}),
    "a checkpoint that is not JSON": (rewritten((2, 0), b"\xff"), {(CHECKPOINT, 2), (NON_CANONICAL, 2)}),
    "a transition's checkpoint renumbered": (lambda h: h.with_checkpoint((4, 0), number=1), {(CHECKPOINT, 4)}),
    # checkpoints inside a handler
    "a progress checkpoint put in": (
        lambda h: h.with_more(stored_checkpoint(WORKFLOW, 2, 3, {"done": 3})),
        {(CHECKPOINT, 2)},
    ),
    "a progress checkpoint put in where there were none": (
        lambda h: h.with_more(stored_checkpoint(WORKFLOW, 0, 1, {"done": 3})),
        {(CHECKPOINT, 0)},
    ),
    "a progress checkpoint's body changed": (
        lambda h: h.with_checkpoint((2, 1), body=body_of(2, {"done": 9})),
        {(CHECKPOINT, 2)},
    ),
    "a progress checkpoint's body and commitment changed": (
        rewritten((2, 1), body_of(2, {"done": 9})),
        {(CHECKPOINT, 2)},
    ),
    "a progress checkpoint's salt changed": (lambda h: h.with_checkpoint((2, 2), salt=OTHER), {(CHECKPOINT, 2)}),
    "a progress checkpoint's commitment changed": (
        lambda h: h.with_checkpoint((2, 2), commitment=OTHER),
        {(CHECKPOINT, 2)},
    ),
    "a progress checkpoint moved to another transition": (
        lambda h: h.with_checkpoint((2, 1), seq=1),
        {(CHECKPOINT, 1), (CHECKPOINT, 2)},
    ),
    "a progress checkpoint is missing": (
        lambda h: h.without_checkpoint((2, 1)),
        {(CHECKPOINT, 2)},
    ),
    "a progress checkpoint of another workflow": (
        rewritten((2, 1), body_of(2, {"done": 1}, "another")),
        {(CHECKPOINT, 2), (WRONG, 2)},
    ),
    "a progress checkpoint that is not listed yet, body changed": (
        lambda h: h.with_checkpoint((5, 1), body=body_of(5, {"done": "all"})),
        {(CHECKPOINT, 5)},
    ),
    "a progress checkpoint that is not listed yet, of another seq": (
        rewritten((5, 1), body_of(4, {"done": "half"})),
        {(CHECKPOINT, 5)},
    ),
    "a progress checkpoint that is not listed yet, of another workflow": (
        rewritten((5, 1), body_of(5, {"done": "half"}, "another")),
        {(WRONG, 5)},
    ),
    "a progress checkpoint that is not listed yet, with blanks": (
        lambda h: rewritten((5, 1), h.checkpoint((5, 1)).body.replace(b":", b": "))(h),
        {(NON_CANONICAL, 5)},
    ),
    # the workflow's row
    "row head": (lambda h: h.with_row(head=OTHER), {(HEAD, 5)}),
    "row head put back": (lambda h: h.with_row(head=h.transition(4).hash), {(HEAD, 5)}),
    "row seq put back": (lambda h: h.with_row(seq=4), {(HEAD, 5)}),
    "row seq ahead": (lambda h: h.with_row(seq=6), {(HEAD, 5)}),
    "row state": (lambda h: h.with_row(state="s4"), {(ROW, 5)}),
    "row type": (lambda h: h.with_row(type="invoice"), {(ROW, 5)}),
    "row definition": (lambda h: h.with_row(definition="sha256:" + "cd" * 32), {(ROW, 5)}),
    **{
        f"row status {status}": (lambda h, s=status: h.with_row(status=s), {(ROW, 5)})
        for status in ("paused", "failed", "cancelled", "quarantined", "", "WAITING")
    },
    "the tail cut off and the row mended, but for its state": (
        lambda h: h.with_transitions([0, 1, 2, 3]).with_row(seq=3, head=h.transition(3).hash),
        {(ROW, 3), (CHECKPOINT, 4), (CHECKPOINT, 5)},
    ),
    "the row's id": (
        lambda h: h.with_row(workflow_id="another"),
        {(PREV, 0), *((WRONG, seq) for seq in range(6))},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found_at_its_transition_and_nowhere_else(name: str) -> None:
    edit, expected = EDITS[name]
    edited = edit(history())
    assert edited != history(), "the edit must change something"
    assert named(edited.findings()) == expected


@pytest.mark.parametrize("rehashed", [False, True])
def test_every_member_of_an_envelope_is_in_the_table_of_edits(*, rehashed: bool) -> None:
    members = set(json.loads(history().transition(3).envelope))
    edited = {name for name in members if f"member {name}" + (", rehashed" if rehashed else "") in EDITS}
    # A changed and rehashed prev is looked at below: two transitions then contradict each other.
    assert members - edited == ({"prev"} if rehashed else set())


def test_every_stored_column_is_in_the_table_of_edits_or_exempt() -> None:
    # A history is fetched by its workflow's id, and the hashed id is the envelope's.
    exempt = {"workflow_id"}
    looked_at_otherwise = {"seq", "envelope", "hash", "payload", "payload_salt", "mac", "mac_key"}
    assert set(StoredTransition._fields) == set(COLUMNS) | looked_at_otherwise | exempt


def test_a_rehashed_link_to_nowhere_is_found() -> None:
    edited = history().with_member(3, "prev", OTHER_HEX, rehashed=True)
    assert (PREV, 3) in named(edited.findings())


def test_a_column_seq_that_was_changed_is_a_gap_and_names_the_moved_row() -> None:
    found = named(history().with_transition(3, seq=7).findings())
    assert {(GAP, 3), (HASH, 7), (HEAD, 7)} <= found
    assert {seq for _, seq in found} == {3, 6, 7}, "the transitions that were left alone are not accused"


def test_transitions_that_changed_places_are_both_found() -> None:
    found = named(swapped_transitions(2, 3)(history()).findings())
    assert {(HASH, 2), (HASH, 3)} <= found


def test_another_deployment_is_another_genesis() -> None:
    assert named(history().findings("aegis.example/test")) == {(PREV, 0)}


def test_the_history_of_another_workflow_does_not_pass_for_this_one() -> None:
    ours, theirs = history(), history("w-2")
    swapped = replace(ours, transitions=theirs.transitions, checkpoints=theirs.checkpoints)
    found = named(swapped.findings())
    assert {(PREV, 0), (HEAD, 5), *((WRONG, seq) for seq in range(6))} <= found


def test_verification_goes_on_after_the_first_break() -> None:
    edited = (
        history()
        .with_transition(1, actor="user:mallory")
        .with_transition(4, hash=OTHER)
        .with_checkpoint((2, 0), salt=OTHER)
        .with_row(state="s1")
    )
    assert named(edited.findings()) == {(HASH, 1), (CHECKPOINT, 2), (HASH, 4), (PREV, 4), (ROW, 5)}


def test_a_finding_says_what_was_expected_and_what_is_there() -> None:
    [found] = history().with_transition(3, actor="user:mallory").findings()
    assert found == Finding(
        workflow_id=WORKFLOW,
        seq=3,
        code=Code.HASH_MISMATCH,
        expected="actor 'svc:worker'",
        actual="actor 'user:mallory'",
    )
    line = str(found)
    assert [part for part in (WORKFLOW, "3", "HASH_MISMATCH", "svc:worker", "user:mallory") if part not in line] == []
    assert len(line.splitlines()) == 1


# --- edits by somebody who has read the verifier ----------------------------------------------


def test_a_payload_put_in_without_a_salt_is_found() -> None:
    forged = history().with_transition(4, payload=b'{"data":"I approve"}', payload_salt=None)
    assert named(forged.findings()) == {(PAYLOAD, 4)}


def test_a_byte_moved_from_a_payload_into_its_salt_is_found() -> None:
    # H(salt || body) does not change when a byte changes sides: the salt is 32 bytes, or it is forged.
    committed = replace(vector_step(0), event="created", payload=-5)
    made = link(committed, genesis(DEPLOYMENT, WORKFLOW), salts=(OTHER, OTHER), max_bytes=MAX_BYTES)
    intact = history(length=1, last_event="created")
    own = StoredCheckpoint(
        workflow_id=WORKFLOW,
        seq=0,
        number=0,
        body=made.checkpoint,
        salt=made.checkpoint_salt,
        commitment=made.envelope.checkpoint,
    )
    told = replace(intact, transitions=(stored_transition(made),), checkpoints=(own,)).with_row(head=made.hash)
    assert told.findings() == []
    forged = told.with_transition(0, payload=b"5", payload_salt=OTHER + b"-")
    assert named(forged.findings()) == {(PAYLOAD, 0)}


@pytest.mark.parametrize("payload", [b"not JSON", b"", b"\xff", b"[" * 100_000], ids=["text", "empty", "ff", "deep"])
def test_a_payload_that_cannot_be_read_is_a_finding_and_not_the_end_of_verification(payload: bytes) -> None:
    edited = history().with_transition(1, payload=payload).with_row(state="s1")
    assert {(PAYLOAD, 1), (ROW, 5)} <= named(edited.findings())


@pytest.mark.parametrize("number", [0, 1])
def test_a_checkpoint_put_in_beyond_the_end_is_found(number: int) -> None:
    forged = history().with_more(stored_checkpoint(WORKFLOW, 99, number, {"total": 99}))
    assert named(forged.findings()) != set()


@pytest.mark.parametrize("seq", [3, 5])
def test_version_true_is_not_version_1(seq: int) -> None:
    forged = history().with_member(seq, "v", value=True, rehashed=True)
    assert (VERSION, seq) in named(forged.findings())


@pytest.mark.parametrize(("seq", "member"), [(1, "seq"), (2, "attempt")])
def test_true_in_an_envelope_is_not_the_number_1_of_its_column(seq: int, member: str) -> None:
    assert json.loads(history().transition(seq).envelope)[member] == 1
    forged = history().with_member(seq, member, value=True, rehashed=True)
    assert (HASH, seq) in named(forged.findings())


def test_an_envelope_is_made_of_what_the_format_lists() -> None:
    listed = {"v", "alg", "wf", "seq", "prev", "type", "def", "event", "from", "to", "actor", "attempt", "at"}
    envelope = Envelope(
        workflow_id="w",
        seq=0,
        prev=OTHER,
        type="t",
        definition="d",
        event="created",
        from_state=None,
        to_state="s",
        actor="a",
        attempt=1,
        at=LATER,
        payload=None,
        checkpoint=OTHER,
    )
    assert set(json.loads(envelope.to_bytes())) == listed | {"payload", "checkpoint"}
