"""After a loss: exactly what is gone is listed, accepted by a record, and everything else still alarms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from private_servers import TEMPLATE, PrivatePostgres
from site_of_its_own import opened
from sqlalchemy import text
from store_workbench import RecordingRing, make_bench, make_engine, sql, value
from store_workflows import Decision, Once, Parcel

from aegis.config.keys import new_anchor_key
from aegis.config.settings import Settings
from aegis.core.errors import LogBroken, RestoreFailed
from aegis.core.finding import Code
from aegis.persistence import epoch
from aegis.persistence.auditor import Auditor
from aegis.persistence.database import Database
from aegis.recovery.reconcile import accept, look
from aegis.recovery.restore.difference import with_anchors, with_live
from aegis.recovery.restore.epoch import begin, terms
from aegis.tasks.anchor import Anchored, Policy, anchor, notary
from aegis.tasks.scrub import sources
from aegis.tasks.sinks import sinks
from aegis.tasks.transition import run_transition


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path)
    new_anchor_key(made.key_folder, "tester")
    return made


def anchored(database: Database, settings: Settings) -> Anchored:
    policy = Policy(interval=timedelta(minutes=1), every=1000)
    return anchor(database, sinks(settings), notary(settings), policy, now=True)


def audit(database: Database, settings: Settings) -> Auditor:
    return Auditor(database, sources(settings))


def run(database: Database, *ids: str) -> None:
    for workflow_id in ids:
        run_transition(make_bench(database, RecordingRing()), workflow_id, 0)


@contextmanager
def put_back(postgres: PrivatePostgres, settings: Settings, *, logged: int = 0) -> Iterator[tuple[Database, Database]]:
    """The live database, and an older copy of it that lacks four anchored transitions, and one that was not.

    ``went-on`` has transition 1 in one of them, ``new`` is in one of them alone; ``kept`` is the same.
    """
    with postgres.database(TEMPLATE) as url:
        database = opened(url)
        engine = make_engine(database, RecordingRing())
        engine.start(Parcel(), id="kept")
        engine.start(Once(), id="went-on")
        anchored(database, settings)
        engine.start(Parcel(), id="kept-unlogged")
        database.close()
        with postgres.database(url.partition("?")[0].rpartition("/")[2]) as backup:
            live, old = opened(url), opened(backup)
            run(live, "went-on")
            make_engine(live, RecordingRing()).start(Once(), id="new")
            run(live, "new")
            anchored(live, settings)
            make_engine(live, RecordingRing()).start(Once(), id="never-anchored")
            try:
                yield live, old
            finally:
                live.close()
                old.close()


def test_exactly_the_lost_ones_are_listed_and_accepted(postgres: PrivatePostgres, settings: Settings) -> None:
    with put_back(postgres, settings) as (live, old):
        lacks = [with_live(old, live), *with_anchors(old, sources(settings))]
        assert [(one.transitions, one.workflows, one.gone) for one in lacks] == [(4, 3, 2), (3, 2, 1)]
        number, paused = begin(settings, old, lacks, "a test")
        assert paused == 1  # went-on

        found = look(settings, old)
        assert [(one.workflow_id, one.seqs, one.whole) for one in found.lost] == [
            ("new", (0, 1), True),
            ("went-on", (1,), False),
        ]
        assert (found.epoch, found.paused, found.is_done) == (number, ["went-on"], False)
        assert audit(old, settings).everything().tampered
        assert "committed transitions were lost" in anchored(old, settings).alarms[0]
        assert value(old, "SELECT size FROM aegis_log_state") == 2  # nothing took a place that the anchors gave away

        done = accept(settings, old, "the disk of db1 died", resume=True)
        assert (done.record is not None, done.resumed, done.is_done) == (True, 1, True)
        report = audit(old, settings).everything()
        assert not report.tampered, report.failures
        assert report.counts[Code.LOST] == 3
        lost = {(one.workflow_id, one.seq) for one in report.findings if one.code is Code.LOST}
        assert lost == {("new", 0), ("new", 1), ("went-on", 1)}
        assert f"aegis:system {done.record}" in str(next(one for one in report.findings if one.code is Code.LOST))

        # It goes on: the same transition again, other than the lost one, and each has its place.
        run_transition(
            make_bench(old, RecordingRing()), "went-on", make_engine(old, RecordingRing()).describe("went-on").seq
        )
        make_engine(old, RecordingRing()).start(Once(), id="new")
        assert anchored(old, settings).written == 1
        assert look(settings, old).is_done
        report = audit(old, settings).everything()
        assert report.valid, (report.failures, report.problems)
        for workflow_id in ("kept", "kept-unlogged", "went-on", "new", "aegis:system"):
            assert audit(old, settings).one(workflow_id).valid, workflow_id


def test_what_somebody_removed_from_the_live_database_had_gone_on_all_the_same(
    postgres: PrivatePostgres, settings: Settings
) -> None:
    with put_back(postgres, settings) as (live, old):
        before = with_live(old, live)
        assert (before.behind, before.absent) == (("went-on",), ("never-anchored", "new"))
        # That is what one goes back for. The transitions still tell what the outside world has seen.
        with live.transaction() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(text("DELETE FROM aegis_workflow"))
        assert with_live(old, live) == before


def test_an_event_that_was_under_way_at_the_point_came_after_it(postgres: PrivatePostgres, settings: Settings) -> None:
    with put_back(postgres, settings) as (live, old):
        sent = Decision(send=True)
        # It has its number, and no commit yet.
        make_engine(live, RecordingRing()).send("kept", "decide", sent, key="under-way")
        for database in (live, old):  # a later one was committed in time
            sql(database, "ALTER SEQUENCE aegis_event_id_seq RESTART WITH 2")
            make_engine(database, RecordingRing()).send("kept-unlogged", "decide", sent, key="in-time")
        make_engine(live, RecordingRing()).send("kept", "decide", sent, key="later")
        found = with_live(old, live)
        assert (found.events, [event.key for event in found.sent]) == (2, ["under-way", "later"])


@pytest.mark.parametrize("more", [999, 1001])
def test_of_many_events_exactly_those_that_are_not_there_are_told(
    postgres: PrivatePostgres, settings: Settings, more: int
) -> None:
    with put_back(postgres, settings) as (live, old):
        for database in (live, old):
            make_engine(database, RecordingRing()).send("kept", "decide", Decision(send=True), key="first")
            copy = "INSERT INTO aegis_event (workflow_id, name, key, sender, payload, received_at)"
            copy += " SELECT workflow_id, name, 'k-' || n, sender, payload, received_at FROM aegis_event"
            sql(database, copy + " CROSS JOIN generate_series(1, :more) n", more=more)
        make_engine(live, RecordingRing()).send("kept", "decide", Decision(send=True), key="later")
        assert [event.key for event in with_live(old, live).sent] == ["later"]


def test_anything_else_still_alarms(postgres: PrivatePostgres, settings: Settings) -> None:
    with put_back(postgres, settings) as (_, old):
        with old.transaction() as session:
            epoch.begin(session, {"to": "a test"}, terms(settings))
        accept(settings, old, "", resume=False)
        assert anchored(old, settings).written == 1
        assert audit(old, settings).everything().valid
        # Somebody takes the statement for an excuse: one more entry is said to be lost.
        sql(old, "UPDATE aegis_log SET lost_seq = (SELECT max(lost_seq) FROM aegis_log) WHERE workflow_id = 'kept'")
        sql(old, "DELETE FROM aegis_transition WHERE workflow_id = 'kept'")
        report = audit(old, settings).everything()
        assert report.tampered
        codes = {(one.workflow_id, one.code) for one in report.failures}
        assert ("aegis:system", Code.PAYLOAD_MISMATCH) in codes
        # And with an altered record nothing is excused any more.
        assert ("new", Code.MISSING_WORKFLOW) in codes


def test_a_loss_that_nobody_accepted_before_is_another(postgres: PrivatePostgres, settings: Settings) -> None:
    with put_back(postgres, settings) as (_, old):
        accept(settings, old, "", resume=False)
        make_engine(old, RecordingRing()).start(Once(), id="later")
        anchored(old, settings)
        sql(old, "DELETE FROM aegis_transition WHERE workflow_id = 'later'")
        sql(old, "DELETE FROM aegis_workflow WHERE id = 'later'")
        report = audit(old, settings).everything()
        assert ("later", Code.MISSING_WORKFLOW) in {(one.workflow_id, one.code) for one in report.failures}


def test_a_log_that_went_on_already_is_said(postgres: PrivatePostgres, settings: Settings) -> None:
    """A beat without keys adds to it, as it knows of no anchors."""
    with put_back(postgres, settings) as (_, old):
        make_engine(old, RecordingRing()).start(Once(), id="x-1")
        policy = Policy(interval=timedelta(minutes=1), every=1000)
        for number in range(5):
            make_engine(old, RecordingRing()).start(Once(), id=f"x-{number}")
        anchor(old, [], None, policy, now=True)
        before = value(old, "SELECT count(*) FROM aegis_log")
        assert look(settings, old).lost == []  # the anchors do not go beyond it any more; verification names them
        assert audit(old, settings).everything().tampered
        assert value(old, "SELECT count(*) FROM aegis_log") == before


def test_a_log_that_ends_before_what_it_was_anchored_of_is_brought_there_though_nothing_is_lost(
    postgres: PrivatePostgres, settings: Settings
) -> None:
    """The transitions were committed before the point, and got their places in the log after it."""
    with postgres.database(TEMPLATE) as url:
        database = opened(url)
        make_engine(database, RecordingRing()).start(Parcel(), id="first")
        anchored(database, settings)
        make_engine(database, RecordingRing()).start(Parcel(), id="second")
        database.close()
        with postgres.database(url.partition("?")[0].rpartition("/")[2]) as backup:
            live, old = opened(url), opened(backup)
            anchored(live, settings)
            live.close()
            assert audit(old, settings).everything().tampered
            assert "committed transitions were lost" in anchored(old, settings).alarms[0]
            found = look(settings, old)
            assert (found.lost, found.unplaced, found.is_done) == ([], 1, False)

            done = accept(settings, old, "a copy of before", resume=False)
            assert (done.unplaced, done.record is not None, done.is_done) == (1, True, True)
            assert anchored(old, settings).written == 1
            assert look(settings, old).is_done
            report = audit(old, settings).everything()
            assert report.valid, (report.failures, report.problems)
            assert Code.LOST not in report.counts
            assert audit(old, settings).one("aegis:system").valid
            # And that nothing is lost is what the record says: it excuses nothing else.
            sql(old, "UPDATE aegis_log SET lost_seq = :record WHERE workflow_id = 'first'", record=done.record)
            sql(old, "DELETE FROM aegis_transition WHERE workflow_id = 'first'")
            codes = {(one.workflow_id, one.code) for one in audit(old, settings).everything().failures}
            assert {("aegis:system", Code.PAYLOAD_MISMATCH), ("first", Code.TRUNCATED)} <= codes
            old.close()


def test_a_log_that_was_added_to_before_the_anchors_were_heard_of_is_not_gone_on_with(
    postgres: PrivatePostgres, settings: Settings
) -> None:
    """Though the anchors go further still: what it has in the places of others would be taken for theirs."""
    with put_back(postgres, settings) as (_, old):
        make_engine(old, RecordingRing()).start(Once(), id="another")
        anchor(old, [], None, Policy(interval=timedelta(minutes=1), every=1000), now=True)
        assert look(settings, old).is_short
        size = value(old, "SELECT size FROM aegis_log_state")
        with pytest.raises(RestoreFailed, match=f"it has {size} entries, and the anchors do not go on from there"):
            accept(settings, old, "", resume=False)
        assert value(old, "SELECT size FROM aegis_log_state") == size
        assert value(old, "SELECT count(*) FROM aegis_workflow WHERE id = 'aegis:system'") == 0


def test_nothing_lost_is_nothing_to_accept(postgres: PrivatePostgres, settings: Settings) -> None:
    with postgres.database(TEMPLATE) as url:
        database = opened(url)
        make_engine(database, RecordingRing()).start(Once(), id="o-1")
        anchored(database, settings)
        done = accept(settings, database, "", resume=True)
        assert (done.record, done.lost, done.is_done) == (None, [], True)
        assert value(database, "SELECT count(*) FROM aegis_workflow WHERE id = 'aegis:system'") == 0
        database.close()


def test_two_at_once_write_one_record(postgres: PrivatePostgres, settings: Settings) -> None:
    with put_back(postgres, settings) as (_, old):
        from aegis.recovery import reconcile  # noqa: PLC0415

        entries = reconcile._continuation(settings, old)
        accept(settings, old, "", resume=False)
        with pytest.raises(LogBroken, match="it has gone on"), old.transaction() as session:
            reconcile.lost.accept(session, entries, "", terms(settings))
        with pytest.raises(RestoreFailed, match="the anchors do not go on from there"):
            reconcile._continuation(settings, old)
