"""Backups of a real server by the real pgBackRest: what is promised of Barman's, and encryption, and buckets."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from local_engine import eventually
from outside import store
from pgbackrest_site import POSTGRES, ArchivingSite, archiving_site, begin, needs_pgbackrest, told, tool
from private_servers import folder
from site_of_its_own import given, ids, opened, run, up
from store_workbench import RecordingRing, make_engine, value
from store_workflows import Once
from tls_front import certificates

from aegis.config import keys
from aegis.config.home import Home
from aegis.core.errors import BackupFailed, RestoreFailed
from aegis.persistence import cluster
from aegis.persistence.auditor import Auditor
from aegis.recovery.backup import take
from aegis.recovery.backup.ledger import Ledger, Proof
from aegis.recovery.backup.look import look
from aegis.recovery.backup.pgbackrest import adapter, program
from aegis.recovery.backup.pgbackrest.adapter import WithPgBackRest
from aegis.recovery.backup.take import catalogue, retire, verify
from aegis.recovery.restore.restore import restore
from aegis.tasks import backups
from aegis.tasks.check import State

pytestmark = needs_pgbackrest


# --- what works -------------------------------------------------------------------------


def test_full_and_incremental_ones_count_once_they_were_restored_and_verified(archiving: ArchivingSite) -> None:
    with pytest.raises(BackupFailed, match="there is no full one that it could build on"):
        take.take(archiving.settings, incremental=True)
    archiving.start("o-1")
    archiving.anchor()
    full = take.take(archiving.settings)
    assert "none was restored and verified yet" in told(archiving).says
    assert told(archiving, "archive").state is State.OK
    assert told(archiving, "archive").says.startswith("by the server itself, segment by segment")
    archiving.run("o-1")
    archiving.start("o-2")
    archiving.anchor()  # after the backup: only the archive has it
    proof = verify(archiving.settings, full.id)[1]
    assert (proof.problem, proof.workflows, proof.transitions, proof.logged, proof.anchored) == ("", 2, 3, 3, 3)
    part = take.take(archiving.settings, incremental=True)
    assert part.parent == full.id
    assert part.size < full.size / 2
    assert verify(archiving.settings, None)[0].id == part.id
    assert told(archiving).state is State.OK
    assert [(base.id, base.parent) for base, _ in catalogue(archiving.settings)] == [
        (part.id, full.id),
        (full.id, None),
    ]
    assert all(kept is not None and not kept.problem for _, kept in catalogue(archiving.settings))
    assert not list(archiving.settings.places.scratch.iterdir())


def test_back_to_each_kind_of_point_and_to_the_latest_without_the_server(archiving: ArchivingSite) -> None:
    archiving.start("o-1")
    archiving.anchor()
    take.take(archiving.settings)
    time.sleep(1)  # its times are of whole seconds
    archiving.start("o-2")
    archiving.anchor()
    between = datetime.now(UTC)
    archiving.start("o-3")
    for number, (to, there) in enumerate({between.isoformat(): 2, "o-3:0": 3, "2": 2, "latest": 3}.items()):
        done = restore(archiving.settings, to, archiving.root / f"copy-{number}")
        with given(archiving, done) as database:
            assert ids(database) == ["o-1", "o-2", "o-3"][:there], to
            assert Auditor(database, archiving.sources()).everything().complete
            assert value(database, "SELECT epoch FROM aegis_deployment") == done.epoch != 1
    archiving.server.kill()
    shutil.rmtree(archiving.server.home.postgres)
    done = restore(archiving.settings, "latest", archiving.root / "after-the-disk")
    with given(archiving, done) as database:
        assert ids(database) == ["o-1", "o-2", "o-3"]  # the restores before had the server hand over all it had
    with pytest.raises(RestoreFailed, match="no backup is that old"):
        restore(archiving.settings, (between - timedelta(days=1)).isoformat(), archiving.root / "no")


def test_what_is_older_than_one_wants_to_go_back_goes_with_its_wal(archiving: ArchivingSite) -> None:
    old, part = take.take(archiving.settings), take.take(archiving.settings, incremental=True)
    new = take.take(archiving.settings)
    used = tool(archiving)
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
    wal = {name for name in archiving.kept.rglob("0*-*") if name.is_file()}
    assert retire(archiving.settings, later) == []  # none is verified
    Ledger(archiving.settings.backups).proved(part.id, Proof(at=datetime.now(UTC), problem=""))
    assert retire(archiving.settings, later) == []  # the newer one may not count
    Ledger(archiving.settings.backups).proved(new.id, Proof(at=datetime.now(UTC), problem=""))
    assert retire(archiving.settings, later) == [old.id, part.id]
    assert [base.id for base, _ in catalogue(archiving.settings)] == [new.id]
    assert {name for name in archiving.kept.rglob("0*-*") if name.is_file()} < wal
    assert verify(archiving.settings, new.id)[1].problem == ""


def test_what_is_dropped_because_it_piled_up_is_a_gap_that_beat_finds(
    archiving: ArchivingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_MOST_WAITING", "20MiB")  # so little, for its configuration is written anew
    old = take.take(archiving.settings)
    verify(archiving.settings, old.id)
    assert look(archiving.settings) is None
    archiving.kept.rename(archiving.root / "unplugged")
    segments: list[str] = []

    def piles_up() -> bool:
        # PostgreSQL rests for a minute after some refusals, unless there is another segment.
        archiving.start(f"o-{len(segments)}")
        with archiving.database.statement() as connection:
            segments.append(cluster.switch(connection))
        time.sleep(2)
        return has(archiving, segments[min(3, len(segments) - 1)])

    eventually("PostgreSQL takes it for archived", piles_up, 90)
    shutil.rmtree(archiving.kept, ignore_errors=True)
    (archiving.root / "unplugged").rename(archiving.kept)
    time.sleep(1)  # backups are named after whole seconds
    archiving.start("o-later")
    tool(archiving).file_all()
    assert told(archiving, "archive").state is State.OK  # as far as PostgreSQL knows
    found = look(archiving.settings)
    assert found is not None
    assert found.startswith("segment")
    assert told(archiving).state is State.DEGRADED
    assert f"gap in the archive, {found}: one cannot go back across it" in told(archiving).says
    daily = archiving.asking(backup_interval=86400)
    known = Ledger(archiving.settings.backups).known()
    assert backups._is_due(known, daily, datetime.now(UTC))
    assert look(archiving.settings) is None  # it is known
    new = take.take(archiving.settings)
    assert verify(archiving.settings, new.id)[1].problem == ""
    assert told(archiving).state is State.OK
    assert look(archiving.settings) is None


def has(place: ArchivingSite, segment: str) -> bool:
    with place.database.statement() as connection:
        found = cluster.archiver(connection)
    return found is not None and found.has(segment)


# --- who is at work already -------------------------------------------------------------


@contextmanager
def locked(place: ArchivingSite) -> Iterator[None]:
    """A backup of the program is under way, which keeps everything but the server's own WAL waiting."""
    used = tool(place).pgbackrest
    with ExitStack() as stack:
        for what in ("archive", "backup"):
            path = used.configuration.parent / "lock" / f"aegis-{what}.lock"
            file = stack.enter_context(path.open("w"))
            os.chown(path, *(used.owner or (-1, -1)))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_starting_again_while_a_backup_is_taken_is_no_failure(archiving: ArchivingSite) -> None:
    tool(archiving).begin()
    with locked(archiving):
        tool(archiving).begin()


