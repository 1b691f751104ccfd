"""Back to a point in time, on real servers: what is given is verified, compared, and in a new epoch."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deployment import Deployment
from local_engine import AegisWorker, eventually
from private_servers import folder
from site_of_its_own import Site, archiving, given, ids, needs_barman, opened, run, up
from sqlalchemy import text
from store_workbench import GRACE, RecordingRing, claimed, make_bench, make_engine, move_of, sql, value
from store_workflows import SCRIPT, Decision, Once, Parcel, Relay

from aegis import DidNotHappen, Happened
from aegis.cli.restore import _lines
from aegis.config.home import Home
from aegis.config.settings import Settings
from aegis.core.errors import AegisError, DatabaseUnavailable, RestoreFailed
from aegis.core.workflow import registry
from aegis.persistence import repository, watch
from aegis.persistence.auditor import Auditor
from aegis.persistence.watch import Worker
from aegis.recovery.backup import take
from aegis.recovery.reconcile import accept, look
from aegis.recovery.restore import point
from aegis.recovery.restore.before import compared, stopped
from aegis.recovery.restore.place import in_place, swap
from aegis.recovery.restore.restore import restore
from aegis.servers.postgres import server_programs
from aegis.tasks.transition import Ended, run_transition

pytestmark = needs_barman


# --- points -----------------------------------------------------------------------------


def test_how_points_are_named() -> None:
    assert point.parse("latest") == point.Point(said="latest")
    assert point.parse("1200").size == 1200
    assert point.parse("o-1:7").transition == ("o-1", 7)
    assert point.parse("a:b:0").transition == ("a:b", 0)
    assert point.parse("2026-11-26T05:42:03+01:00").at == datetime(2026, 11, 26, 4, 42, 3, tzinfo=UTC)
    for wrong, why in (("soon", "it is no point in time"), ("2026-11-26 05:42", "does not say in which time zone")):
        with pytest.raises(RestoreFailed, match=why):
            point.parse(wrong)


def test_to_each_kind_of_point(place: Site) -> None:
    place.start("o-1")
    place.anchor()
    take.take(place.settings)
    place.start("o-2")
    place.anchor()  # of 2 entries
    between = datetime.now(UTC)
    place.start("o-3")
    place.run("o-2")
    place.start("o-4")
    expected = {
        "2": (["o-1", "o-2"], 3),
        between.isoformat(): (["o-1", "o-2"], 3),
        "o-3:0": (["o-1", "o-2", "o-3"], 2),
        "o-2:1": (["o-1", "o-2", "o-3"], 1),
        "latest": (["o-1", "o-2", "o-3", "o-4"], 0),
    }
    for number, (to, (there, lost)) in enumerate(expected.items()):
        done = restore(place.settings, to, place.root / f"copy-{number}")
        (live,) = [one for one in done.lacks if one.source == "live"]
        assert live.transitions == lost, to
        with given(place, done) as database:
            assert ids(database) == there, to
            assert Auditor(database, place.sources()).everything().complete
            assert value(database, "SELECT epoch FROM aegis_deployment") == done.epoch != 1


def test_a_rehearsal_says_what_would_be_lost_and_leaves_nothing(place: Site) -> None:
    place.start("o-1")
    place.anchor()
    take.take(place.settings)
    before = datetime.now(UTC)
    place.run("o-1")
    place.start("o-2")
    place.park("p-1")
    place.engine.send("p-1", "decide", Decision(send=True), key="mail-1")
    place.anchor()
    done = restore(place.settings, before.isoformat(), None)
    live, anchors = done.lacks
    assert (live.source, live.transitions, live.workflows, live.gone) == ("live", 3, 3, 2)
    assert live.examples == ("o-1: transition 1", "o-2: all of it", "p-1: all of it")
    assert [(sent.workflow_id, sent.name, sent.key) for sent in live.sent] == [("p-1", "decide", "mail-1")]
    assert (anchors.transitions, anchors.workflows, anchors.gone) == (3, 3, 2)
    assert (done.into, done.epoch) == (None, None)
    assert not list(place.settings.places.scratch.iterdir())


def test_points_that_are_not_to_be_had(place: Site, tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    place.start("o-1")
    place.anchor()
    take.take(place.settings)
    for to, why in (
        (long_ago.isoformat(), "no backup is that old"),
        ((datetime.now(UTC) + timedelta(days=1)).isoformat(), "what is archived ends before that"),
        ("o-1:9", "there is no such transition, neither live nor archived"),
        ("77", "no trusted key signed an anchor of a log of that size; the nearest: 1"),
    ):
        with pytest.raises(RestoreFailed, match=why):
            restore(place.settings, to, place.root / "copy")
    (tmp_path / "file").touch()
    with pytest.raises(RestoreFailed, match="it is there, and not empty"):
        restore(place.settings, "latest", tmp_path)
    with pytest.raises(RestoreFailed, match="is not there; make it"):
        restore(place.settings, "latest", tmp_path / "no" / "such")
    assert [path.name for path in place.root.iterdir() if "copy" in path.name] == []


def test_what_is_not_as_committed_is_not_given(place: Site) -> None:
    place.start("o-1")
    place.anchor()
    take.take(place.settings)
    sql(place.database, "UPDATE aegis_transition SET actor = 'user:eve'")
    with pytest.raises(RestoreFailed, match="it is not as committed: workflow 'o-1', transition 0"):
        restore(place.settings, "latest", place.root / "copy")
    assert not (place.root / "copy").exists()


def test_where_nobody_can_say_whether_it_is_as_committed_it_says_what_is_missing(place: Site) -> None:
    """The anchors are there, and no key that says whose they are: an earlier point would be no better."""
    place.start("o-1")
    place.anchor()
    take.take(place.settings)
    (place.root / "none").mkdir()
    strange = place.settings.model_copy(update={"trusted_keys": place.root / "none"})
    with pytest.raises(RestoreFailed, match="nobody can say whether it is as committed") as caught:
        restore(strange, "latest", place.root / "copy")
    assert caught.value.remedy.startswith("bring back what is missing, or do without: AEGIS_ANCHORS=none")
    assert not (place.root / "copy").exists()


# --- the primary's disk -----------------------------------------------------------------


def test_the_disk_of_the_primary_is_destroyed_while_workflows_run(place: Site) -> None:
    place.start("o-0")
    place.anchor()
    take.take(place.settings)
    with archiving(place):
        eventually("it streams", lambda: place.archive().active, 30)
        acknowledged: list[str] = []
        until = time.monotonic() + 3
        while time.monotonic() < until:
            workflow_id = f"w-{len(acknowledged):05}"
            place.start(workflow_id)
            place.run(workflow_id)
            acknowledged.append(workflow_id)  # both transitions are committed, and its client knows
        eventually("all is shipped", lambda: place.archive().behind == 0, 30)
    place.server.kill()
    shutil.rmtree(place.server.home.postgres)
    began = time.monotonic()
    done = restore(place.settings, "latest", place.root / "copy")
    print(f"{len(acknowledged)} acknowledged, restored and verified in {time.monotonic() - began:.1f} s")  # shown by -s
    assert len(acknowledged) > 20
    with given(place, done) as database:
        assert ids(database) == ["o-0", *acknowledged]
        assert value(
            database, "SELECT count(*) FROM aegis_transition WHERE seq = 1 AND workflow_id LIKE 'w-%%'"
        ) == len(acknowledged)


# --- the new epoch ------------------------------------------------------------------------


def test_what_was_begun_before_is_void_and_what_is_pending_is_due(place: Site) -> None:
    place.start("held", "ready")
    place.anchor()
    take.take(place.settings)
    worker = Worker(id="w@test", host="h", pid=1, pids=(7,), queues=("aegis",), types=(), epoch=1)
    with place.database.statement() as connection:
        assert watch.beat(connection, worker)
    old = claimed(place.database, "held")
    done = restore(place.settings, "latest", place.root / "copy")
    with given(place, done) as database:
        with database.statement() as connection:
            assert watch.current_epoch(connection) == done.epoch
            assert not watch.beat(connection, worker)  # of an older epoch
            assert watch.heartbeats(connection) == []
            assert watch.claims(connection) == []
            due = watch.due(connection, registry.known(), 10)
        assert {row.workflow_id for row in due} == {"held", "ready"}
        fresh = claimed(database, "held")
        assert fresh.position.claim > old.position.claim + 2**31
        # Whoever held it before moves nothing: the claim that he would commit with is no longer the row's.
        stale = text("UPDATE aegis_workflow SET state = 'x' WHERE id = 'held' AND seq = 0 AND claim = :claim")
        with database.statement() as connection:
            assert connection.execute(stale, {"claim": old.position.claim}).rowcount == 0
        assert make_engine(database, RecordingRing()).describe("held").seq == 0


def test_one_backup_gone_back_to_twice_makes_two_epochs(place: Site) -> None:
    place.park("held")
    place.anchor()
    take.take(place.settings)
    earlier = datetime.now(UTC)
    place.start("o-2")
    first = restore(place.settings, "latest", place.root / "first")
    worker = Worker(id="w@first", host="h", pid=1, pids=(7,), queues=("belt",), types=(), epoch=first.epoch)
    with given(place, first) as database:
        with database.statement() as connection:
            assert watch.beat(connection, worker)
        old = claimed(database, "held")
    # That was not early enough. What began in the first life is still there, and comes to the second.
    second = restore(place.settings, earlier.isoformat(), place.root / "second")
    with given(place, second) as database:
        new = claimed(database, "held")
        with database.statement() as connection:
            assert not watch.beat(connection, worker)
        assert repository.commit(database.run, move_of(old), grace=GRACE) is None
        assert make_engine(database, RecordingRing()).describe("held").seq == 0
        assert repository.commit(database.run, move_of(new), grace=GRACE) is not None


def alive(node: AegisWorker) -> bool:
    return node.container.status == "running"


def test_a_worker_of_before_stops_with_a_message(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    node = deployment.worker()
    sql(deployment.database, "UPDATE aegis_deployment SET epoch = epoch + 1")
    eventually("it has stopped", lambda: not alive(node), 60)
    said = str(node.container.logs())
    assert "the database was put back to an earlier point since it began; start it again" in said
    deployment.worker()  # the same, started again, lives


def test_what_had_gone_on_is_paused_and_everything_else_goes_on(place: Site) -> None:
    place.start("went-on", "stood-still")
    place.anchor()
    take.take(place.settings)
    point_in_time = datetime.now(UTC)
    place.run("went-on")
    place.anchor()
    done = restore(place.settings, point_in_time.isoformat(), place.root / "copy")
    assert done.paused == 1
    with given(place, done) as database:
        engine = make_engine(database, RecordingRing())
        assert engine.describe("went-on").status == "paused"
        assert engine.describe("stood-still").status == "pending"
        assert engine.resume("went-on")
        assert engine.describe("went-on").status == "pending"


def test_what_was_done_outside_after_the_point_is_listed_and_asked_for_before_it_is_done_again(place: Site) -> None:
    paid: dict[str, str] = {}
    calls: list[str] = []

    def pay(key: str) -> str:
        calls.append(key)
        return paid.setdefault(key, "a receipt")

    def look_up(key: str) -> Happened[str] | type[DidNotHappen]:
        return Happened(paid[key]) if key in paid else DidNotHappen

    SCRIPT["one"] = lambda _, ctx: ctx.effect("fee", pay, ctx.effect_key("fee"), check=look_up) and None
    SCRIPT["two"] = lambda _, ctx: ctx.effect("rent", pay, ctx.effect_key("rent"), check=look_up) and None
    try:
        place.engine.start(Relay(), id="r")
        place.anchor()
        take.take(place.settings)
        before = datetime.now(UTC)
        place.run("r")
        run_transition(place.bench, "r", 1)
        rehearsed = restore(place.settings, before.isoformat(), None)
        (live,) = [one for one in rehearsed.lacks if one.source == "live"]
        assert [(one.name, one.status, one.key) for one in live.effects] == [
            ("fee", "done", "r:1:fee"),
            ("rent", "done", "r:2:rent"),
        ]
        told = list(_lines(live, rehearsed))
        assert "2 effects came after that, or were on their way; their providers know, by the keys:" in told
        assert "  r 1 fee: done, key r:1:fee" in told

        done = restore(place.settings, before.isoformat(), place.root / "copy")
        with given(place, done) as database:
            open_ = look(place.settings, database)
            assert [one.key for one in open_.effects] == list(paid)
            assert accept(place.settings, database, "a test", resume=True).resumed == 1
            bench = make_bench(database, RecordingRing())
            for _ in range(2):
                seq = value(database, "SELECT seq FROM aegis_workflow WHERE id = 'r'")
                assert run_transition(bench, "r", seq) is Ended.COMMITTED
            assert calls == ["r:1:fee", "r:2:rent"], "each once, before the restore"
            assert look(place.settings, database).is_done
    finally:
        SCRIPT.clear()


# --- in place -----------------------------------------------------------------------------

# Nothing outside of the database then tells what is lost.
NEVER_ANCHORED = {"AEGIS_ANCHORS": "none"}


def test_in_place_of_the_private_server_which_is_kept_beside() -> None:
    with folder("in-place") as root:
        home = root / "home"
        url = Home(home).database_url
        with up(home, **NEVER_ANCHORED):
            database = opened(url)
            engine = make_engine(database, RecordingRing())
            engine.start(Once(), id="o-1")
            assert run(home, "backup", "take").returncode == 0
            engine.start(Parcel(), id="p-1")
            between = datetime.now(UTC)
            engine.start(Once(), id="o-2")
            run_transition(make_bench(database, RecordingRing()), "o-1", 0)
            engine.send("p-1", "decide", Decision(send=True), key="mail-1")
            database.close()
            refused = run(home, "restore", "--to", "latest", "--in-place")
            assert refused.returncode == 2
            assert "another `aegis up`" in refused.stderr
            rehearsed = run(home, "restore", "--to", between.isoformat(), "--dry-run")
            assert "o-2: all of it" in rehearsed.stdout, rehearsed.stderr
        done = run(home, "restore", "--to", between.isoformat(), "--in-place", **NEVER_ANCHORED)
        assert done.returncode == 0, done.stderr
        # Nothing of it was anchored: only the database that was put aside knows it, and it was stopped.
        assert "of what the database of before has, 2 transitions of 2 workflows are lost" in done.stdout
        assert "o-1: transition 1" in done.stdout
        assert "decide to p-1, key mail-1" in done.stdout
        assert "1 workflows that had gone on are paused" in done.stdout
        assert "could not be compared" not in done.stdout
        began = re.search(r"^epoch (\d+) begins with it", done.stdout, re.MULTILINE)
        assert began is not None, done.stdout
        (kept,) = home.glob("postgres-before-*")
        assert (kept / "PG_VERSION").exists()
        with up(home, **NEVER_ANCHORED):
            database = opened(url)
            assert ids(database) == ["o-1", "p-1"]
            assert make_engine(database, RecordingRing()).describe("o-1").status == "paused"
            database.close()
            # What was anchored of o-2, if anything was, is listed, and accepted; then nothing is open.
            assert run(home, "reconcile", "--accept", "--resume", "--reason", "a test").returncode == 0
            settled = run(home, "reconcile")
            assert settled.returncode == 0
            assert f"epoch {began[1]}" in settled.stdout
            # The archive goes on, on the new timeline.
            again = run(home, "backup", "take")
            assert again.returncode == 0, again.stderr


def test_the_server_that_crashed_is_asked_and_left_as_it_is(place: Site) -> None:
    place.start("went-on")
    place.park("p-1")
    take.take(place.settings)
    place.run("went-on")
    place.engine.send("p-1", "decide", Decision(send=True), key="mail-1")
    place.server.kill()  # what came after the backup is archived nowhere, and in its own WAL alone
    data = place.server.home.postgres
    unasked = restore(place.settings, "latest", place.root / "unasked")
    assert unasked.uncompared is not None
    assert unasked.uncompared.startswith("it does not answer")
    assert [one.transitions for one in unasked.lacks] == [unasked.paused] == [0]  # nothing was anchored, either
    done = restore(place.settings, "latest", place.root / "copy", replaced=data)
    assert done.uncompared is None
    before = done.lacks[0]
    assert before.source == "live"
    assert (before.examples, before.behind) == (("went-on: transition 1",), ("went-on",))
    assert [(sent.name, sent.key) for sent in before.sent] == [("decide", "mail-1")]
    with given(place, done) as database:
        assert make_engine(database, RecordingRing()).describe("went-on").status == "paused"
    place.server.start()  # and goes on from where it was
    assert make_engine(place.database, RecordingRing()).describe("went-on").seq == 1


def test_who_is_asked_can_be_reached_by_nobody_else_and_keeps_all_that_it_has(place: Site) -> None:
    data, programs = place.server.home.postgres, server_programs(place.settings)
    place.start("o-1")
    for _ in range(4):  # segments that no slot holds, and that a checkpoint would use again
        place.server.execute("SELECT pg_switch_wal()")
        place.start(f"o-{time.monotonic_ns()}")
    place.server.execute("CHECKPOINT")
    place.server.kill()
    segments = {path.name for path in (data / "pg_wal").iterdir() if path.is_file()}
    with stopped(data, programs, place.root / "before.log", user="aegis", name="postgres") as database:
        assert "o-1" in ids(database)
        with pytest.raises(DatabaseUnavailable):
            place.database.ping()
        with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
            sql(database, "DELETE FROM aegis_workflow")
    assert segments <= {path.name for path in (data / "pg_wal").iterdir()}
    assert not (data / "postmaster.pid").exists()


def test_what_cannot_be_compared_is_said(place: Site) -> None:
    place.start("o-1")
    file = value(place.database, "SELECT pg_relation_filepath('aegis_workflow')")
    place.server.stop()
    data, programs, log = place.root / "before", server_programs(place.settings), place.root / "before.log"
    sound = place.root / "sound"
    subprocess.run(["cp", "-a", str(place.server.home.postgres), str(sound)], check=True)
    place.server.start()

    def why(harm: Callable[[Path], object]) -> str | None:
        subprocess.run(["cp", "-a", str(sound), str(data)], check=True)
        harm(data)
        found, said = compared(place.database, lambda: stopped(data, programs, log, user="aegis", name="postgres"))
        assert len(found) == (said is None)
        shutil.rmtree(data, ignore_errors=True)
        return said

    assert why(lambda data: data) is None
    assert why(shutil.rmtree) == f"there is none at {data}"
    assert "PostgreSQL gave up" in str(why(lambda data: (data / "global" / "pg_control").write_bytes(b"")))
    assert "invalid page" in str(why(lambda data: (data / file).write_bytes(b"\xff" * 8192)))


def test_what_a_server_runs_on_is_not_replaced(place: Site) -> None:
    home = Settings(home=place.server.home.root)  # nobody looks after its server: `aegis up` was killed
    with pytest.raises(RestoreFailed, match=r"a server \(pid \d+\) runs on .*postgres; end it: kill -INT \d+"):
        in_place(home, "latest")
    place.server.kill()  # its number stays behind in a file
    assert (home.places.postgres / "postmaster.pid").exists()
    with pytest.raises(AegisError, match=r"there is no backup|no backup"):
        in_place(home, "latest")


def test_both_directories_change_places_or_neither_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, data, kept = (tmp_path / name for name in ("restored-1", "postgres", "postgres-before-1"))

    def there() -> set[tuple[str, str]]:
        return {(path.parent.name, path.read_text()) for path in tmp_path.glob("*/PG_VERSION")}

    def made(folder: Path, text: str) -> None:
        folder.mkdir()
        (folder / "PG_VERSION").write_text(text)

    made(data, "old")
    with pytest.raises(RestoreFailed, match=r"restored-1 cannot be put in the place .* what was there was put back"):
        swap(fresh, data, kept)  # it is not there
    assert there() == {("postgres", "old")}
    made(fresh, "new")
    made(kept, "older")
    with pytest.raises(RestoreFailed, match=r"postgres cannot be put aside as .*; it is where it was, and the "):
        swap(fresh, data, kept)
    assert there() == {("postgres", "old"), ("restored-1", "new"), ("postgres-before-1", "older")}
    shutil.rmtree(kept)
    swap(fresh, data, kept)
    assert there() == {("postgres", "new"), ("postgres-before-1", "old")}
