"""The table of edits, on a real database: each is found at its transition, by its name, and nobody else is accused.

Where an edit cannot be found, because nothing outside of the database knew of the transition yet and
no key vouches for it, that is what is asserted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

import pytest
from attacks import (
    EVERY,
    POSITIONS,
    Attack,
    assert_found,
    assert_seen,
    both,
    checkpoint,
    delete,
    outside,
    p,
    payload,
    reaches,
    run,
    stored,
)
from log_workbench import add, take_up_all
from sqlalchemy import text
from store_workbench import RecordingRing, everything, make_engine
from store_workflows import Letter
from tampering import (
    HISTORY,
    LAST,
    OTHER,
    Found,
    Reach,
    Scene,
    Scenes,
    Stage,
    anchor_now,
    append,
    at,
    edit_envelope,
    failures,
    mend_row,
    put_back,
    rehash,
    renumber,
    swap,
    write_checkpoint,
)

from aegis.core.canonical import canonical
from aegis.core.chain import MacKey
from aegis.core.errors import HistoryBroken
from aegis.core.finding import Code
from aegis.core.names import SYSTEM
from aegis.core.removal import removals_digest
from aegis.persistence.auditor import Auditor, Sources
from aegis.persistence.database import Database
from aegis.persistence.models import Base
from aegis.persistence.statements import DIALECT

Edit: TypeAlias = Callable[[Scene, int], object]

HASH, PREV, HEAD, ROW = Code.HASH_MISMATCH, Code.PREV_MISMATCH, Code.HEAD_MISMATCH, Code.ROW_STATE_MISMATCH
GAP, TWICE = Code.SEQ_GAP, Code.SEQ_DUPLICATE
PAYLOAD, CHECKPOINT = Code.PAYLOAD_MISMATCH, Code.CHECKPOINT_MISMATCH
NON_CANONICAL, WRONG, VERSION = Code.NON_CANONICAL, Code.WRONG_WORKFLOW, Code.UNKNOWN_VERSION
MAC, ANCHOR, LOG = Code.MAC_INVALID, Code.ANCHOR_MISMATCH, Code.LOG_INCONSISTENT
TRUNCATED, MISSING = Code.TRUNCATED, Code.MISSING_WORKFLOW
LATER: Final = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("stage", Stage)
def test_what_nobody_touched_is_in_order(scenes: Scenes, database: Database, stage: Stage) -> None:
    scene = scenes.put_up(database, stage)
    report = scene.all()
    assert report.valid, report
    assert (report.workflows, report.transitions) == (3, 12)
    assert all(scene.one(workflow_id).valid for workflow_id in ("p", "q", "w"))


# --- one transition, and what hangs on it -------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something of one transition that can be edited, and what finds the bare edit of it."""

    edit: Edit
    bare: frozenset[Code]
    columns: frozenset[str] = frozenset()
    """The columns that it is about, as ``table.column``."""
    in_the_row: bool = False
    """Whether the workflow's row repeats it of the last transition."""


def column(name: str, value: str, *, in_the_row: bool = False) -> Subject:
    """An edit of a column that the envelope repeats."""
    changed = f"UPDATE aegis_transition SET {name} = {value} WHERE workflow_id = 'p' AND seq = :seq"  # noqa: S608
    return Subject(
        edit=lambda scene, seq: scene.sql(changed, seq=seq),
        bare=frozenset({HASH}),
        columns=frozenset({f"aegis_transition.{name}"}),
        in_the_row=in_the_row,
    )


def member(name: str, value: str, *, in_the_row: bool = False) -> Subject:
    """An edit of something that only the envelope says."""
    changed = (
        "UPDATE aegis_transition SET envelope = convert_to(regexp_replace("  # noqa: S608
        f'convert_from(envelope, \'UTF8\'), \'"{name}":"[^"]*"\', \'"{name}":"{value}"\'), \'UTF8\')'
        " WHERE workflow_id = 'p' AND seq = :seq"
    )
    return Subject(
        edit=lambda scene, seq: scene.sql(changed, seq=seq),
        bare=frozenset({HASH}),
        columns=frozenset({"aegis_transition.envelope"}),
        in_the_row=in_the_row,
    )


def put_payload(scene: Scene, seq: int) -> None:
    scene.sql(
        """
        INSERT INTO aegis_payload (workflow_id, seq, body, salt) VALUES ('p', :seq, :body, :salt)
        ON CONFLICT (workflow_id, seq) DO UPDATE SET body = excluded.body
        """,
        seq=seq,
        body=canonical({"forged": True}),
        salt=OTHER,
    )


def take_payload(scene: Scene, seq: int) -> None:
    """Take a payload away, or put an empty one where there was none."""
    if not scene.sql("DELETE FROM aegis_payload WHERE workflow_id = 'p' AND seq = :seq", seq=seq):
        scene.sql("INSERT INTO aegis_payload VALUES ('p', :seq, 'null', :salt)", seq=seq, salt=OTHER)


def put_checkpoint(scene: Scene, seq: int) -> None:
    body = canonical({"seq": seq, "state": {"address": "forged"}, "workflow_id": "p"})
    write_checkpoint(scene, "p", seq, 0, body)


def move_a_character(scene: Scene, seq: int) -> None:
    scene.sql(
        """
        UPDATE aegis_transition SET event = left(event, -1), to_state = right(event, 1) || to_state
        WHERE workflow_id = 'p' AND seq = :seq
        """,
        seq=seq,
    )


SUBJECTS: Final[dict[str, Subject]] = {
    "event": column("event", "'forged'"),
    "from_state": column("from_state", "'forged'"),
    "to_state": column("to_state", "'forged'", in_the_row=True),
    "actor": column("actor", "'user:eve'"),
    "attempt": column("attempt", "attempt + 1"),
    "at": column("at", "at + interval '1 microsecond'"),
    "a character moved to the next field": Subject(edit=move_a_character, bare=frozenset({HASH}), in_the_row=True),
    "type": member("type", "forged", in_the_row=True),
    "definition": member("def", "sha256:" + "ab" * 32, in_the_row=True),
    "payload": Subject(edit=put_payload, bare=frozenset({PAYLOAD}), columns=frozenset({"aegis_payload.body"})),
    "no payload": Subject(edit=take_payload, bare=frozenset({PAYLOAD})),
    "checkpoint": Subject(
        edit=put_checkpoint,
        bare=frozenset({CHECKPOINT}),
        columns=frozenset({f"aegis_checkpoint.{name}" for name in ("body", "salt", "commitment")}),
    ),
}


