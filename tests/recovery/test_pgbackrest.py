"""Backups of a real server by the real pgBackRest: the same promises as Barman's, and whatever goes wrong, those before stay."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from local_engine import eventually
from outside import store
from pgbackrest_site import POSTGRES, VERSION, ArchivingSite, archiving_site, needs_pgbackrest
from private_servers import PrivatePostgres, folder
from site_of_its_own import Site, given, ids, opened, run, up
from store_workbench import RecordingRing, make_engine, sql, value
from store_workflows import Once
from tls_front import certificates

from aegis.config import keys
from aegis.config.home import Home
from aegis.core.errors import AegisError, BackupFailed, RestoreFailed
from aegis.persistence.auditor import Auditor
from aegis.recovery.backup import take
from aegis.recovery.backup.ledger import Ledger, Proof
from aegis.recovery.backup.pgbackrest.adapter import WithPgBackRest
from aegis.recovery.backup.source import source
from aegis.recovery.backup.take import catalogue, retire, verify
from aegis.recovery.restore.restore import restore
from aegis.tasks.check import Check, State
from aegis.tasks.health import health

pytestmark = needs_pgbackrest


@pytest.fixture
def place() -> Iterator[ArchivingSite]:
    with archiving_site() as made:
        begin(made)
        yield made


def begin(place: ArchivingSite) -> None:
    """Do what the first refusal says."""
    with pytest.raises(BackupFailed, match="its archive_command does not hand the WAL to this repository") as refused:
        source(place.settings)
    place.tell(refused.value.remedy)


def tool(place: Site) -> WithPgBackRest:
    found = source(place.settings).adapter
    assert isinstance(found, WithPgBackRest)
    return found


def told(place: Site, name: str = "backup") -> Check:
    (found,) = [check for check in health(place.settings) if check.name == name]
    return found


# --- what works -------------------------------------------------------------------------


def test_full_and_incremental_ones_count_once_they_were_restored_and_verified(place: ArchivingSite) -> None:
    with pytest.raises(BackupFailed, match="there is no full one that it could build on"):
        take.take(place.settings, incremental=True)
    place.start("o-1")
    place.anchor()
    full = take.take(place.settings)
    assert "none was restored and verified yet" in told(place).says
    assert told(place, "archive").state is State.OK
    assert told(place, "archive").says.startswith("by the server itself, segment by segment")
    place.run("o-1")
    place.start("o-2")
    place.anchor()  # after the backup: only the archive has it
    proof = verify(place.settings, full.id)[1]
    assert (proof.problem, proof.workflows, proof.transitions, proof.logged, proof.anchored) == ("", 2, 3, 3, 3)
    part = take.take(place.settings, incremental=True)
    assert part.parent == full.id
    assert part.size < full.size / 2
    assert verify(place.settings, None)[0].id == part.id
    assert told(place).state is State.OK
    assert [(base.id, base.parent) for base, _ in catalogue(place.settings)] == [(part.id, full.id), (full.id, None)]
    assert all(kept is not None and not kept.problem for _, kept in catalogue(place.settings))
    assert not list(place.settings.places.scratch.iterdir())


def test_back_to_each_kind_of_point_and_to_the_latest_without_the_server(place: ArchivingSite) -> None:
    place.start("o-1")
    place.anchor()
    take.take(place.settings)
    time.sleep(1)  # its times are of whole seconds
    place.start("o-2")
    place.anchor()
    between = datetime.now(UTC)
    place.start("o-3")
    for number, (to, there) in enumerate({between.isoformat(): 2, "o-3:0": 3, "2": 2, "latest": 3}.items()):
        done = restore(place.settings, to, place.root / f"copy-{number}")
        with given(place, done) as database:
            assert ids(database) == ["o-1", "o-2", "o-3"][:there], to
            assert Auditor(database, place.sources()).everything().complete
            assert value(database, "SELECT epoch FROM aegis_deployment") == done.epoch == 2
    place.server.kill()
    shutil.rmtree(place.server.home.postgres)
    done = restore(place.settings, "latest", place.root / "after-the-disk")
    with given(place, done) as database:
        assert ids(database) == ["o-1", "o-2", "o-3"]  # the restores before had the server hand over all it had
    with pytest.raises(RestoreFailed, match="no backup is that old"):
        restore(place.settings, (between - timedelta(days=1)).isoformat(), place.root / "no")


def test_what_is_older_than_one_wants_to_go_back_goes_with_its_wal(place: ArchivingSite) -> None:
    old, part = take.take(place.settings), take.take(place.settings, incremental=True)
    new = take.take(place.settings)
    used = tool(place)
    moved = {old.id: 20, part.id: 19, new.id: 9}

    class Moved(WithPgBackRest):
        """The same repository, some days later."""

        @staticmethod
        def _base(found: dict[str, object]) -> take.Base:
            days = timedelta(days=moved[str(found["label"])]).total_seconds()
            times = {name: at - days for name, at in found["timestamp"].items()}  # type: ignore[attr-defined]
            return WithPgBackRest._base({**found, "timestamp": times})

    later = Moved(used.settings, used.programs)
    assert [base.obsolete for base in later.bases()] == [False, True, True]
    wal = {name for name in place.kept.rglob("0*-*") if name.is_file()}
    assert retire(place.settings, later) == []  # none is verified
    Ledger(place.settings.backups).proved(part.id, Proof(at=datetime.now(UTC), problem=""))
    assert retire(place.settings, later) == []  # the newer one may not count
    Ledger(place.settings.backups).proved(new.id, Proof(at=datetime.now(UTC), problem=""))
    assert retire(place.settings, later) == [old.id, part.id]
    assert [base.id for base, _ in catalogue(place.settings)] == [new.id]
    assert {name for name in place.kept.rglob("0*-*") if name.is_file()} < wal
    assert verify(place.settings, new.id)[1].problem == ""


# --- encryption -------------------------------------------------------------------------


def test_encrypted_backups_are_opened_by_their_key_alone() -> None:
    with archiving_site(backup_encrypt=True) as place:
        begin(place)
        with pytest.raises(BackupFailed, match=r"there is no backup-\*\.key in .*; `aegis keys new backup` makes one"):
            take.take(place.settings)
        key = keys.new_backup_key(place.settings.key_folder)
        place.start("o-1", "a-name-that-can-be-looked-for")
        base = take.take(place.settings)
        assert verify(place.settings, base.id)[1].workflows == 2
        secret = keys.backup_secret(place.settings.key_folder)
        assert secret is not None
        configuration = place.settings.places.pgbackrest / "pgbackrest.conf"
        assert secret in configuration.read_text()
        assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
        assert not [file for file in place.settings.backups.rglob("*") if file.is_file() and secret in text(file)]
        keys.new_backup_key(place.settings.key_folder)  # another: the newest is the one that is used
        with pytest.raises(BackupFailed, match=r"see that AEGIS_BACKUP_ENCRYPT and backup-\*\.key in AEGIS_KEYS are"):
            take.take(place.settings)
        assert told(place).state is State.DEGRADED
        with pytest.raises(BackupFailed, match="see that AEGIS_BACKUP_ENCRYPT"):
            restore(place.settings, "latest", place.root / "copy")
        with pytest.raises(BackupFailed, match="see that AEGIS_BACKUP_ENCRYPT"):
            catalogue(place.asking(backup_encrypt=False))
        for file in place.settings.key_folder.glob("backup-*.key"):
            if file != key.path:
                file.unlink()
        assert verify(place.settings, base.id)[1].problem == ""
        assert told(place).state is State.OK


def text(file: Path) -> str:
    return file.read_bytes().decode("latin-1")


# --- a bucket ---------------------------------------------------------------------------


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A bucket of a real S3 server behind real TLS; its address, and the server's process."""
    import boto3  # noqa: PLC0415 - an extra

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-of-the-bucket")
    with folder("bucket") as root:
        issued = certificates(root / "certificates")
        with store(issued) as (url, process):
            client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", verify=str(issued.authority))
            client.create_bucket(Bucket="backups")
            yield f"s3://backups/aegis?endpoint={url}&style=path&ca={issued.authority}", process


