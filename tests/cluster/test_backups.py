"""Backups of a cluster: the archive goes on with whoever leads, and has everything that was acknowledged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster_site import Site
from deployment import Deployment
from fault_workflows import Steps
from local_engine import eventually
from private_servers import folder
from site_of_its_own import ids, needs_barman, opened

from aegis.config.settings import Settings
from aegis.core.errors import BackupFailed, DatabaseUnavailable
from aegis.persistence import cluster
from aegis.persistence.cluster import Archive
from aegis.persistence.database import Database
from aegis.recovery.backup import take
from aegis.recovery.backup.ledger import Ledger
from aegis.recovery.backup.source import repository
from aegis.recovery.cluster import patroni
from aegis.recovery.copy import copied
from aegis.recovery.restore.restore import restore
from aegis.tasks.check import Check, State
from aegis.tasks.health import health

pytestmark = needs_barman


class Backups:
    """The cluster's backups, in a repository of their own."""

    def __init__(self, root: Path, running: Deployment) -> None:
        self.root, self.running = root, running
        self.settings = Settings(
            home=root / "home",
            database_url=running.settings.database_url,
            broker_url=running.settings.broker_url,
            backup_repository=root / "repository",
            health_timeout=10,
            postgres_bin=running.settings.postgres_bin,
        )
        self._started: list[str] = []

    def start(self, *names: str) -> None:
        """Start workflows, insistently: whoever leads may be about to change."""
        for name in names:
            deadline = time.monotonic() + 60
            while True:
                try:
                    self.running.engine.start(Steps(), id=name)
                    break
                except DatabaseUnavailable:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
            self._started.append(name)

    def told(self, name: str, **changes: object) -> Check | None:
        """What health says of a part; None if it says nothing."""
        found = health(self.settings.model_copy(update=changes))
        return next((check for check in found if check.name == name), None)

    def archive(self) -> Archive | None:
        database = Database(self.settings.database, pool_size=1)
        try:
            with database.statement() as connection:
                return cluster.archive(connection)
        except DatabaseUnavailable:
            return None
        finally:
            database.close()

    def streams(self) -> bool:
        found = self.archive()
        return found is not None and found.active

    @contextmanager
    def archiving(self) -> Iterator[None]:
        """`aegis backup archive`, until the end."""
        environment = {
            **os.environ,
            "AEGIS_HOME": str(self.settings.home),
            "AEGIS_DATABASE_URL": self.settings.database_url,
            "AEGIS_BROKER_URL": self.settings.broker_url,
            "AEGIS_BACKUP_REPOSITORY": str(self.settings.backups),
            "AEGIS_POSTGRES_BIN": self.settings.postgres_bin or "",
        }
        argv = [sys.executable, "-m", "aegis.recovery.backup.archive"]
        process = subprocess.Popen(argv, env=environment, start_new_session=True)
        try:
            eventually("the archive streams", self.streams, 60)
            yield
        finally:
            process.terminate()
            process.wait(30)

    def lacks(self) -> set[str]:
        """Which of the workflows that were accepted are missing after `restore --to latest`."""
        into = self.root / f"copy-{datetime.now(UTC):%H%M%S%f}"
        restore(self.settings, "latest", into)
        with copied(into, repository(self.settings).programs, self.root / "given.log") as copy:
            copy.start(user="aegis", durable=False)
            database = opened(copy.url("aegis", "postgres"))
            try:
                return set(self._started) - set(ids(database))
            finally:
                database.close()

    def known_gap(self) -> object:
        return Ledger(self.settings.backups).known().gap


@pytest.fixture
def backups(whole: Site, running: Deployment) -> Iterator[Backups]:
    with folder("cluster-backups") as root:
        yield Backups(root, running)


def slots(site: Site) -> dict[str, bool]:
    """Which nodes have the archive's slot, and whether it keeps WAL there."""
    found = {}
    for node in site.cluster.layout.nodes:
        database = Database(site.url_of([node]), pool_size=1)
        with database.statement() as connection:
            query = "SELECT slot_name FROM pg_replication_slots WHERE restart_lsn IS NOT NULL"
            found[node.name] = cluster.SLOT in connection.exec_driver_sql(query).scalars()
        database.close()
    return found


def test_every_node_has_the_archives_slot_and_that_is_no_archive(whole: Site, backups: Backups) -> None:
    eventually("every node has it", lambda: all(slots(whole).values()), 30)
    assert backups.told("archive") is None  # nobody has asked for one
    said = backups.told("archive", backup_interval=3600.0)
    assert said is not None
    assert said.says.startswith("nothing archives the WAL now")


def test_the_archive_goes_on_after_a_fail_over_and_a_switch_over(whole: Site, backups: Backups) -> None:
    with backups.archiving():
        backups.start("b-1", "b-2")
        base = take.take(backups.settings)
        assert take.verify(backups.settings, base.id)[1].problem == ""
        backups.start("b-3", "b-4")
        before = whole.leader()
        whole.postmaster(before).kill()
        whole.await_another_leader(before)
        backups.start("b-5", "b-6")
        eventually("the archive streams from the next leader", backups.streams, 60)
        assert backups.lacks() == set()
        whole.await_whole()
        before = whole.leader()
        patroni.switch_over(whole.cluster.layout)
        whole.await_another_leader(before)
        backups.start("b-7", "b-8")
        eventually("the archive streams from the one after that", backups.streams, 60)
        assert backups.lacks() == set()
    assert backups.known_gap() is None
    # From the backup that was taken before all of that, through three timelines.
    assert take.verify(backups.settings, base.id)[1].problem == ""


def write_much(site: Site) -> None:
    """Write more than the server keeps for nobody in particular: wal_keep_size is 256 MB, which are 16 segments."""
    database = Database(site.url, pool_size=1)
    message = "SELECT pg_logical_emit_message(false, 'test', 'x')"
    for command in [*(message, "SELECT pg_switch_wal()") * 20, "CHECKPOINT", "CHECKPOINT"]:
        with database.statement() as connection:
            connection.exec_driver_sql(command)
    database.close()


def test_an_archive_that_is_away_finds_its_slot_where_it_was(whole: Site, backups: Backups) -> None:
    with backups.archiving():
        backups.start("a-1")
        base = take.take(backups.settings)
    kept = backups.archive()
    assert kept is not None
    backups.start("a-2")
    time.sleep(8)  # four rounds of Patroni, which drops what it does not know
    found = backups.archive()
    assert found is not None
    assert found.kept_from == kept.kept_from
    before = whole.leader()
    patroni.switch_over(whole.cluster.layout)  # also while nobody receives
    whole.await_another_leader(before)
    backups.start("a-3")
    write_much(whole)  # what nobody keeps is gone then
    with backups.archiving():
        assert backups.lacks() == set()
    assert backups.known_gap() is None
    assert take.verify(backups.settings, base.id)[1].problem == ""


def test_commits_of_a_cluster_are_not_to_wait_for_the_archive(whole: Site, backups: Backups) -> None:
    said = backups.told("archive", backup_synchronous=True)
    assert said is not None
    assert said.state is State.DEGRADED
    assert "is for a single server, and this is a cluster" in said.says
    assert "ALTER SYSTEM" not in said.remedy


def test_a_repository_whose_disk_is_away_is_not_begun_anew_though_the_slot_is_the_clusters(
    whole: Site, backups: Backups
) -> None:
    take.take(backups.settings)
    backups.settings.backups.rename(backups.root / "unplugged")
    backups.settings.backups.mkdir()
    with pytest.raises(BackupFailed, match=r"it is empty, and .* has been backed up to it"):
        take.take(backups.settings)
