"""The auditor: what is in order passes, what could not be looked at is said, and nothing makes it stumble."""

from __future__ import annotations

import gc
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_workbench import take_up_all
from private_servers import DEPLOYMENT
from sqlalchemy.exc import DBAPIError
from store_workbench import RecordingRing, make_due, make_engine, meanwhile, row, sql, value
from store_workflows import Act, Letter, Once, Parcel
from tampering import (
    LAST,
    OTHER,
    Reach,
    Scene,
    Scenes,
    Stage,
    anchor_now,
    append,
    at,
    edit_envelope,
    failures,
    keep,
    put_back,
    rehash,
    signing_key,
    write_checkpoint,
)

from aegis import Context
from aegis.config.settings import Settings
from aegis.core.anchor import Anchor, Sink
from aegis.core.canonical import canonical
from aegis.core.chain import Step, genesis, link
from aegis.core.errors import AegisError, InvalidName, SinkUnavailable, WorkflowNotFound
from aegis.core.finding import Code, Report, Severity
from aegis.core.note import LogHead
from aegis.core.verify import Audit
from aegis.persistence import scrub as scrubs
from aegis.persistence import span as spans
from aegis.persistence.auditor import Auditor, Sources
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.models import CheckpointRow, TransitionRow, WorkflowRow
from aegis.tasks import scrub as scrubber
from aegis.tasks.bench import Bench
from aegis.tasks.health import Check, State, health
from aegis.tasks.metrics import metrics
from aegis.tasks.sinks import AnchorFile
from aegis.tasks.transition import Ended, run_transition

TRUSTED: Final = (signing_key().verifier,)