def test_a_bucket_has_everything_that_is_needed_to_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket(monkeypatch) as (address, _), archiving_site(backup_bucket=address) as place:
        begin(place)
        place.start("o-1")
        base = take.take(place.settings)
        place.start("o-2")
        assert verify(place.settings, base.id)[1].workflows == 2
        assert not place.kept.exists()
        configuration = (place.settings.places.pgbackrest / "pgbackrest.conf").read_text()
        assert "repo1-s3-key-secret=test-secret-of-the-bucket" in configuration
        # The whole machine is gone, but for its settings.
        place.server.kill()
        for gone in (place.server.home.postgres, place.settings.backups, place.settings.places.pgbackrest):
            shutil.rmtree(gone)
        done = restore(place.settings, "latest", place.root / "copy")
        with given(place, done) as database:
            assert ids(database) == ["o-1", "o-2"]


def test_a_bucket_that_does_not_answer_and_one_that_nobody_may_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket(monkeypatch) as (address, server), archiving_site(backup_bucket=address) as place:
        server.kill()
        server.wait()
        begin(place)
        began = time.monotonic()
        with pytest.raises(BackupFailed, match=r"AEGIS_BACKUP_BUCKET=s3://backups/aegis\S*: .*onnect"):
            take.take(place.settings)
        assert time.monotonic() - began < 90
        assert told(place).state is State.DEGRADED
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        with pytest.raises(BackupFailed, match="nobody says who we are to the bucket; set AWS_ACCESS_KEY_ID"):
            take.take(place.settings)


