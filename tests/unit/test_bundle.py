"""Bundles: two verifiers that share no code, and every flipped bit and every forgery that both must find."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from aegis.cli import verify_bundle as shipped
from aegis.core import bundle as bundles
from aegis.core.anchor import Anchor, Entry, log_name
from aegis.core.bundle import Bundle, BundledCheckpoint, BundledTransition, BundleHead, render, verify
from aegis.core.canonical import Json, canonical, parse
from aegis.core.chain import (
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
from aegis.core.errors import NotABundle, NotCanonical
from aegis.core.finding import Finding, failures
from aegis.core.merkle import inclusion_proof, leaf_hash, root_of
from aegis.core.note import LogHead, SigningKey

FILE: Final = Path(shipped.__file__)
VECTORS: Final = Path(os.environ.get("AEGIS_TEST_VECTORS", "/nonexistent"))
DEPLOYMENT: Final = "aegis.example/prod"
WORKFLOW: Final = "w-7"
DEFINITION: Final = "sha256:" + "ab" * 32
MAX_BYTES: Final = 256 * 1024
BEGIN: Final = datetime(2026, 11, 22, 10, 11, 12, tzinfo=UTC)
KEY: Final = SigningKey(name=DEPLOYMENT, private=Ed25519PrivateKey.from_private_bytes(b"\1" * 32))
OTHER_KEY: Final = SigningKey(name=DEPLOYMENT, private=Ed25519PrivateKey.from_private_bytes(b"\2" * 32))
TRUSTED: Final = [KEY.verifier]


def salt_of(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


# --- a history, made anew for each change that a forger might make ---------------------------------

# What the transitions of w-7 are: event, and payload. Transition 4 erases what 0 and 1 held.
INSIDE: Final = checkpoint_body(WORKFLOW, 2, {"done": "half", "note": "päy €"}, max_bytes=MAX_BYTES)
INSIDE_SALT: Final = salt_of("inside", 2)
UNLISTED: Final = checkpoint_body(WORKFLOW, 5, {"done": "nearly"}, max_bytes=MAX_BYTES)
UNLISTED_SALT: Final = salt_of("inside", 5)
EVENTS: Final[list[tuple[str, Json]]] = [
    ("created", None),
    ("take", {"data": {"amount": "10.01"}, "key": "mail-1", "sender": "user:ada"}),
    ("pack", None),
    ("send", {"progress": [checkpoint_commitment(INSIDE_SALT, INSIDE).hex()]}),
    ("erased", {"reason": "asked to", "status": "waiting", "through": 1}),
    ("weigh", {"data": [1, 2.5, -1e-7, 0.1], "key": "k", "sender": "s"}),
]
ERASED: Final = {0, 1}


def history(
    workflow_id: str = WORKFLOW, deployment: str = DEPLOYMENT, events: Sequence[tuple[str, Json]] = EVENTS
) -> list[Link]:
    made: list[Link] = []
    prev = genesis(deployment, workflow_id)
    for seq, (event, payload) in enumerate(events):
        step = Step(
            workflow_id=workflow_id,
            seq=seq,
            type="shop.Order",
            definition=DEFINITION,
            event=event,
            from_state="s" if seq else None,
            to_state="s",
            actor="svc:worker",
            attempt=1,
            at=BEGIN + timedelta(seconds=seq),
            state={"total": 10 * seq},
            payload=payload,
        )
        salts = (salt_of(workflow_id, seq, "s"), salt_of(workflow_id, seq, "p"))
        made.append(link(step, prev, salts=salts, max_bytes=MAX_BYTES))
        prev = made[-1].hash
    return made


Leaves = list[tuple[str, int, bytes]]


def log_of(*chains: Sequence[Link]) -> Leaves:
    """Return the log over several histories: one transition of each in turn."""
    longest = max(map(len, chains))
    return [
        (chain[seq].envelope.workflow_id, seq, chain[seq].hash)
        for seq in range(longest)
        for chain in chains
        if seq < len(chain)
    ]


def proof_of(leaves: Leaves, index: int) -> tuple[bytes, ...]:
    hashes = [leaf_hash(one[2]) for one in leaves]
    return tuple(inclusion_proof(index, len(hashes), lambda start, end: root_of(hashes[start:end])))


def head_of_log(leaves: Leaves, name: str = DEPLOYMENT) -> LogHead:
    root = root_of(leaf_hash(one[2]) for one in leaves)
    return LogHead(origin=log_name(name), size=len(leaves), root=root, at=BEGIN + timedelta(minutes=1))


def bundled(
    chain: Sequence[Link],
    leaves: Leaves,
    *,
    key: SigningKey = KEY,
    erased: Iterable[int] = (),
    anchored: int | None = None,
    **changes: Any,
) -> Bundle:
    """Return the bundle of a history, whose first ``anchored`` transitions are in the log, by default all."""
    length = len(chain) if anchored is None else anchored
    workflow_id = chain[0].envelope.workflow_id
    places = {seq: index for index, (found, seq, _) in enumerate(leaves) if found == workflow_id}
    transitions = []
    for seq, one in enumerate(chain):
        there = seq not in erased
        index = places[seq] if seq < length else None
        transitions.append(
            BundledTransition(
                seq=seq,
                envelope=one.body,
                hash=one.hash,
                payload=one.payload if there else None,
                payload_salt=one.payload_salt if there else None,
                checkpoint=one.checkpoint if there else None,
                checkpoint_salt=one.checkpoint_salt if there else None,
                log_index=index,
                proof=None if index is None else proof_of(leaves, index),
            )
        )
    last = chain[-1]
    head = BundleHead(
        workflow_id=workflow_id,
        deployment=DEPLOYMENT,
        exported_by=DEPLOYMENT,
        exported_at=timestamp(BEGIN + timedelta(hours=1)),
        type="shop.Order",
        version=1,
        definition=DEFINITION,
        state="s",
        status="waiting",
        seq=len(chain) - 1,
        head=last.hash,
        anchored_length=length,
        log_size=len(leaves),
        note=key.sign(head_of_log(leaves).text()),
        pruned_through=None,
        checkpoints=(),
    )
    return Bundle(head=replace(head, **changes), transitions=tuple(transitions))


def with_inside(bundle: Bundle) -> Bundle:
    """Add the checkpoints between transitions: one that transition 3 lists, one that nothing lists yet."""
    at = timestamp(BEGIN)
    own = [
        BundledCheckpoint(seq=seq, number=1, kind="manual", at=at, checkpoint=body, checkpoint_salt=salt)
        for seq, body, salt in ((2, INSIDE, INSIDE_SALT), (5, UNLISTED, UNLISTED_SALT))
    ]
    listed = tuple((one.seq, one.number) for one in own)
    return replace(bundle, head=replace(bundle.head, checkpoints=listed), checkpoints=tuple(own))


OURS: Final = history()
THEIRS: Final = history("w-8", events=[("created", None), ("take", {"data": 1}), ("pack", None)])
LEAVES: Final = log_of(OURS, THEIRS)


def whole() -> Bundle:
    return with_inside(bundled(OURS, LEAVES, erased=ERASED))


# --- both verifiers ---------------------------------------------------------------------------------


def standalone(
    data: bytes, *, keys: Iterable[object] | None = None, anchors: Iterable[bytes] | None = None
) -> shipped.Verification:
    given = [shipped.read_key(str(key)) for key in (TRUSTED if keys is None else keys)]
    return shipped.Verification(data, shipped.Trust(given, anchors=anchors))


Named = set[tuple[str, int | None]]


def ours(data: bytes, trusted: Sequence[Any] = TRUSTED, anchors: Sequence[Anchor] | None = None) -> Named:
    return {(str(one.code), one.seq) for one in failures(verify(data, trusted, anchors=anchors))}


def theirs(data: bytes, trusted: Sequence[Any] = TRUSTED, anchors: Sequence[Anchor] | None = None) -> Named:
    lines = None if anchors is None else [one.line() for one in anchors]
    try:
        found = standalone(data, keys=trusted, anchors=lines)
    except shipped.Unreadable:  # there is not one line of a bundle in it
        return {("NON_CANONICAL", None)}
    return {(one.code, one.seq) for one in found.findings if one.code not in shipped.INFORMATIVE}


def seqs(named: Named) -> set[int | None]:
    return {seq for _, seq in named}


def told(named: Iterable[Finding]) -> Named:
    return {(str(one.code), one.seq) for one in named}


# --- intact -----------------------------------------------------------------------------------------


def test_an_intact_bundle_has_no_failures_and_both_tell_what_is_missing_on_purpose() -> None:
    data = with_inside(bundled(OURS, LEAVES, erased=ERASED, anchored=4)).to_bytes()
    assert failures(verify(data, TRUSTED)) == []
    assert told(verify(data, TRUSTED)) == {
        ("PAYLOAD_ERASED", 1),
        ("CHECKPOINT_PRUNED", 0),
        ("UNANCHORED", 4),
    }
    found = standalone(data)
    assert not found.tampered
    assert {(one.code, one.seq) for one in found.findings} == {
        ("PAYLOAD_ERASED", 1),
        ("CHECKPOINT_PRUNED", 0),
        ("CHECKPOINT_PRUNED", 1),
        ("UNANCHORED", 4),
    }
    assert found.vouched == {0, 1, 2, 3}


def test_the_file_is_json_and_each_record_a_line() -> None:
    data = whole().to_bytes()
    assert json.loads(data) == whole().to_dict()
    lines = data.decode().split("\n")
    assert len(lines) == 1 + 6 + 1 + 2 + 1 + 1
    assert lines[0].startswith('{"format":"aegis-bundle/v1","head":{')
    assert lines[0].endswith(',"transitions":[')
    assert (lines[7], lines[-2], lines[-1]) == ('],"checkpoints":[', "]}", "")


def test_a_line_has_the_digest_of_what_it_holds() -> None:
    for record in (whole().to_dict()["head"], *whole().to_dict()["transitions"], *whole().to_dict()["checkpoints"]):
        content = {name: member for name, member in record.items() if name != "digest"}
        assert record["digest"] == hashlib.sha256(b"aegis/bundle-line/v1\n" + canonical(content)).hexdigest()


@pytest.mark.parametrize("bundle", [whole(), bundled(OURS[:1], LEAVES), bundled(OURS, LEAVES, anchored=0)])
def test_a_bundle_is_read_back_from_its_bytes_and_its_document(bundle: Bundle) -> None:
    assert Bundle.from_bytes(bundle.to_bytes()) == bundle
    assert Bundle.from_dict(json.loads(bundle.to_bytes())) == bundle
    assert Bundle.from_dict(bundle.to_dict()).to_bytes() == bundle.to_bytes()


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"format": "aegis-bundle/v2", "head": {}, "transitions": [], "checkpoints": []},
        {"format": "aegis-bundle/v1", "head": {}, "transitions": [], "checkpoints": [], "more": 1},
        {"format": "aegis-bundle/v1", "head": {}, "transitions": [], "checkpoints": []},
        {"format": "aegis-bundle/v1", "head": {"a": float("nan")}, "transitions": [], "checkpoints": []},
        {"format": "aegis-bundle/v1", "head": [], "transitions": {}, "checkpoints": None},
    ],
)
def test_what_is_no_bundle_is_not_read(document: Mapping[str, Any]) -> None:
    with pytest.raises(NotABundle):
        Bundle.from_dict(document)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"\xff\xfe", b"]}\n", b"[" * 100_000, b"null\n" * 3])
def test_bytes_that_are_no_bundle_are_refused_by_all(data: bytes) -> None:
    with pytest.raises(NotABundle):
        Bundle.from_bytes(data)
    assert ours(data)
    assert theirs(data)


# --- every bit ---------------------------------------------------------------------------------------


def places_of(data: bytes) -> list[int | None]:
    """Return, for each byte, the transition whose line it is in, or whose checkpoint's."""
    places: list[int | None] = []
    for line in data.split(b"\n")[:-1]:
        is_record = line.startswith(b"{") and not line.startswith(b'{"format"')
        seq = json.loads(line.removesuffix(b","))["seq"] if is_record else None
        places += [seq] * (len(line) + 1)
    return places


