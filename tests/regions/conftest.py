"""Three regions for all of these tests, with a worker and beat in each; whole before and after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import QUICK, SUPPORT
from private_servers import DEPLOYMENT, folder
from regional import Site

from aegis.config.settings import Settings
from aegis.core.errors import ServerUnavailable
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.recovery.regions.namespace import why_not
from aegis.recovery.regions.regions import NAMES, running

# One way, seconds: three regions of one continent.
DELAY, JITTER = 0.005, 0.001


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The regions; skipped with the reason where there can be none."""
    if why_not():
        pytest.skip(why_not())
    with folder("regions") as root:
        told = {
            **QUICK,
            "AEGIS_HOME": str(root),
            "AEGIS_WORKFLOWS": "fault_workflows",
            "AEGIS_ANCHORS": "none",
            "AEGIS_TEST_LEDGER": str(root / "ledger.jsonl"),
            "PYTHONPATH": str(SUPPORT),
        }
        try:
            up = running(Settings(home=root, anchors=("none",)))
            regions, supervisor = up.__enter__()
        except ServerUnavailable as error:
            pytest.skip(str(error))
        try:
            regions.network.delay(DELAY, JITTER)
            database = Database(regions.url, pool_size=2)
            upgrade(database, deployment=DEPLOYMENT)
            for name in NAMES:
                for service in (*regions.workers(name, 1, 2, told), regions.beat(name, told)):
                    supervisor.start(service)
            yield Site(regions, supervisor, database, Path(root))
            database.close()
        finally:
            up.__exit__(None, None, None)


@pytest.fixture
def whole(site: Site) -> Iterator[Site]:
    """The regions, whole before and after."""
    site.await_whole()
    yield site
    site.heal()
    site.await_whole()
