"""The examples of long handlers, retries and many at once, run as their page says."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import CommandLine
from deployment import Deployment

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = (EXAMPLES / "README.md").read_text()

Deploy = Callable[..., Deployment]


@pytest.fixture
def site(deploy: Deploy) -> Callable[..., Deployment]:
    """Make a deployment of one example, with beat and a worker of two."""

    def make(example: str, **environment: str) -> Deployment:
        deployment = deploy(PYTHONPATH=str(EXAMPLES), AEGIS_WORKFLOWS=f"{example}.workflow", **environment)
        deployment.beat()
        deployment.worker(concurrency=2)
        return deployment

    return make


def run(deployment: Deployment, module: str) -> list[str]:
    """Run an example's app to its end; return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, **deployment.environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def promised(call: str) -> list[str]:
    """What the page says that a call prints."""
    after = PAGE.partition(f"$ {call}")[2].partition("\n")[2]
    return after[: min(after.index("$ ") if "$ " in after else len(after), after.index("```"))].splitlines()


def test_a_report_goes_on_from_the_last_page_that_was_saved(site: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = site("report", AEGIS_CHECKPOINT_INTERVAL="5")
    assert run(deployment, "report.app") == promised("python -m report.app")
    (row,) = deployment.engine.list()
    data = CommandLine(deployment.environment, tmp_path)("show", row.id, "--json").document()["data"]
    first, second = data["began_at"]
    assert (first, data["written"]) == (0, 120)
    assert 0 < second < 120
    assert deployment.engine.history(row.id)[-1].attempt == 2


@contextmanager
def receiver() -> Iterator[str]:
    """Somebody else's server; gives its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "webhooks.receiver", "0"],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_webhooks_are_tried_again_by_the_kind_of_error_and_in_bulk(
    site: Callable[..., Deployment], tmp_path: Path
) -> None:
    with receiver() as address:
        deployment = site("webhooks", WEBHOOKS_RECEIVER=address)
        assert run(deployment, "webhooks.app") == promised("python -m webhooks.app")
        urllib.request.urlopen(f"{address}/repair", data=b"", timeout=10).close()  # noqa: S310 - of the test's own
        aegis = CommandLine(deployment.environment, tmp_path)
        given = ("retry", "--all", "--type", "example.Delivery", "--error", "503")
        for extra in (["--dry-run"], ["--reason", "the mailbox is back"]):
            said = aegis(*given, *extra).stdout.splitlines()
            assert said == promised(f"aegis {' '.join(given)} {extra[0]}")
        deployment.await_all("completed", 4)
    (gone,) = [row for row in deployment.engine.list() if row.id.startswith("gone")]
    history = deployment.engine.history(gone.id)
    assert gone.state == "owner told"
    assert [link.event for link in history] == ["created", "deliver", "failed", "retried", "tell_owner"]
    assert history[1].attempt == 1, "never tried again"
    for row in deployment.engine.list():
        assert deployment.engine.verify_integrity(row.id) == (True, None)


def test_each_letter_of_a_campaign_goes_out_once(site: Callable[..., Deployment]) -> None:
    deployment = site("campaign")
    for _ in range(2):  # once the first is over, there may be another of the same name
        assert run(deployment, "campaign.app") == promised("python -m campaign.app")
    assert len(deployment.engine.list(limit=100)) == 2 * 31