Verifier = Callable[[bytes], Named]


def by_lines(read_line: Callable[[bytes], object], verifier: Verifier) -> Verifier:
    """Return a verifier that does not do again what it has done.

    Both see a file as its lines, and of a damaged line only that it is one: whatever came of the same
    lines, damaged at the same places, would come of them again.
    """
    lines_read: dict[bytes, object] = {}
    known: dict[object, Named] = {}

    def verifying(data: bytes) -> Named:
        *lines, rest = data.split(b"\n")
        for line in lines:
            if line not in lines_read:
                lines_read[line] = read_line(line)
        key = (*(id(lines_read[line]) for line in lines), bool(rest))
        if key not in known:
            known[key] = verifier(data)
        return known[key]

    return verifying


def test_every_flipped_bit_is_found_by_both_at_the_line_that_it_is_in() -> None:
    # Compared is where something was found: the verifiers may name it by different codes.
    data = with_inside(bundled(OURS, LEAVES, erased=ERASED, anchored=5)).to_bytes()
    verifiers = by_lines(bundles._read_line, ours), by_lines(shipped.read_line, theirs)
    places, missed, apart, elsewhere = places_of(data), [], [], []
    changed = bytearray(data)
    for place, bit in itertools.product(range(len(data)), range(8)):
        changed[place] ^= 1 << bit
        found, also = (seqs(verifier(bytes(changed))) for verifier in verifiers)
        changed[place] ^= 1 << bit
        if not found:
            missed.append((place, bit))
        if found != also:
            apart.append((place, bit, found, also))
        # The end of a line is the beginning of the next.
        allowed = (
            {places[place], places[min(place + 1, len(data) - 1)]} if data[place] == ord("\n") else {places[place]}
        )
        if not (places[place] in found and found <= allowed):
            elsewhere.append((place, bit, found))
    assert (missed, apart, elsewhere) == ([], [], [])