def test_whoever_begins_it_at_the_same_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = threading.Event()

    def noticed(error: BackupFailed) -> bool:
        refused.set()
        return program.is_locked(error)

    monkeypatch.setattr(adapter, "is_locked", noticed)
    with archiving_site() as place, ThreadPoolExecutor(1) as other:
        begin(place)
        with locked(place):
            begun = other.submit(tool(place).begin)
            assert refused.wait(30)
        begun.result(30)
        assert tool(place).identity() is not None


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
    monkeypatch.setattr(program, "_SILENT_FOR", 2)
    with bucket(monkeypatch) as (address, server), archiving_site(backup_bucket=address) as place:
        server.kill()
        server.wait()
        begin(place)
        began = time.monotonic()
        with pytest.raises(BackupFailed, match=r"AEGIS_BACKUP_BUCKET=s3://backups/aegis\S*: .*onnect"):
            take.take(place.settings)
        assert time.monotonic() - began < 60  # each of four files is tried for two seconds
        assert told(place).state is State.DEGRADED
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        with pytest.raises(BackupFailed, match="nobody says who we are to the bucket; set AWS_ACCESS_KEY_ID"):
            take.take(place.settings)


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


def test_beat_takes_one_by_pgbackrest_as_well(archiving: ArchivingSite) -> None:
    environment = {
        **os.environ,
        "AEGIS_HOME": str(archiving.settings.home),
        "AEGIS_DATABASE_URL": archiving.server.url(),
        "AEGIS_BROKER_URL": archiving.settings.broker,
        "AEGIS_BACKUP_REPOSITORY": str(archiving.settings.backups),
        "AEGIS_BACKUP_WITH": "pgbackrest",
        "AEGIS_POSTGRES_BIN": POSTGRES or "",
    }
    scheduled = [sys.executable, "-m", "aegis.recovery.backup.scheduled"]
    assert subprocess.run(scheduled, env=environment, check=False, timeout=120).returncode == 0
    (found,) = catalogue(archiving.settings)
    assert found[1] is not None
    assert found[1].problem == ""
