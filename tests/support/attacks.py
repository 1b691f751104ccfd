"""What the tests of tampering share: how an edit is said, and what has to be found of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from tampering import (
    HISTORY,
    LAST,
    OTHER,
    Found,
    Reach,
    Scene,
    Stage,
    at,
    failures,
    mend_row,
    rehash,
    renumber,
    restate,
    write_checkpoint,
)

from aegis.core.canonical import canonical
from aegis.core.errors import WorkflowNotFound
from aegis.core.finding import Code

EVERY: Final = range(LAST + 1)
POSITIONS: Final = (0, 2, LAST)
"""The first, one in the middle, and the last."""


def p(seqs: int | Iterable[int], *codes: Code) -> Found:
    return at("p", [seqs] if isinstance(seqs, int) else seqs, *codes)


# --- what is found ----------------------------------------------------------------------------------


def keys(scene: Scene, keyed: Found) -> list[bool]:
    """Whether to look with a key: without one, then with it; only with it where that must not make a difference."""
    return [False, True] if keyed or scene.stage is Stage.LOGGED else [True]


def assert_found(scene: Scene, workflow_id: str, unkeyed: Found, keyed: Found) -> None:
    """An audit of everything, and one of this workflow, find exactly this, without a key and with it."""
    for known in keys(scene, keyed):
        expected = unkeyed | keyed if known else unkeyed
        for report in (scene.all(keyed=known), scene.one(workflow_id, keyed=known)):
            assert failures(report) == expected
            assert report.tampered is bool(expected)
            assert report.complete, report.problems


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An edit, and exactly what is found of it; where nothing is said of a stage, what is of the one before."""

    edit: Callable[[Scene], object]
    fresh: Found
    logged: Found | None = None
    anchored: Found | None = None
    keyed: Found = field(default_factory=set)
    """What a key adds."""
    alone: Found = field(default_factory=set)
    """What an audit of ``p`` alone adds, where something is anchored: it does not see whose place it is."""

    def found(self, stage: Stage) -> Found:
        logged = self.fresh if self.logged is None else self.logged
        anchored = logged if self.anchored is None else self.anchored
        return {Stage.FRESH: self.fresh, Stage.LOGGED: logged, Stage.ANCHORED: anchored}[stage]


def assert_seen(scene: Scene, attack: Attack) -> None:
    """What was done to the scene is found, exactly; an audit of ``p`` alone finds what is of ``p``."""
    expected: Found = set()
    for known in keys(scene, attack.keyed):
        expected = attack.found(scene.stage) | (attack.keyed if known else set())
        report = scene.all(keyed=known)
        assert failures(report) == expected
        assert report.tampered is bool(expected)
        assert report.complete, report.problems
    alone = attack.alone if scene.stage is Stage.ANCHORED else set()
    assert of_p(scene) == {found for found in expected | alone if found[0] == "p"}


def of_p(scene: Scene) -> Found:
    """What an audit of ``p`` alone finds of ``p``."""
    try:
        return {found for found in failures(scene.one("p")) if found[0] == "p"}
    except WorkflowNotFound:
        return set()


def outside(reach: Reach, stage: Stage) -> set[Code]:
    """What the log and the anchors say of a transition with another hash."""
    match stage, reach:
        case Stage.LOGGED, Reach.ROW | Reach.CHAIN:
            return {Code.LOG_INCONSISTENT}
        case Stage.ANCHORED, Reach.ROW | Reach.CHAIN:
            return {Code.ANCHOR_MISMATCH}
        case Stage.ANCHORED, Reach.LOG:
            return {Code.ANCHOR_MISMATCH, Code.LOG_INCONSISTENT}
        case _:
            return set()


def reaches(stage: Stage) -> list[Reach]:
    return [reach for reach in Reach if reach is not Reach.LOG or stage is not Stage.FRESH]


# --- what is done -----------------------------------------------------------------------------------