def test_what_was_not_done_again_would_have_come_out_the_same() -> None:
    data = with_inside(bundled(OURS, LEAVES, erased=ERASED, anchored=5)).to_bytes()
    verifiers = (by_lines(bundles._read_line, ours), ours), (by_lines(shipped.read_line, theirs), theirs)
    for place in range(0, len(data), 29):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        for quick, slow in verifiers:
            assert quick(bytes(changed)) == slow(bytes(changed))


@pytest.mark.parametrize("cut", [1, 2, 3, 300, 3000])
def test_a_file_that_was_cut_off_is_found_by_both_at_what_is_missing(cut: int) -> None:
    data = whole().to_bytes()[:-cut]
    assert ours(data) != set()
    assert seqs(ours(data)) == seqs(theirs(data))
    with pytest.raises(NotABundle):
        Bundle.from_bytes(data)


# --- what somebody does who knows the format --------------------------------------------------------------


def resealed(document: Mapping[str, Any]) -> bytes:
    """Return the file for a document that was edited, with new digests: it looks like no accident."""
    for record in (document["head"], *document["transitions"], *document["checkpoints"]):
        record["digest"] = hash_of("bundle-line", canonical({k: v for k, v in record.items() if k != "digest"})).hex()
    return render(document)


Edit = Callable[[dict[str, Any]], object]


def edited(edit: Edit, bundle: Bundle | None = None) -> bytes:
    document = (whole() if bundle is None else bundle).to_dict()
    edit(document)
    return resealed(document)


def on(place: int, /, **members: Any) -> Edit:
    return lambda document: document["transitions"][place].update(members)


def on_head(**members: Any) -> Edit:
    return lambda document: document["head"].update(members)


def swapped(first: int, second: int, *names: str) -> Edit:
    def swap(document: dict[str, Any]) -> None:
        one, other = document["transitions"][first], document["transitions"][second]
        for name in names:
            one[name], other[name] = other[name], one[name]

    return swap


def without(section: str, place: int) -> Edit:
    return lambda document: document[section].pop(place)


