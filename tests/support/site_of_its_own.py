"""A deployment that is backed up and put back: a server of its own, keys, anchors, and a repository."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
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
from aegis.tasks.anchor import Anchored, Policy, anchor, notary
from aegis.tasks.scrub import sources
from aegis.tasks.sinks import sinks
from aegis.tasks.transition import run_transition

NO_BARMAN = not (Path(sys.executable).parent / "barman").exists() and shutil.which("barman") is None
needs_barman = pytest.mark.skipif(NO_BARMAN, reason="Barman is not installed: pip install 'aegis-workflows[backup]'")


class Site:
    """What a test works with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = PrivatePostgres(root / "server")
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