@pytest.fixture(scope="module")
def scenes(shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    database = Database(shared_url.replace("postgresql://", "postgresql+psycopg2://"))
    try:
        return Scenes.prepare(database, tmp_path_factory.mktemp("outside"))
    finally:
        database.close()


@pytest.fixture
def file(tmp_path: Path) -> AnchorFile:
    return AnchorFile(tmp_path / "anchors.jsonl")


def auditor(database: Database, *sinks: Sink, **more: Any) -> Auditor:
    return Auditor(database, Sources(sinks=sinks, trusted=more.pop("trusted", TRUSTED), **more))


def codes(report: Report) -> list[tuple[str | None, int | None, Code]]:
    return [(one.workflow_id, one.seq, one.code) for one in report.findings]


# --- what is in order ---------------------------------------------------------------------------


def raising(_workflow: Any, _ctx: Context) -> None:
    msg = "no stamps left"
    raise RuntimeError(msg)


def saving(workflow: Any, ctx: Context) -> None:
    for number in range(3):
        workflow.note = f"half {number}"
        ctx.checkpoint()


def raising_after_saving(workflow: Any, ctx: Context) -> None:
    saving(workflow, ctx)
    raising(workflow, ctx)


def waiting(engine: DurableWorkflowEngine, _bench: Bench) -> None:
    engine.start(Letter(), id="x")
    engine.send("x", "finish", "and a word", key="mail-1")


def paused(engine: DurableWorkflowEngine, bench: Bench) -> None:
    waiting(engine, bench)
    engine.pause("x", reason="holiday")
    engine.checkpoint("x")
    engine.checkpoint("x")


def resumed(engine: DurableWorkflowEngine, bench: Bench) -> None:
    paused(engine, bench)
    engine.resume("x")


def cancelled(engine: DurableWorkflowEngine, bench: Bench) -> None:
    paused(engine, bench)
    engine.cancel("x", reason="of no use")
    engine.checkpoint("x")


def ended(engine: DurableWorkflowEngine, bench: Bench) -> None:
    engine.start(Once(), id="x")
    assert run_transition(bench, "x", 0) is Ended.COMMITTED
    engine.checkpoint("x")


def failed(engine: DurableWorkflowEngine, bench: Bench) -> None:
    engine.start(Once(), id="x")
    run_transition(bench, "x", 0)
    assert row(bench.database, "x").status == "failed"
    engine.checkpoint("x")


def retried(engine: DurableWorkflowEngine, bench: Bench) -> None:
    failed(engine, bench)
    engine.retry("x")


def tried(engine: DurableWorkflowEngine, bench: Bench) -> None:
    """A first attempt that saved something and broke off: it is the newest data, and nothing lists it yet."""
    engine.start(Parcel(), id="x")
    run_transition(bench, "x", 0)
    assert row(bench.database, "x").checkpoint_number == 1
    make_due(bench.database, "x")


def erased(engine: DurableWorkflowEngine, bench: Bench) -> None:
    cancelled(engine, bench)
    engine.erase("x", reason="asked for")
    engine.checkpoint("x")


def pruned(engine: DurableWorkflowEngine, bench: Bench) -> None:
    cancelled(engine, bench)
    assert engine.prune(keep=1, older_than=timedelta(0)) > 0


def keep_one(_workflow: Any, ctx: Context) -> None:
    ctx.checkpoint()
    raising(_workflow, ctx)


SHAPES: Final[dict[str, tuple[Callable[[DurableWorkflowEngine, Bench], None], Act | None]]] = {
    "it waits": (waiting, None),
    "paused": (paused, None),
    "resumed": (resumed, None),
    "cancelled": (cancelled, None),
    "ended": (ended, None),
    "ended, with checkpoints on the way": (ended, saving),
    "failed": (failed, raising),
    "failed, with checkpoints on the way": (failed, raising_after_saving),
    "retried, with checkpoints on the way": (retried, raising_after_saving),
    "tried": (tried, keep_one),
    "erased": (erased, None),
    "pruned": (pruned, None),
}


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_a_history_in_order_passes_in_every_shape(
    name: str,
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    file: AnchorFile,
    script: dict[str, Act],
    *,
    anchored: bool,
) -> None:
    shape, act = SHAPES[name]
    if act is not None:
        script |= {"act": act, "pack": act}
    shape(engine, bench)
    sinks = [file] if anchored else []
    if anchored:
        anchor_now(database, file)
    for report in (auditor(database, *sinks).everything(), auditor(database, *sinks).one("x")):
        assert report.failures == []
        assert (report.valid, report.complete, report.tampered) == (True, True, False)
        assert report.transitions >= 1
        assert not anchored or report.witnesses[0].entries > 0


def test_nothing_at_all_is_in_order(database: Database, file: AnchorFile) -> None:
    report = auditor(database, file).everything()
    assert (report.valid, report.workflows, report.transitions, report.findings) == (True, 0, 0, ())
    anchor_now(database, file)
    assert auditor(database, file).everything().valid
    assert auditor(database, file).log().valid


@pytest.mark.parametrize("workflow_id", ["nobody", "aegis:system"])
def test_an_id_of_nobody_is_not_found(scenes: Scenes, database: Database, workflow_id: str) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    with pytest.raises(WorkflowNotFound):
        scene.one(workflow_id)


def test_what_is_no_id_is_refused(database: Database) -> None:
    with pytest.raises(InvalidName):
        auditor(database).one("no id")


def test_some_goes_from_place_to_place_and_comes_to_an_end(
    scenes: Scenes, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "_TRANSITIONS", 1)
    scene = scenes.put_up(database, Stage.ANCHORED)
    place, seen = "", []
    while True:
        place, report = scene.auditor().some(place, 1)
        seen.append((place, report.transitions))
        assert report.valid
        if not place:
            break
    assert seen == [("p", 5), ("q", 5), ("w", 2), ("", 0)]
    for most, place, count in ((6, "q", 10), (1000, "", 12)):
        came_to, report = scene.auditor().some("", most)
        assert (came_to, report.transitions) == (place, count)


# --- what is not anchored, or no more --------------------------------------------------------------


def test_what_is_young_and_not_anchored_yet_is_told_and_no_failure(
    engine: DurableWorkflowEngine, database: Database, file: AnchorFile
) -> None:
    engine.start(Letter(), id="a")
    anchor_now(database, file)
    engine.pause("a")
    engine.resume("a")
    engine.start(Letter(), id="b")
    for taken_up in (False, True):
        if taken_up:
            take_up_all(database)
        report = auditor(database, file).everything()
        assert sorted(codes(report)) == [("a", 1, Code.UNANCHORED), ("b", 0, Code.UNANCHORED)]
        assert "2 without one yet" in str(report.findings[0].actual)
        assert report.valid
        assert all(finding.severity is Severity.INFORMATIVE for finding in report.findings)


def test_that_anchors_stopped_is_no_tampering_and_yet_not_in_order(scenes: Scenes, database: Database) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    for _ in range(2):
        append(scene, "p")
    scene.sql("UPDATE aegis_transition SET at = at - interval '11 minutes' WHERE workflow_id = 'p' AND seq = 5")
    rehash(scene, "p", 5)
    take_up_all(database)
    for report in (scene.all(keyed=False), scene.one("p", keyed=False)):
        assert codes(report) == [("p", 5, Code.ANCHOR_STALE), ("p", 6, Code.UNANCHORED)]
        assert report.findings[0].log_index == 12
        assert (report.tampered, report.complete, report.valid) == (False, False, False)
    patient = Sources(sinks=scene.sinks, trusted=TRUSTED, anchor_interval=timedelta(minutes=5))
    assert Auditor(database, patient).everything().valid, "where there is an anchor every five minutes, that is no time"


# --- places that are not what they should be ------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A place that answers for so many anchors, and breaks off."""

    file: AnchorFile
    after: int
    name: str = "the vault"

    def last(self) -> Anchor | None:
        if self.after < 0:
            raise SinkUnavailable(self.name, "the door is shut")
        return self.file.last()

    def add(self, anchor: Anchor, head: LogHead) -> None:
        self.file.add(anchor, head)

    def anchors(self) -> Iterator[Anchor]:
        for number, one in enumerate(self.file.anchors()):
            if number == self.after:
                raise SinkUnavailable(self.name, "the door is shut")
            yield one

    def about(self, workflow_id: str) -> Iterator[Anchor]:
        return self.anchors()

    def since(self, moment: datetime) -> Anchor | None:
        return self.file.since(moment)

    def covered(self) -> Iterator[str]:
        return self.file.covered()


@pytest.mark.parametrize("after", [-1, 0, 1])
def test_a_place_that_breaks_off_is_a_problem_and_the_others_are_compared(
    scenes: Scenes, database: Database, tmp_path: Path, after: int
) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    (file,) = scene.sinks
    assert isinstance(file, AnchorFile)
    scene.engine().pause("w")
    anchor_now(database, file)
    for sinks in ([Broken(file, after)], [Broken(file, after), file], [file, Broken(file, after)]):
        for report in (auditor(database, *sinks).everything(), auditor(database, *sinks).one("p")):
            assert report.problems == ("the vault: the door is shut",) or report.problems, report.problems
            assert "the door is shut" in report.problems[0]
            assert (report.tampered, report.complete) == (False, False)
    sql(database, "UPDATE aegis_transition SET actor = 'user:eve' WHERE workflow_id = 'p' AND seq = 2")
    report = auditor(database, Broken(file, after)).one("p")
    assert (report.tampered, report.complete) == (True, False)


def test_all_anchors_gone_though_there_were_some_is_a_problem(
    scenes: Scenes, database: Database, file: AnchorFile
) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    for known in (auditor(database, file), auditor(database, file, replace_path(file, "another.jsonl"))):
        for report in (known.everything(), known.one("p")):
            assert (report.tampered, report.complete) == (False, False)
            (problem,) = report.problems
            assert problem.startswith("anchors were written until ")
            assert file.name in problem
    file.path.touch()
    assert not auditor(database, file).everything().complete
    assert auditor(database).everything().complete, "whoever names no place asked for no comparison"
    assert scene.all().valid


def replace_path(file: AnchorFile, name: str) -> AnchorFile:
    return AnchorFile(file.path.with_name(name))


def test_a_place_that_cannot_be_read_is_a_problem(scenes: Scenes, database: Database, tmp_path: Path) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    folder = AnchorFile(tmp_path)
    for report in (auditor(database, folder).everything(), auditor(database, folder, *scene.sinks).one("p")):
        assert (report.tampered, report.complete) == (False, False)
        assert len(report.problems) == 1
        assert str(tmp_path) in report.problems[0]


def test_without_a_trusted_key_nothing_is_compared_and_that_is_said(scenes: Scenes, database: Database) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    report = auditor(database, *scene.sinks, trusted=()).everything()
    assert (report.tampered, report.complete, report.witnesses) == (False, False, ())
    assert "no key is trusted here" in report.problems[0]


def test_anchors_that_nobody_trusted_signed_are_found(scenes: Scenes, database: Database) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    unknown = auditor(database, *scene.sinks, trusted=[signing_key(2).verifier])
    for report in (unknown.everything(), unknown.one("p")):
        assert codes(report) == [(None, None, Code.SIGNATURE_INVALID)]
        assert (report.tampered, report.valid) == (True, False)


def test_the_anchors_of_another_log_are_a_problem(scenes: Scenes, database: Database) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    sql(database, "UPDATE aegis_deployment SET name = 'aegis.example/another'")
    report = scene.all()
    assert not report.complete
    assert f"are of the log '{DEPLOYMENT}', not of 'aegis.example/another'" in report.problems[0]
    assert at("p", [0], Code.PREV_MISMATCH) <= failures(report), "each chain begins with the deployment's name"


def test_several_places_are_all_compared_and_one_may_be_behind(
    scenes: Scenes, database: Database, tmp_path: Path
) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    (ahead,) = scene.sinks
    behind = scenes.file
    scene.engine().pause("w")
    anchor_now(database, ahead)
    report = auditor(database, behind, ahead).everything()
    assert report.valid
    assert report.findings == ()
    assert [(one.entries, one.anchored) for one in report.witnesses] == [(12, 12), (13, 13)]
    assert [one.anchored for one in auditor(database, behind, ahead).one("w").witnesses] == [12, 13]
    assert codes(auditor(database, behind).everything()) == [("w", 2, Code.UNANCHORED)]
    # What only one of them knows is enough.
    sql(database, "DELETE FROM aegis_transition WHERE workflow_id = 'w' AND seq = 2")
    assert at("w", [2], Code.TRUNCATED) <= failures(auditor(database, behind, ahead).everything())
    assert at("w", [2], Code.TRUNCATED) <= failures(auditor(database, ahead, behind).one("w"))


# What is done to the lines of a place, and where that is told of.
LINES: Final[dict[str, tuple[Callable[[list[bytes]], list[bytes]], int | None]]] = {
    "an entry": (lambda lines: [lines[0], _with_hash(lines[1], OTHER), lines[2]], 12),
    "the first line gone": (lambda lines: lines[1:], 0),
    "a line in the middle gone": (lambda lines: [lines[0], lines[2]], 12),
    "a line twice": (lambda lines: [lines[0], *lines], 12),
    "the note of another line": (
        lambda lines: [lines[0], _with_note(lines[1], Anchor.parse(lines[0]).note), lines[2]],
        12,
    ),
    "a line that cannot be read": (lambda lines: [lines[0], lines[1][:50] + b"\n", lines[2]], 12),
}


def _with_hash(line: bytes, digest: bytes) -> bytes:
    found = Anchor.parse(line)
    return replace(found, entries=(found.entries[0]._replace(hash=digest),)).line()


def _with_note(line: bytes, note: str) -> bytes:
    return replace(Anchor.parse(line), note=note).line()


@pytest.mark.parametrize("name", LINES)
def test_a_place_whose_lines_do_not_follow_each_other_is_found(
    scenes: Scenes, database: Database, tmp_path: Path, name: str
) -> None:
    change, index = LINES[name]
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    (file,) = scene.sinks
    assert isinstance(file, AnchorFile)
    for word in ("pause", "resume"):
        getattr(scene.engine(), word)("w")
        anchor_now(database, file)
    assert scene.all().valid
    file.path.write_bytes(b"".join(change(file.path.read_bytes().splitlines(keepends=True))))
    report = scene.all()
    assert report.tampered
    assert (Code.SIGNATURE_INVALID, index) in [(one.code, one.log_index) for one in report.findings]


# --- while others go on --------------------------------------------------------------------------------


def test_there_is_no_false_alarm_while_others_go_on(database: Database, file: AnchorFile) -> None:
    """Three commit, one anchors; whatever moment an audit sees, it is in order."""
    ids = [f"busy-{number}" for number in range(3)]
    engine = make_engine(database, RecordingRing())
    for workflow_id in ids:
        engine.start(Letter(), id=workflow_id)
    anchor_now(database, file)
    over = threading.Event()

    def move(workflow_id: str) -> None:
        own = make_engine(database, RecordingRing())
        for number in range(100):
            (own.resume if number % 2 else own.pause)(workflow_id)
            if number % 10 == 0:
                own.checkpoint(workflow_id)

    def outside() -> None:
        while not over.is_set():
            anchor_now(database, file)

    seen: list[Report] = []
    movers = [threading.Thread(target=move, args=[workflow_id]) for workflow_id in ids]
    with meanwhile(outside):
        try:
            for thread in movers:
                thread.start()
            while len(seen) < 30 or any(thread.is_alive() for thread in movers):
                seen.append(auditor(database, file).everything())
                seen.append(auditor(database, file).one(ids[len(seen) % 3]))
        finally:
            over.set()
            for thread in movers:
                thread.join(60)
    assert [report.findings for report in seen if report.tampered or not report.complete] == []
    assert len(seen) >= 30
    assert {len(report.findings) for report in seen} != set(), seen
    anchor_now(database, file)
    report = auditor(database, file).everything()
    assert (report.valid, report.transitions, report.findings) == (True, 303, ())


# --- mangled rows -------------------------------------------------------------------------------------------


_TEXT: Final = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
_BYTES: Final = st.binary(max_size=70)
_BIG: Final = st.integers(-(2**63), 2**63 - 1)
_MOMENT: Final = st.sampled_from(
    ["infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59", "1970-01-01", "2026-01-01 23:59:60"]
)
_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_MEMBER: Final = st.sampled_from(
    [
        "v",
        "alg",
        "wf",
        "seq",
        "prev",
        "type",
        "def",
        "event",
        "from",
        "to",
        "actor",
        "attempt",
        "at",
        "payload",
        "other",
    ]
)
_DOCUMENT: Final = _JSON.map(canonical)
_DEEP: Final = st.sampled_from(
    [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"1e999", b'"\\ud800"', b"NaN", b"-0.0"]
)

# Everything that holds more than a number of its place, with what may be put there.
_PLACES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "aegis_transition.event": _TEXT | st.sampled_from(["erased", "imported", "paused", "created", "purged", "pruned"]),
    "aegis_transition.from_state": _TEXT | st.none(),
    "aegis_transition.to_state": _TEXT,
    "aegis_transition.actor": _TEXT,
    "aegis_transition.attempt": st.integers(-(2**31), 2**31 - 1),
    "aegis_transition.at": _MOMENT,
    "aegis_transition.envelope": _BYTES | _DOCUMENT | _DEEP,
    "aegis_transition.hash": _BYTES,
    "aegis_transition.mac": _BYTES | st.none(),
    "aegis_transition.mac_key": _TEXT | st.none(),
    "aegis_transition.xact": _BIG,
    "aegis_payload.body": _BYTES | _DOCUMENT | _DEEP,
    "aegis_payload.salt": _BYTES,
    "aegis_checkpoint.body": _BYTES | _DOCUMENT | _DEEP,
    "aegis_checkpoint.salt": _BYTES,
    "aegis_checkpoint.commitment": _BYTES,
    "aegis_checkpoint.kind": _TEXT,
    "aegis_checkpoint.at": _MOMENT,
    "aegis_workflow.type": _TEXT,
    "aegis_workflow.definition": _TEXT,
    "aegis_workflow.state": _TEXT,
    "aegis_workflow.status": _TEXT,
    "aegis_workflow.seq": _BIG,
    "aegis_workflow.head": _BYTES,
    "aegis_log.hash": _BYTES,
    "aegis_log.seq": _BIG,
    "aegis_log.workflow_id": _TEXT,
    "aegis_log.log_index": _BIG,
    "aegis_log_state.size": _BIG,
    "aegis_log_state.horizon": _BIG,
    "aegis_log_state.system": _TEXT,
    "aegis_removal.kind": _TEXT,
    "aegis_removal.head": _BYTES | st.none(),
    "aegis_removal.through_seq": _BIG,
    "aegis_removal.system_seq": _BIG,
}
# The database refuses these where it is left as it was made; whoever owns the tables can have it refuse nothing.
_LOOSEN: Final = """
    DO $$ DECLARE one record; BEGIN
        FOR one IN SELECT conrelid::regclass AS owner, conname FROM pg_constraint
            WHERE contype = 'c' AND conrelid::regclass::text LIKE 'aegis\\_%' LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.owner, one.conname);
        END LOOP;
        FOR one IN SELECT a.attrelid::regclass AS owner, attname
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND attnotnull AND attnum > 0
            AND NOT EXISTS (SELECT FROM pg_index i WHERE indrelid = attrelid AND indisprimary AND attnum = ANY(indkey))
            AND attidentity = '' LOOP
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', one.owner, one.attname);
        END LOOP;
    END $$
"""
# Whoever changes one of these need not be found: see the edits that are not proven.
_UNPROVEN: Final = {"aegis_transition.xact", "aegis_checkpoint.kind", "aegis_checkpoint.at"}
_HARMLESS: Final = {"aegis_log_state.system", "aegis_log_state.horizon", "aegis_workflow.status"}
_OF: Final = {
    "aegis_workflow": "id = 'q'",
    "aegis_log_state": "id = 1",
    "aegis_removal": "workflow_id = 'p'",
    "aegis_checkpoint": "workflow_id = 'q' AND number = 0 AND seq = :at",
}


