"""``aegis demo``: the main job, on real files, hurt while it works - and a verdict that can be bad."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command_line import CommandLine
from deployment import QUICK, Deployment
from private_servers import folder
from sqlalchemy import text

from aegis.config.settings import Settings
from aegis.demo.chaos import Chaos
from aegis.demo.ledger import Progress
from aegis.demo.run import Plan, run
from aegis.persistence.database import Database

FILES = 60


@pytest.fixture
def root() -> Iterator[Path]:
    with folder("demo") as made:
        yield made


@pytest.fixture
def originals(root: Path) -> Path:
    """Files of many sizes, an empty one and one in a folder of its own among them; and what is not to be archived."""
    drawn = random.Random(7)  # noqa: S311 - the same files each time
    directory = root / "originals"
    (directory / "below").mkdir(parents=True)
    for number in range(FILES):
        place = directory / ("below" if number % 3 else "") / f"file {number} ä.bin"
        place.write_bytes(drawn.randbytes(number * 1500))
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / "skipped.pyc").write_bytes(b"x")
    (directory / "link").symlink_to(directory / "nowhere")
    return directory


@pytest.fixture
def aegis(root: Path) -> CommandLine:
    return CommandLine({**QUICK, "AEGIS_HOME": str(root / "home")}, root)


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.suffix == ".bin")
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def left_over(aegis: CommandLine) -> list[psutil.Process]:
    """The processes of a run that are still there, running or stopped, some seconds after it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("AEGIS_HOME", "").startswith(str(aegis.folder)):
                found.append(process)
    return psutil.wait_procs(found, 10)[1]


def test_files_are_archived_through_kills_and_a_wipe(aegis: CommandLine, root: Path, originals: Path) -> None:
    archive = root / "archive"
    said = aegis("demo", str(originals), "--archive", str(archive), "--json")
    assert said.status == 0, said
    report = json.loads(said.stdout)  # what happened on the way is told on standard error
    assert report["problems"] == []
    assert report["files"] == report["workflows"] == report["chains_verified"] == report["manifest_matches"] == FILES
    assert report["transitions"] == FILES * 5
    assert (report["lost"], report["recorded_twice"]) == (0, 0)
    assert report["wipes"] == 1
    assert report["kills"] >= 1
    assert len(report["recovery_after_kill"]) == report["kills"]
    assert len(report["recovery_after_wipe"]) == 1
    unpacked = {
        str(path.relative_to(archive)).removesuffix(".gz"): hashlib.sha256(
            gzip.decompress(path.read_bytes())
        ).hexdigest()
        for path in archive.rglob("*.gz")
    }
    assert unpacked == digests(originals)
    assert not list(archive.rglob("*.part"))
    assert left_over(aegis) == []


def test_without_chaos_nothing_is_killed_and_people_read_a_table(aegis: CommandLine, originals: Path) -> None:
    said = aegis("demo", str(originals), "--files", "5", "--no-chaos")
    assert said.status == 0, said
    lines = {line[:20].strip(): line[20:].strip() for line in said.stdout.splitlines()}
    assert lines["files"] == f"5 of {originals}"
    assert (lines["workers killed"], lines["broker wiped"], lines["lost"]) == ("0", "0", "0")
    assert "killed with" not in said.stdout
    assert "nothing lost, nothing recorded twice" in said.stdout
    assert left_over(aegis) == []


def test_what_is_off_is_found(root: Path, originals: Path) -> None:
    """A manifest that lies, a history that was edited, and a workflow that did not complete: each is told."""
    settings = Settings(home=root / "home", heartbeat_interval=0.4, heartbeat_timeout=2, sweep_interval=0.3)
    done: list[str] = []

    def tamper(now: Progress, _chaos: Chaos | None) -> None:
        # Behind the demo's back, as soon as there is something to be tampered with.
        if done or now.completed < 3:
            return
        database = Database(Settings(home=root / "home" / "demo").database, pool_size=1)
        with database.transaction() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))  # past the append-only triggers
            statements = (
                (
                    "UPDATE aegis_demo_manifest SET sha256 = repeat('0', 64)"
                    " WHERE path = (SELECT min(path) FROM aegis_demo_manifest)"
                ),
                (
                    "UPDATE aegis_transition SET actor = 'user:mallory' WHERE seq = 1"
                    " AND workflow_id = (SELECT min(id) FROM aegis_workflow WHERE status = 'completed')"
                ),
                (
                    "UPDATE aegis_workflow SET status = 'failed', owner = NULL, owner_pid = NULL, due_at = NULL,"
                    " ready_at = NULL, claim = claim + 1 WHERE id = (SELECT max(id) FROM aegis_workflow WHERE seq < 4)"
                ),
            )
            done.extend(str(session.execute(text(each)).rowcount) for each in statements)  # type: ignore[attr-defined]
        database.close()

    plan = Plan(directory=originals, most_files=FILES, archive=None, chaos=False, patience=60)
    report = run(plan, settings, lambda _: None, tamper)
    assert done == ["1", "1", "1"]
    assert report.lost == 1
    assert report.chains_verified == FILES - 2  # the edited one, and the one whose row was set to failed by hand
    assert report.manifest_matches == FILES - 2  # the lie, and the file that was never entered
    told = "\n".join(report.problems)
    assert "transition 1: HASH_MISMATCH: expected actor" in told
    assert "1 workflows did not complete" in told
    assert f"the manifest holds {FILES - 1} files, {FILES - 2} of {FILES} as sha256sum says" in told


@pytest.mark.parametrize("place", ["empty", "nowhere"])
def test_a_directory_without_files_is_refused(aegis: CommandLine, root: Path, place: str) -> None:
    (root / "empty").mkdir()
    assert place in aegis("demo", str(root / place)).complaint()
    assert not (root / "home").exists()


def test_servers_on_which_somebody_works_are_left_alone(deploy: Callable[..., Deployment], originals: Path) -> None:
    deployment = deploy()
    deployment.worker()
    said = CommandLine(deployment.environment, deployment.folder)("demo", str(originals), "--files", "2")
    assert said.status == 2, said
    assert "1 workers live on this database, and the demo kills and wipes" in said.stderr
    assert deployment.engine.list() == []
