"""The scenarios of disaster recovery, each in two lives of an application, on SQLite and on PostgreSQL.

The first life is ended by SIGKILL, with all that ran the workflows: on PostgreSQL workers and beat, on SQLite the
application itself, which runs them there. The second is a new process that knows nothing but the database. Both
use what an application has: the engine that is awaited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from deployment import SUPPORT, Deployment, deployed
from private_servers import TEMPLATE, PrivatePostgres

QUEUED = ("queued", "queued-1", "queued-2", "queued-3")
WRITTEN = [f"A, chapter {number}" for number in range(4)]


class Life:
    """A process of the application, from its first line to its end."""

    def __init__(self, environment: dict[str, str], folder: Path, story: str, argument: str) -> None:
        log = folder / f"{story}.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(SUPPORT / "dr_process.py"), story],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env={**os.environ, **environment},
                cwd=folder,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(argument + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self.end()
            pytest.fail(f"{story} came to nothing:\n{log.read_text()[-4000:]}")
        self.seen: dict[str, Any] = json.loads(line)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        """Let it end by itself."""
        self._process.communicate(timeout=30)


class Site:
    """A database, and whatever runs the workflows in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.environment = {"AEGIS_TEST_GATE": str(self.gate), "PYTHONPATH": str(SUPPORT)}
        self.runs_with_the_application = True

    def run(self) -> None:
        """Have the workflows run."""

    def crash(self, life: Life) -> None:
        """End the application, and whatever ran its workflows."""
        life.kill()

    def first(self, story: str, argument: str = "") -> dict[str, Any]:
        """Live the first life, up to its violent end; return what was seen in it."""
        life = Life(self.environment, self.folder, story, argument)
        self.crash(life)
        return life.seen

    def second(self, story: str, argument: str = "") -> dict[str, Any]:
        """Live another, with everything started anew; return what was seen in it."""
        self.run()
        life = Life(self.environment, self.folder, story, argument)
        life.end()
        return life.seen


class OnSQLite(Site):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment |= {
            "AEGIS_TEST_SQLITE": f"sqlite:///{folder / 'aegis.db'}",
            "AEGIS_HOME": str(folder / "home"),
            "AEGIS_RING_GRACE": "1",
        }


class OnPostgreSQL(Site):
    def __init__(self, folder: Path, deployment: Deployment) -> None:
        super().__init__(folder)
        self.deployment = deployment
        deployment.environment |= self.environment | {"AEGIS_WORKFLOWS": "dr_workflows"}
        self.environment = deployment.environment
        self.runs_with_the_application = False

    def run(self) -> None:
        self.deployment.beat()
        self.deployment.worker(concurrency=2)

    def crash(self, life: Life) -> None:
        self.deployment.kill()
        life.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def new_site(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: PrivatePostgres
) -> Iterator[Callable[[str], Site]]:
    """Make a site with a database of its own."""
    with ExitStack() as stack:

        def make(name: str) -> Site:
            folder = tmp_path / name
            folder.mkdir()
            if request.param == "sqlite":
                return OnSQLite(folder)
            url = stack.enter_context(postgres.database(TEMPLATE))
            broker = request.getfixturevalue("broker")
            return OnPostgreSQL(folder, stack.enter_context(deployed(folder, url, broker.url)))

        yield make


@pytest.fixture
def site(new_site: Callable[[str], Site]) -> Site:
    """One site."""
    return new_site("site")


def is_a_chain(history: list[list[Any]]) -> bool:
    """Whether each link is there once, and names the one before it."""
    linked = all(link[5] == before[4] for before, link in pairwise(history))
    return linked and [link[0] for link in history] == list(range(len(history)))


# --- the nine scenarios -------------------------------------------------------------------------


def test_checkpoint_resume(site: Site) -> None:
    """Create, checkpoint, discard, resume: the state is the one that was saved."""
    site.run()
    before = site.first("wait_for_approval")
    assert before["checkpoint"][:2] == [2, 1]
    after = site.second("approve", "a")
    assert after["found"] == {name: before[name] for name in after["found"]}
    assert after["found"]["data"]["chapters"] == WRITTEN
    assert after["at the end"]["status"] == "completed"
    assert after["at the end"]["data"]["approved_by"] == "ada"


def test_checkpoint_resume_inside_a_handler(site: Site) -> None:
    """A handler goes on from what it saved, not from its beginning."""
    site.run()
    before = site.first("stop_in_a_handler", "write")
    assert before["data"]["chapters"] == WRITTEN[:2]
    site.gate.touch()
    after = site.second("approve", "a")
    assert after["found"]["data"]["chapters"][:2] == WRITTEN[:2]
    data = after["at the end"]["data"]
    assert (data["chapters"], data["began_with"]) == (WRITTEN, [0, 2])
    assert after["at the end"]["valid"] == [True, None]


