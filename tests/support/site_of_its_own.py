"""A deployment that is backed up and put back: a server of its own, keys, anchors, and a repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from local_engine import eventually
from private_servers import DEPLOYMENT, PrivatePostgres, folder
from store_workbench import RecordingRing, make_bench, make_engine
from store_workflows import Once, Parcel

from aegis.config.keys import new_anchor_key
from aegis.config.settings import Settings
from aegis.persistence import cluster
from aegis.persistence.auditor import Sources
from aegis.persistence.cluster import Archive
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.recovery.backup.source import repository
from aegis.recovery.copy import copied
from aegis.recovery.restore.restore import Restored
from aegis.tasks.anchor import Anchored, Policy, anchor, notary
from aegis.tasks.scrub import sources
from aegis.tasks.sinks import sinks
from aegis.tasks.transition import run_transition

NO_BARMAN = not (Path(sys.executable).parent / "barman").exists() and shutil.which("barman") is None
needs_barman = pytest.mark.skipif(NO_BARMAN, reason="Barman is not installed: pip install 'aegis-workflows[backup]'")


class Site:
    """What a test works with."""

    def __init__(self, root: Path, **server: Any) -> None:
        self.root = root
        self.server = PrivatePostgres(root / "server", **server)
        self.server.start()
        self.settings = self.reading(self.server)
        self.database = opened(self.settings.database)
        upgrade(self.database, deployment=DEPLOYMENT)
        new_anchor_key(self.settings.key_folder, "tester")
        self.ring = RecordingRing()
        self.engine = make_engine(self.database, self.ring)
        self.bench = make_bench(self.database, self.ring)

    def reading(self, server: PrivatePostgres, **changes: Any) -> Settings:
        """The settings of this deployment, on a server."""
        return Settings(
            home=self.root / "home",
            database_url=server.url(),
            broker_url="redis://127.0.0.1:1/0",
            backup_repository=self.root / "repository",
            health_timeout=10,  # what health says is looked at here, not how soon
            **changes,
        )

    def asking(self, **changes: Any) -> Settings:
        """The settings of this deployment, with something else in them."""
        return self.settings.model_copy(update=changes)

    def start(self, *ids: str) -> None:
        """Start workflows, each with one transition to run."""
        for workflow_id in ids:
            self.engine.start(Once(), id=workflow_id)

    def park(self, *ids: str) -> None:
        """Start workflows that wait for an event."""
        for workflow_id in ids:
            self.engine.start(Parcel(), id=workflow_id)

    def run(self, *ids: str) -> None:
        """Run the transition of workflows."""
        for workflow_id in ids:
            run_transition(self.bench, workflow_id, 0)

    def anchor(self) -> Anchored:
        """Anchor all that is committed."""
        policy = Policy(interval=timedelta(minutes=1), every=1000)
        return anchor(self.database, sinks(self.settings), notary(self.settings), policy, now=True)

    def sources(self) -> Sources:
        """What an auditor is told of this deployment."""
        return sources(self.settings)

    def archive(self) -> Archive:
        """How far the archive is; far behind, if the server has none."""
        with self.database.statement() as connection:
            return cluster.archive(connection) or Archive(active=False, lost=False, behind=2**40)

    def close(self) -> None:
        """End its server."""
        self.database.close()
        self.server.kill()


def opened(url: str) -> Database:
    """A database by its address, with the driver named or not."""
    return Database(url.replace("postgresql://", "postgresql+psycopg2://"), pool_size=2)


@contextmanager
def site() -> Iterator[Site]:
    """A site, and the end of it."""
    with folder("site") as root:
        made = Site(root)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def archiving(place: Site) -> Iterator[subprocess.Popen[bytes]]:
    """`aegis backup archive` beside a site, until the end."""
    environment = {
        **os.environ,
        "AEGIS_HOME": str(place.settings.home),
        "AEGIS_DATABASE_URL": place.server.url(),
        "AEGIS_BROKER_URL": place.settings.broker,
        "AEGIS_BACKUP_REPOSITORY": str(place.settings.backups),
    }
    argv = [sys.executable, "-m", "aegis.recovery.backup.archive"]
    running = subprocess.Popen(argv, env=environment, start_new_session=True)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        running.wait(30)


@contextmanager
def given(place: Site, done: Restored) -> Iterator[Database]:
    """A database on what was restored."""
    assert done.into is not None
    with copied(done.into, repository(place.settings).programs, place.root / "given.log") as copy:
        copy.start(user="aegis", durable=True)
        database = opened(copy.url("aegis", "postgres"))
        try:
            yield database
        finally:
            database.close()


def ids(database: Database) -> list[str]:
    """Which workflows there are."""
    with database.statement() as connection:
        found = connection.exec_driver_sql("SELECT id FROM aegis_workflow WHERE id <> 'aegis:system' ORDER BY id")
        return [row[0] for row in found]


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `aegis` on a home of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from aegis.cli.main import main; main()", *arguments],
        env={**os.environ, "AEGIS_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@contextmanager
def up(home: Path, **environment: str) -> Iterator[None]:
    """`aegis up` without workers, on a home of its own, until the end."""
    argv = [sys.executable, "-c", "from aegis.cli.main import main; main(['up', '--no-flower', '--workers', '0'])"]
    process = subprocess.Popen(argv, env={**os.environ, "AEGIS_HOME": str(home), **environment}, start_new_session=True)
    try:
        eventually("it is up", lambda: run(home, "db", "check").returncode == 0, 60)
        yield
    finally:
        process.terminate()
        process.wait(60)