# --- what goes wrong --------------------------------------------------------------------


def test_without_pgbackrest_it_is_said_how_to_get_it(place: ArchivingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackupFailed, match="AEGIS_PGBACKREST_BIN=/no/such: there is no such program"):
        take.take(place.asking(pgbackrest_bin="/no/such"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackupFailed, match="pgBackRest: it is not installed; install pgbackrest"):
        take.take(place.settings)


def test_a_server_that_does_not_archive_or_is_elsewhere() -> None:
    with archiving_site() as place:
        place.server.execute("ALTER SYSTEM RESET archive_mode")
        place.server.stop()
        place.server.start()
        with pytest.raises(BackupFailed, match="archive_mode is off: the server hands no WAL to pgBackRest; ALTER SYSTEM"):
            take.take(place.settings)
        (check,) = [check for check in health(place.settings) if check.name == "archive"]
        assert (check.state, check.says) == (State.DEGRADED, "no WAL is archived: archive_mode is off")
        (place.server.home.postgres / "PG_VERSION").rename(place.root / "PG_VERSION")
        with pytest.raises(BackupFailed, match="pgBackRest copies the server's files, and .* is not here"):
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


def test_a_repository_whose_disk_is_away_is_not_begun_anew(place: ArchivingSite) -> None:
    base = take.take(place.settings)
    verify(place.settings, base.id)
    place.settings.backups.rename(place.root / "unplugged")
    assert told(place).state is State.DEGRADED
    place.settings.backups.mkdir()  # the empty folder that something is mounted on
    with pytest.raises(BackupFailed, match=r"it is empty, and .* has been backed up to it; see that its disk is there"):
        take.take(place.settings)
    place.server.execute("SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()")
    eventually("health sees that it fails", lambda: told(place, "archive").state is State.DEGRADED, 60)
    assert "that much would be lost with the server's disk" in told(place, "archive").says
    assert not list(place.settings.backups.rglob("*.info"))  # nor did the server begin it
    shutil.rmtree(place.settings.backups)
    (place.root / "unplugged").rename(place.settings.backups)
    assert verify(place.settings, base.id)[1].problem == ""
    assert told(place, "archive").state is State.OK


def test_a_repository_of_another_server(place: ArchivingSite) -> None:
    base = take.take(place.settings)
    other = PrivatePostgres(place.root / "other", postgres_bin=POSTGRES or "")
    other.start()
    try:
        settings = place.reading(other)
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
    assert verify(place.settings, base.id)[1].problem == ""


def test_a_file_of_a_backup_that_was_cut_short(place: ArchivingSite) -> None:
    place.start("o-1")
    good = take.take(place.settings)
    verify(place.settings, good.id)
    time.sleep(1)
    bad = take.take(place.settings)
    files = [file for file in (place.kept / "backup" / "aegis" / bad.id).rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(BackupFailed, match=f"backup {bad.id}: .*; take another with `aegis backup`, and verify it"):
        verify(place.settings, bad.id)
    assert told(place).state is State.DEGRADED
    assert bad.id in told(place).says
    assert verify(place.settings, good.id)[1].problem == ""


def test_a_gap_in_the_archive(place: ArchivingSite) -> None:
    base = take.take(place.settings)
    for number in range(3):
        place.start(f"o-{number}")
        tool(place).file_all()
    segments = sorted(place.kept.glob("archive/aegis/*/*/0*-*"))
    segments[-2].unlink()
    with pytest.raises(BackupFailed, match="there is a gap"):
        verify(place.settings, base.id)


def test_a_database_that_was_tampered_with_has_no_backup_that_counts(place: ArchivingSite) -> None:
    place.start("o-1")
    place.anchor()
    sql(place.database, "UPDATE aegis_transition SET actor = 'user:eve'")
    base = take.take(place.settings)
    with pytest.raises(BackupFailed, match="workflow 'o-1', transition 0: HASH_MISMATCH"):
        verify(place.settings, base.id)


def test_a_full_disk(place: ArchivingSite) -> None:
    place.settings.backups.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place.settings.backups]
    if subprocess.run(mounted, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    try:
        place.start("o-1")
        good = take.take(place.settings)
        verify(place.settings, good.id)
        filler = place.settings.backups / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(place.settings.backups).free - 1_000_000))
        with pytest.raises(BackupFailed, match=r"no room is left in .*repository"):
            take.take(place.settings)
        assert [base.id for base, _ in catalogue(place.settings)] == [good.id]
        assert told(place).state is State.DEGRADED
        filler.unlink()
        assert verify(place.settings, good.id)[1].problem == ""
        following = take.take(place.settings)
        assert [base.id for base, _ in catalogue(place.settings)] == [following.id, good.id]
    finally:
        subprocess.run(["umount", place.settings.backups], check=True)


