"""Deployments for the tests of the command line: with a worker and beat, or with nobody at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine
from deployment import SUPPORT, Deployment, deployed
from private_servers import TEMPLATE, PrivateBroker, PrivatePostgres

# The workflows of these tests, beside those of the faults.
HERE: dict[str, str] = {
    "PYTHONPATH": f"{SUPPORT}:{Path(__file__).parent}",
    "AEGIS_WORKFLOWS": "fault_workflows,command_workflows",
}


@pytest.fixture(scope="module")
def idle(
    tmp_path_factory: pytest.TempPathFactory, postgres: PrivatePostgres, broker: PrivateBroker
) -> Iterator[Deployment]:
    """A deployment for a whole file of tests, in which nothing runs."""
    with (
        postgres.database(TEMPLATE) as url,
        deployed(tmp_path_factory.mktemp("commands"), url, broker.url, **HERE) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def living(idle: Deployment) -> Deployment:
    """The same with a worker and beat."""
    idle.beat()
    idle.worker(concurrency=2)
    return idle


@pytest.fixture
def aegis(living: Deployment) -> CommandLine:
    """The command line, on a deployment that works."""
    return CommandLine(living.environment, living.folder)