def relinked(seq: int, /, **members: Any) -> Edit:
    """Change a transition's envelope, and hash it and all after it anew."""

    def relink(document: dict[str, Any]) -> None:
        prev = None
        for one in document["transitions"][seq:]:
            envelope: Any = parse(one["envelope"])
            envelope |= members if one["seq"] == seq else {"prev": prev}
            one["envelope"] = canonical(envelope).decode()
            prev = one["hash"] = transition_hash(canonical(envelope)).hex()
        document["head"]["head"] = prev

    return relink


def with_payload(seq: int, payload: Json) -> Edit:
    """Change a transition's payload, and everything that commits to it."""

    def change(document: dict[str, Any]) -> None:
        body = canonical(payload)
        salt = salt_of(WORKFLOW, seq, "p")
        document["transitions"][seq] |= {"payload": body.decode(), "payload_salt": salt.hex()}
        relinked(seq, payload=payload_commitment(salt, body).hex())(document)

    return change


def reordered(document: dict[str, Any]) -> None:
    lines = document["transitions"]
    lines[2], lines[3] = lines[3], lines[2]


def renumbered(document: dict[str, Any]) -> None:
    del document["transitions"][2]
    for seq, one in enumerate(document["transitions"]):
        one["seq"] = seq
    document["head"] |= {"seq": 4, "anchored_length": 5}


def cut(document: dict[str, Any], *, length: int = 5) -> None:
    """Cut the tail off, and mend the head: what is left is true."""
    del document["transitions"][length:]
    last = document["transitions"][-1]
    document["head"] |= {"seq": length - 1, "anchored_length": length, "head": last["hash"]}
    document["checkpoints"] = [one for one in document["checkpoints"] if one["seq"] < length]
    document["head"]["checkpoints"] = [[one["seq"], one["number"]] for one in document["checkpoints"]]


def stripped(length: int) -> Edit:
    """Take away the proofs of all but the first transitions."""

    def strip(document: dict[str, Any]) -> None:
        document["head"]["anchored_length"] = length
        for one in document["transitions"][length:]:
            one |= {"log_index": None, "proof": None}

    return strip


def salt_cut_short(document: dict[str, Any]) -> None:
    """Move a byte from the salt into the payload: H(salt || payload) stays the same."""
    one = document["transitions"][5]
    salt, payload = bytes.fromhex(one["payload_salt"]), one["payload"]
    one |= {"payload_salt": salt[:-1].hex(), "payload": chr(salt[-1] & 0x7F) + payload}


def inside(**members: Any) -> Edit:
    return lambda document: document["checkpoints"][0].update(members)


def one_more_checkpoint(document: dict[str, Any]) -> None:
    body = checkpoint_body(WORKFLOW, 3, {"done": "never"}, max_bytes=MAX_BYTES).decode()
    document["checkpoints"].insert(1, document["checkpoints"][0] | {"seq": 3, "checkpoint": body})
    document["head"]["checkpoints"].insert(1, [3, 1])


def without_inside(document: dict[str, Any]) -> None:
    del document["checkpoints"][0], document["head"]["checkpoints"][0]


def both(*edits: Edit) -> Edit:
    return lambda document: [edit(document) for edit in edits]


def signed(leaves: Leaves, key: SigningKey = KEY, name: str = DEPLOYMENT) -> str:
    return key.sign(head_of_log(leaves, name).text())


