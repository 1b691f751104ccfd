"""A copy of production that nobody is to write to, as docs/how-to/lost-everything.md has it started."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from command_line import CommandLine
from deployment import Deployment, deployed
from fault_workflows import Steps
from private_servers import TEMPLATE, PrivatePostgres

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def copy(postgres: PrivatePostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with one workflow that is due, without a broker; its database refuses to be written to."""
    with (
        postgres.database(TEMPLATE) as url,
        deployed(tmp_path_factory.mktemp("copy"), url, NOWHERE, AEGIS_ANCHORS="none") as made,
    ):
        made.engine.start(Steps(), id="due")
        name = urlsplit(url).path.lstrip("/")
        postgres.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        yield made


def test_it_is_looked_at_and_nothing_can_be_done_with_it(copy: Deployment) -> None:
    aegis = CommandLine(copy.environment, copy.folder)
    assert [one["id"] for one in aegis("list", "--json").document()] == ["due"]
    assert aegis("show", "due", "--json").document()["workflow"]["id"] == "due"
    assert aegis("history", "due").status == 0
    verified = aegis("verify", "--all")
    assert (verified.status, "1 history, 1 transition: as committed" in verified.stdout) == (0, True), verified
    for refused in (("cancel", "due"), ("pause", "due"), ("start", "Steps", "--id", "another")):
        said = aegis(*refused)
        assert said.status == 2, said
        assert "read-only" in said.stderr, said
    assert [one["status"] for one in aegis("list", "--json").document()] == ["pending"]