def expected_of(subject: Subject, seq: int, reach: Reach, stage: Stage) -> tuple[Found, Found]:
    """What is found of an edit of ``p`` without a key, and what a key adds to that."""
    rest = range(seq, LAST + 1)
    row = at("p", [LAST], ROW) if subject.in_the_row and seq == LAST else set()
    match reach:
        case Reach.NONE:
            # A row's state is compared with what the envelope says: only where that was edited do they differ.
            edited = row if "aegis_transition.envelope" in subject.columns else set()
            return at("p", [seq], *subject.bare) | edited, set()
        case Reach.ROW:
            return at("p", [seq], PREV if seq < LAST else HEAD, *outside(reach, stage)) | row, at("p", [seq], MAC)
        case _:
            # Where nothing outside of the rows knows of it yet, only the codes find it.
            return at("p", rest, *outside(reach, stage)), at("p", rest, MAC)


@pytest.mark.parametrize(("stage", "reach"), [(stage, reach) for stage in Stage for reach in reaches(stage)])
@pytest.mark.parametrize("name", SUBJECTS)
def test_an_edit_of_a_transition_is_found_there_and_nowhere_else(
    scenes: Scenes, database: Database, name: str, reach: Reach, stage: Stage
) -> None:
    subject = SUBJECTS[name]
    for seq in POSITIONS:
        scene = scenes.put_up(database, stage)
        subject.edit(scene, seq)
        rehash(scene, "p", seq, reach)
        assert_found(scene, "p", *expected_of(subject, seq, reach, stage))


# --- bytes that only the envelope has --------------------------------------------------------------


def with_member(**changes: object) -> Callable[[bytes], bytes]:
    return lambda envelope: canonical(json.loads(envelope) | changes)