HASH: Final = whole().transitions[2].hash
# What was edited, and the transitions at which both verifiers find it; None is the bundle, or its log.
ATTACKS: Final[dict[str, tuple[Edit, set[int | None]]]] = {
    "the last transition is dropped": (without("transitions", 5), {5}),
    "a transition is dropped": (without("transitions", 2), {2}),
    "a transition is dropped, the others renumbered": (renumbered, {1, 2, 3, 4, 5}),
    "two transitions change places": (reordered, {2}),
    "a transition stands twice": (lambda d: d["transitions"].insert(3, dict(d["transitions"][2])), {2}),
    "checkpoints change places": (swapped(2, 3, "checkpoint"), {2, 3}),
    "checkpoints change places with their salts": (swapped(2, 3, "checkpoint", "checkpoint_salt"), {2, 3}),
    "payloads change places with their salts": (swapped(3, 5, "payload", "payload_salt"), {2, 3, 4, 5}),
    "a payload is edited": (on(5, payload='{"data":[1,2.5,0.2],"key":"k","sender":"s"}'), {5}),
    "a payload is edited and all is hashed anew": (with_payload(5, {"data": "I approve"}), {5}),
    "a payload is taken away": (on(5, payload=None, payload_salt=None), {5}),
    "a checkpoint is taken away": (on(4, checkpoint=None, checkpoint_salt=None), {4}),
    "a payload comes back that was erased": (on(1, payload="{}", payload_salt="00" * 32), {1}),
    "an actor is edited": (on(2, envelope=OURS[2].body.decode().replace("svc:worker", "svc:wOrker")), {2}),
    "an actor is edited and all is hashed anew": (relinked(2, actor="user:mallory"), {2, 3, 4, 5}),
    "only one is hashed anew": (
        both(
            relinked(3, actor="user:mallory"),
            lambda d: d["transitions"].__setitem__(slice(4, 6), whole().to_dict()["transitions"][4:]),
            on_head(head=OURS[5].hash.hex()),
        ),
        {3},
    ),
    "a hash is edited": (on(2, hash="0" * 64), {2}),
    "the last hash and the head are edited": (both(on(5, hash="0" * 64), on_head(head="0" * 64)), {5}),
    "a version that nobody knows": (relinked(5, v=2), {5}),
    "version true": (relinked(5, v=True), {5}),
    "another algorithm": (relinked(5, alg="md5"), {5}),
    "a member too many in an envelope": (relinked(5, more=1), {5}),
    "a time that is none": (relinked(5, at="yesterday"), {5}),
    "an envelope of another workflow": (relinked(5, wf="w-8"), {5}),
    "an envelope that is not canonical": (on(5, envelope=" " + OURS[5].body.decode()), {5}),
    "an envelope that is no JSON": (on(5, envelope="{"), {5}),
    "proofs change places": (swapped(2, 3, "proof"), {2, 3}),
    "proofs change places with their indexes": (swapped(2, 3, "proof", "log_index"), {2, 3}),
    "an index is moved": (on(2, log_index=3), {2}),
    "an index is beyond the log": (on(2, log_index=10**15), {2}),
    "a proof is cut short": (lambda d: d["transitions"][2]["proof"].pop(), {2}),
    "a proof is longer": (lambda d: d["transitions"][2]["proof"].append("0" * 64), {2}),
    "a proof is empty": (on(2, proof=[]), {2}),
    "a proof is missing": (on(2, proof=None, log_index=None), {2}),
    "fewer are said to be anchored": (on_head(anchored_length=4), {4, 5}),
    "more are said to be anchored": (on_head(anchored_length=7), {None}),
    "the note of another log": (on_head(note=signed([*LEAVES[:-1], ("x", 0, HASH)])), {0, 1, 2, 3, 4, 5}),
    "the note of a log of another name": (on_head(note=signed(LEAVES, name="aegis.example/test")), {None}),
    "the note of a shorter log": (on_head(note=signed(LEAVES[:-1])), {None, 0, 1, 2, 3, 4, 5}),
    "a note that somebody else signed": (on_head(note=signed(LEAVES, OTHER_KEY)), {None}),
    "a note whose signature is another's": (
        on_head(note=signed(LEAVES).rpartition(" ")[0] + " " + signed(LEAVES[:-1]).rpartition(" ")[2]),
        {None},
    ),
    "a note that is none": (on_head(note="trust me\n"), {None}),
    "the note is taken away": (on_head(note=None), {None}),
    "the log is said to be longer": (on_head(log_size=99), {None}),
    "hexadecimal digits in upper case": (on(2, hash=OURS[2].hash.hex().upper()), {2}),
    "hexadecimal digits with a blank": (on(2, hash=OURS[2].hash.hex()[:-1] + " "), {2}),
    "a salt that is a byte short": (salt_cut_short, {5}),
    "a salt without a payload": (on(4, payload=None), {4}),
    "a member too many": (on(2, more=1), {2}),
    "a member too few": (lambda d: d["transitions"][2].pop("proof"), {2}),
    "a number that is true": (on(1, seq=True), {1}),
    "a number that is negative": (on(2, log_index=-1), {2}),
    "a number with a point": (on(2, log_index=4.5), {2}),
    "a checkpoint between is edited": (inside(checkpoint=INSIDE.decode().replace("half", "whole")), {2}),
    "a checkpoint between has another salt": (inside(checkpoint_salt="0" * 64), {2}),
    "a checkpoint between is dropped": (without("checkpoints", 0), {2}),
    "a checkpoint between is dropped, and forgotten": (without_inside, {2}),
    "a checkpoint between too many": (one_more_checkpoint, {3}),
    "a checkpoint between is of another transition": (inside(seq=3), {2, 3}),
    "a checkpoint between has another number": (inside(number=2), {2}),
    "checkpoints between in another order": (lambda d: d["checkpoints"].reverse(), {2}),
    "the head says that it is longer": (on_head(seq=6), {6}),
    "the head says that it is endless": (on_head(seq=2**53 - 1), {5, 6, 7, 8, 9, 10}),
    "all is said to be pruned": (on_head(pruned_through=5), {5}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_both_verifiers_find_what_was_done_and_where(name: str) -> None:
    edit, expected = ATTACKS[name]
    data = edited(edit)
    assert data != whole().to_bytes()
    found, also = ours(data), theirs(data)
    assert seqs(found) == expected, found
    assert seqs(also) == expected, also


# What nothing commits to: only the exporter says it, and an import goes by the class that is loaded instead.
SAID_ONLY: Final = {"version", "exported_at", "pruned_through"}
OTHER_VALUES: Final[dict[str, Any]] = {
    "workflow_id": "w-8",
    "deployment": "aegis.example/test",
    "exported_by": "aegis.example/test",
    "exported_at": timestamp(BEGIN),
    "type": "shop.Invoice",
    "version": 2,
    "definition": "sha256:" + "cd" * 32,
    "state": "t",
    "status": "failed",
    "seq": 4,
    "head": "0" * 64,
    "anchored_length": 3,
    "log_size": 8,
    "note": None,
    "pruned_through": 0,
    "checkpoints": [],
}


def test_every_member_of_the_head_is_found_when_it_is_edited_or_known_to_be_only_said() -> None:
    assert set(OTHER_VALUES) == set(whole().to_dict()["head"]) - {"digest"}
    missed = {name for name, other in OTHER_VALUES.items() if not ours(edited(on_head(**{name: other})))}
    assert missed == {name for name, other in OTHER_VALUES.items() if not theirs(edited(on_head(**{name: other})))}
    assert missed == SAID_ONLY


def test_of_a_checkpoint_between_only_its_kind_and_time_are_not_hashed() -> None:
    others = {
        "seq": 1,
        "number": 9,
        "kind": "periodic",
        "at": timestamp(BEGIN + timedelta(days=1)),
        "checkpoint": "{}",
        "checkpoint_salt": "0" * 64,
    }
    assert set(others) == set(whole().to_dict()["checkpoints"][0]) - {"digest"}
    for verifier in (ours, theirs):
        assert {name for name, other in others.items() if not verifier(edited(inside(**{name: other})))} == {
            "kind",
            "at",
        }


# --- what only the anchors know ---------------------------------------------------------------------------


def anchors_of(leaves: Leaves, *sizes: int, key: SigningKey = KEY) -> list[Anchor]:
    made, first = [], 0
    for size in sizes or (len(leaves),):
        entries = tuple(Entry(workflow_id=one[0], seq=one[1], hash=one[2]) for one in leaves[first:size])
        made.append(Anchor(first=first, note=signed(leaves[:size], key), entries=entries))
        first = size
    return made


def test_a_history_is_compared_with_the_anchors() -> None:
    for anchors in (anchors_of(LEAVES), anchors_of(LEAVES, 2, 2, 7, len(LEAVES)), anchors_of(LEAVES, 4)):
        assert ours(whole().to_bytes(), anchors=anchors) == set()
        assert theirs(whole().to_bytes(), anchors=anchors) == set()


LONGER: Final = log_of(OURS, THEIRS, history("w-9"))
WITH_ANCHORS: Final[dict[str, tuple[Edit, Leaves, set[int | None]]]] = {
    "the tail is cut off": (cut, LEAVES, {5}),
    "most of it is cut off": (lambda d: cut(d, length=1), LEAVES, {0, 1, 2, 3, 4, 5}),
    "the tail is rewritten, and said not to be anchored": (both(with_payload(5, {}), stripped(5)), LEAVES, {5}),
    "all but the first is rewritten": (both(relinked(1, actor="user:mallory"), stripped(1)), LEAVES, {1, 2, 3, 4, 5}),
    "the anchors are of another log": (dict.copy, LONGER, {None, 1, 2, 3, 4, 5}),
    "fewer are said to be anchored": (on_head(anchored_length=4), LEAVES, {4, 5}),
}


@pytest.mark.parametrize("name", WITH_ANCHORS)
def test_both_verifiers_find_with_the_anchors_what_they_cannot_find_without(name: str) -> None:
    edit, leaves, expected = WITH_ANCHORS[name]
    found, also = (one(edited(edit), anchors=anchors_of(leaves)) for one in (ours, theirs))
    assert seqs(found) == expected, found
    assert seqs(also) == expected, also


def test_without_the_anchors_a_history_that_was_cut_off_is_true_as_far_as_it_goes() -> None:
    assert ours(edited(cut)) == theirs(edited(cut)) == set()


def test_without_the_anchors_a_rewritten_tail_is_what_nothing_vouches_for() -> None:
    data = edited(both(with_payload(5, {}), stripped(5)))
    assert ("UNANCHORED", 5) in told(verify(data, TRUSTED))
    found = standalone(data)
    assert (found.tampered, found.vouched) == (False, {0, 1, 2, 3, 4})
    assert found.reasons() != []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [lines[0], replace(lines[1], entries=lines[1].entries[::-1]), lines[2]],
        lambda lines: [lines[0], replace(lines[1], note=lines[2].note), lines[2]],
        lambda lines: [*lines[:2], replace(lines[2], note=signed(LEAVES, OTHER_KEY))],
        lambda lines: [*lines[:2], replace(lines[2], note=signed(LEAVES, name="another"))],
        lambda lines: [*lines[:2], replace(lines[2], note="none")],
    ],
)
def test_anchors_that_were_tampered_with_are_found_by_both(spoil: Callable[[list[Anchor]], list[Anchor]]) -> None:
    lines = spoil(anchors_of(LEAVES, 3, 6, len(LEAVES)))
    assert ("LOG_INCONSISTENT", None) in ours(whole().to_bytes(), anchors=lines)
    assert ("LOG_INCONSISTENT", None) in theirs(whole().to_bytes(), anchors=lines)


