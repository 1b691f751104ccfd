"""pytest-celery's setup for AEGIS: over local processes, or in containers where an engine is found.

``AEGIS_TEST_ENGINE=process`` or ``docker`` decides; without it, whether an engine answers. Only the
fixtures that end in docker differ; nodes, clusters, the setup and the tests are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from deployment import QUICK, Deployment
from local_engine import LocalRedisContainer, docker_is_here
from private_servers import PrivateBroker, folder
from pytest_celery import (
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisContainer,
    RedisTestBroker,
)
from pytest_docker_tools import build, container, fetch, fxtr, volume

from aegis.config.settings import read
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.sync import DurableWorkflowEngine
from aegis.workers.factory import make_app

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "tests" / "support" / "cluster_workflows.py"
ENGINE = os.environ.get("AEGIS_TEST_ENGINE") or ("docker" if docker_is_here() else "process")


@pytest.fixture
def celery_backend_cluster() -> None:
    """AEGIS has no result backend."""


@pytest.fixture
def celery_broker(default_redis_broker: RedisContainer) -> Iterator[RedisTestBroker]:
    """Redis, and not pytest-celery's whole matrix."""
    node = RedisTestBroker(default_redis_broker)
    yield node
    node.teardown()


@pytest.fixture
def celery_setup_app(host_environment: dict[str, str]) -> Celery:
    """AEGIS's own app, as a client has it."""
    return make_app(read(host_environment))


@pytest.fixture
def engine(host_environment: dict[str, str], celery_setup_app: Celery) -> Iterator[DurableWorkflowEngine]:
    """The engine of a client."""
    database = Database(read(host_environment).database)
    yield DurableWorkflowEngine(database, app=celery_setup_app, actor="user:test")
    database.close()


if ENGINE == "process":

    @pytest.fixture
    def default_redis_broker() -> Iterator[RedisContainer]:
        """A Valkey of the test's own."""
        with folder("cluster") as root:
            server = PrivateBroker(root)
            server.start()
            yield LocalRedisContainer(server.container, server.socket)
            server.container.remove()

    @pytest.fixture
    def host_environment(database_url: str, default_redis_broker: LocalRedisContainer) -> dict[str, str]:
        """What a client on this host is told."""
        return {**QUICK, "AEGIS_DATABASE_URL": database_url, "AEGIS_BROKER_URL": default_redis_broker.url}

    @pytest.fixture
    def celery_worker_cluster(tmp_path: Path, host_environment: dict[str, str]) -> Iterator[CeleryWorkerCluster]:
        """Two workers; and a beat beside them."""
        url, broker = host_environment["AEGIS_DATABASE_URL"], host_environment["AEGIS_BROKER_URL"]
        deployment = Deployment(
            tmp_path, url, broker, {"AEGIS_WORKFLOWS": "cluster_workflows", "AEGIS_BROKER_PREFIX": "aegis:"}
        )
        deployment.beat()
        cluster = CeleryWorkerCluster(*deployment.workers(2))
        yield cluster
        deployment.stop()

else:
    aegis_image = build(path=str(ROOT), tag="aegis-workflows:test")
    postgres_image = fetch(repository="postgres:18")
    workflow_volume = volume(initial_content=fxtr("workflow_content"))
    postgres_container = container(
        image="{postgres_image.id}",
        environment={"POSTGRES_USER": "aegis", "POSTGRES_PASSWORD": "aegis", "POSTGRES_DB": "aegis"},
        ports={"5432/tcp": None},
        network="{default_pytest_celery_network.name}",
    )

    def _aegis(*command: str) -> object:
        return container(
            image="{aegis_image.id}",
            command=list(command),
            environment=fxtr("container_environment"),
            network="{default_pytest_celery_network.name}",
            volumes={"{workflow_volume.name}": {"bind": "/app", "mode": "ro"}},
            wrapper_class=CeleryWorkerContainer,
            timeout=60,
        )

    first_worker = _aegis("aegis", "worker", "--hostname=first@%h", "--concurrency=1")
    second_worker = _aegis("aegis", "worker", "--hostname=second@%h", "--concurrency=1")
    beat_container = _aegis("aegis", "beat")

    @pytest.fixture
    def workflow_content() -> dict[str, bytes]:
        """The user's code, as files in the containers."""
        return {WORKFLOWS.name: WORKFLOWS.read_bytes()}

    @pytest.fixture
    def host_environment(postgres_container: object, default_redis_broker: RedisContainer) -> dict[str, str]:
        """What a client on this host is told; the schema is there once this returns."""
        port = postgres_container.ports["5432/tcp"][0]  # type: ignore[attr-defined]
        environment = {
            **QUICK,
            "AEGIS_DATABASE_URL": f"postgresql://aegis:aegis@127.0.0.1:{port}/aegis",
            "AEGIS_BROKER_URL": default_redis_broker.host_url,
        }
        database = Database(read(environment).database, pool_size=1)
        upgrade(database)
        database.close()
        return environment

    @pytest.fixture
    def container_environment(
        host_environment: dict[str, str], postgres_container: object, default_redis_broker: RedisContainer
    ) -> dict[str, str]:
        """What the containers are told: the same servers, by their names in the network."""
        name = postgres_container.attrs["Config"]["Hostname"]  # type: ignore[attr-defined]
        return {
            **host_environment,
            "AEGIS_DATABASE_URL": f"postgresql://aegis:aegis@{name}/aegis",
            "AEGIS_BROKER_URL": default_redis_broker.url,
            "AEGIS_WORKFLOWS": WORKFLOWS.stem,
        }

    @pytest.fixture
    def celery_worker_cluster(
        first_worker: CeleryWorkerContainer,
        second_worker: CeleryWorkerContainer,
        beat_container: CeleryWorkerContainer,
        celery_setup_app: Celery,
    ) -> Iterator[CeleryWorkerCluster]:
        """Two workers; and a beat beside them."""
        del beat_container  # it only has to run
        nodes = (CeleryTestWorker(node, app=celery_setup_app) for node in (first_worker, second_worker))
        cluster = CeleryWorkerCluster(*nodes)
        yield cluster
        cluster.teardown()