# What is done to the bytes, what says so of the transition itself, and whether the envelope can still be read.
ENVELOPES: Final[dict[str, tuple[Callable[[bytes], bytes], set[Code], bool]]] = {
    "1 becomes 1.0": (lambda e: e.replace(b'"attempt":1', b'"attempt":1.0'), {NON_CANONICAL}, False),
    "blanks": (lambda e: e.replace(b'":', b'": '), {NON_CANONICAL}, False),
    "a member twice": (lambda e: e.replace(b'"wf"', b'"v":1,"wf"'), {NON_CANONICAL}, False),
    "cut short": (lambda e: e[:-1], {NON_CANONICAL}, False),
    "nothing": (lambda _: b"", {NON_CANONICAL}, False),
    "no text": (lambda _: b"\xff\xfe\x00", {NON_CANONICAL}, False),
    "version 2": (with_member(v=2), {VERSION}, False),
    "another hash": (with_member(alg="md5"), {VERSION}, False),
    "another workflow": (with_member(wf="q"), {WRONG}, True),
    "a member more": (with_member(note="x"), set(), True),
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("reach", [Reach.NONE, Reach.ROW, Reach.CHAIN])
@pytest.mark.parametrize("name", ENVELOPES)
def test_other_bytes_in_an_envelope_are_found_in_the_first_in_the_middle_and_in_the_last(
    scenes: Scenes, database: Database, name: str, reach: Reach, stage: Stage
) -> None:
    change, codes, readable = ENVELOPES[name]
    for seq in POSITIONS:
        scene = scenes.put_up(database, stage)
        edit_envelope(scene, seq, change, reach)
        expected, keyed = expected_of(Subject(edit=never, bare=frozenset({HASH})), seq, reach, stage)
        expected |= at("p", [seq], *codes)
        if not readable and seq == LAST:
            # Where the last cannot be read, the one before is the last that says where the workflow is.
            expected |= at("p", [LAST], ROW)
        assert_found(scene, "p", expected, keyed)


# --- everything else that one can think of ----------------------------------------------------------


def never(*_: object) -> None:
    """Do nothing."""


def swap_all(scene: Scene) -> None:
    for table in HISTORY:
        swap(scene, table)


def cut(*more: str) -> Callable[[Scene], None]:
    """Take the last two transitions away, and have the row say that it is paused."""
    mended = run("UPDATE aegis_workflow SET status = 'paused' WHERE id = 'p'")
    return both(delete([*HISTORY, *more], "seq >= 3"), lambda scene: mend_row(scene, "p"), mended)


def progress(seq: int, number: int, *, new: bool = False) -> Callable[[Scene], object]:
    """Write a checkpoint of a handler, in the place of another or beside them."""
    body = canonical({"seq": seq, "state": {"address": "forged"}, "workflow_id": "p"})
    return lambda scene: write_checkpoint(scene, "p", seq, number, body, new=new)


def row(change: str) -> Callable[[Scene], None]:
    return run(f"UPDATE aegis_workflow SET {change} WHERE id = 'p'")  # noqa: S608


FORGED: Final = canonical({"seq": 1, "state": {"state": "ready", "words": ["forged"]}, "workflow_id": "w"})
LOGGED: Final = "UPDATE aegis_log SET {} WHERE workflow_id = 'p' AND seq = 2"
WHOLE: Final = both(delete(HISTORY, "true"), run("DELETE FROM aegis_workflow WHERE id = 'p'"))
ATTACKS: Final[dict[str, Attack]] = {
    # the hash, and the code
    **{
        f"the hash of {seq}": Attack(
            edit=stored("hash = :other", seq),
            fresh=p(seq, HASH, PREV if seq < LAST else HEAD),
            logged=p(seq, HASH, PREV if seq < LAST else HEAD, LOG),
            anchored=p(seq, HASH, PREV if seq < LAST else HEAD, ANCHOR),
            keyed=p(seq, MAC),
        )
        for seq in POSITIONS
    },
    "a code": Attack(edit=stored("mac = :other"), fresh=set(), keyed=p(2, MAC)),
    "the code's key": Attack(edit=stored("mac_key = 'another'"), fresh=set(), keyed=p(2, MAC)),
    "a code taken off": Attack(edit=stored("mac = NULL, mac_key = NULL"), fresh=set(), keyed=p(2, MAC)),
    "all codes taken off": Attack(
        edit=run("UPDATE aegis_transition SET mac = NULL, mac_key = NULL WHERE workflow_id = 'p'"),
        fresh=set(),
        keyed=p(EVERY, MAC),
    ),
    "a code of another transition": Attack(
        edit=stored("mac = (SELECT mac FROM aegis_transition WHERE workflow_id = 'q' AND seq = 2)"),
        fresh=set(),
        keyed=p(2, MAC),
    ),
    # Whoever has no key writes of a time before there was one: then the outside has to know.
    "all codes taken off, and all of it from before there was a key": Attack(
        edit=both(
            run(
                """
                UPDATE aegis_transition SET mac = NULL, mac_key = NULL, at = at - interval '1 day', actor = 'user:eve'
                WHERE workflow_id = 'p'
                """
            ),
            lambda scene: rehash(scene, "p", 0),
        ),
        fresh=set(),
        logged=p(EVERY, LOG),
        anchored=p(EVERY, ANCHOR),
    ),
    # taken out; with what follows moved up: test_attack_matrix.py
    **{
        f"{seq} taken out": Attack(edit=delete(HISTORY, f"seq = {seq}"), fresh=p(seq, GAP) | gone)
        for seq, gone in ((0, p(0, CHECKPOINT)), (2, set()))
    },
    "the last taken out": Attack(
        edit=delete(HISTORY, "seq = 4"),
        fresh=p(3, HEAD, ROW),
        logged=p(3, HEAD, ROW) | p(4, TRUNCATED),
    ),
    # Nothing that is left is other than it was: not even a key finds it, only what knows the length.
    "the tail cut, the row mended": Attack(edit=cut(), fresh=set(), logged=p((3, 4), TRUNCATED)),
    "the tail cut, and out of the log": Attack(
        edit=cut("aegis_log"),
        fresh=set(),
        logged={(None, None, LOG)},
        anchored=p((3, 4), TRUNCATED),
    ),
    "a whole workflow": Attack(edit=WHOLE, fresh=set(), logged=p(EVERY, MISSING)),
    "a whole workflow, and out of the log": Attack(
        edit=both(WHOLE, delete(["aegis_log"], "true")),
        fresh=set(),
        logged={(None, None, LOG)},
        anchored=p(EVERY, MISSING),
    ),
    "a workflow's row": Attack(edit=run("DELETE FROM aegis_workflow WHERE id = 'p'"), fresh=p(LAST, MISSING)),
    "a workflow's transitions": Attack(
        edit=delete(["aegis_transition"], "true"),
        fresh=p(0, HEAD) | p((1, 2, 4), PAYLOAD),
        logged=p(0, HEAD) | p((1, 2, 4), PAYLOAD) | p(EVERY, TRUNCATED),
    ),
    # put on the end; what is moved, doubled or put in elsewhere: test_attack_matrix.py
    "one put on the end": Attack(edit=lambda scene: append(scene, "p"), fresh=set(), keyed=p(5, MAC)),
    "one put on the end, of an old transaction": Attack(
        edit=both(lambda scene: append(scene, "p"), stored("xact = 1", 5)),
        fresh=set(),
        logged=p(5, LOG),
        keyed=p(5, MAC),
    ),
    "another seq": Attack(
        edit=lambda scene: renumber(scene, "p", LAST, 99),
        fresh=p(LAST, GAP) | p(99, HASH, CHECKPOINT, HEAD),
        logged=p(LAST, GAP) | p(99, HASH, CHECKPOINT, HEAD, LOG),
    ),
    "another workflow's": Attack(
        edit=run(*(f"UPDATE {table} SET workflow_id = 'zz' WHERE workflow_id = 'p' AND seq = 2" for table in HISTORY)),  # noqa: S608
        fresh=p(2, GAP) | at("zz", [0], GAP) | at("zz", [2], WRONG, MISSING),
        logged=p(2, GAP) | at("zz", [0], GAP) | at("zz", [2], WRONG, MISSING, LOG),
    ),
    "a row from nothing": Attack(
        edit=run(
            """
            INSERT INTO aegis_workflow
            SELECT (jsonb_populate_record(w, '{"id": "zz"}')).* FROM aegis_workflow w WHERE id = 'p'
            """
        ),
        fresh=at("zz", [0], HEAD),
    ),
    # two workflows
    "the checkpoints of two": Attack(
        edit=lambda scene: swap(scene, "aegis_checkpoint", "seq = 2 AND number = 0"),
        fresh=at("p", [2], CHECKPOINT, WRONG) | at("q", [2], CHECKPOINT, WRONG),
    ),
    "the checkpoints of two, inside of a handler": Attack(
        edit=lambda scene: swap(scene, "aegis_checkpoint", "number > 0"),
        fresh=at("p", [0], CHECKPOINT, WRONG) | at("q", [0], CHECKPOINT, WRONG),
        keyed=at("p", [0], MAC) | at("q", [0], MAC),
    ),
    "the payloads of two": Attack(
        edit=lambda scene: swap(scene, "aegis_payload", "seq = 4"),
        fresh=at("p", [4], PAYLOAD) | at("q", [4], PAYLOAD),
    ),
    "the rows of two": Attack(
        edit=run(
            """
            UPDATE aegis_workflow w SET head = o.head FROM aegis_workflow o
            WHERE (w.id, o.id) IN (('p', 'q'), ('q', 'p'))
            """
        ),
        fresh=at("p", [4], HEAD) | at("q", [4], HEAD),
    ),
    "the chains of two": Attack(
        edit=both(swap_all, lambda scene: (mend_row(scene, "p"), mend_row(scene, "q"))),
        fresh=at("p", EVERY, WRONG) | at("q", EVERY, WRONG) | at("p", [0], PREV) | at("q", [0], PREV),
        logged=at("p", EVERY, WRONG, LOG) | at("q", EVERY, WRONG, LOG) | at("p", [0], PREV) | at("q", [0], PREV),
        anchored=at("p", EVERY, WRONG, ANCHOR)
        | at("q", EVERY, WRONG, ANCHOR)
        | at("p", [0], PREV)
        | at("q", [0], PREV),
        # The code of a checkpoint inside a handler is of its workflow, too.
        keyed=at("p", [0], MAC) | at("q", [0], MAC),
    ),
    # checkpoints
    "a checkpoint's salt": Attack(edit=checkpoint("salt = :other"), fresh=p(2, CHECKPOINT)),
    "a checkpoint's commitment": Attack(edit=checkpoint("commitment = :other"), fresh=p(2, CHECKPOINT)),
    "a checkpoint's body": Attack(
        edit=checkpoint("body = replace(convert_from(body, 'UTF8'), 'street', 'Street')::bytea"), fresh=p(2, CHECKPOINT)
    ),
    "1 becomes 1.0 in a checkpoint": Attack(
        edit=checkpoint("body = replace(convert_from(body, 'UTF8'), ':1}', ':1.0}')::bytea".replace(":1", r"\:1")),
        fresh=p(2, CHECKPOINT, NON_CANONICAL),
    ),
    "a byte from a checkpoint's salt to its body": Attack(
        edit=checkpoint("body = substr(salt, 32) || body, salt = substr(salt, 1, 31)"),
        fresh=p(2, CHECKPOINT, NON_CANONICAL),
    ),
    "a checkpoint's seq": Attack(edit=checkpoint("seq = 50"), fresh=p((2, 50), CHECKPOINT)),
    "a checkpoint's number": Attack(edit=checkpoint("number = 7, kind = 'manual'"), fresh=p(2, CHECKPOINT)),
    "a checkpoint's workflow": Attack(
        edit=checkpoint("workflow_id = 'zz'"), fresh=p(2, CHECKPOINT) | at("zz", [2], CHECKPOINT)
    ),
    "a checkpoint taken away": Attack(edit=delete(["aegis_checkpoint"], "seq = 2"), fresh=p(2, CHECKPOINT)),
    "a checkpoint inside of a handler": Attack(edit=progress(0, 1), fresh=p(0, CHECKPOINT), keyed=p(0, MAC)),
    "a checkpoint inside of a handler taken away": Attack(
        edit=delete(["aegis_checkpoint"], "number = 1"), fresh=p(0, CHECKPOINT)
    ),
    "a checkpoint inside of a handler more": Attack(edit=progress(0, 3, new=True), fresh=p(0, CHECKPOINT)),
    "two checkpoints inside of a handler in the other order": Attack(
        edit=both(checkpoint("number = 9", 0, 1), checkpoint("number = 1", 0, 2), checkpoint("number = 2", 0, 9)),
        fresh=p(0, CHECKPOINT),
        keyed=p(0, MAC),
    ),
    "other data of a workflow that has ended": Attack(
        edit=progress(LAST, 1, new=True), fresh=p(LAST, CHECKPOINT), keyed=p(LAST, MAC)
    ),
    "the body of a checkpoint that nothing lists yet": Attack(
        edit=run("UPDATE aegis_checkpoint SET body = '{}' WHERE workflow_id = 'w' AND number = 1"),
        fresh=at("w", [1], CHECKPOINT, WRONG),
    ),
    **{
        f"{what} of a checkpoint that nothing lists yet": Attack(
            edit=run(f"UPDATE aegis_checkpoint SET {change} WHERE workflow_id = 'w' AND number = 1"),  # noqa: S608
            fresh=set(),
            keyed=at("w", [1], MAC),
        )
        for what, change in {
            "the code": "mac = :other",
            "the code's key": "mac_key = 'another'",
            "no code any more": "mac = NULL, mac_key = NULL",
            "the code of a transition": "mac = (SELECT mac FROM aegis_transition WHERE workflow_id = 'w' AND seq = 1)",
        }.items()
    },
    "other data in a checkpoint that nothing lists yet": Attack(
        edit=lambda scene: write_checkpoint(scene, "w", 1, 1, FORGED), fresh=set(), keyed=at("w", [1], MAC)
    ),
    "a newer checkpoint, that nothing lists yet": Attack(
        edit=lambda scene: write_checkpoint(scene, "w", 1, 2, FORGED, new=True), fresh=set(), keyed=at("w", [1], MAC)
    ),
    "a checkpoint that nothing lists yet, put back in the order": Attack(
        edit=run("UPDATE aegis_checkpoint SET number = 2 WHERE workflow_id = 'w' AND number = 1"),
        fresh=set(),
        keyed=at("w", [1], MAC),
    ),
    # payloads
    "a payload's salt": Attack(edit=payload("salt = :other"), fresh=p(4, PAYLOAD)),
    "a blank more in a payload": Attack(edit=payload("body = body || ' '::bytea"), fresh=p(4, PAYLOAD)),
    "1 becomes 1.0 in a payload": Attack(
        edit=payload("body = replace(convert_from(body, 'UTF8'), 'true', '1.0')::bytea"), fresh=p(4, PAYLOAD)
    ),
    "a byte from a payload to its salt": Attack(
        edit=payload("salt = salt || substr(body, 1, 1), body = substr(body, 2)"), fresh=p(4, PAYLOAD)
    ),
    "a payload's seq": Attack(edit=payload("seq = 0"), fresh=p((0, 4), PAYLOAD)),
    "a payload's workflow": Attack(edit=payload("workflow_id = 'zz'"), fresh=p(4, PAYLOAD) | at("zz", [4], PAYLOAD)),
    "a payload beyond the end": Attack(
        edit=run("INSERT INTO aegis_payload VALUES ('p', 77, '{}', :other)"), fresh=p(77, PAYLOAD)
    ),
    # the workflow's row
    "the row's id": Attack(
        edit=run("UPDATE aegis_workflow SET id = 'zz' WHERE id = 'p'"), fresh=p(LAST, MISSING) | at("zz", [0], HEAD)
    ),
    "the row's seq, put back": Attack(edit=row("seq = 3"), fresh=p(LAST, HEAD)),
    "the row's seq, ahead": Attack(edit=row("seq = 9"), fresh=p(LAST, HEAD)),
    "the row's head": Attack(edit=row("head = :other"), fresh=p(LAST, HEAD)),
    "the row's state": Attack(edit=row("state = 'lost'"), fresh=p(LAST, ROW)),
    "the row's type": Attack(edit=row("type = 'store.Letter'"), fresh=p(LAST, ROW)),
    "the row's definition": Attack(edit=row("definition = 'sha256:' || repeat('ab', 32)"), fresh=p(LAST, ROW)),
    **{
        f"the row's status, {status}": Attack(edit=row(f"status = '{status}'"), fresh=p(LAST, ROW))
        for status in ("paused", "failed", "cancelled", "quarantined")
    },
    # the log
    "an entry's hash": Attack(edit=run(LOGGED.format("hash = :other")), fresh=set(), logged=p(2, LOG)),
    "an entry's seq": Attack(
        edit=run(LOGGED.format("seq = 9")),
        fresh=set(),
        logged=p(2, LOG) | p(9, TRUNCATED),
        anchored=p(2, LOG),
        alone=p(9, LOG),
    ),
    "an entry's workflow": Attack(
        edit=run(LOGGED.format("workflow_id = 'zz'")),
        fresh=set(),
        logged=p(2, LOG) | at("zz", [2], MISSING),
        anchored=p(2, LOG),
    ),
    "an entry, said to be lost": Attack(
        edit=run("UPDATE aegis_log SET lost_seq = 1 WHERE workflow_id = 'p' AND seq = 2"),
        fresh=set(),
        logged=p(2, LOG) | at(SYSTEM, [1], PAYLOAD),
    ),
    "an entry's place": Attack(
        edit=run(LOGGED.format("log_index = 1000000000000000")),
        fresh=set(),
        logged={(None, None, LOG)},
        anchored=p(2, LOG) | {(None, None, LOG)},
    ),
    # Each is where the other belongs, and what was given out may be in any order: only the outside knows.
    "the places of two entries": Attack(
        edit=run(
            "CREATE TEMPORARY TABLE places AS SELECT * FROM aegis_log WHERE seq = 2 AND workflow_id IN ('p', 'q')",
            "DELETE FROM aegis_log WHERE seq = 2 AND workflow_id IN ('p', 'q')",
            """
            INSERT INTO aegis_log SELECT o.log_index, w.workflow_id, w.seq, w.hash
            FROM places w JOIN places o ON o.workflow_id <> w.workflow_id
            """,
            "DROP TABLE places",
        ),
        fresh=set(),
        logged=set(),
        anchored=at("p", [2], LOG) | at("q", [2], LOG),
    ),
    "an entry taken out": Attack(
        edit=delete(["aegis_log"], "seq = 2"),
        fresh=set(),
        logged=p(2, LOG) | {(None, None, LOG)},
        anchored=p(2, LOG),
    ),
    "the last entry taken out": Attack(
        edit=run("DELETE FROM aegis_log WHERE log_index = 11"),
        fresh=set(),
        logged=at("w", [1], LOG) | {(None, None, LOG)},
    ),
    "the end of the log taken away, and its state mended": Attack(
        edit=run(
            "DELETE FROM aegis_log WHERE log_index >= 10",
            "UPDATE aegis_log_state SET size = least(size, 10)",
        ),
        fresh=set(),
        logged=at("w", [0, 1], LOG),
    ),
    "an entry of nobody": Attack(
        edit=run("INSERT INTO aegis_log SELECT count(*), 'zz', 0, :other FROM aegis_log"),
        fresh=at("zz", [0], MISSING) | {(None, None, LOG)},
    ),
    "an entry of a transition that never was": Attack(
        edit=run(
            "INSERT INTO aegis_log SELECT count(*), 'p', 5, :other FROM aegis_log",
            "UPDATE aegis_log_state SET size = size + 1",
        ),
        fresh=p(5, TRUNCATED),
    ),
    "a node over nothing": Attack(
        edit=run("INSERT INTO aegis_log_node VALUES (1, 0, :other)"), fresh={(None, None, LOG)}
    ),
    "a node of no level": Attack(
        edit=run("INSERT INTO aegis_log_node VALUES (900, 0, :other)"), fresh={(None, None, LOG)}
    ),
    "a log that is said to be longer": Attack(
        edit=run("UPDATE aegis_log_state SET size = size + 5"), fresh={(None, None, LOG)}
    ),
    "a log that is said to be shorter": Attack(
        edit=run("UPDATE aegis_log_state SET size = size - 1"), fresh={(None, None, LOG)}
    ),
    "a horizon beyond all transactions": Attack(
        edit=run("UPDATE aegis_log_state SET horizon = horizon + 1000000000000000"),
        fresh=set(),  # the log has not begun: whose transactions it counts is not known yet
        logged={(None, None, LOG)},
    ),
    # records of removals
    "a removal that nothing tells of": Attack(
        edit=run("INSERT INTO aegis_removal VALUES ('p', 1, 'purged', 4, :other)"),
        fresh=at(SYSTEM, [1], PAYLOAD),
    ),
    "a whole workflow, excused by a row": Attack(
        edit=both(
            run(
                """
                INSERT INTO aegis_removal
                SELECT 'p', 1, 'purged', 4, hash FROM aegis_transition WHERE workflow_id = 'p' AND seq = 4
                """
            ),
            WHOLE,
        ),
        fresh=at(SYSTEM, [1], PAYLOAD),
        logged=at(SYSTEM, [1], PAYLOAD) | p(EVERY, MISSING),
    ),
    "a checkpoint, excused by a row": Attack(
        edit=both(
            delete(["aegis_checkpoint"], "seq = 2"),
            run("INSERT INTO aegis_removal VALUES ('p', 1, 'pruned', 3, NULL)"),
        ),
        fresh=p(2, CHECKPOINT) | at(SYSTEM, [1], PAYLOAD),
    ),
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_found_for_what_it_is(scenes: Scenes, database: Database, name: str, stage: Stage) -> None:
    scene = scenes.put_up(database, stage)
    ATTACKS[name].edit(scene)
    assert_seen(scene, ATTACKS[name])


# --- backups ---------------------------------------------------------------------------------------


def go_on(scene: Scene, *, word: str) -> None:
    """Let the letter move on, and begin another."""
    engine = scene.engine()
    engine.pause("w", reason=word)
    engine.start(Letter(words=[word]), id="new")


def test_an_old_backup_that_was_put_back_is_found(scenes: Scenes, database: Database, tmp_path: Path) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    go_on(scene, word="one")
    assert anchor_now(database, *scene.sinks).written == 1
    assert scene.all().valid

    put_back(database, Stage.ANCHORED.value)
    lost = at("w", [2], TRUNCATED) | at("new", [0], MISSING)
    assert failures(scene.all()) == lost
    assert failures(scene.one("w")) == at("w", [2], TRUNCATED)
    assert failures(scene.one("new")) == at("new", [0], MISSING), "though the database never heard of it"
    assert scene.one("p").valid
    assert "committed transitions were lost" in anchor_now(database, *scene.sinks).alarms[0]

    # And whoever goes on from there, as if nothing had been, only makes it worse.
    go_on(scene, word="another")
    ran = anchor_now(database, *scene.sinks)
    assert (ran.written, len(ran.alarms)) == (0, 1)
    assert failures(scene.all()) == at("w", [2], ANCHOR, LOG) | at("new", [0], ANCHOR, LOG)
    scene.engine().resume("w")
    assert anchor_now(database, *scene.sinks).written == 0
    # What is appended to it now is not anchored, and cannot be told from what is only new.
    assert failures(scene.all()) == at("w", [2], ANCHOR, LOG) | at("new", [0], ANCHOR, LOG)


def test_an_old_backup_of_one_workflow_is_found(scenes: Scenes, database: Database, tmp_path: Path) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    go_on(scene, word="one")
    anchor_now(database, *scene.sinks)
    for table in (*HISTORY, "aegis_workflow"):
        condition = "id = 'w'" if table == "aegis_workflow" else "workflow_id = 'w'"
        scene.sql(f"DELETE FROM {table} WHERE {condition}")  # noqa: S608
        scene.sql(f"INSERT INTO {table} SELECT * FROM {Stage.ANCHORED.value}.{table} WHERE {condition}")  # noqa: S608
    assert failures(scene.all()) == failures(scene.one("w")) == at("w", [2], TRUNCATED)


# --- records of what was removed -------------------------------------------------------------------


def removed(scene: Scene) -> None:
    """Purge ``p`` (record 1), and prune what is left (record 2: of ``q``)."""
    engine = scene.engine()
    engine.purge("p", reason="too old")
    assert engine.prune(keep=1, older_than=timedelta(0)) > 0


def take_q_too(scene: Scene) -> None:
    """Delete another workflow, and put it among those that were purged."""
    scene.sql(
        """
        INSERT INTO aegis_removal
        SELECT 'q', 1, 'purged', 4, hash FROM aegis_transition WHERE workflow_id = 'q' AND seq = 4
        """
    )
    for table in (*HISTORY, "aegis_workflow"):
        scene.sql(f"DELETE FROM {table} WHERE {'id' if table == 'aegis_workflow' else 'workflow_id'} = 'q'")  # noqa: S608


def redigest(scene: Scene) -> None:
    """Have the record say that it is about all that it is said to be about."""
    rows = scene.rows("SELECT workflow_id, kind, through_seq, head FROM aegis_removal WHERE system_seq = 1")
    digest = removals_digest((one.workflow_id, one.kind, one.through_seq, one.head) for one in rows)
    said = {"digest": digest.hex(), "reason": "too old", "workflows": len(rows)}
    changed = "UPDATE aegis_payload SET body = :body WHERE workflow_id = :id AND seq = 1"
    assert scene.sql(changed, body=canonical(said), id=SYSTEM) == 1


def record(seq: int, *codes: Code) -> Found:
    return at(SYSTEM, [seq], *codes)


# Of each: the edit, what an audit of everything finds before the record is anchored and after, what a key
# adds, and the workflow that it is about, whose audit must find the same of the record.
RECORDS: Final[dict[str, tuple[Callable[[Scene], object], Found, Found, Found, str]]] = {
    "a purged workflow's head": (
        run("UPDATE aegis_removal SET head = :other WHERE workflow_id = 'p'"),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        set(),
        "p",
    ),
    "a purged workflow's length": (
        run("UPDATE aegis_removal SET through_seq = 3 WHERE workflow_id = 'p'"),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        set(),
        "p",
    ),
    "a removal taken away": (
        run("DELETE FROM aegis_removal WHERE workflow_id = 'p'"),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        set(),
        "p",
    ),
    "a purge that is said to have been a pruning": (
        run("UPDATE aegis_removal SET kind = 'pruned', head = NULL WHERE workflow_id = 'p'"),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        set(),
        "p",
    ),
    "a removal of another workflow": (
        run("UPDATE aegis_removal SET workflow_id = 'w' WHERE workflow_id = 'p'"),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        record(1, PAYLOAD) | p(EVERY, MISSING),
        set(),
        "p",
    ),
    "a removal of another record": (
        run("UPDATE aegis_removal SET system_seq = 2 WHERE workflow_id = 'p'"),
        record(1, PAYLOAD) | record(2, PAYLOAD) | p(EVERY, MISSING) | at("q", [1, 2, 3], CHECKPOINT),
        record(1, PAYLOAD) | record(2, PAYLOAD) | p(EVERY, MISSING) | at("q", [1, 2, 3], CHECKPOINT),
        set(),
        "p",
    ),
    "pruned further than it was": (
        both(
            run("UPDATE aegis_removal SET through_seq = 4 WHERE workflow_id = 'q'"),
            run("DELETE FROM aegis_checkpoint WHERE workflow_id = 'q' AND seq = 4"),
        ),
        record(2, PAYLOAD) | at("q", [1, 2, 3, 4], CHECKPOINT),
        record(2, PAYLOAD) | at("q", [1, 2, 3, 4], CHECKPOINT),
        set(),
        "q",
    ),
    "another workflow with it": (
        take_q_too,
        record(1, PAYLOAD) | p(EVERY, MISSING) | at("q", EVERY, MISSING),
        record(1, PAYLOAD) | p(EVERY, MISSING) | at("q", EVERY, MISSING),
        set(),
        "q",
    ),
    "another workflow with it, and its digest": (
        both(take_q_too, redigest),
        record(1, PAYLOAD),
        record(1, PAYLOAD),
        set(),
        "q",
    ),
    "another workflow with it, its digest, and its row rehashed": (
        both(take_q_too, redigest, lambda scene: rehash(scene, SYSTEM, 1, Reach.ROW)),
        record(1, PREV),
        record(1, PREV, ANCHOR),
        record(1, MAC),
        "q",
    ),
    "another workflow with it, and all of it rehashed": (
        both(take_q_too, redigest, lambda scene: rehash(scene, SYSTEM, 1)),
        set(),
        record(1, ANCHOR) | record(2, ANCHOR),
        record(1, MAC) | record(2, MAC),
        "q",
    ),
}


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("name", RECORDS)
def test_a_forged_record_excuses_nothing(
    scenes: Scenes, database: Database, tmp_path: Path, name: str, *, anchored: bool
) -> None:
    edit, before, after, keyed, about = RECORDS[name]
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    removed(scene)
    if anchored:
        anchor_now(database, *scene.sinks)
    assert scene.all().valid
    assert scene.one("p").valid
    edit(scene)
    for known in (False, True):
        expected = (after if anchored else before) | (keyed if known else set())
        assert failures(scene.all(keyed=known)) == expected
        of_it = failures(scene.one(about, keyed=known))
        # Where the record is all that excuses it, whoever asks for this one alone is told of the record.
        told = {about, SYSTEM} if name.startswith("another workflow") else {about}
        assert of_it == {found for found in expected if found[0] in told}


# --- the tree over the log --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("UPDATE aegis_log_node SET hash = :other WHERE number = 0", {(None, 0)}),
        ("UPDATE aegis_log_node SET hash = :other WHERE number = 2", {(None, 512)}),
        ("DELETE FROM aegis_log_node WHERE number = 1", {(None, 256)}),
        ("UPDATE aegis_log_node SET number = 9 WHERE number = 2", {(None, 512), (None, 9 * 256)}),
        ("INSERT INTO aegis_log_node VALUES (1, 3, :other)", {(None, 768)}),
        ("INSERT INTO aegis_log_node VALUES (2, 0, :other)", {(None, 0)}),
        ("UPDATE aegis_log SET hash = :other WHERE log_index = 300", {("bulk", 300), (None, 256)}),
    ],
)
def test_a_node_that_is_not_that_of_its_leaves_is_found(
    database: Database, edit: str, expected: set[tuple[str | None, int]]
) -> None:
    add(database, "bulk", 800)
    assert take_up_all(database) == 800
    auditor = Auditor(database, Sources())
    assert auditor.log().valid
    run(edit)(
        Scene(database=database, stage=Stage.LOGGED, key=MacKey(id="", secret=b"", required_from=LATER), sinks=[])
    )
    found = auditor.log().findings
    assert {one.code for one in found} == {LOG}
    assert {(one.workflow_id, one.log_index) for one in found} == expected