def run(*statements: str) -> Callable[[Scene], None]:
    """Run statements, in which ``:other`` is a hash of nothing."""

    def edit(scene: Scene) -> None:
        for statement in statements:
            scene.sql(statement, **({"other": OTHER} if ":other" in statement else {}))

    return edit


def both(*edits: Callable[[Scene], object]) -> Callable[[Scene], None]:
    def edit(scene: Scene) -> None:
        for one in edits:
            one(scene)

    return edit


def delete(tables: Iterable[str], condition: str) -> Callable[[Scene], None]:
    return run(*(f"DELETE FROM {table} WHERE workflow_id = 'p' AND {condition}" for table in tables))  # noqa: S608


def checkpoint(change: str, seq: int = 2, number: int = 0) -> Callable[[Scene], None]:
    return run(f"UPDATE aegis_checkpoint SET {change} WHERE workflow_id = 'p' AND seq = {seq} AND number = {number}")  # noqa: S608


def payload(change: str, seq: int = LAST) -> Callable[[Scene], None]:
    return run(f"UPDATE aegis_payload SET {change} WHERE workflow_id = 'p' AND seq = {seq}")  # noqa: S608


def stored(change: str, seq: int = 2) -> Callable[[Scene], None]:
    return run(f"UPDATE aegis_transition SET {change} WHERE workflow_id = 'p' AND seq = {seq}")  # noqa: S608


def close(seq: int, reach: Reach = Reach.CHAIN) -> Callable[[Scene], None]:
    """Take one transition out, and have all that follow move up, as if it had never been."""

    def edit(scene: Scene) -> None:
        delete(HISTORY, f"seq = {seq}")(scene)
        move_up(seq, reach)(scene)

    return edit


def move_up(seq: int, reach: Reach = Reach.CHAIN) -> Callable[[Scene], None]:
    """Have all that follow a transition that is not there any more move up into its place."""

    def edit(scene: Scene) -> None:
        for following in range(seq + 1, LAST + 1):
            renumber(scene, "p", following, following - 1)
        if seq < LAST:
            restate(scene, "p", seq, reach)
        else:
            mend_row(scene, "p")

    return edit


def put_in(seq: int, reach: Reach = Reach.CHAIN) -> Callable[[Scene], None]:
    """Put a transition in at ``seq``, and have all that stand there and after it make room."""

    def edit(scene: Scene) -> None:
        for following in range(LAST, seq - 1, -1):
            renumber(scene, "p", following, following + 1)
        like = max(seq - 1, 1)
        copied = """
            INSERT INTO aegis_transition
                (workflow_id, seq, event, from_state, to_state, actor, attempt, at, envelope, hash)
            SELECT workflow_id, :seq, 'forged', from_state, to_state, actor, attempt, at, envelope, hash
            FROM aegis_transition WHERE workflow_id = 'p' AND seq = :like
        """
        assert scene.sql(copied, seq=seq, like=like) == 1
        said = canonical({"seq": seq, "state": {}, "workflow_id": "p"})
        write_checkpoint(scene, "p", seq, 0, said, new=True)
        if reach is not Reach.NONE:
            restate(scene, "p", seq, reach)

    return edit


def change_places(one: int, other: int, reach: Reach = Reach.NONE) -> Callable[[Scene], None]:
    """Have two transitions stand in each other's place."""

    def edit(scene: Scene) -> None:
        for old, new in ((one, 77), (other, one), (77, other)):
            renumber(scene, "p", old, new)
        if reach is not Reach.NONE:
            restate(scene, "p", min(one, other), reach)

    return edit


def relink(seq: int) -> Callable[[Scene], None]:
    """Take a transition out, and link the one after it to the one before it: that one alone is rehashed."""

    def edit(scene: Scene) -> None:
        rows = scene.rows("SELECT seq, hash FROM aegis_transition WHERE workflow_id = 'p' ORDER BY seq")
        delete(HISTORY, f"seq = {seq}")(scene)
        if seq == LAST:
            mend_row(scene, "p")
        else:
            rehash(scene, "p", seq + 1, Reach.ROW, prev=rows[seq - 1].hash if seq else OTHER)

    return edit
