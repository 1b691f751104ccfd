"""Anchoring: what stands outside covers everything, once, whatever dies; and nothing false is ever signed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from log_workbench import add, entry, frontier, logged, names, take_up_all
from private_servers import DEPLOYMENT
from sqlalchemy import text
from store_workbench import sql, value

from aegis.core.anchor import Anchor, Entry, Replay, log_name
from aegis.core.errors import DatabaseUnavailable, SinkUnavailable
from aegis.core.note import LogHead, SigningKey, open_note
from aegis.persistence import log
from aegis.persistence.database import Database
from aegis.tasks.anchor import Anchored, Notary, Policy, anchor
from aegis.tasks.sinks import AnchorFile

NAME = log_name(DEPLOYMENT)
POLICY = Policy(interval=timedelta(hours=1), every=10)


def key(seed: int = 1, name: str = NAME) -> SigningKey:
    return SigningKey(name=name, private=Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def notary(seed: int = 1, trusted: Sequence[int] = ()) -> Notary:
    return Notary(key=key(seed), trusted=[key(one).verifier for one in trusted])


@pytest.fixture
def file(tmp_path: Path) -> AnchorFile:
    return AnchorFile(tmp_path / "kept" / "anchors.jsonl")


def run(database: Database, *sinks: Any, by: Notary | None = None, now: bool = False, **policy: Any) -> Anchored:
    return anchor(database, sinks, by or notary(), replace(POLICY, **policy), now=now)


def replay(sink: AnchorFile, *seeds: int) -> tuple[list[Entry], Replay]:
    """Read a place as an auditor does: its entries in their order, each once."""
    again = Replay([key(seed).verifier for seed in seeds or (1,)], NAME)
    found = list(again.entries(sink.anchors()))
    assert [place for place, _ in found] == list(range(len(found)))
    return [one for _, one in found], again


def assert_covers(database: Database, sink: AnchorFile, *seeds: int) -> None:
    """All of the log stands in that place, once, signed, and readable to its end."""
    entries, again = replay(sink, *seeds)
    assert again.problems == []
    assert entries == logged(database)
    assert again.head is not None
    assert (again.head.size, again.head.root) == (len(entries), frontier(entries).root)


def lines(sink: AnchorFile) -> int:
    return sink.path.read_bytes().count(b"\n") if sink.path.exists() else 0


def age(database: Database, sink: AnchorFile, *, seed: int = 1, by: timedelta) -> None:
    """Let the last line be of another time."""
    *before, last = sink.path.read_bytes().splitlines(keepends=True)
    made = Anchor.parse(last)
    head = open_note(made.note, [key(seed).verifier])
    older = replace(made, note=key(seed).sign(replace(head, at=head.at - by).text()))
    sink.path.write_bytes(b"".join([*before, older.line()]))


# --- when --------------------------------------------------------------------------------------


def test_the_first_anchor_is_written_at_once_also_of_nothing(database: Database, file: AnchorFile) -> None:
    assert run(database, file) == Anchored(logged=0, written=1)
    assert_covers(database, file)
    assert file.last() == next(file.anchors())


def test_what_was_committed_is_anchored_with_the_transitions_that_it_is_of(
    database: Database, file: AnchorFile
) -> None:
    add(database, "a", 3)
    assert run(database, file) == Anchored(logged=3, written=1)
    entries, again = replay(file)
    assert entries == [entry("a", 0), entry("a", 1), entry("a", 2)]
    assert again.head is not None
    assert again.head.origin == NAME
    kept = value(database, "SELECT note FROM aegis_anchor")
    assert kept == next(file.anchors()).note


def test_there_is_an_anchor_after_so_many_transitions_and_not_before(database: Database, file: AnchorFile) -> None:
    run(database, file)
    add(database, "a", 9)
    assert run(database, file) == Anchored(logged=9, written=0)
    add(database, "b")
    assert run(database, file) == Anchored(logged=1, written=1)
    assert run(database, file) == Anchored()
    assert_covers(database, file)


@pytest.mark.parametrize("new", [0, 1])
def test_there_is_an_anchor_after_the_interval_also_where_nothing_happened(
    database: Database, file: AnchorFile, new: int
) -> None:
    run(database, file)
    if new:
        add(database, "a", new)
    assert run(database, file).written == 0
    age(database, file, by=timedelta(minutes=59))
    assert run(database, file).written == 0
    age(database, file, by=timedelta(minutes=2))
    assert run(database, file).written == 1
    assert_covers(database, file)


def test_now_means_now(database: Database, file: AnchorFile) -> None:
    run(database, file)
    assert run(database, file, now=True) == Anchored(written=1)
    add(database, "a")
    assert run(database, file, now=True) == Anchored(logged=1, written=1)
    assert_covers(database, file)


def test_a_clock_that_was_set_back_does_not_stop_what_is_new(database: Database, file: AnchorFile) -> None:
    run(database, file)
    age(database, file, by=timedelta(hours=-2))
    assert run(database, file).written == 0
    add(database, "a")
    assert run(database, file).written == 1
    heads = [open_note(one.note, [key().verifier]) for one in file.anchors()]
    assert heads[0].at == heads[1].at, "time does not run backwards in what is signed"
    assert_covers(database, file)


@pytest.mark.parametrize("how", ["now", "interval", "every"])
def test_a_huge_backlog_is_written_to_its_end_in_lines_of_5000(database: Database, file: AnchorFile, how: str) -> None:
    """The last part too: it is less than would be due by itself."""
    run(database, file)
    add(database, "a", 12_000)
    if how == "interval":
        age(database, file, by=timedelta(hours=2))
    policy = {"now": {"now": True}, "interval": {}, "every": {"every": 3000}}[how]
    assert run(database, file, **{"every": 100_000, **policy}) == Anchored(logged=12_000, written=3)
    assert [len(one.entries) for one in file.anchors()] == [0, 5000, 5000, 2000]
    assert_covers(database, file)


def test_a_backlog_is_written_as_the_first_anchors_too(database: Database, file: AnchorFile) -> None:
    add(database, "a", 5001)
    assert run(database, file) == Anchored(logged=5001, written=2)
    assert [len(one.entries) for one in file.anchors()] == [5000, 1]
    assert_covers(database, file)


def test_without_a_key_the_log_grows_and_nothing_is_signed(database: Database, file: AnchorFile) -> None:
    add(database, "a", 3)
    assert anchor(database, [file], None, POLICY, now=True) == Anchored(logged=3)
    assert len(logged(database)) == 3
    assert not file.path.exists()


def test_without_a_place_the_log_grows(database: Database) -> None:
    add(database, "a", 3)
    assert run(database) == Anchored(logged=3)


def test_a_timestamp_goes_with_the_anchor_that_it_is_of(database: Database, file: AnchorFile) -> None:
    stamped: list[str] = []

    def stamp(note: str) -> str | None:
        stamped.append(note)
        return "c3RhbXA=" if len(stamped) > 1 else None

    by = replace(notary(), stamp=stamp)
    run(database, file, by=by)
    run(database, file, by=by, now=True)
    assert [one.note for one in file.anchors()] == stamped
    assert [one.timestamp for one in file.anchors()] == [None, "c3RhbXA="]


# --- several places -----------------------------------------------------------------------------


@dataclass
class Failing:
    """A place that may be away, before it wrote or after."""

    file: AnchorFile
    away: str | None = None
    calls: list[LogHead] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"failing {self.file.name}"

    def last(self) -> Anchor | None:
        self._may_fail("last")
        return self.file.last()

    def add(self, anchor: Anchor, head: LogHead) -> None:
        self.calls.append(head)
        self._may_fail("before")
        self.file.add(anchor, head)
        self._may_fail("after")

    def anchors(self) -> Iterator[Anchor]:
        return self.file.anchors()

    def about(self, workflow_id: str) -> Iterator[Anchor]:
        return self.file.about(workflow_id)

    def since(self, moment: datetime) -> Anchor | None:
        return self.file.since(moment)

    def covered(self) -> Iterator[str]:
        return self.file.covered()

    def _may_fail(self, where: str) -> None:
        if self.away == where:
            raise SinkUnavailable(self.name, "the store is away")


@pytest.fixture
def failing(tmp_path: Path) -> Failing:
    return Failing(AnchorFile(tmp_path / "failing.jsonl"))


@pytest.mark.parametrize("where", ["last", "before", "after"])
def test_a_place_that_is_away_is_behind_and_catches_up_with_everything(
    database: Database, file: AnchorFile, failing: Failing, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(database, failing, file)
    failing.away = where
    for number in range(3):
        add(database, f"a-{number}", 10)
        ran = run(database, failing, file)
        assert (ran.logged, ran.written, ran.behind, ran.alarms) == (10, 1, (failing.name,), ())
    assert "the store is away" in caplog.text
    assert_covers(database, file)

    failing.away = None
    ran = run(database, failing, file)
    assert (ran.written, ran.behind) == (0 if where == "after" else 1, ())
    assert_covers(database, failing.file)
    assert replay(failing.file)[0] == replay(file)[0]


def test_a_new_place_gets_all_of_the_log(database: Database, file: AnchorFile, failing: Failing) -> None:
    add(database, "a", 7000)
    run(database, file)
    add(database, "b", 10)
    assert run(database, file, failing) == Anchored(logged=10, written=1 + 2)
    assert_covers(database, failing.file)


def test_one_place_named_twice_is_written_once(database: Database, file: AnchorFile) -> None:
    add(database, "a", 10)
    assert run(database, file, file) == Anchored(logged=10, written=1)
    assert_covers(database, file)


def test_a_broken_place_does_not_keep_the_others_from_theirs(
    database: Database, file: AnchorFile, tmp_path: Path
) -> None:
    add(database, "a", 10)
    (tmp_path / "folder").mkdir()
    (tmp_path / "not a folder").touch()
    foreign = AnchorFile(tmp_path / "foreign.jsonl")
    foreign.path.write_bytes(Anchor(first=0, note="rubbish", entries=()).line())
    places = [AnchorFile(tmp_path / "folder"), AnchorFile(tmp_path / "not a folder" / "a"), foreign, file]
    ran = run(database, *places)
    assert (ran.written, ran.behind) == (1, (places[0].name, places[1].name))
    assert len(ran.alarms) == 1
    assert_covers(database, file)


# --- whoever dies -------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 30, 200, "most", "all but one", "zeros", "begun"])
def test_a_line_that_a_power_cut_tore_is_made_good(database: Database, file: AnchorFile, cut: int | str) -> None:
    """Nothing is lost and nothing stands twice, though the torn line stays where it is."""
    run(database, file)
    add(database, "a", 20)
    run(database, file)
    add(database, "b", 20)
    whole = file.path.read_bytes()
    run(database, file)
    line = file.path.read_bytes()[len(whole) :]
    torn = {
        "most": line[: len(line) // 2],
        "all but one": line[:-2],
        "zeros": b"\0" * len(line),
        "begun": line[:5] + b"\n",  # somebody had begun to mend it, and died too
    }
    file.path.write_bytes(whole + (line[:cut] if isinstance(cut, int) else torn[cut]))
    sql(database, "DELETE FROM aegis_anchor WHERE id = (SELECT max(id) FROM aegis_anchor)")

    assert run(database, file) == Anchored(written=1)
    assert_covers(database, file)
    add(database, "c", 20)
    assert run(database, file) == Anchored(logged=20, written=1)
    assert_covers(database, file)


def test_a_line_that_lacks_only_its_end_counts_as_written(database: Database, file: AnchorFile) -> None:
    add(database, "a", 20)
    run(database, file)
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert run(database, file) == Anchored()
    add(database, "b", 20)
    assert run(database, file) == Anchored(logged=20, written=1)
    assert_covers(database, file)


def test_lines_torn_again_and_again_are_passed_over(database: Database, file: AnchorFile) -> None:
    run(database, file)
    for number in range(4):
        add(database, f"a-{number}", 10)
        before = file.path.read_bytes()
        run(database, file)
        torn = file.path.read_bytes()[: len(before) + 40 + number]
        file.path.write_bytes(torn)
    assert run(database, file) == Anchored(written=1)
    assert len(next(one for one in file.anchors() if one.first == 0 and one.entries).entries) == 40
    assert_covers(database, file)


def test_what_stands_outside_counts_where_the_database_does_not_know_of_it(
    database: Database, failing: Failing
) -> None:
    """It was written, and the process died before its own commit."""
    add(database, "a", 10)
    failing.away = "after"
    run(database, failing)
    assert value(database, "SELECT count(*) FROM aegis_anchor") == 0
    failing.away = None
    assert run(database, failing) == Anchored()
    add(database, "b", 10)
    assert run(database, failing) == Anchored(logged=10, written=1)
    assert_covers(database, failing.file)


_VICTIM = """
import os, signal, sys
from pathlib import Path
from datetime import timedelta
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from aegis.core.note import SigningKey
from aegis.persistence import log
from aegis.persistence.database import Database
from aegis.tasks import anchor
from aegis.tasks.sinks import AnchorFile