def test_post_transition_resume(site: Site) -> None:
    """What was committed stays; what was under way is done again from there."""
    site.run()
    before = site.first("stop_in_a_handler", "check")
    assert (before["state"], before["seq"]) == ("written", 1)
    site.gate.touch()
    after = site.second("approve", "a")
    assert after["found"]["history"][:2] == before["history"]
    events = [link[1] for link in after["at the end"]["history"]]
    assert events == ["created", "write", "check", "approve", "publish"]


def test_hash_chain_valid_after_several_transitions(site: Site) -> None:
    site.run()
    before = site.first("complete")
    after = site.second("look", "a")
    assert after == before
    assert after["valid"] == [True, None]
    assert len(after["history"]) == 5
    assert is_a_chain(after["history"])


@pytest.mark.parametrize("count", [5, 100])
def test_batch_recovery(site: Site, count: int) -> None:
    """Many that nobody works on are all resumed, each exactly once."""
    before = site.first("start_many", str(count))
    assert len(before["ids"]) == count
    after = site.second("resume_all", str(count))
    # On PostgreSQL two workers, on SQLite the application itself may be at work on some already.
    assert count - 2 <= len(after["resumed"]) <= count
    assert set(after["resumed"]) <= set(before["ids"])
    assert set(after["workflows"]) == set(before["ids"])
    for found in after["workflows"].values():
        assert found["valid"] == [True, None]
        assert [link[1] for link in found["history"]] == ["created", "write", "check"]
        assert len(found["data"]["chapters"]) == 4


def test_completed_workflows_are_not_pending(site: Site) -> None:
    site.run()
    before = site.first("all_kinds")
    assert before["done"] == ["published", "completed"]
    after = site.second("go_on")
    pending = {name for name, (_, status) in before.items() if status == "pending"}
    assert pending == {"working", *QUEUED}
    # Each that is pending is resumed, but for those that somebody had in hand; and no other is.
    assert set(after["resumed"]) | set(after["held"]) == pending
    assert 1 <= len(after["resumed"]) == len(set(after["resumed"]))
    assert after["workflows"]["done"]["seq"] == 4
    assert after["found"]["done"] == before["done"]


def test_mixed_states_all_resume_correctly(site: Site) -> None:
    site.run()
    before = site.first("all_kinds")
    assert before == {
        "waiting": ["checked", "waiting"],
        "expiring": ["open", "waiting"],
        "paused": ["checked", "paused"],
        "cancelled": ["checked", "cancelled"],
        "done": ["published", "completed"],
        "failed": ["written", "failed"],
        "working": ["draft", "pending"],
    } | {name: ["draft", "pending"] for name in QUEUED}
    after = site.second("go_on")
    ends = {name: (found["state"], found["status"]) for name, found in after["workflows"].items()}
    published = dict.fromkeys(("waiting", "paused", "done", "failed", "working", *QUEUED), ("published", "completed"))
    assert ends == published | {"expiring": ("over", "completed"), "cancelled": ("checked", "cancelled")}
    for found in after["workflows"].values():
        assert found["valid"] == [True, None]
        assert is_a_chain(found["history"])


def test_time_travel_to_a_historical_checkpoint(site: Site) -> None:
    site.run()
    before = site.first("complete")
    after = site.second("travel", "a")
    assert [data["state"] for data in after["by seq"]] == ["draft", "written", "checked", "approved", "published"]
    assert [len(data["chapters"]) for data in after["by seq"]] == [0, 4, 4, 4, 4]
    assert [data["approved_by"] for data in after["by seq"]] == ["", "", "", "ada", "ada"]
    assert after["by time"] == after["by seq"]
    assert after["by seq"][-1] == before["data"]


def test_export_and_import_round_trip(new_site: Callable[[str], Site]) -> None:
    """What one deployment gives away as a document goes on in another, with its history."""
    here, there = new_site("here"), new_site("there")
    here.run()
    here.first("wait_for_approval")
    given = here.second("export", "a")
    taken = there.second("take_over", json.dumps(given["bundle"]))
    assert taken["same"] == given["seen"]["data"]
    assert taken["taken"]["history"][: given["seen"]["seq"] + 1] == given["seen"]["history"]
    assert taken["taken"]["history"][-1][1] == "imported"
    assert taken["at the end"]["status"] == "completed"
    assert taken["at the end"]["valid"] == [True, None]


def test_audit_trail_with_every_transition_and_its_hash(site: Site) -> None:
    site.run()
    site.first("complete")
    after = site.second("look", "a")
    steps = [tuple(link[1:4]) for link in after["history"]]
    assert steps == [
        ("created", None, "draft"),
        ("write", "draft", "written"),
        ("check", "written", "checked"),
        ("approve", "checked", "approved"),
        ("publish", "approved", "published"),
    ]
    hashes = [link[4] for link in after["history"]]
    assert all(len(bytes.fromhex(digest)) == 32 for digest in hashes)
    assert len(set(hashes)) == 5
    assert is_a_chain(after["history"])
    assert after["actors"][0].startswith("user:")
    assert all(actor.startswith("worker:") for actor in after["actors"][1:])