def test_a_line_of_anchors_that_a_crash_cut_off_is_passed_over() -> None:
    first, second = anchors_of(LEAVES, 4, len(LEAVES))
    lines = [first.line(), second.line()[:100] + b"\n", second.line()]
    found = standalone(whole().to_bytes(), anchors=lines)
    assert not found.tampered
    assert found.vouched == {0, 1, 2, 3, 4, 5}


# --- a history that was imported ---------------------------------------------------------------------------

IMPORTED: Final = [*EVENTS[:1], ("imported", {"deployment": "aegis.example/first", "status": "waiting"})]


def imported(deployment: str, events: Sequence[tuple[str, Json]] = IMPORTED) -> bytes:
    chain = history(deployment="aegis.example/first", events=events)
    return bundled(chain, log_of(chain, THEIRS), deployment=deployment).to_bytes()


def test_a_history_that_says_where_it_was_imported_from_verifies() -> None:
    assert ours(imported("aegis.example/first")) == theirs(imported("aegis.example/first")) == set()


@pytest.mark.parametrize(
    "data",
    [
        imported(DEPLOYMENT),
        imported("aegis.example/first", EVENTS[:1]),
        imported("aegis.example/first", [*EVENTS[:1], ("imported", {"deployment": "other", "status": "waiting"})]),
        imported("aegis.example/first", [*EVENTS[:1], ("take", {"deployment": "aegis.example/first"})]),
    ],
)
def test_a_history_from_elsewhere_that_does_not_say_so_is_found_at_its_beginning(data: bytes) -> None:
    assert seqs(ours(data)) == seqs(theirs(data)) == {0}