# --- aegis up ---------------------------------------------------------------------------


def test_aegis_up_archives_backs_up_and_goes_back() -> None:
    with folder("up-pgbackrest") as root:
        home = root / "home"
        variables = {
            "AEGIS_BACKUP_WITH": "pgbackrest",
            "AEGIS_POSTGRES_BIN": POSTGRES or "",
            "AEGIS_HEALTH_TIMEOUT": "20",
        }
        with up(home, **variables):
            database = opened(Home(home).database_url)
            make_engine(database, RecordingRing()).start(Once(), id="o-1")
            taken = run(home, "backup", "take", **variables)
            assert taken.returncode == 0, taken.stderr
            assert "restored and verified" in taken.stdout
            make_engine(database, RecordingRing()).start(Once(), id="o-2")
            database.close()
            said = " ".join(run(home, "health", **variables).stdout.split())
            assert "by the server itself, segment by segment" in said
            refused = run(home, "backup", "archive", **variables)
            assert refused.returncode == 1
            assert "there is nothing to run" in refused.stderr
        done = run(home, "restore", "--to", "latest", "--in-place", **variables)
        assert done.returncode == 0, done.stderr
        with up(home, **variables):
            database = opened(Home(home).database_url)
            assert ids(database) == ["o-1", "o-2"]  # a server that is stopped hands over what it has
            database.close()
            again = run(home, "backup", "take", **variables)  # on the new timeline
            assert again.returncode == 0, again.stderr


def test_a_private_server_that_was_started_before_is_told_to_be_started_again() -> None:
    with folder("before") as root, up(root / "home", AEGIS_POSTGRES_BIN=POSTGRES or ""):
        refused = run(root / "home", "backup", AEGIS_BACKUP_WITH="pgbackrest", AEGIS_POSTGRES_BIN=POSTGRES or "")
        assert refused.returncode == 2
        assert "start `aegis up` again, with AEGIS_BACKUP_WITH=pgbackrest" in " ".join(refused.stderr.split())


def test_beat_takes_one_by_pgbackrest_as_well(place: ArchivingSite) -> None:
    environment = {
        **os.environ,
        "AEGIS_HOME": str(place.settings.home),
        "AEGIS_DATABASE_URL": place.server.url(),
        "AEGIS_BROKER_URL": place.settings.broker,
        "AEGIS_BACKUP_REPOSITORY": str(place.settings.backups),
        "AEGIS_BACKUP_WITH": "pgbackrest",
        "AEGIS_POSTGRES_BIN": POSTGRES or "",
    }
    scheduled = [sys.executable, "-m", "aegis.recovery.backup.scheduled"]
    assert subprocess.run(scheduled, env=environment, check=False, timeout=120).returncode == 0
    (found,) = catalogue(place.settings)
    assert found[1] is not None
    assert found[1].problem == ""


def test_a_command_that_fails_says_so_in_its_own_words(place: ArchivingSite) -> None:
    with pytest.raises(AegisError, match="backup no-such"):
        verify(place.settings, "no-such")