# --- that nothing was left out ------------------------------------------------------------------------


# Which of the edits above is of which column.
EDITED: Final[dict[str, str]] = {
    **{name: subject for subject, found in SUBJECTS.items() for name in found.columns},
    "aegis_transition.workflow_id": "another workflow's",
    "aegis_transition.seq": "another seq",
    "aegis_transition.hash": "the hash of 2",
    "aegis_transition.mac": "a code",
    "aegis_transition.mac_key": "the code's key",
    "aegis_payload.workflow_id": "a payload's workflow",
    "aegis_payload.seq": "a payload's seq",
    "aegis_payload.salt": "a payload's salt",
    "aegis_checkpoint.workflow_id": "a checkpoint's workflow",
    "aegis_checkpoint.seq": "a checkpoint's seq",
    "aegis_checkpoint.number": "a checkpoint's number",
    "aegis_checkpoint.mac": "the code of a checkpoint that nothing lists yet",
    "aegis_checkpoint.mac_key": "the code's key of a checkpoint that nothing lists yet",
    "aegis_log.workflow_id": "an entry's workflow",
    "aegis_log.seq": "an entry's seq",
    "aegis_log.hash": "an entry's hash",
    "aegis_log.log_index": "an entry's place",
    "aegis_log.lost_seq": "an entry, said to be lost",
    "aegis_log_node.level": "a node over nothing",
    "aegis_log_node.number": "a node over nothing",
    "aegis_log_node.hash": "a node over nothing",
    "aegis_log_state.size": "a log that is said to be longer",
    "aegis_log_state.horizon": "a horizon beyond all transactions",
    "aegis_workflow.id": "the row's id",
    "aegis_workflow.type": "the row's type",
    "aegis_workflow.definition": "the row's definition",
    "aegis_workflow.state": "the row's state",
    "aegis_workflow.status": "the row's status, paused",
    "aegis_workflow.seq": "the row's seq, put back",
    "aegis_workflow.head": "the row's head",
    **{
        f"aegis_removal.{name}": "a removal that nothing tells of"
        for name in ("workflow_id", "system_seq", "kind", "through_seq", "head")
    },
    "aegis_deployment.name": "the deployment's name",
}
# What else is edited here: where one edit is of several columns, or breaks what an attack of one workflow must not.
MORE: Final[dict[str, Callable[[Scene], object]]] = {
    "the deployment's name": run("UPDATE aegis_deployment SET name = 'aegis.example/another'"),
}
_HELD: Final = "what is to happen next, and who has it in hand: what came of it is in the transitions"
_COPY: Final = "a copy of what is anchored: what counts is where else it was written, and signed"
_EVENT: Final = "not of the history until a transition takes it; what it took is in its payload"
_EFFECT: Final = "what the outside was asked for; the hash of the result is in the payload of the transition"
_LIVES: Final = "who is at work, by its own word"
_ROUND: Final = "how far verification is: whoever asks `aegis verify` has it done anew"
# Of each table, the columns that nothing proves, with the reason.
UNPROVEN: Final[dict[str, dict[str, str]]] = {
    "aegis_transition": {
        "xact": "the database's own, by which the log finds what is new: it tells nothing of the workflow"
    },
    "aegis_checkpoint": {
        "kind": "who asked for it: nothing is decided by it",
        "at": "when it was written: what is old enough is pruned by it, and never the newest",
    },
    "aegis_workflow": {
        "version": "is compared where the history tells of an upgrade (test_versions.py); else it is in the definition",
        **dict.fromkeys(
            (
                *("following", "accepts", "inbox", "queue", "home_queue", "priority", "attributes", "deadline"),
                *("singleton", "steered_by", "checkpoint_on_transition", "moved_at", "entered_at", "timer_at"),
                *("ready_at", "due_at", "rings", "strayed", "claim", "attempt", "owner", "owner_pid", "owner_thread"),
                *("claimed_at", "entered_seq", "checkpoint_number", "checkpointed_at", "checkpoint_asked_at"),
                *("pausing", "error", "created_at", "updated_at"),
            ),
            _HELD,
        ),
    },
    "aegis_event": dict.fromkeys(
        (
            *("id", "workflow_id", "name", "key", "sender", "reason"),
            *("payload", "received_at", "consumed_seq"),
        ),
        _EVENT,
    ),
    "aegis_effect": dict.fromkeys(
        (
            *("workflow_id", "seq", "name", "transition", "status", "key", "claim", "attempt", "actor"),
            *("result", "error", "resolved_by", "reason", "begun_at", "ended_at"),
        ),
        _EFFECT,
    ),
    "aegis_worker": dict.fromkeys(
        ("id", "host", "pid", "pids", "queues", "types", "started_at", "seen_at", "epoch", "broker"), _LIVES
    ),
    "aegis_sweep": dict.fromkeys(("id", "ran_at", "since", "brokers", "timeline", "led_since"), _LIVES),
    "aegis_deployment": {
        "id": "there is one row",
        "created_at": "nothing is decided by it",
        "epoch": "what a worker began in another one is void; the record of it is in the system's chain",
        "recovered_at": "when that was; the record of it is in the system's chain",
    },
    "aegis_log_state": {
        "id": "there is one row",
        "system": "which cluster the horizon counts for: where it is another, all is looked at anew",
    },
    "aegis_anchor": dict.fromkeys(("id", "size", "root", "at", "note"), _COPY),
    "aegis_scrub": dict.fromkeys(
        (
            *("id", "started_at", "place", "verified", "finished_at", "took_from", "covered", "found", "findings"),
            *("hindered", "problems", "compared"),
        ),
        _ROUND,
    ),
    "aegis_schema": {"version_num": "which tables these are: another version is refused before anything is read"},
}


