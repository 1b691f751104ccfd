"""Backups of a real server by the real Barman: they prove themselves, and whatever goes wrong, those before stay."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from local_engine import eventually
from private_servers import PrivatePostgres
from site_of_its_own import Site, archiving, needs_barman
from store_workbench import sql, value

from aegis.config.settings import Settings
from aegis.core.errors import AegisError, BackupFailed, DatabaseUnavailable, RestoreFailed
from aegis.persistence import cluster
from aegis.recovery.backup import address, archive, prove, take
from aegis.recovery.backup.adapter import Base, last_number
from aegis.recovery.backup.barman.adapter import WithBarman
from aegis.recovery.backup.dump import dump
from aegis.recovery.backup.ledger import Ledger, Proof, alone
from aegis.recovery.backup.look import look
from aegis.recovery.backup.source import source
from aegis.recovery.backup.take import catalogue, retire, verify
from aegis.recovery.restore.restore import restore
from aegis.tasks import backups
from aegis.tasks.backups import ask_backups
from aegis.tasks.check import State
from aegis.tasks.health import health

pytestmark = needs_barman


def told(place: Site, name: str = "backup") -> backups.Check:
    (found,) = [check for check in health(place.settings) if check.name == name]
    return found


def tool(place: Site) -> WithBarman:
    found = source(place.settings).adapter
    assert isinstance(found, WithBarman)
    return found


def segment_files(place: Site) -> list[Path]:
    return sorted((place.settings.backups / "aegis" / "wals").glob("*/0*"))


def the_only_one(place: Site) -> Base:
    (found,) = [base for base, _ in catalogue(place.settings)]
    return found


# --- what works -------------------------------------------------------------------------


def test_a_backup_counts_once_it_was_restored_and_verified(place: Site) -> None:
    place.start("o-1", "o-2")
    place.run("o-1")
    place.anchor()
    base = take.take(place.settings)
    assert told(place).state is State.DEGRADED
    assert "none was restored and verified yet" in told(place).says
    place.run("o-2")  # after the backup: only the archive has it
    place.anchor()
    found, proof = verify(place.settings, None)
    assert found.id == base.id
    # The transitions of both workflows, and each of them as it was anchored.
    assert (proof.problem, proof.workflows, proof.transitions, proof.logged, proof.anchored) == ("", 2, 4, 4, 4)
    assert told(place).state is State.OK
    assert "the last verified one is" in told(place).says
    assert [(base.id, kept) for base, kept in catalogue(place.settings)] == [(base.id, proof)]
    assert not list(place.settings.places.scratch.iterdir())  # nothing stays of the copy


def test_an_incremental_one_builds_on_a_full_one_and_counts_as_well(place: Site) -> None:
    with pytest.raises(BackupFailed, match="there is no full one that it could build on"):
        take.take(place.settings, incremental=True)
    place.start("o-1")
    full = take.take(place.settings)
    place.start("o-2")
    base = take.take(place.settings, incremental=True)
    assert base.parent == full.id
    assert base.size < full.size / 2
    assert verify(place.settings, base.id)[1].workflows == 2


def test_the_archive_follows_and_health_says_how_far_it_is(place: Site) -> None:
    take.take(place.settings)
    assert told(place, "archive").state is State.WARNING
    assert "nothing archives the WAL now" in told(place, "archive").says
    with archiving(place):
        eventually("it streams", lambda: told(place, "archive").state is State.OK, 30)
        place.start("o-1")
        streamed = lambda: "0.0 MB behind" in told(place, "archive").says  # noqa: E731
        eventually("all is archived", streamed, 30)
        base = take.take(place.settings)  # beside it: it takes the WAL from this one
        assert verify(place.settings, base.id)[1].workflows == 1
    assert "nothing archives the WAL now" in told(place, "archive").says


def test_a_dump_is_a_portable_copy(place: Site, tmp_path: Path) -> None:
    place.start("o-1")
    file = tmp_path / "aegis.dump"
    assert dump(place.settings, file) == file.stat().st_size
    programs = source(place.settings).adapter.programs
    listed = subprocess.run(
        [str(programs / "pg_restore"), "--list", str(file)], capture_output=True, text=True, check=True
    )
    assert "TABLE DATA public aegis_transition" in listed.stdout
    with pytest.raises(BackupFailed, match="cannot be written"):
        dump(place.settings, tmp_path / "no-such-folder" / "aegis.dump")
    assert [path.name for path in tmp_path.iterdir()] == ["aegis.dump"]


def test_what_is_older_than_one_wants_to_go_back_goes_only_when_a_later_one_counts(place: Site) -> None:
    old = take.take(place.settings)
    new = take.take(place.settings)
    used = tool(place)
    # Ten and nine days ago, as far as Barman can tell.
    for base, days in ((old, 10), (new, 9)):
        file = used.barman.folder / "meta" / f"{base.id}-backup.info"
        moved = datetime.now(UTC) - timedelta(days=days)
        lines = [
            f"end_time={moved}" if line.startswith("end_time=") else line for line in file.read_text().splitlines()
        ]
        file.write_text("\n".join(lines) + "\n")
    assert [base.obsolete for base in used.bases()] == [False, True]
    assert retire(place.settings, used) == []  # none is verified
    Ledger(place.settings.backups).proved(new.id, Proof(at=datetime.now(UTC), problem=""))
    assert retire(place.settings, used) == [old.id]
    assert the_only_one(place).id == new.id


# --- what goes wrong --------------------------------------------------------------------


def test_without_barman_it_is_said_how_to_get_it(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackupFailed, match=r"Barman: it is not installed; pip install 'aegis-workflows\[backup\]'"):
        take.take(place.settings)
    named = place.reading(place.server, barman_bin="/no/such")
    with pytest.raises(BackupFailed, match="AEGIS_BARMAN_BIN=/no/such: there is no such program"):
        take.take(named)


def test_a_repository_that_cannot_be_written(place: Site) -> None:
    place.settings.backups.parent.joinpath("file").touch()
    away = place.settings.model_copy(update={"backup_repository": place.root / "file" / "below"})
    with pytest.raises(BackupFailed, match=r"AEGIS_BACKUP_REPOSITORY=.*: it cannot be written \(Not a directory\)"):
        take.take(away)
    (check,) = ask_backups(away)
    assert check.state is State.DEGRADED


def test_a_repository_whose_disk_is_away_is_not_begun_anew(place: Site) -> None:
    base = take.take(place.settings)
    verify(place.settings, base.id)
    place.settings.backups.rename(place.root / "unplugged")
    assert told(place).state is State.DEGRADED
    place.settings.backups.mkdir()  # the empty folder that something is mounted on
    with pytest.raises(BackupFailed, match=r"it is empty, and .* has a slot for an archive that was begun before"):
        take.take(place.settings)
    assert told(place).state is State.DEGRADED
    shutil.rmtree(place.settings.backups)
    (place.root / "unplugged").rename(place.settings.backups)
    assert verify(place.settings, base.id)[1].problem == ""


def test_a_repository_of_another_server(place: Site) -> None:
    base = take.take(place.settings)
    other = PrivatePostgres(place.root / "other")
    other.start()
    try:
        with pytest.raises(BackupFailed, match="its backups are of another server"):
            take.take(place.reading(other))
    finally:
        other.kill()
    assert verify(place.settings, base.id)[1].problem == ""


def test_one_at_a_time(place: Site) -> None:
    with alone(place.settings.backups), pytest.raises(BackupFailed, match=f"another process .pid {os.getpid()}. is at"):
        take.take(place.settings)


def test_a_file_of_a_backup_that_was_cut_short(place: Site) -> None:
    place.start("o-1")
    good = take.take(place.settings)
    verify(place.settings, good.id)
    bad = take.take(place.settings)
    data = place.settings.backups / "aegis" / "base" / bad.id / "data"
    largest = max((file for file in (data / "base").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 8192)
    with pytest.raises(BackupFailed, match=f"backup {bad.id}: it is not what was taken: base/.* bytes, and had"):
        verify(place.settings, bad.id)
    assert told(place).state is State.DEGRADED
    assert "it is not what was taken" in told(place).says
    largest.unlink()
    with pytest.raises(BackupFailed, match=r"it is not what was taken: base/.* is missing"):
        verify(place.settings, bad.id)
    assert verify(place.settings, good.id)[1].problem == ""


def test_a_page_that_rotted_on_the_disk_of_the_repository(place: Site) -> None:
    place.start("o-1")
    bad = take.take(place.settings)
    data = place.settings.backups / "aegis" / "base" / bad.id / "data"
    oid, name = (
        value(place.database, query)
        for query in (
            "SELECT oid FROM pg_database WHERE datname = current_database()",
            "SELECT pg_relation_filenode('aegis_removal_record')",
        )
    )
    with (data / "base" / str(oid) / str(name)).open("r+b") as file:
        file.seek(100)
        file.write(b"rot")
    with pytest.raises(BackupFailed, match="it is not what was written: "):
        verify(place.settings, bad.id)


def test_a_gap_in_the_archive(place: Site) -> None:
    base = take.take(place.settings)
    for number in range(3):
        place.start(f"o-{number}")
        source(place.settings).adapter.file_all()
    segment_files(place)[-2].unlink()
    with pytest.raises(BackupFailed, match="there is a gap"):
        verify(place.settings, base.id)
    # What ends there is not the latest: nobody is to find that out later.
    with pytest.raises(RestoreFailed, match="there is a gap") as refused:
        restore(place.settings, "latest", place.root / "copy")
    assert not (place.root / "copy").exists()
    point = re.search(r"--to (\S+)`", refused.value.remedy)
    assert point is not None
    done = restore(place.settings, point[1], place.root / "copy")
    assert 1 <= done.workflows < 3


def test_the_last_segment_is_that_of_the_newest_timeline() -> None:
    """A primary that was left may have written more than the one that leads has since."""
    names = ["00000001000000000000000A", "000000020000000000000009", "000000010000000000000008"]
    assert last_number(names) == 9
    assert last_number(reversed(names)) == 9
    assert last_number([]) == 0


def test_beat_finds_a_gap_in_the_archive_without_restoring_anything(place: Site) -> None:
    assert look(place.settings) is None  # there is nothing yet
    base = take.take(place.settings)
    for number in range(3):
        place.start(f"o-{number}")
        source(place.settings).adapter.file_all()
    assert look(place.settings) is None
    for number in range(3, 6):
        place.start(f"o-{number}")
        source(place.settings).adapter.file_all()
    gone = segment_files(place)[-2]
    gone.unlink()
    assert look(place.settings) == f"segment {int(gone.name[16:], 16):X}"
    assert "gap in the archive, segment" in told(place).says
    assert look(place.settings) is None  # it is known, and stays known
    assert Ledger(place.settings.backups).known().gap_since(base.id)


def test_beat_looks_now_and_then(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class Started:
        @staticmethod
        def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            started.append(argv[-1])
            return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(backups, "subprocess", Started)
    daily, ledger = place.asking(backup_interval=86400), Ledger(place.settings.backups)
    place.settings.backups.mkdir()
    ledger.proved(f"{datetime.now(UTC).astimezone():%Y%m%dT%H%M%S}", Proof(at=datetime.now(UTC), problem=""))
    backups.backup(daily)
    assert started == []  # nothing was ever taken
    ledger.taken("postgres")
    backups.backup(daily)
    assert started == ["aegis.recovery.backup.look"]
    ledger.looked("000000010000000000000001")
    backups.backup(daily)
    assert len(started) == 1


def test_a_database_that_was_tampered_with_has_no_backup_that_counts(place: Site) -> None:
    place.start("o-1")
    place.anchor()
    sql(place.database, "UPDATE aegis_transition SET actor = 'user:eve'")
    base = take.take(place.settings)
    with pytest.raises(BackupFailed, match="workflow 'o-1', transition 0: HASH_MISMATCH"):
        verify(place.settings, base.id)
    assert told(place).state is State.DEGRADED


def test_a_server_that_dies_half_way(place: Site) -> None:
    good = take.take(place.settings)
    verify(place.settings, good.id)
    sql(place.database, "CREATE TABLE bulk AS SELECT repeat('x', 1000) FROM generate_series(1, 300000)")
    base = place.settings.backups / "aegis" / "base"

    def kill() -> None:
        while len([one for one in base.glob("*/data/base") if one.parents[1].name != good.id]) == 0:
            time.sleep(0.001)
        place.server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises((BackupFailed, DatabaseUnavailable)):
        take.take(place.settings)
    killer.join()
    assert the_only_one(place).id == good.id
    (check,) = ask_backups(place.settings)
    assert check.state is State.DEGRADED
    place.server.start()
    assert verify(place.settings, good.id)[1].problem == ""
    (check,) = ask_backups(place.settings)
    assert check.state is State.OK


def test_a_server_that_is_down(place: Site) -> None:
    place.server.stop()
    with pytest.raises(DatabaseUnavailable):
        take.take(place.settings)
    (check,) = ask_backups(place.settings)
    assert check.state is State.DEGRADED


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[None]:
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk(place: Site) -> None:
    with small_disk(place.settings.backups, 110):
        place.start("o-1")
        good = take.take(place.settings)
        verify(place.settings, good.id)
        filler = place.settings.backups / "filler"
        free = shutil.disk_usage(place.settings.backups).free
        filler.write_bytes(bytes(free - 12_000_000))
        with pytest.raises(BackupFailed, match=r"No space left on device|cannot be written"):
            take.take(place.settings)
        assert [base.id for base, _ in catalogue(place.settings) if base.done] == [good.id]
        assert told(place).state is State.DEGRADED
        # Whether there was room to note what happened, or not.
        assert any(
            alarm in told(place).says for alarm in ("MB left: not enough for another", "No space left on device")
        )
        filler.unlink()
        assert verify(place.settings, good.id)[1].problem == ""
        assert told(place).state is State.OK
        filler.write_bytes(bytes(10_000_000))  # room for one more, with its WAL: nothing is left of the other
        following = take.take(place.settings)
        assert [base.id for base, _ in catalogue(place.settings)] == [following.id, good.id]


def test_a_slot_that_is_made_anew_in_time_leaves_no_gap(place: Site) -> None:
    base = take.take(place.settings)
    with place.database.statement() as connection:
        cluster.drop_slot(connection)
    place.start("o-1")
    assert verify(place.settings, base.id)[1].workflows == 1
    assert Ledger(place.settings.backups).known().gap is None


def throw_away_wal(place: Site) -> None:
    """Have the server write more than it keeps, with nobody to keep it for."""
    with place.database.statement() as connection:
        cluster.drop_slot(connection)
    place.server.execute("ALTER SYSTEM SET min_wal_size = '32MB'")
    place.server.execute("ALTER SYSTEM SET max_wal_size = '32MB'")
    place.server.execute("SELECT pg_reload_conf()")
    for _ in range(6):
        sql(place.database, "SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))")
        place.server.execute("SELECT pg_switch_wal()")
        place.server.execute("CHECKPOINT")


def test_a_gap_is_an_alarm_until_a_backup_that_was_begun_later_counts(place: Site) -> None:
    daily = place.asking(backup_interval=86400)
    old = take.take(place.settings)
    verify(place.settings, old.id)
    assert not backups._is_due(Ledger(place.settings.backups).known(), daily, datetime.now(UTC))
    throw_away_wal(place)
    time.sleep(1)  # backups are named after whole seconds
    with archiving(place):
        eventually("it has a slot again", lambda: place.archive().kept_from is not None, 60)
        # By that alone, all would seem well again.
        eventually("it streams", lambda: told(place, "archive").state is State.OK, 60)
        assert told(place).state is State.DEGRADED
        assert "gap in the archive, segments " in told(place).says
        assert "one cannot go back across it" in told(place).says
        known = Ledger(place.settings.backups).known()
        assert backups._is_due(known, daily, datetime.now(UTC))  # at once
        assert take.unproven(daily) is None  # the older one does not do
        with pytest.raises(BackupFailed, match="there is a gap"):
            verify(place.settings, old.id)
        Ledger(place.settings.backups).proved(old.id, Proof(at=datetime.now(UTC), problem=""))
        assert "gap in the archive" in told(place).says
        new = take.take(place.settings)
        assert verify(place.settings, new.id)[1].problem == ""
    assert told(place).state is State.OK
    assert not backups._is_due(Ledger(place.settings.backups).known(), daily, datetime.now(UTC))


def test_a_receiver_that_the_server_refuses_what_it_asks_for_begins_anew(place: Site) -> None:
    """As on a cluster, where whoever leads has a slot, and not what the archive got from another."""
    take.take(place.settings)
    streaming = place.settings.backups / "aegis" / "streaming"
    (last,) = streaming.glob("*.partial")
    ahead = f"{last.name[:16]}{int(last.name[16:24], 16) + 7:08X}.partial"
    last.rename(streaming / ahead)
    with archiving(place):
        eventually("it streams", lambda: place.archive().active, 60)
    assert "gap in the archive, " in told(place).says
    assert not (streaming / ahead).exists()
    base = take.take(place.settings)
    assert verify(place.settings, base.id)[1].problem == ""
    assert told(place).state is State.OK


# --- beat -------------------------------------------------------------------------------


def test_beat_takes_one_when_it_is_due_and_not_before(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Started:
        @staticmethod
        def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            started.append(argv)
            return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(backups, "subprocess", Started)
    assert not backups.backup(place.settings)  # off
    daily = place.settings.model_copy(update={"backup_interval": 86400})
    assert backups.backup(daily)
    assert [argv[1:] for argv in started] == [["-m", "aegis.recovery.backup.scheduled"]]
    base = take.take(place.settings)
    verify(place.settings, base.id)
    assert not backups.backup(daily)
    known = place.settings.backups / backups.LEDGER
    old = (datetime.now(UTC) - timedelta(days=2)).strftime("%Y%m%dT%H%M%S")
    known.write_text(known.read_text().replace(base.id, old))
    assert backups.backup(daily)
    Ledger(place.settings.backups).failed("the disk is full")
    assert not backups.backup(daily)  # it has just been tried


def test_the_process_that_beat_starts_takes_and_verifies_one(place: Site) -> None:
    environment = {
        **os.environ,
        "AEGIS_HOME": str(place.settings.home),
        "AEGIS_DATABASE_URL": place.server.url(),
        "AEGIS_BROKER_URL": place.settings.broker,
        "AEGIS_BACKUP_REPOSITORY": str(place.settings.backups),
    }
    scheduled = [sys.executable, "-m", "aegis.recovery.backup.scheduled"]
    assert subprocess.run(scheduled, env=environment, check=False, timeout=120).returncode == 0
    (found,) = catalogue(place.settings)
    assert found[1] is not None
    assert found[1].problem == ""
    place.server.stop()
    assert subprocess.run(scheduled, env=environment, check=False, timeout=120).returncode == 1


def scheduled(place: Site) -> int:
    """What beat starts, in a process of its own."""
    environment = {
        **os.environ,
        "AEGIS_HOME": str(place.settings.home),
        "AEGIS_DATABASE_URL": place.server.url(),
        "AEGIS_BROKER_URL": place.settings.broker,
        "AEGIS_BACKUP_REPOSITORY": str(place.settings.backups),
        "AEGIS_BACKUP_INTERVAL": "86400",
    }
    argv = [sys.executable, "-m", "aegis.recovery.backup.scheduled"]
    return subprocess.run(argv, env=environment, check=False, timeout=120).returncode


def test_what_keeps_backups_from_counting_does_not_fill_the_repository(place: Site) -> None:
    place.start("o-1")
    place.anchor()
    actor = value(place.database, "SELECT actor FROM aegis_transition")
    sql(place.database, "UPDATE aegis_transition SET actor = 'user:eve'")
    assert scheduled(place) == 1
    base = the_only_one(place)
    assert scheduled(place) == 1
    assert the_only_one(place).id == base.id  # verified again, and no other taken
    sql(place.database, "UPDATE aegis_transition SET actor = :actor", actor=actor)
    assert scheduled(place) == 0
    assert the_only_one(place).id == base.id
    assert told(place).state is State.OK


class Shelf:
    """A repository of backups in name only."""

    def __init__(self, *ids: str, parents: dict[str, str] | None = None) -> None:
        self.ids, self.parents = list(ids), parents or {}

    def bases(self) -> list[Base]:
        return [
            Base(
                id=name,
                parent=self.parents.get(name),
                began_at=backups.begun(name),
                ended_at=backups.begun(name),
                size=1,
                obsolete=False,
            )
            for name in sorted(self.ids, reverse=True)
        ]

    def remove(self, base: Base) -> None:
        self.ids.remove(base.id)

    def tidy(self) -> None:
        pass


@pytest.mark.parametrize(
    ("counts", "wanting", "parents", "left"),
    [
        # The newest may count yet; with the oldest, everything that is archived begins.
        ("", "1234", {}, "14"),
        ("1", "234", {}, "14"),
        ("2", "134", {}, "124"),
        ("14", "23", {}, "14"),
        # Nobody knows of the third whether it counts; and the fourth builds on the second.
        ("1", "25", {}, "1345"),
        ("1", "2345", {"4": "2", "5": "4"}, "1245"),
    ],
)
def test_backups_that_do_not_count_go_where_a_newer_one_stands_in_for_them(
    tmp_path: Path, counts: str, wanting: str, parents: dict[str, str], left: str
) -> None:
    name = "2026010{}T000000".format
    named = {name(key): name(parent) for key, parent in parents.items()}
    everyone = "12345" if "5" in wanting else "1234"
    shelf = Shelf(*map(name, everyone), parents=named)
    for one in (*counts, *wanting):
        problem = "a row was edited" if one in wanting else ""
        Ledger(tmp_path).proved(name(one), Proof(at=datetime.now(UTC), problem=problem))
    take.drop_superseded(Settings(home=tmp_path, backup_repository=tmp_path), shelf)  # type: ignore[arg-type]
    assert shelf.ids == [name(one) for one in left]
    assert set(Ledger(tmp_path).known().proofs) <= set(shelf.ids)


# --- addresses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql+psycopg2://aegis@/postgres?host=/run/x",
            {"user": "aegis", "dbname": "postgres", "host": "/run/x"},
        ),
        (
            "postgresql+psycopg2://a:p%40ss@db:5433/aegis?sslmode=require",
            {"host": "db", "port": "5433", "user": "a", "password": "p@ss", "dbname": "aegis", "sslmode": "require"},
        ),
        ("postgresql+psycopg2://a@/x?host=h1&host=h2", {"user": "a", "dbname": "x", "host": "h1,h2"}),
        # As several hosts are written everywhere else: libpq has their ports in a list of its own.
        (
            "postgresql+psycopg2://a@/x?host=h1:5433&host=h2&target_session_attrs=read-write",
            {"user": "a", "dbname": "x", "host": "h1,h2", "port": "5433,5432", "target_session_attrs": "read-write"},
        ),
    ],
)
def test_an_address_in_the_words_of_libpq(url: str, expected: dict[str, str]) -> None:
    assert address.words(url) == expected


def test_words_are_quoted() -> None:
    assert address.conninfo("postgresql://a:it%27s%5C@h/x").endswith("password='it\\'s\\\\' dbname='x'")


def test_a_host_that_went_dark_is_left() -> None:
    told = address.conninfo("postgresql://a@/x?host=h1:1&host=h2:2&connect_timeout=7")
    assert "tcp_user_timeout='4000'" in told
    assert "connect_timeout='7'" in told
    assert "application_name" not in told  # it is by that name that commits may wait for the archive


def test_a_ledger_that_cannot_be_read_is_said(place: Site) -> None:
    place.settings.backups.mkdir()
    (place.settings.backups / backups.LEDGER).write_text("{")
    with pytest.raises(AegisError, match=r"aegis\.json: it cannot be read"):
        Ledger(place.settings.backups).known()
    assert told(place).state is State.DEGRADED


@pytest.mark.parametrize(
    "text", ['{"proofs": {"20260101T000000": {"prob', "[]", '{"failure": "x"}', '{"proofs": {"20260101T000000": {}}}']
)
def test_a_damaged_ledger_is_said_before_a_backup_is_taken_and_stays_as_it_is(place: Site, text: str) -> None:
    place.settings.backups.mkdir()
    file = place.settings.backups / backups.LEDGER
    file.write_text(text)
    for act in (lambda: take.take(place.settings), lambda: verify(place.settings, None)):
        with pytest.raises(BackupFailed, match=r"aegis\.json: it cannot be read .*; see that .* move aegis\.json away"):
            act()
    with pytest.raises(BackupFailed, match=r"aegis\.json: it cannot be read"):
        Ledger(place.settings.backups).failed("another")
    assert file.read_text() == text
    assert not (place.settings.backups / "aegis" / "base").exists()
    assert "it cannot be read" in told(place).says


def test_what_is_wrong_with_a_backup_is_told_also_where_it_cannot_be_noted(tmp_path: Path) -> None:
    (tmp_path / backups.LEDGER).write_text("{")
    (base,) = Shelf("20260101T000000").bases()
    error = BackupFailed("backup", "a page rotted", "take another")
    assert prove._noted(Ledger(tmp_path), base, error) is error


def test_a_disk_that_fails_while_a_backup_is_taken_is_an_alarm(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError(5, "Input/output error", "/backups/x")

    monkeypatch.setattr(WithBarman, "take", fail)
    with pytest.raises(BackupFailed, match="/backups/x: Input/output error; see that its disk is there"):
        take.take(place.settings)
    assert "/backups/x: Input/output error" in told(place).says


def test_a_repository_that_is_still_to_be_made_is_no_fault_of_health(tmp_path: Path) -> None:
    for changes in ({}, {"backup_with": "pgbackrest", "backup_bucket": "s3://b/x?region=eu"}):
        (check,) = ask_backups(Settings(home=tmp_path / "home", backup_interval=3600, **changes))  # type: ignore[arg-type]
        assert (check.state, check.says.partition(":")[0]) == (State.DEGRADED, "none that counts")


def test_a_bucket_has_room_whatever_this_disk_has(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, backup_with="pgbackrest", backup_bucket="s3://b/x?region=eu")
    settings.backups.mkdir()
    proof = Proof(at=datetime.now(UTC), problem="", bytes=2**60)
    Ledger(settings.backups).proved(f"{datetime.now(UTC):%Y%m%d-%H%M%S}F", proof)
    (check,) = ask_backups(settings)
    assert check.state is State.OK


def test_the_archive_outlives_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    made = archive.Archive(Settings(home=tmp_path, backup_synchronous=True))

    def session() -> None:
        tried.append(1)
        made.stopping = len(tried) == 2
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(made, "_session", session)
    made.run()
    assert len(tried) == 2


def test_a_receiver_that_is_not_with_whoever_leads_is_left(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a fail-over that left the old leader's server running: its connection holds, and brings nothing."""
    monkeypatch.setattr(archive, "_CONNECTS_WITHIN", 1.0)
    monkeypatch.setattr(archive.Archive, "_file", lambda *_: None)
    elsewhere = subprocess.Popen(["sleep", "60"])
    try:
        made, barman = archive.Archive(place.settings), tool(place).barman
        assert not place.archive().active
        made._receive(barman, place.database, elsewhere, waited_for=False)
        assert elsewhere.poll() is None  # whoever started it ends it, and starts another
        # As an archive leaves it that was ended when it had only just begun.
        barman.folder.mkdir()
        with place.database.statement() as connection:
            cluster.make_slot(connection)
        with archiving(place):
            eventually("it streams", lambda: place.archive().active, 60)
            looked = threading.Thread(
                target=made._receive, args=(barman, place.database, elsewhere), kwargs={"waited_for": False}
            )
            looked.start()
            looked.join(5)
            assert looked.is_alive()  # the leader's WAL is received
            made.stopping = True
            looked.join(10)
    finally:
        elsewhere.kill()
        elsewhere.wait()


def test_what_is_known_is_written_as_json(place: Site) -> None:
    place.settings.backups.mkdir()
    ledger = Ledger(place.settings.backups)
    ledger.failed("no disk")
    ledger.proved("20260101T000000", Proof(at=datetime(2026, 1, 1, tzinfo=UTC), problem=""))
    assert json.loads((place.settings.backups / backups.LEDGER).read_text()).keys() == {
        "proofs"
    }  # it counts: all is well
