"""One cluster for all of these tests, with workers, beat and a broker on it; kept whole between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_site import Site
from deployment import Deployment, deployed
from local_engine import AegisWorker
from private_servers import DEPLOYMENT, PrivateBroker, folder

from aegis.config.settings import Settings
from aegis.core.errors import ServerUnavailable
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.recovery.cluster.cluster import Cluster
from aegis.servers.supervisor import Supervisor


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The cluster; skipped with the reason where its programs cannot be had."""
    with folder("cluster") as root:
        try:
            cluster = Cluster.prepare(Settings(home=root))
        except ServerUnavailable as error:
            pytest.skip(str(error))
        made = Site(cluster, Supervisor(lambda name, what: made.told.append((name, what))))
        try:
            cluster.start(made.supervisor)
            database = Database(made.url, pool_size=1)
            upgrade(database, deployment=DEPLOYMENT)
            database.close()
            watch = threading.Thread(target=made.look_after)
            watch.start()
            yield made
            made.stopping = True
            watch.join()
        finally:
            made.supervisor.stop()


@pytest.fixture(scope="session")
def running(site: Site, broker: PrivateBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment on the cluster, with a worker and beat."""
    path: Path = tmp_path_factory.mktemp("running")
    with deployed(path, site.cluster.layout.url(), broker.url) as made:
        made.workers(1, concurrency=2)
        made.beat()
        yield made


@pytest.fixture
def worker(running: Deployment) -> Iterator[AegisWorker]:
    """Its worker, which nothing of all this may end."""
    node = running._nodes[0]
    assert isinstance(node, AegisWorker)
    before = (node.pid, sorted(process.pid for process in node.handlers()))
    yield node
    assert (node.pid, sorted(process.pid for process in node.handlers())) == before


@pytest.fixture
def whole(site: Site) -> Iterator[Site]:
    """The cluster, whole before and after."""
    site.await_whole()
    yield site
    site.await_whole()