def test_every_column_of_every_table_is_edited_above_or_named_with_its_reason(database: Database) -> None:
    """Of the database itself, so that a migration cannot add what the models leave out."""
    with database.statement() as connection:
        named = """
            SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema = current_schema() AND table_name LIKE 'aegis%'
        """
        there = {f"{table}.{column}" for table, column in connection.execute(text(named))}
    said = [*EDITED, *(f"{table}.{column}" for table, columns in UNPROVEN.items() for column in columns)]
    assert sorted(said) == sorted(there), "say which edit finds it, or why none needs to"
    assert {table.name for table in Base.metadata.sorted_tables} < {name.partition(".")[0] for name in there}


@pytest.mark.parametrize("name", sorted(EDITED))
def test_the_edit_of_a_column_changes_it_and_is_found(scenes: Scenes, database: Database, name: str) -> None:
    table, column = name.split(".")
    scene = scenes.put_up(database, Stage.ANCHORED)
    query = f"SELECT {column} FROM {table} EXCEPT ALL SELECT {column} FROM {Stage.ANCHORED.value}.{table}"  # noqa: S608
    assert scene.rows(query) == []
    edit = EDITED[name]
    if edit in SUBJECTS:
        SUBJECTS[edit].edit(scene, 2)
    elif edit in ATTACKS:
        ATTACKS[edit].edit(scene)
    else:
        MORE[edit](scene)
    assert scene.rows(query)
    assert scene.all().tampered


