"""Every part of a transition at the first, a middle and the last place, as it is and rehashed, by raw SQL.

What only the envelope and the columns beside it say is in ``test_tampering.py``; here is what hangs on a
transition, and where it stands. Where an edit cannot be seen before something is anchored, nothing is expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from attacks import (
    POSITIONS,
    Attack,
    assert_found,
    assert_seen,
    change_places,
    checkpoint,
    close,
    delete,
    outside,
    p,
    payload,
    put_in,
    reaches,
    relink,
    run,
    stored,
)
from tampering import HISTORY, LAST, Found, Reach, Scene, Scenes, Stage, at, failures, rehash

from aegis.core.finding import Code
from aegis.persistence.database import Database

HASH, PREV, HEAD, ROW = Code.HASH_MISMATCH, Code.PREV_MISMATCH, Code.HEAD_MISMATCH, Code.ROW_STATE_MISMATCH
GAP, TWICE, WRONG = Code.SEQ_GAP, Code.SEQ_DUPLICATE, Code.WRONG_WORKFLOW
PAYLOAD, CHECKPOINT, MAC = Code.PAYLOAD_MISMATCH, Code.CHECKPOINT_MISMATCH, Code.MAC_INVALID
ANCHOR, LOG = Code.ANCHOR_MISMATCH, Code.LOG_INCONSISTENT
TRUNCATED, MISSING = Code.TRUNCATED, Code.MISSING_WORKFLOW
STAGES_AND_REACHES: Final = [(stage, reach) for stage in Stage for reach in reaches(stage)]


# --- what hangs on a transition -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something beside the envelope: how it is edited at one place, and what of that no new hash can mend."""

    edit: Callable[[int], Callable[[Scene], None]]
    bare: Code
    stays: bool
    """Whether what finds the bare edit finds it however far the rest is rehashed."""
    hashed: bool
    """Whether the envelope has another hash once it is made to fit."""
    places: tuple[int, ...] = POSITIONS
    also: dict[int, Found] = field(default_factory=dict)
    """What else is found of the edit at a place, rehashed or not."""


# Transitions that have a payload; the first of them lists what the handler before it had saved on its way.
WITH_PAYLOAD: Final = (1, 2, LAST)
PARTS: Final[dict[str, Part]] = {
    "a payload's salt": Part(
        edit=lambda seq: payload("salt = :other", seq), bare=PAYLOAD, stays=False, hashed=True, places=WITH_PAYLOAD
    ),
    "a payload's body": Part(
        edit=lambda seq: payload("body = convert_to('{\"forged\"\\:true}', 'UTF8')", seq),
        bare=PAYLOAD,
        stays=False,
        hashed=True,
        places=WITH_PAYLOAD,
        also={1: p(0, CHECKPOINT)},
    ),
    # H(salt || body) stays the same: it is the length of the salt that finds it.
    "a byte from a payload's salt to its body": Part(
        edit=lambda seq: payload("body = substr(salt, 32) || body, salt = substr(salt, 1, 31)", seq),
        bare=PAYLOAD,
        stays=True,
        hashed=False,
        places=WITH_PAYLOAD,
        also={1: p(0, CHECKPOINT)},
    ),
    # The transition commits to the commitment, and that to salt and body: whoever edits one of the three is found by
    # the other two. All three at once is among the subjects of test_tampering.py.
    "a checkpoint's salt": Part(
        edit=lambda seq: checkpoint("salt = :other", seq), bare=CHECKPOINT, stays=True, hashed=False
    ),
    "a checkpoint's bytes": Part(
        edit=lambda seq: checkpoint("body = replace(convert_from(body, 'UTF8'), 'street', 'Street')::bytea", seq),
        bare=CHECKPOINT,
        stays=True,
        hashed=False,
    ),
    "a checkpoint's commitment": Part(
        edit=lambda seq: checkpoint("commitment = :other", seq), bare=CHECKPOINT, stays=True, hashed=True
    ),
}


def expected_of(part: Part, seq: int, reach: Reach, stage: Stage) -> tuple[Found, Found]:
    """What is found of an edit without a key, and what a key adds."""
    bare = p(seq, part.bare)
    also = part.also.get(seq, set())
    if reach is Reach.NONE or not part.hashed:
        return bare | also, set()
    stays = bare if part.stays else set()
    if reach is Reach.ROW:
        follows = PREV if seq < LAST else HEAD
        return p(seq, follows, *outside(reach, stage)) | stays | also, p(seq, MAC)
    rest = range(seq, LAST + 1)
    return p(rest, *outside(reach, stage)) | stays | also, p(rest, MAC)


