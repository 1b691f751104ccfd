"""Servers and deployments for all tests: real ones, in processes of this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from deployment import Deployment, deployed
from private_servers import DEPLOYMENT, TEMPLATE, PrivateBroker, PrivatePostgres, folder

from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have what a test printed be text that can be sent from one process of the tests to another."""
    report = yield
    report.sections = [(name, said.encode(errors="backslashreplace").decode()) for name, said in report.sections]
    return report


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command that runs in this process makes the process's logs its own; the next test reads them as well."""
    root, ours = logging.getLogger(), logging.getLogger("aegis")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """A server for everybody; whoever wants to stop one takes ``own_postgres``."""
    with folder("postgres", in_memory=True) as root:
        server = PrivatePostgres(root)
        server.start()
        server.execute(f'CREATE DATABASE "{TEMPLATE}"')
        database = Database(server.url(TEMPLATE).replace("postgresql://", "postgresql+psycopg2://"), pool_size=1)
        upgrade(database, deployment=DEPLOYMENT)
        database.close()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def broker() -> Iterator[PrivateBroker]:
    """A broker for everybody; each deployment has a prefix of its own on it."""
    with folder("broker") as root:
        server = PrivateBroker(root)
        server.start()
        yield server
        server.container.remove()


@pytest.fixture
def database_url(postgres: PrivatePostgres) -> Iterator[str]:
    """A database with AEGIS's schema, for one test."""
    with postgres.database(TEMPLATE) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The same, to be used from the test itself."""
    made = Database(database_url.replace("postgresql://", "postgresql+psycopg2://"))
    yield made
    made.close()


@pytest.fixture
def deploy(tmp_path: Path, database_url: str, broker: PrivateBroker) -> Iterator[Callable[..., Deployment]]:
    """Make a deployment: ``deploy(AEGIS_...="...")``."""
    with ExitStack() as stack:

        def make(**environment: str) -> Deployment:
            return stack.enter_context(deployed(tmp_path, database_url, broker.url, **environment))

        yield make


@pytest.fixture
def deployment(deploy: Callable[..., Deployment]) -> Deployment:
    """A deployment with quick settings and no processes yet."""
    return deploy()