@pytest.mark.parametrize("stage", Stage)
def test_what_is_not_proven_does_not_count_as_tampered_with(scenes: Scenes, database: Database, stage: Stage) -> None:
    """As it is: whoever finds that one of these matters has to hash it."""
    scene = scenes.put_up(database, stage)
    checkpoint("kind = 'periodic'", 0, 1)(scene)
    checkpoint("at = at - interval '1 year'")(scene)
    stored("xact = xact - 1")(scene)
    run("UPDATE aegis_log_state SET system = 'another'")(scene)
    # Of a workflow that waits, which may have any of these.
    assert set_otherwise(scene, "aegis_workflow", "id = 'w'") == 1
    assert set_otherwise(scene, "aegis_event") > 0
    assert set_otherwise(scene, "aegis_anchor") == (1 if stage is Stage.ANCHORED else 0)
    assert set_otherwise(scene, "aegis_deployment") == set_otherwise(scene, "aegis_scrub") == 1
    assert failures(scene.all()) == set()


def set_otherwise(scene: Scene, name: str, condition: str = "true") -> int:
    """Set all columns of a table that nothing proves to something else; return in how many rows."""
    changes = []
    for column in Base.metadata.tables[name].columns:
        if column.name == "id" or column.name not in UNPROVEN[name]:
            continue  # the id is the row's place, and not a word about it
        kind, now = column.type.compile(dialect=DIALECT), f"{name}.{column.name}"
        otherwise = {
            "TEXT": f"coalesce({now}, '') || 'x'",
            "BYTEA": f"sha256({now})",
            "JSONB": "'[\"edited\"]'",
            "BOOLEAN": f"NOT {now}",
            "TIMESTAMP WITH TIME ZONE": f"coalesce({now}, now()) + interval '1 second'",
        }.get(kind, f"coalesce({now}, 0) + 1")
        changes.append(f"{column.name} = {otherwise}")
    return scene.sql(f"UPDATE {name} SET {', '.join(changes)} WHERE {condition}")  # noqa: S608