@pytest.fixture(scope="module")
def loose(shared_url: str, scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Histories of which one was purged, in a database that refuses nothing; whose own it is once this is over."""
    database = Database(shared_url.replace("postgresql://", "postgresql+psycopg2://"))
    try:
        scene = scenes.put_up(database, Stage.ANCHORED, tmp_path_factory.mktemp("loose"))
        scene.engine().purge("p")
        anchor_now(database, *scene.sinks)
        keep(database, "loose")
        sql(database, _LOOSEN)
        yield scene
    finally:
        database.close()


def look(scene: Scene) -> list[Report]:
    """Look at everything in every way; the last is that of everything."""
    scene.auditor().some("", 1)
    scene.auditor().log()
    return [scene.one("q"), scene.one("p"), scene.one("aegis:system"), scene.all()]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_no_mangled_column_makes_the_audit_stumble(loose: Scene, data: st.DataObject) -> None:
    put_back(loose.database, "loose")
    place = data.draw(st.sampled_from(sorted(_PLACES)))
    table, column = place.split(".")
    nothing = st.nothing() if table == "aegis_log" else st.none()
    found = data.draw(_PLACES[place] | nothing, label=place)
    condition = _OF.get(table, "workflow_id = :of AND seq = :at")
    parameters = {
        "of": data.draw(st.sampled_from(["q", "q", "aegis:system"])),
        "at": data.draw(st.sampled_from([0, 1, 2, LAST])),
    }
    kind = "timestamptz" if column == "at" else "text" if isinstance(found, str) else ""
    other = f"CAST(:found AS {kind})" if kind else ":found"
    try:
        changed = sql(
            loose.database,
            f"UPDATE {table} SET {column} = {other} WHERE {condition} AND {column} IS DISTINCT FROM {other}",  # noqa: S608
            found=found,
            **{name: one for name, one in parameters.items() if f":{name}" in condition},
        )
    except DBAPIError:
        return  # somebody else stands at that place of the log already, or no number is that large
    *_, report = look(loose)
    if changed and place not in _UNPROVEN | _HARMLESS:
        assert report.tampered, report
    elif not changed:
        assert report.valid, report


_SAID: Final = st.fixed_dictionaries(
    {},
    optional={
        "progress": _JSON | st.lists(_TEXT | st.just(OTHER.hex()), max_size=3),
        "through": _JSON | _BIG.filter(lambda number: abs(number) < 2**53),
        "status": _JSON,
        "deployment": _JSON | st.just(DEPLOYMENT),
        "digest": _JSON,
    },
)


@settings(max_examples=60, deadline=None)
@given(
    seq=st.sampled_from([0, 1, 2, LAST]),
    members=st.dictionaries(_MEMBER, _JSON, max_size=3),
    event=st.sampled_from(["erased", "imported", "paused", "created", "purged", "step"]),
    said=_SAID | _JSON,
    reach=st.sampled_from([Reach.ROW, Reach.CHAIN]),
)
def test_no_forged_envelope_makes_the_audit_stumble(
    loose: Scene, seq: int, members: dict[str, Any], event: str, said: Any, reach: Reach
) -> None:
    """It is read, and believed to be what it says, until something contradicts it."""
    put_back(loose.database, "loose")
    scene, of = loose, {"seq": seq}
    scene.sql("UPDATE aegis_transition SET event = :event WHERE workflow_id = 'q' AND seq = :seq", event=event, **of)
    scene.sql(
        """
        INSERT INTO aegis_payload VALUES ('q', :seq, :body, :salt)
        ON CONFLICT (workflow_id, seq) DO UPDATE SET body = excluded.body, salt = excluded.salt
        """,
        body=canonical(said),
        salt=OTHER,
        **of,
    )
    rehash(scene, "q", seq, reach)
    edit_envelope(scene, seq, lambda body: canonical(json.loads(body) | members), reach, workflow_id="q")
    *_, report = look(scene)
    assert report.tampered
    assert {one.workflow_id for one in report.failures} == {"q"}


# --- the shorter way --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_shorter_way_says_exactly_what_the_longer_one_says(loose: Scene, data: st.DataObject) -> None:
    put_back(loose.database, "loose")
    places = sorted(place for place in _PLACES if place.split(".")[0] not in {"aegis_log_state", "aegis_removal"})
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.sampled_from(places))
        table, column = place.split(".")
        condition = _OF.get(table, "workflow_id = 'q' AND seq = :at")
        cast = "CAST(:found AS timestamptz)" if column == "at" else ":found"
        found, seq = data.draw(_PLACES[place], label=place), data.draw(st.integers(0, LAST))
        try:
            sql(
                loose.database,
                f"UPDATE {table} SET {column} = {cast} WHERE {condition}",  # noqa: S608
                found=found,
                **({"at": seq} if ":at" in condition else {}),
            )
        except DBAPIError:
            continue
    if data.draw(st.booleans()):
        seq = data.draw(st.integers(0, LAST))
        _rehash_where_it_can_be(loose, seq, data.draw(st.sampled_from([Reach.ROW, Reach.CHAIN, Reach.LOG])))
    shorter = sorted(map(repr, loose.all().findings))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Audit, "_fits", lambda *_: False)
        longer = sorted(map(repr, loose.all().findings))
    assert shorter == longer


def _rehash_where_it_can_be(scene: Scene, seq: int, reach: Reach) -> None:
    try:
        rehash(scene, "q", seq, reach)
    except (ValueError, TypeError, RecursionError, AegisError, DBAPIError):
        return  # what was mangled cannot be read by whoever wants to mend it, either


def test_the_shorter_way_does_not_read_what_the_whole_chain_was_rehashed_for(
    scenes: Scenes, database: Database
) -> None:
    """The one thing that only the longer way says: of bytes that were forged, that they could be written shorter.

    Whoever can forge them can as well write them the shorter way. It costs three times as much to look.
    """
    scene = scenes.put_up(database, Stage.ANCHORED)
    (body,) = (one.body for one in scene.rows("SELECT body FROM aegis_checkpoint WHERE workflow_id = 'p' AND seq = 4"))
    write_checkpoint(scene, "p", LAST, 0, body.replace(b'"weight":1', b'"weight":1.0'))
    rehash(scene, "p", LAST)
    assert failures(scene.all(keyed=False)) == at("p", [LAST], Code.ANCHOR_MISMATCH)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Audit, "_fits", lambda *_: False)
        assert failures(scene.all(keyed=False)) == at("p", [LAST], Code.ANCHOR_MISMATCH, Code.NON_CANONICAL)


# --- very much of it -----------------------------------------------------------------------------------


def write_many(database: Database, workflows: int, *, first: int = 0, length: int = 100) -> None:
    """Write histories that verify, without an engine."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(first, first + workflows):
        workflow_id, prev = f"many-{number:06d}", genesis(DEPLOYMENT, f"many-{number:06d}")
        transitions, checkpoints = [], []
        for seq in range(length):
            step = Step(
                workflow_id=workflow_id,
                seq=seq,
                type="many",
                definition="sha256:" + "ab" * 32,
                event="step" if seq else "created",
                from_state="there" if seq else None,
                to_state="there",
                actor="worker:w",
                attempt=1,
                at=began + timedelta(seconds=seq),
                state={"state": "there", "number": seq},
            )
            made = link(step, prev, salts=(OTHER, OTHER), max_bytes=10_000)
            prev = made.hash
            place = {"workflow_id": workflow_id, "seq": seq, "at": step.at}
            transitions.append(
                place
                | {"event": step.event, "from_state": step.from_state, "to_state": "there", "actor": "worker:w"}
                | {"attempt": 1, "envelope": made.body, "hash": made.hash}
            )
            checkpoints.append(
                place
                | {"number": 0, "kind": "transition", "body": made.checkpoint, "salt": OTHER}
                | {"commitment": made.envelope.checkpoint}
            )
        moments = dict.fromkeys(("moved_at", "entered_at", "checkpointed_at", "created_at", "updated_at"), began)
        row_ = {"id": workflow_id, "type": "many", "version": 1, "definition": step.definition, "state": "there"}
        row_ |= {"status": "completed", "seq": length - 1, "head": prev, "accepts": [], **moments}
        with database.transaction() as session:
            session.execute(WorkflowRow.__table__.insert(), [row_])
            session.execute(TransitionRow.__table__.insert(), transitions)
            session.execute(CheckpointRow.__table__.insert(), checkpoints)


def peak_of(act: Callable[[], Report]) -> tuple[int, Report]:
    """Return the most memory that was taken while it went on (bytes)."""
    gc.collect()
    tracemalloc.start()
    try:
        report = act()
        return tracemalloc.get_traced_memory()[1], report
    finally:
        tracemalloc.stop()


def test_the_memory_that_it_takes_does_not_grow_with_what_there_is(database: Database, file: AnchorFile) -> None:
    auditor(database, file).everything()  # what is made once, on first use
    peaks, written = [], 0
    for workflows in (20, 100, 200):
        write_many(database, workflows - written, first=written)
        written = workflows
        anchor_now(database, file)
        peak, report = peak_of(auditor(database, file).everything)
        assert (report.valid, report.transitions, report.witnesses[0].entries) == (True, *[100 * workflows] * 2)
        peaks.append(peak)
    # A page of 5,000 and an anchor's line of 5,000 are as large as it gets; 2,000 do not fill them.
    few, more, many = peaks
    assert many < 1.5 * more, peaks
    assert many - few < 8 * 2**20, peaks


# --- everything in turn ------------------------------------------------------------------------------


@pytest.fixture
def configured(database_url: str, scenes: Scenes, tmp_path: Path) -> Settings:
    """The settings of a deployment that has the key of the scenes, and trusts what they are anchored by."""
    trusted = tmp_path / "trusted.vkey"
    trusted.write_text(f"{signing_key().verifier}\n")
    return Settings(
        home=tmp_path,
        database_url=database_url,
        broker_url="redis://127.0.0.1:1/0",
        keys=scenes.file.path.with_name("keys"),
        trusted_keys=trusted,
        anchors=(scenes.file.name,),
        health_timeout=10,
    )


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One workflow at a time."""
    monkeypatch.setattr(spans, "_TRANSITIONS", 1)
    monkeypatch.setattr(scrubber, "_LEAST", 1)


def scrubbed(database: Database) -> scrubs.Scrub:
    with database.statement() as connection:
        return scrubs.state(connection)


def chains(configured: Settings) -> Check:
    return next(check for check in health(configured) if check.name == "chains")


@pytest.mark.usefixtures("slices")
def test_the_scrubber_goes_round_in_slices_and_notes_how_far_it_is(
    scenes: Scenes, database: Database, configured: Settings
) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    sql(database, "ANALYZE aegis_transition")
    begun = scrubbed(database).started_at
    seen = []
    for _ in range(4):
        count = scrubber.scrub(configured, database)
        now = scrubbed(database)
        seen.append((count, now.place, now.verified, now.covered, now.finished_at is not None))
    assert seen == [(5, "p", 5, 0, False), (5, "q", 10, 0, False), (2, "w", 12, 0, False), (0, "", 0, 12, True)]
    done = scrubbed(database)
    assert done.took_from == begun
    assert done.started_at > begun
    assert (done.found, done.findings) == ((), ())
    assert chains(configured).state is State.OK
    assert "100% verified in the last 24 h" in chains(configured).says


def test_all_of_a_small_deployment_is_one_slice(scenes: Scenes, database: Database, configured: Settings) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    assert scrubber.scrub(configured, database) == 12
    assert (scrubbed(database).place, scrubbed(database).covered) == ("", 12)


@pytest.mark.usefixtures("slices")
def test_what_the_scrubber_finds_is_told_until_a_round_finds_nothing(
    scenes: Scenes, database: Database, configured: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    engine = make_engine(database, RecordingRing())
    for number in range(5):  # health looks at the newest five by itself
        engine.start(Letter(), id=f"newer-{number}")
    changed = "UPDATE aegis_transition SET actor = :actor WHERE workflow_id = 'q' AND seq = 2"
    actor = value(database, "SELECT actor FROM aegis_transition WHERE workflow_id = 'q' AND seq = 2")
    keyless = configured.model_copy(update={"keys": configured.home})
    sql(database, changed, actor="user:eve")
    assert chains(keyless).state is not State.DOWN, "nobody has looked yet"

    while not scrubbed(database).found:
        assert scrubber.scrub(keyless, database)
    (line,) = scrubbed(database).found
    assert line.startswith("workflow 'q', transition 2: HASH_MISMATCH")
    assert line in caplog.text
    assert (chains(keyless).state, chains(keyless).says) == (State.DOWN, line)

    while scrubbed(database).finished_at is None:
        scrubber.scrub(keyless, database)
    assert (scrubbed(database).found, scrubbed(database).findings) == ((), (line,))
    assert chains(keyless).state is State.DOWN

    sql(database, changed, actor=actor)
    finished = scrubbed(database).finished_at
    while scrubbed(database).finished_at == finished:
        assert chains(keyless).state is State.DOWN, "it counts as broken until all of it was seen to be in order"
        scrubber.scrub(keyless, database)
    assert (scrubbed(database).found, scrubbed(database).findings) == ((), ())
    assert chains(keyless).state is State.OK


def test_the_scrubber_compares_the_log_with_the_anchors_too(
    scenes: Scenes, database: Database, configured: Settings
) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    sql(database, "DELETE FROM aegis_log WHERE log_index = 0")
    scrubber.scrub(configured, database)
    assert any("LOG_INCONSISTENT" in line for line in scrubbed(database).findings)
    assert chains(configured).state is State.DOWN


def test_what_was_purged_does_not_push_a_break_out_of_what_is_told(
    scenes: Scenes, database: Database, tmp_path: Path
) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    scene.engine().purge("p")
    anchor_now(database, *scene.sinks)
    edit_envelope(scene, 2, lambda body: body.replace(b"user:ada", b"user:eve"), Reach.CHAIN, workflow_id="q")
    few = Auditor(database, Sources(sinks=scene.sinks, trusted=TRUSTED), most_told=1)
    for report in (few.everything(), few.log()):
        assert report.tampered
        assert at("q", [2], Code.ANCHOR_MISMATCH) <= failures(report)
        assert (report.counts[Code.PURGED], report.counts[Code.ANCHOR_MISMATCH]) == (1, 3)
        assert len(report.findings) == len(report.counts)


@pytest.mark.parametrize("how", ["broken", "absent", "untrusted", "none"])
def test_what_was_not_compared_with_the_anchors_is_not_said_to_be(
    scenes: Scenes, database: Database, configured: Settings, tmp_path: Path, how: str
) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    place = Path(scene.sinks[0].name)
    if how == "broken":
        place.unlink()
        place.mkdir()
    elif how == "absent":
        place.unlink()
    changed: dict[str, Any] = {"anchors": ("none" if how == "none" else str(place),)}
    if how == "untrusted":
        changed["trusted_keys"] = tmp_path / "nobody.vkey"
    hindered = configured.model_copy(update=changed)
    scrubber.scrub(hindered, database)
    check, done = chains(hindered), scrubbed(database)
    assert done.covered == 12
    assert done.compared == 0
    assert "beside no anchors" in check.says
    if how == "none":
        assert (check.state, done.problems) == (State.OK, ()), "where there are to be none, none are missed"
    else:
        (problem,) = done.problems
        assert str(place) in problem
        assert check.state is State.WARNING
        assert problem in check.says
        assert "aegis_scrub_problems 1.0" in metrics(hindered)
    assert "aegis_scrub_anchored_entries 0.0" in metrics(hindered)

    scrubber.scrub(configured, database)
    assert scrubbed(database).problems == ()
    assert chains(configured).state is State.OK
    assert "12 of the log beside anchors" in chains(configured).says
    assert "aegis_scrub_anchored_entries 12.0" in metrics(configured)


@pytest.mark.usefixtures("slices")
def test_what_hindered_a_slice_is_told_at_the_end_of_its_round(
    scenes: Scenes, database: Database, configured: Settings
) -> None:
    """Also what no anchor is about although it is old: nothing outside vouches for it."""
    scene = scenes.put_up(database, Stage.ANCHORED)
    append(scene, "p")
    sql(
        database,
        "UPDATE aegis_transition SET xact = 4611686018427387904, at = at - interval '1 hour'"
        " WHERE workflow_id = 'p' AND seq = 5",
    )
    rehash(scene, "p", 5)
    keyless = configured.model_copy(update={"keys": configured.home})
    scrubber.scrub(keyless, database)
    assert scrubbed(database).place
    assert scrubbed(database).hindered == ("1 transitions that should long be anchored are in no anchor",)
    assert chains(keyless).state is State.WARNING
    while scrubbed(database).finished_at is None:
        scrubber.scrub(keyless, database)
    done = scrubbed(database)
    assert (done.findings, done.hindered, len(done.problems)) == ((), (), 1)


@pytest.mark.usefixtures("slices")
def test_two_scrubbers_at_once_do_no_harm(scenes: Scenes, database: Database, configured: Settings) -> None:
    scenes.put_up(database, Stage.ANCHORED)

    def go_round() -> None:
        for _ in range(10):
            scrubber.scrub(configured, database)

    with meanwhile(go_round), meanwhile(go_round):
        go_round()
    while scrubbed(database).place:
        scrubber.scrub(configured, database)
    done = scrubbed(database)
    assert done.covered == 12, "each round has seen each transition once, whoever noted it"
    assert (done.found, done.findings) == ((), ())