# --- the stand-alone verifier's own means -------------------------------------------------------------------


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_its_canonical_form_is_ours(value: Any) -> None:
    try:
        expected = canonical(value)
    except NotCanonical:
        with pytest.raises(shipped.Unreadable):
            shipped.canonical(value)
        return
    assert shipped.canonical(value) == expected
    assert canonical(shipped.read_json(expected)) == expected


@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_it_writes_numbers_as_ecmascript_does(number: float) -> None:
    if number.is_integer() and abs(number) >= 2**53:
        return
    assert shipped.canonical(number) == canonical(number)


@pytest.mark.parametrize(
    ("bits", "written"),
    [  # RFC 8785, appendix B
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("4340000000000001", None),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
        ("7fefffffffffffff", None),
    ],
)
def test_published_numbers(bits: str, written: str | None) -> None:
    [number] = struct.unpack(">d", bytes.fromhex(bits))
    if written is None:
        with pytest.raises(shipped.Unreadable):
            shipped.canonical(number)
    else:
        assert shipped.canonical(number) == written.encode()


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}', b'{"b":1,"a":1}', b'{"a": 1}', b"01", b"1.0", b"-0", b"1e2", b"NaN", b"Infinity", b"1e999",
        b"9007199254740992", b"9" * 5000, b'"\\u0041"', b'"\\u0000"', b'"\\ud800"', b'"\x01"', b"\xef\xbb\xbf1",
        b"\xff",         b"[" * 65 + b"]" * 65, b"[" * 10_000, b"", b"1 ", b"1\n", b'"\\/"', b"\xff\xfe1\x00",
    ],
)  # fmt: skip
def test_what_is_not_in_the_one_form_is_not_read(text: bytes) -> None:
    with pytest.raises(shipped.Unreadable):
        shipped.read_json(text)


def test_as_deep_as_the_format_allows() -> None:
    deepest = b"[" * 64 + b"]" * 64
    assert canonical(shipped.read_json(deepest)) == deepest


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 33])
def test_its_tree_is_ours(size: int) -> None:
    hashes = [hashlib.sha256(bytes([number])).hexdigest() for number in range(size)]
    leaves = [leaf_hash(bytes.fromhex(one)) for one in hashes]
    tree = shipped.Tree()
    for one in hashes:
        tree.add(shipped.leaf(one))
    assert tree.root() == root_of(leaves)
    for index in range(size):
        proof = [one.hex() for one in inclusion_proof(index, size, lambda start, end: root_of(leaves[start:end]))]
        assert shipped.root_by_proof(leaves[index], index, size, proof) == root_of(leaves)
        for place, length in ((index + 1, size), (index, size + 1), (size, size), (-1, size), (index, 0)):
            assert shipped.root_by_proof(leaves[index], place, length, proof) != root_of(leaves) or length == size + 1


RFC_8032: Final = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "", "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),  # noqa: E501
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72", "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),  # noqa: E501
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82", "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize(("public", "message", "signature"), RFC_8032)
def test_signatures_of_rfc_8032(public: str, message: str, signature: str) -> None:
    key, text, signed_ = bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)
    assert shipped.signature_is_valid(key, text, signed_)
    assert not shipped.signature_is_valid(key, text + b"x", signed_)
    for place in (0, 31, 32, 63):
        changed = bytearray(signed_)
        changed[place] ^= 1
        assert not shipped.signature_is_valid(key, text, bytes(changed))
    s = int.from_bytes(signed_[32:], "little") + shipped.ORDER  # the same number, written otherwise
    assert not shipped.signature_is_valid(key, text, signed_[:32] + s.to_bytes(32, "little"))


def test_published_signatures() -> None:
    file = VECTORS / "wycheproof" / "ed25519_test.json"
    if not file.is_file():
        pytest.skip("AEGIS_TEST_VECTORS names no folder with the signatures of Wycheproof")
    wrong, count = [], 0
    for group in json.loads(file.read_text())["testGroups"]:
        public = bytes.fromhex(group["publicKey"]["pk"])
        for test in group["tests"]:
            count += 1
            valid = shipped.signature_is_valid(public, bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]))
            if valid is not (test["result"] == "valid"):
                wrong.append(test["tcId"])
    assert (wrong, count) == ([], 151)


@pytest.mark.parametrize(
    "encoded", ["01" + "00" * 30 + "80", "ee" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f", "ff" * 32]
)
def test_a_point_has_one_encoding(encoded: str) -> None:
    assert shipped.point_of(bytes.fromhex(encoded)) is None


@pytest.mark.parametrize(
    "line",
    ["", "a", "a+b+c", str(KEY.verifier)[:-1], str(KEY.verifier).replace("example", "exAmple"), f"x{KEY.verifier}"],
)
def test_what_is_no_key_is_refused(line: str) -> None:
    with pytest.raises(shipped.Unreadable):
        shipped.read_key(line)


# --- as it is run ----------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the verifier as an auditor does: by itself, without site-packages, in no folder of ours."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", FILE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.json"
    path.write_bytes(whole().to_bytes())
    return path


def test_it_needs_nothing_but_the_standard_library(file: Path) -> None:
    done = run(file, "--key", KEY.verifier)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("bundle", "began", "transitions", "contents", "log", "root", "vouched", "note", "note", "note", "result")
    ]
    assert "vouched for  6 of 6, by the key aegis.example/prod+" in done.stdout
    assert done.stdout.endswith("result       VERIFIED\n")