# --- what the outside does not know yet ---------------------------------------------------------------


def test_a_transition_that_the_log_never_takes_up_is_missed_when_it_is_old(scenes: Scenes, database: Database) -> None:
    """Of a transaction that is never over, or of a time before all keys: it is not verified, and that is said."""
    scene = scenes.put_up(database, Stage.ANCHORED)
    append(scene, "p")
    stored("xact = 4611686018427387904, at = at - interval '1 hour'", 5)(scene)
    rehash(scene, "p", 5)
    report = scene.all(keyed=False)
    assert [(one.workflow_id, one.seq, one.code) for one in report.findings] == [("p", 5, Code.ANCHOR_STALE)]
    assert (report.tampered, report.complete, report.valid) == (False, False, False)
    # Whoever has the key sees that it stands after what the key was needed for.
    assert failures(scene.all()) == p(5, Code.ANCHOR_STALE, MAC)


def backdate(scene: Scene, workflow_id: str, seq: int, *, days: int) -> None:
    """Have a transition say that it is so much older than it is, with hashes that fit."""
    older = "UPDATE aegis_transition SET at = at - :days * interval '1 day' WHERE workflow_id = :id AND seq = :seq"
    assert scene.sql(older, days=days, id=workflow_id, seq=seq) == 1
    rehash(scene, workflow_id, seq)