@pytest.mark.parametrize(("stage", "reach"), STAGES_AND_REACHES)
@pytest.mark.parametrize("name", PARTS)
def test_what_hangs_on_a_transition_is_found_there(
    scenes: Scenes, database: Database, name: str, reach: Reach, stage: Stage
) -> None:
    part = PARTS[name]
    for seq in part.places:
        scene = scenes.put_up(database, stage)
        part.edit(seq)(scene)
        rehash(scene, "p", seq, reach)
        assert_found(scene, "p", *expected_of(part, seq, reach, stage))


# --- codes --------------------------------------------------------------------------------------------

CODES: Final[dict[str, str]] = {
    "another code": "mac = :other",
    "another key": "mac_key = 'another'",
    "no code": "mac = NULL, mac_key = NULL",
    "the code of another": "mac = (SELECT q.mac FROM aegis_transition q WHERE q.workflow_id = 'q' AND q.seq = {seq})",
    "the code of its neighbour": "mac = (SELECT n.mac FROM aegis_transition n WHERE n.workflow_id = 'p' AND n.seq = 1)",
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", CODES)
def test_a_code_is_missed_by_whoever_has_the_key_and_by_nobody_else(
    scenes: Scenes, database: Database, name: str, stage: Stage
) -> None:
    for seq in POSITIONS:
        scene = scenes.put_up(database, stage)
        stored(CODES[name].format(seq=seq), seq)(scene)
        assert_found(scene, "p", set(), p(seq, MAC))


# --- where it stands ------------------------------------------------------------------------------------


def place(stage: Stage, before: Found, logged: Found, anchored: Found) -> Found:
    """What is found at one stage: always, and beside that once there is a log, and once it is anchored."""
    return before | {Stage.FRESH: set(), Stage.LOGGED: logged, Stage.ANCHORED: anchored}[stage]


def attack(stage: Stage, edit: Callable[[Scene], object], found: Found, keyed: Found) -> Attack:
    return Attack(edit=edit, fresh=found, keyed=keyed)


def given_to_another(seq: int) -> Callable[[Scene], None]:
    changed = f"SET workflow_id = 'zz' WHERE workflow_id = 'p' AND seq = {seq}"
    return run(*(f"UPDATE {table} {changed}" for table in HISTORY))


# What is seen of a transition that stands in a workflow that is none, and of what the handler after the first saved.
def stranger(seq: int) -> Found:
    found = at("zz", [seq], WRONG, MISSING)
    return found | at("zz", [0], PREV if seq == 0 else GAP)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("seq", POSITIONS)
def test_a_transition_that_is_given_to_another_workflow(
    scenes: Scenes, database: Database, seq: int, stage: Stage
) -> None:
    gone = {0: p(0, GAP, CHECKPOINT), 2: p(2, GAP), LAST: p(LAST - 1, HEAD, ROW)}[seq]
    known = at("zz", [seq], LOG) | (p(LAST, TRUNCATED) if seq == LAST else set())
    scene = scenes.put_up(database, stage)
    edit = given_to_another(seq)
    edit(scene)
    found = place(stage, gone | stranger(seq), known, known)
    # The code of a checkpoint inside a handler is of its workflow.
    assert_seen(scene, attack(stage, edit, found, at("zz", [0], MAC) if seq == 0 else set()))


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("seq", POSITIONS)
def test_a_transition_taken_out_and_the_next_linked_to_the_one_before(
    scenes: Scenes, database: Database, seq: int, stage: Stage
) -> None:
    scene = scenes.put_up(database, stage)
    edit = relink(seq)
    edit(scene)
    if seq == LAST:  # all that is left fits: only who knows the length finds it
        found, keyed = place(stage, set(), p(LAST, TRUNCATED), p(LAST, TRUNCATED)), set()
    else:
        gone = p(seq, GAP) | p(seq + 1, PREV) | (p(0, CHECKPOINT) if seq == 0 else set())
        found, keyed = place(stage, gone, p(seq + 1, LOG), p(seq + 1, ANCHOR)), p(seq + 1, MAC)
    assert_seen(scene, attack(stage, edit, found, keyed))


@pytest.mark.parametrize(
    ("stage", "reach"), [(stage, reach) for stage, reach in STAGES_AND_REACHES if reach in {Reach.CHAIN, Reach.LOG}]
)
@pytest.mark.parametrize("seq", POSITIONS)
def test_a_transition_taken_out_and_all_that_follow_moved_up(
    scenes: Scenes, database: Database, seq: int, reach: Reach, stage: Stage
) -> None:
    scene = scenes.put_up(database, stage)
    edit = close(seq, reach)
    edit(scene)
    moved = range(seq, LAST)
    found = p(moved, *outside(reach, stage)) | place(stage, set(), p(LAST, TRUNCATED), p(LAST, TRUNCATED))
    assert_seen(scene, attack(stage, edit, found, p(moved, MAC)))


@pytest.mark.parametrize(("stage", "reach"), STAGES_AND_REACHES)
@pytest.mark.parametrize("seq", [0, 3, LAST, LAST + 1])
def test_a_transition_put_in(scenes: Scenes, database: Database, seq: int, reach: Reach, stage: Stage) -> None:
    scene = scenes.put_up(database, stage)
    edit = put_in(seq, reach)
    edit(scene)
    assert_seen(scene, attack(stage, edit, *found_of_one_more(seq, reach, stage)))


def found_of_one_more(seq: int, reach: Reach, stage: Stage) -> tuple[Found, Found]:
    """What is found of a transition put in at ``seq``, and what a key adds."""
    end = LAST + 1
    found, keyed = set[tuple[str | None, int | None, Code]](), p(seq, MAC)
    moved = p(range(seq + 1, end + 1), HASH, CHECKPOINT) | p(end, HEAD)
    first = seq
    match reach:
        case Reach.NONE:
            found = moved | p(seq, HASH, CHECKPOINT) | p(max(seq - 1, 0), PREV)
            if seq in {3, end}:  # the one that it is a copy of has a payload
                found |= p(seq, PAYLOAD)
            first = max(seq, 1)  # a copy of the first is what the log has there
        case Reach.ROW:
            found = moved | (p(seq, PREV) if seq < end else set())
        case _:
            keyed = p(range(seq, end + 1), MAC)
    if seq == 0:  # what the handler after the first had saved says that it was saved there
        found |= p(1, CHECKPOINT)
        keyed |= p(1, MAC)
    if seq == end:  # of a transaction of now, so that the log has not seen it yet
        return found, keyed
    # What was the last has the transaction of what it once was, which is past: it should be in the log.
    late = p(end, LOG)
    if reach is Reach.LOG:
        return found | place(stage, set(), late, p(range(first, end), ANCHOR, LOG) | late), keyed
    return found | place(stage, set(), p(range(first, end), LOG) | late, p(range(first, end), ANCHOR) | late), keyed


@pytest.mark.parametrize(("stage", "reach"), STAGES_AND_REACHES)
@pytest.mark.parametrize("one", [0, 2, LAST - 1])
def test_two_that_change_places(scenes: Scenes, database: Database, one: int, reach: Reach, stage: Stage) -> None:
    scene = scenes.put_up(database, stage)
    edit = change_places(one, one + 1, reach)
    edit(scene)
    assert_seen(scene, attack(stage, edit, *found_of_a_swap(one, reach, stage)))


def found_of_a_swap(one: int, reach: Reach, stage: Stage) -> tuple[Found, Found]:
    """What is found of ``one`` and the one after it in each other's place, and what a key adds."""
    two = one + 1
    # The code of what the handler after the first had saved is of the place where it saved it.
    inside = p(1, MAC) if one == 0 else set()
    follows = p(two, PREV) if two < LAST else p(two, HEAD, ROW)
    match reach:
        case Reach.NONE:
            # Whoever stands in the wrong place and still has his own hash is believed: hence also the one before.
            found = p((one, two), HASH, CHECKPOINT) | p({max(one - 1, 0), one}, PREV) | follows
            return found | p((one, two), *outside(Reach.ROW, stage)), inside
        case Reach.ROW:
            found = p(one, PREV) | p(two, HASH, CHECKPOINT) | follows
            return found | p((one, two), *outside(Reach.ROW, stage)), p(one, MAC) | inside
        case _:
            rest = range(one, LAST + 1)
            return p(rest, *outside(reach, stage)) | (p(1, CHECKPOINT) if one == 0 else set()), p(rest, MAC)


# --- twice ----------------------------------------------------------------------------------------------

KEY: Final = "aegis_transition_pkey"
COPIES: Final[dict[str, tuple[str, set[Code]]]] = {
    "the same again": ("actor", set()),
    "another one": ("'user:eve'", {HASH}),
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", COPIES)
def test_a_transition_that_stands_twice(scenes: Scenes, database: Database, name: str, stage: Stage) -> None:
    """The database itself refuses that, until somebody takes its key away."""
    actor, more = COPIES[name]
    others = "workflow_id, seq, event, from_state, to_state, attempt, at, envelope, hash, mac, mac_key, xact"
    for seq in POSITIONS:
        scene = scenes.put_up(database, stage)
        scene.sql(f"ALTER TABLE aegis_transition DROP CONSTRAINT {KEY}")
        try:
            scene.sql(
                f"INSERT INTO aegis_transition ({others}, actor) SELECT {others}, {actor}"  # noqa: S608
                " FROM aegis_transition WHERE workflow_id = 'p' AND seq = :seq",
                seq=seq,
            )
            for report in (scene.all(keyed=False), scene.all(), scene.one("p")):
                assert failures(report) == p(seq, TWICE, *more)
        finally:
            scene.sql("DELETE FROM aegis_transition")
            scene.sql(f"ALTER TABLE aegis_transition ADD CONSTRAINT {KEY} PRIMARY KEY (workflow_id, seq)")


# --- parts that are put elsewhere -------------------------------------------------------------------------

ELSEWHERE: Final[dict[str, tuple[Callable[[int], Callable[[Scene], None]], Callable[[int], Found]]]] = {
    "a checkpoint under another seq": (
        lambda seq: checkpoint("seq = 50", seq),
        lambda seq: p((seq, 50), CHECKPOINT),
    ),
    "a checkpoint among those inside of a handler": (
        lambda seq: checkpoint("number = 7, kind = 'manual'", seq),
        lambda seq: p(seq, CHECKPOINT),
    ),
    "a checkpoint under another workflow": (
        lambda seq: checkpoint("workflow_id = 'zz'", seq),
        lambda seq: p(seq, CHECKPOINT) | at("zz", [seq], CHECKPOINT),
    ),
    "no checkpoint": (
        lambda seq: delete(["aegis_checkpoint"], f"seq = {seq} AND number = 0"),
        lambda seq: p(seq, CHECKPOINT),
    ),
    "the checkpoint of another workflow": (
        lambda seq: checkpoint(
            "(body, salt, commitment) = (SELECT q.body, q.salt, q.commitment FROM aegis_checkpoint q"
            " WHERE q.workflow_id = 'q' AND q.seq = aegis_checkpoint.seq AND q.number = 0)",
            seq,
        ),
        lambda seq: p(seq, CHECKPOINT, WRONG),
    ),
    "the checkpoint of its neighbour": (
        lambda seq: checkpoint(
            "(body, salt, commitment) = (SELECT n.body, n.salt, n.commitment FROM aegis_checkpoint n"
            " WHERE n.workflow_id = 'p' AND n.seq = 1 AND n.number = 0)",
            seq,
        ),
        lambda seq: p(seq, CHECKPOINT),
    ),
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_checkpoint_that_is_put_elsewhere(scenes: Scenes, database: Database, name: str, stage: Stage) -> None:
    edit, expected = ELSEWHERE[name]
    for seq in POSITIONS:
        scene = scenes.put_up(database, stage)
        edit(seq)(scene)
        # After the last, nothing lists what a handler saved on its way: then it needs a code.
        unlisted = name.startswith("a checkpoint among") and seq == LAST
        assert_seen(scene, attack(stage, edit(seq), expected(seq), p(seq, MAC) if unlisted else set()))


PAYLOADS: Final[dict[str, tuple[Callable[[int], Callable[[Scene], None]], Callable[[int], Found]]]] = {
    "under another seq": (lambda seq: payload("seq = 3", seq), lambda seq: p((seq, 3), PAYLOAD)),
    "beyond the end": (lambda seq: payload("seq = 77", seq), lambda seq: p((seq, 77), PAYLOAD)),
    "under another workflow": (
        lambda seq: payload("workflow_id = 'zz'", seq),
        lambda seq: p(seq, PAYLOAD) | at("zz", [seq], PAYLOAD),
    ),
    "gone": (lambda seq: delete(["aegis_payload"], f"seq = {seq}"), lambda seq: p(seq, PAYLOAD)),
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_that_is_put_elsewhere(scenes: Scenes, database: Database, name: str, stage: Stage) -> None:
    edit, expected = PAYLOADS[name]
    for seq in WITH_PAYLOAD:
        scene = scenes.put_up(database, stage)
        edit(seq)(scene)
        # The first lists what the handler before it had saved on its way: without it, nothing does; and elsewhere it
        # lists what nobody had saved there.
        also = p((0, 2) if name == "under another seq" else 0, CHECKPOINT) if seq == 1 else set()
        assert_seen(scene, attack(stage, edit(seq), expected(seq) | also, set()))
