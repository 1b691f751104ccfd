"""What goes wrong with pgBackRest: a clear error, an alarm, and those before stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
from local_engine import eventually
from pgbackrest_site import POSTGRES, VERSION, ArchivingSite, archiving_site, needs_pgbackrest, told, tool
from private_servers import PrivatePostgres, folder
from site_of_its_own import Site
from store_workbench import sql

from aegis.core.errors import BackupFailed
from aegis.recovery.backup import take
from aegis.recovery.backup.source import source
from aegis.recovery.backup.take import catalogue, verify
from aegis.tasks.check import State
from aegis.tasks.health import health

pytestmark = needs_pgbackrest


def test_without_pgbackrest_it_is_said_how_to_get_it(archiving: ArchivingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackupFailed, match="AEGIS_PGBACKREST_BIN=/no/such: there is no such program"):
        take.take(archiving.asking(pgbackrest_bin="/no/such"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackupFailed, match="pgBackRest: it is not installed; install pgbackrest"):
        take.take(archiving.settings)


def test_a_server_that_does_not_archive_or_is_elsewhere() -> None:
    with archiving_site() as place:
        place.server.execute("ALTER SYSTEM RESET archive_mode")
        place.server.stop()
        place.server.start()
        with pytest.raises(
            BackupFailed, match="archive_mode is off: the server hands no WAL to pgBackRest; ALTER SYSTEM"
        ):
            take.take(place.settings)
        (check,) = [check for check in health(place.settings) if check.name == "archive"]
        assert (check.state, check.says) == (State.DEGRADED, "no WAL is archived: archive_mode is off")
        (place.server.home.postgres / "PG_VERSION").rename(place.root / "PG_VERSION")
        with pytest.raises(BackupFailed, match=r"pgBackRest copies the server's files, and .* is not here"):
            take.take(place.settings)
        (place.root / "PG_VERSION").rename(place.server.home.postgres / "PG_VERSION")


def test_a_postgresql_that_it_does_not_know() -> None:
    if VERSION >= (2, 55):
        pytest.skip("this pgBackRest knows every PostgreSQL that is here")
    with folder("unknown") as root:
        site = Site(root)
        try:
            settings = site.asking(backup_with="pgbackrest")
            site.server.execute("ALTER SYSTEM SET archive_mode = on")
            site.server.stop()
            site.server.start()
            with pytest.raises(BackupFailed) as refused:
                source(settings)
            for statement in refused.value.remedy.split("; "):
                site.server.execute(statement)
            expected = r"pgBackRest 2\.\d+: it does not know this version of PostgreSQL; install a newer one \(2\.55 or"
            with pytest.raises(BackupFailed, match=expected):
                take.take(settings)
            (check,) = [check for check in health(settings) if check.name == "backup"]
            assert "it does not know this version of PostgreSQL" in check.says
        finally:
            site.close()


def test_a_repository_whose_disk_is_away_is_not_begun_anew(archiving: ArchivingSite) -> None:
    base = take.take(archiving.settings)
    verify(archiving.settings, base.id)
    archiving.settings.backups.rename(archiving.root / "unplugged")
    assert told(archiving).state is State.DEGRADED
    archiving.settings.backups.mkdir()  # the empty folder that something is mounted on
    with pytest.raises(BackupFailed, match=r"it is empty, and .* has been backed up to it; see that its disk is there"):
        take.take(archiving.settings)
    archiving.server.execute("SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()")
    eventually("health sees that it fails", lambda: told(archiving, "archive").state is State.DEGRADED, 60)
    assert "that much would be lost with the server's disk" in told(archiving, "archive").says
    assert not list(archiving.settings.backups.rglob("*.info"))  # nor did the server begin it
    shutil.rmtree(archiving.settings.backups)
    (archiving.root / "unplugged").rename(archiving.settings.backups)
    assert verify(archiving.settings, base.id)[1].problem == ""
    assert told(archiving, "archive").state is State.OK


def test_a_repository_of_another_server(archiving: ArchivingSite) -> None:
    base = take.take(archiving.settings)
    other = PrivatePostgres(archiving.root / "other", postgres_bin=POSTGRES or "")
    other.start()
    try:
        settings = archiving.reading(other)
        other.execute("ALTER SYSTEM SET archive_mode = on")
        other.stop()
        other.start()
        with pytest.raises(BackupFailed) as refused:
            source(settings)
        for statement in refused.value.remedy.split("; "):
            other.execute(statement)
        with pytest.raises(BackupFailed, match="its backups are of another server"):
            take.take(settings)
    finally:
        other.kill()
    assert verify(archiving.settings, base.id)[1].problem == ""


def test_a_file_of_a_backup_that_was_cut_short(archiving: ArchivingSite) -> None:
    archiving.start("o-1")
    good = take.take(archiving.settings)
    verify(archiving.settings, good.id)
    time.sleep(1)
    bad = take.take(archiving.settings)
    files = [file for file in (archiving.kept / "backup" / "aegis" / bad.id).rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(BackupFailed, match=f"backup {bad.id}: .*; take another with `aegis backup`, and verify it"):
        verify(archiving.settings, bad.id)
    assert told(archiving).state is State.DEGRADED
    assert bad.id in told(archiving).says
    assert verify(archiving.settings, good.id)[1].problem == ""


def test_a_gap_in_the_archive(archiving: ArchivingSite) -> None:
    base = take.take(archiving.settings)
    for number in range(3):
        archiving.start(f"o-{number}")
        tool(archiving).file_all()
    segments = sorted(archiving.kept.glob("archive/aegis/*/*/0*-*"))
    segments[-2].unlink()
    with pytest.raises(BackupFailed, match="there is a gap"):
        verify(archiving.settings, base.id)


def test_a_database_that_was_tampered_with_has_no_backup_that_counts(archiving: ArchivingSite) -> None:
    archiving.start("o-1")
    archiving.anchor()
    sql(archiving.database, "UPDATE aegis_transition SET actor = 'user:eve'")
    base = take.take(archiving.settings)
    with pytest.raises(BackupFailed, match="workflow 'o-1', transition 0: HASH_MISMATCH"):
        verify(archiving.settings, base.id)


def test_a_full_disk(archiving: ArchivingSite) -> None:
    archiving.settings.backups.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", archiving.settings.backups]
    if subprocess.run(mounted, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    try:
        archiving.start("o-1")
        good = take.take(archiving.settings)
        verify(archiving.settings, good.id)
        filler = archiving.settings.backups / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(archiving.settings.backups).free - 1_000_000))
        with pytest.raises(BackupFailed, match=r"no room is left in .*repository"):
            take.take(archiving.settings)
        assert [base.id for base, _ in catalogue(archiving.settings)] == [good.id]
        assert told(archiving).state is State.DEGRADED
        filler.unlink()
        assert verify(archiving.settings, good.id)[1].problem == ""
        following = take.take(archiving.settings)
        assert [base.id for base, _ in catalogue(archiving.settings)] == [following.id, good.id]
    finally:
        subprocess.run(["umount", archiving.settings.backups], check=True)


def test_a_backup_that_is_not_there(archiving: ArchivingSite) -> None:
    with pytest.raises(BackupFailed, match="backup no-such"):
        verify(archiving.settings, "no-such")


def test_a_place_that_cannot_be_written_is_an_alarm(archiving: ArchivingSite) -> None:
    (archiving.settings.places.pgbackrest / "begun.json").mkdir(parents=True)
    with pytest.raises(BackupFailed, match=r"begun\.json cannot be written \(Is a directory\); see that it has room"):
        take.take(archiving.settings)
    assert "cannot be written (Is a directory)" in told(archiving).says