@pytest.mark.parametrize("taken_up", [False, True])
def test_what_is_put_on_the_end_and_backdated_needs_a_code_as_the_one_before_it_did(
    scenes: Scenes, database: Database, tmp_path: Path, *, taken_up: bool
) -> None:
    """Times never run backwards in a chain: the last that had to have a code says so of all that follow."""
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    for seq in (5, 6):
        append(scene, "p")
        backdate(scene, "p", seq, days=3)
    if taken_up:
        anchor_now(database, *scene.sinks)
        assert not scene.all(keyed=False).tampered, "without the key it looks like any other"
    assert failures(scene.all()) - at("p", [5, 6], Code.ANCHOR_STALE) == at("p", [5, 6], MAC)
    assert failures(scene.one("p")) - at("p", [5, 6], Code.ANCHOR_STALE) == at("p", [5, 6], MAC)


def dormant(scene: Scene, *, days: int) -> None:
    """Put a workflow there that was never started, without codes, all of it of so many days ago."""
    make_engine(scene.database, RecordingRing()).start(Letter(), id="n")
    backdate(scene, "n", 0, days=days)


@pytest.mark.parametrize("anchored", [False, True])
def test_what_came_into_the_log_long_after_codes_had_to_be_there_needs_one_whatever_it_says(
    scenes: Scenes, database: Database, tmp_path: Path, *, anchored: bool
) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    scene = replace(scene, key=replace(scene.key, required_from=datetime.now(UTC) - timedelta(days=2)))
    dormant(scene, days=3)
    assert failures(scene.all()) == at("n", [0], Code.ANCHOR_STALE), "nobody knows when it came, before it is taken up"
    if anchored:
        anchor_now(database, *scene.sinks)
        assert failures(scene.all(keyed=False)) == set()
    else:
        take_up_all(database)
    for report in (scene.all(), scene.one("n")):
        assert failures(report) - at("n", [0], Code.ANCHOR_STALE) == at("n", [0], MAC)
    assert scene.one("p").valid


def test_what_the_log_took_up_soon_after_codes_had_to_be_there_may_be_from_before(
    scenes: Scenes, database: Database, tmp_path: Path
) -> None:
    """A transaction that stays open holds the log back: an anchor in between is no accusation."""
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    scene = replace(scene, key=replace(scene.key, required_from=datetime.now(UTC) - timedelta(hours=23)))
    dormant(scene, days=1)
    anchor_now(database, *scene.sinks)
    assert scene.all().valid


def test_an_import_that_nobody_made_excuses_no_missing_code(scenes: Scenes, database: Database) -> None:
    """What says that it was imported needs a code itself, or what came before keeps its own."""
    scene = scenes.put_up(database, Stage.FRESH)
    run("UPDATE aegis_transition SET mac = NULL, mac_key = NULL WHERE workflow_id = 'p'")(scene)
    append(scene, "p")
    scene.sql("UPDATE aegis_transition SET event = 'imported' WHERE workflow_id = 'p' AND seq = 5")
    said = {"deployment": "elsewhere", "status": "completed"}
    scene.sql("INSERT INTO aegis_payload VALUES ('p', 5, :body, :salt)", body=canonical(said), salt=OTHER)
    rehash(scene, "p", 5)
    assert at("p", range(6), MAC) <= failures(scene.all())


@pytest.mark.parametrize("stage", Stage)
def test_what_a_handler_has_saved_on_its_way_is_vouched_for_by_a_key_alone(
    scenes: Scenes, database: Database, stage: Stage
) -> None:
    """Until the next transition lists it, nothing else has its hash."""
    scene = scenes.put_up(database, stage)
    write_checkpoint(scene, "w", 1, 1, FORGED)
    assert failures(scene.all(keyed=False)) == set()
    assert failures(scene.all()) == at("w", [1], MAC)
    before = everything(database)
    engine = scene.engine()
    for act in (engine.pause, engine.cancel, engine.checkpoint):
        with pytest.raises(HistoryBroken, match="its checkpoint is not the one that was committed"):
            act("w")
    assert everything(database) == before, "nothing is built on it"


def test_a_checkpoint_of_before_there_was_a_key_needs_no_code(scenes: Scenes, database: Database) -> None:
    scene = scenes.put_up(database, Stage.FRESH)
    later = replace(scene, key=replace(scene.key, required_from=LATER))
    write_checkpoint(later, "w", 1, 1, FORGED)
    run("UPDATE aegis_checkpoint SET mac = NULL, mac_key = NULL WHERE workflow_id = 'w' AND number = 1")(later)
    assert failures(later.all()) == set()
    later.engine().pause("w")
    assert failures(later.all()) == set()