def test_it_imports_nothing_else_and_is_written_for_python_3_9() -> None:
    tree = ast.parse(FILE.read_text(), feature_version=(3, 9))
    imported_ = {
        name.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    imported_ |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported_ <= sys.stdlib_module_names
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def status(*arguments: object) -> int:
    return shipped.main([str(one) for one in arguments])


@pytest.fixture
def anchors_file(tmp_path: Path) -> Path:
    path = tmp_path / "anchors.jsonl"
    path.write_bytes(b"".join(one.line() for one in anchors_of(LEAVES, 4, len(LEAVES))))
    return path


def test_its_exit_status_says_what_came_of_it(
    file: Path, anchors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"# ours\n\n{OTHER_KEY.verifier}\n{KEY.verifier}  # until 2027\n")
    head = head_of_log(LEAVES)
    assert status(file, "--key", KEY.verifier) == 0
    assert status(file, "--key", keys) == 0
    assert status(file, "--root", head.root.hex(), "--size", head.size) == 0
    assert status(file, "--anchors", anchors_file) == 0
    assert status(file, "--anchors", anchors_file, "--key", KEY.verifier) == 0
    assert status(file, "--no-anchor") == 0
    assert "result       CONSISTENT" in capsys.readouterr().out
    assert status(file) == 2, "nothing of the reader's own"
    assert status(file, "--root", head.root.hex(), "--size", 3) == 2, "a root of another size"
    assert status(file, "--root", "0" * 64, "--size", head.size) == 1
    assert status(file, "--key", OTHER_KEY.verifier) == 1
    file.write_bytes(edited(cut))
    assert status(file, "--key", KEY.verifier) == 0, "true as far as it goes"
    assert status(file, "--key", KEY.verifier, "--anchors", anchors_file) == 1
    file.write_bytes(edited(stripped(5)))
    assert status(file, "--key", KEY.verifier) == 2, "not all of it is anchored"
    assert status(file, "--key", KEY.verifier, "--accept-unanchored") == 0
    assert status(file, "--key", KEY.verifier, "--anchors", anchors_file) == 0
    file.write_bytes(with_inside(bundled(OURS, LEAVES, anchored=0, note=None, log_size=0)).to_bytes())
    assert status(file, "--key", KEY.verifier, "--accept-unanchored") == 2, "nothing vouches for any of it"


@pytest.mark.parametrize(
    "arguments",
    [
        ["/nonexistent"],
        ["/"],
        ["FILE", "--key", "nonsense"],
        ["FILE", "--key", "/nonexistent"],
        ["FILE", "--root", "00"],
        ["FILE", "--root", "0" * 64],
        ["FILE", "--size", "3"],
        ["FILE", "--anchors", "/nonexistent"],
        [str(FILE)],
        ["/dev/null"],
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*(str(file) if one == "FILE" else one for one in arguments)) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert status(*(str(file) if one == "FILE" else one for one in arguments), "--json") == 2
    assert json.loads(capsys.readouterr().err)["result"] == "not verified"


def test_as_json_it_says_all_of_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(edited(relinked(5, actor="user:mallory")))
    assert status(file, "--key", KEY.verifier, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["result"] == "tampered with"
    assert (report["workflow_id"], report["transitions"], report["vouched_for"]) == (WORKFLOW, 6, 5)
    [failure] = [one for one in report["findings"] if one["severity"] == "failure"]
    assert set(failure) == {"workflow_id", "seq", "code", "severity", "expected", "actual", "log_index"}
    assert (failure["seq"], failure["code"], failure["log_index"]) == (5, "ANCHOR_MISMATCH", 8)


def test_what_a_forger_wrote_does_not_reach_the_terminal(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(edited(on_head(type="\x1b[2J\u202eevil\nresult       VERIFIED")))
    assert status(file, "--key", KEY.verifier) == 1
    out = capsys.readouterr().out
    assert out.isascii()
    assert not [line for line in out.splitlines() if line == "result       VERIFIED"]


RECORDS: Final = [whole().to_dict()["head"], *whole().to_dict()["transitions"], *whole().to_dict()["checkpoints"]]
ODD: Final[list[Any]] = [
    *(None, True, -1, 2**53 - 1, 0.5, "", "\u2028", "0" * 64, "x" * 99),
    *([], [[]], [0, 0], {}, {"a": None}, [[0, 1]], ["0" * 64]),
]


@pytest.mark.parametrize("place", range(len(RECORDS)))
def test_whatever_it_is_given_it_ends_with_a_verdict(
    place: int, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records of the right digest and the wrong content: values of other kinds, anywhere."""
    monkeypatch.setattr(shipped, "signature_is_valid", cache(shipped.signature_is_valid))
    for name, value in itertools.product(sorted(RECORDS[place]), ODD):
        document = whole().to_dict()
        records = [document["head"], *document["transitions"], *document["checkpoints"]]
        records[place][name] = value
        file.write_bytes(resealed(document))
        assert status(file, "--key", KEY.verifier) in {0, 1}
        assert "Traceback" not in capsys.readouterr().err
        assert bool(ours(file.read_bytes())) == bool(theirs(file.read_bytes()))