url, path, name, where = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "taking up":
    log._keep_nodes = die
elif where == "before it is written":
    AnchorFile.add = die
elif where == "before it is committed":
    log.keep_anchor = die
else:
    real = os.fsync
    os.fsync = die
key = SigningKey(name=name, private=Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
notary = anchor.Notary(key=key, trusted=[])
policy = anchor.Policy(interval=timedelta(hours=1), every=10)
anchor.anchor(Database(url), [AnchorFile(Path(path))], notary, policy)
"""


@pytest.mark.parametrize(
    "where", ["taking up", "before it is written", "before it is on the disk", "before it is committed"]
)
def test_a_process_that_is_killed_half_way_leaves_nothing_to_mend(
    database: Database, file: AnchorFile, where: str
) -> None:
    run(database, file)
    add(database, "a", 300)
    url = database.engine.url.render_as_string(hide_password=False)
    arguments = [url, str(file.path), NAME, where]
    victim = subprocess.run([sys.executable, "-c", _VICTIM, *arguments], check=False, timeout=60, capture_output=True)
    assert victim.returncode == -signal.SIGKILL, victim.stderr.decode()
    run(database, file)
    assert_covers(database, file)
    add(database, "b", 10)
    assert run(database, file) == Anchored(logged=10, written=1)
    assert_covers(database, file)
    assert len(logged(database)) == 310


def test_who_lost_the_log_on_the_way_to_the_file_writes_nothing(database: Database, file: AnchorFile) -> None:
    """Its connection was broken off, and with it its lock; the next one was faster."""
    run(database, file)
    add(database, "a", 10)

    @dataclass
    class Slow(Failing):
        def add(self, anchor: Anchor, head: LogHead) -> None:
            kill = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state = 'idle in transaction'"
            )
            other = Database(database.engine.url.render_as_string(hide_password=False))
            assert value(other, kill) == 1
            add(other, "b", 10)
            assert run(other, file).written == 1
            other.close()
            super().add(anchor, head)

    with pytest.raises(DatabaseUnavailable):
        run(database, Slow(file))
    assert lines(file) == 2, "the first one's, and that of the one that was faster"
    add(database, "c", 10)
    assert run(database, file).written == 1
    assert_covers(database, file)


def test_many_at_once_write_each_entry_once(database: Database, file: AnchorFile) -> None:
    """Processes that know nothing of each other: each has connections of its own."""
    writing_on = threading.Event()
    writing_on.set()

    def write(name: str) -> None:
        for number in range(30):
            add(database, f"{name}-{number}", 3)

    def anchoring() -> None:
        own = Database(database.engine.url.render_as_string(hide_password=False))
        while writing_on.is_set():
            ran = run(own, file, every=5)
            assert (ran.behind, ran.alarms) == ((), ())
        own.close()

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(anchoring) for _ in range(3)]
        try:
            for done in [pool.submit(write, f"w{number}") for number in range(3)]:
                done.result()
        finally:
            writing_on.clear()
        for one in running:
            one.result()
    run(database, file, now=True)
    assert_covers(database, file)
    assert len(logged(database)) == 270


def test_who_finds_the_log_taken_goes_on_to_something_else(database: Database, file: AnchorFile) -> None:
    add(database, "a", 10)
    with database.transaction() as session:
        assert log.lock(session.connection())
        assert run(database, file, now=True) == Anchored()
    assert lines(file) == 0


def test_a_database_that_is_away_is_no_alarm(database: Database, file: AnchorFile) -> None:
    gone = Database("postgresql+psycopg2://aegis@/gone?host=/nonexistent")
    with pytest.raises(DatabaseUnavailable):
        run(gone, file)

    @dataclass
    class Ending(Failing):
        def last(self) -> Anchor | None:
            value(
                other,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'idle in transaction'",
            )
            return super().last()

    other = Database(database.engine.url.render_as_string(hide_password=False))
    try:
        with pytest.raises(DatabaseUnavailable):
            run(database, Ending(file))
    finally:
        other.close()
    assert lines(file) == 0


# --- what is not signed -------------------------------------------------------------------------


def refused(database: Database, file: AnchorFile, *parts: str, by: Notary | None = None) -> None:
    """The run is an alarm that says so, and nothing was written or noted."""
    before, noted = file.path.read_bytes(), value(database, "SELECT count(*) FROM aegis_anchor")
    for now in (False, True):
        ran = run(database, file, by=by, now=now, interval=timedelta(0))
        assert (ran.written, ran.behind) == (0, ())
        assert len(ran.alarms) == 1, ran
        assert [part for part in parts if part not in ran.alarms[0]] == [], ran.alarms[0]
    assert file.path.read_bytes() == before
    assert value(database, "SELECT count(*) FROM aegis_anchor") == noted


def anchored(database: Database, file: AnchorFile, count: int = 300) -> None:
    add(database, "a", count)
    run(database, file)
    assert lines(file) == 1


def forget(database: Database, size: int) -> None:
    """Put an older copy back: what came after it is gone, from every table."""
    later = "SELECT workflow_id, seq FROM aegis_log WHERE log_index >= :size"
    sql(database, f"DELETE FROM aegis_transition WHERE (workflow_id, seq) IN ({later})", size=size)  # noqa: S608
    sql(database, "DELETE FROM aegis_log WHERE log_index >= :size", size=size)
    sql(database, "DELETE FROM aegis_log_node WHERE (number + 1) * (256 ^ level) > :size", size=size)
    sql(database, "UPDATE aegis_log_state SET size = :size", size=size)


def test_a_database_that_is_behind_its_anchor_is_an_alarm(
    database: Database, file: AnchorFile, caplog: pytest.LogCaptureFixture
) -> None:
    anchored(database, file)
    forget(database, 200)
    refused(database, file, "committed transitions were lost", "has 300 transitions, the log 200")
    assert any(record.levelname == "CRITICAL" for record in caplog.records)


def test_it_stays_one_when_the_database_has_grown_past_its_anchor_again(database: Database, file: AnchorFile) -> None:
    anchored(database, file)
    forget(database, 200)
    add(database, "another future", 150)
    refused(database, file, "no longer is what was anchored")


@pytest.mark.parametrize("size", [100, 256, 300, 600])
@pytest.mark.parametrize("index", [0, 57, -1])
def test_a_log_that_was_rewritten_after_it_was_anchored_is_an_alarm(
    database: Database, file: AnchorFile, size: int, index: int
) -> None:
    """Also by someone who makes the tree anew over what he changed."""
    anchored(database, file, size)
    change = "UPDATE aegis_log SET hash = sha256(hash) WHERE log_index = :index"
    sql(database, change, index=index % size)
    sql(database, "DELETE FROM aegis_log_node")
    with database.transaction() as session:
        log._keep_nodes(session.connection(), 0, size)
    refused(database, file, "no longer is what was anchored")


def test_entries_that_were_exchanged_after_it_was_anchored_are_an_alarm(database: Database, file: AnchorFile) -> None:
    anchored(database, file, 20)
    exchange = "UPDATE aegis_log SET log_index = CASE log_index WHEN 3 THEN 4 WHEN 4 THEN -3 ELSE log_index END"
    sql(database, "ALTER TABLE aegis_log DROP CONSTRAINT IF EXISTS aegis_log_index_counts")
    try:
        sql(database, exchange.replace("WHEN 3 THEN 4 ", ""))
        sql(database, "UPDATE aegis_log SET log_index = 4 WHERE log_index = 3")
        sql(database, "UPDATE aegis_log SET log_index = 3 WHERE log_index = -3")
    finally:
        sql(database, "ALTER TABLE aegis_log ADD CONSTRAINT aegis_log_index_counts CHECK (log_index >= 0)")
    refused(database, file, "no longer is what was anchored")


def test_a_tree_that_is_not_that_of_its_entries_is_not_signed(database: Database, file: AnchorFile) -> None:
    """An entry was changed after the node over it was made: whoever reads the anchors would find another root."""
    run(database, file)
    add(database, "a", 300)
    take_up_all(database)
    sql(database, "UPDATE aegis_log SET hash = sha256(hash) WHERE log_index = 57")
    refused(database, file, "are not those that its tree was made of")


@pytest.mark.parametrize("index", [0, 57, 298, 299])
def test_a_missing_entry_is_an_alarm(database: Database, file: AnchorFile, index: int) -> None:
    run(database, file)
    add(database, "a", 300)
    take_up_all(database)
    sql(database, "DELETE FROM aegis_log WHERE log_index = :index", index=index)
    refused(database, file, "the entry is missing", f"the log, entry {index}")


def test_a_missing_node_is_an_alarm(database: Database, file: AnchorFile) -> None:
    anchored(database, file, 600)
    sql(database, "DELETE FROM aegis_log_node WHERE number = 1")
    refused(database, file, "the node over 256 entries is missing")


def test_a_log_that_cannot_grow_is_an_alarm_and_what_it_has_is_anchored(database: Database, file: AnchorFile) -> None:
    run(database, file)
    add(database, "a", 250)
    take_up_all(database)
    add(database, "b", 250)
    sql(database, "INSERT INTO aegis_log VALUES (250, 'nobody', 0, sha256('x'))")
    ran = run(database, file)
    assert (ran.logged, ran.written, len(ran.alarms)) == (0, 1, 1)
    assert "it ends here, and yet goes on" in ran.alarms[0]
    assert names(replay(file)[0]) == [("a", number) for number in range(250)]


def test_the_anchors_of_another_deployment_are_not_added_to(database: Database, file: AnchorFile) -> None:
    anchored(database, file)
    sql(database, "UPDATE aegis_deployment SET name = 'aegis.example/another'")
    refused(database, file, "it is of the log 'aegis.example/test', and this one is 'aegis.example/another'")


def test_anchors_of_an_unknown_signer_are_not_added_to(database: Database, file: AnchorFile) -> None:
    anchored(database, file)
    refused(database, file, "not trusted here", by=notary(2))


def test_a_new_key_goes_on_where_the_old_one_is_trusted(database: Database, file: AnchorFile) -> None:
    anchored(database, file)
    add(database, "b", 10)
    assert run(database, file, by=notary(2, trusted=[1])) == Anchored(logged=10, written=1)
    assert_covers(database, file, 1, 2)
    _, only_new = replay(file, 2)
    assert len(only_new.problems) == 1, "the first line is of a key that is not trusted"


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, note=one.note[:-10] + "AAAAAAAA=\n"),
        lambda one: replace(one, note=one.note.replace("\n300\n", "\n299\n")),
        lambda one: replace(one, note=""),
        lambda one: replace(one, entries=one.entries[:-1]),
        lambda one: replace(one, entries=(*one.entries, entry("z", 0))),
        lambda one: replace(one, first=1),
    ],
)
def test_a_last_line_that_somebody_put_there_is_an_alarm(
    database: Database, file: AnchorFile, change: Callable[[Anchor], Anchor]
) -> None:
    anchored(database, file)
    (made,) = file.anchors()
    file.path.write_bytes(change(made).line())
    add(database, "b", 10)
    refused(database, file)


def test_a_name_that_a_note_cannot_hold_is_written_as_in_a_url(database: Database, file: AnchorFile) -> None:
    sql(database, "UPDATE aegis_deployment SET name = :name", name="ein Name\nmit + und ä")
    assert run(database, file).written == 1
    assert open_note(next(file.anchors()).note, [key().verifier]).origin == "ein%20Name%0Amit%20%2B%20und%20%C3%A4"


# --- the file -----------------------------------------------------------------------------------


def anchor_of(first: int, count: int, *, at: datetime | None = None) -> tuple[Anchor, LogHead]:
    entries = tuple(entry("w", number) for number in range(first, first + count))
    whole = frontier([entry("w", number) for number in range(first + count)])
    head = LogHead(
        origin=NAME, size=first + count, root=whole.root, at=at or datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    )
    return Anchor(first=first, note=key().sign(head.text()), entries=entries), head


def test_a_file_that_is_not_there_has_no_anchors(file: AnchorFile) -> None:
    assert file.last() is None
    assert list(file.anchors()) == []
    assert list(file.about("w")) == []


def test_the_last_line_is_found_from_the_end_of_a_long_file(file: AnchorFile) -> None:
    """Lines that are longer than what is read at once, and many that are shorter."""
    made = [anchor_of(0, 0), anchor_of(0, 3000), *(anchor_of(3000 + n, 1) for n in range(150)), anchor_of(3150, 2000)]
    for one, head in made:
        file.add(one, head)
        assert file.last() == one
    assert list(file.anchors()) == [one for one, _ in made]


def test_the_lines_about_a_workflow_are_found(file: AnchorFile) -> None:
    for first, count in ((0, 2), (2, 0), (2, 3)):
        file.add(*anchor_of(first, count))
    assert [one.first for one in file.about("w")] == [0, 2]
    assert list(file.about("another")) == []


@pytest.mark.parametrize("first", [0, 1, 5])
def test_a_line_that_does_not_follow_the_last_one_is_refused(file: AnchorFile, first: int) -> None:
    file.add(*anchor_of(0, 3))
    before = file.path.read_bytes()
    with pytest.raises(SinkUnavailable, match="another process wrote there in the meantime"):
        file.add(*anchor_of(first, 2))
    assert file.path.read_bytes() == before


def test_a_file_that_another_process_has_in_hand_is_not_waited_for(file: AnchorFile) -> None:
    import fcntl  # noqa: PLC0415 - where it is used

    file.add(*anchor_of(0, 3))
    with file.path.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SinkUnavailable):
            file.add(*anchor_of(3, 2))
    file.add(*anchor_of(3, 2))


def test_a_disk_that_is_full_leaves_what_can_be_gone_on_from(file: AnchorFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add(*anchor_of(0, 3))
    full = OSError(28, "No space left on device")

    def fail(_: int) -> None:
        os.truncate(file.path, file.path.stat().st_size - 100)
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(SinkUnavailable, match="No space left on device"):
            file.add(*anchor_of(3, 2))
    last = file.last()
    assert last is not None
    assert last.end == 3
    file.add(*anchor_of(3, 2))
    entries, again = replay(file)
    assert (len(entries), again.problems) == (5, [])


def test_a_line_is_plain_json_for_whoever_has_nothing_else(file: AnchorFile) -> None:
    made, head = anchor_of(0, 1)
    file.add(made, head)
    assert json.loads(file.path.read_text()) == {
        "format": "aegis-anchor/v1",
        "first": 0,
        "note": made.note,
        "entries": [["w", 0, entry("w", 0).hash.hex()]],
        "timestamp": None,
    }


def test_the_anchors_can_be_read_while_one_is_written(database: Database, file: AnchorFile) -> None:
    add(database, "a", 20)
    run(database, file)
    whole = file.path.read_bytes()
    with file.path.open("ab") as torn:
        torn.write(whole[:50])
        torn.flush()
        entries, again = replay(file)
    assert (len(entries), again.problems) == (20, [])


def test_the_database_keeps_what_was_written(database: Database, file: AnchorFile) -> None:
    add(database, "a", 10)
    run(database, file)
    run(database, file, now=True)
    with database.statement() as connection:
        rows = connection.execute(text("SELECT size, root, at, note FROM aegis_anchor ORDER BY id")).all()
    heads = [open_note(one.note, [key().verifier]) for one in file.anchors()]
    assert [(row.size, bytes(row.root), row.at) for row in rows] == [(head.size, head.root, head.at) for head in heads]
