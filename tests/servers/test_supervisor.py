"""The supervisor: what it starts it sees to its end, whoever ends first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from local_engine import eventually

from aegis.core.errors import ServerUnavailable
from aegis.servers.supervisor import Service, Supervisor, last_line

# Notes in a file when it starts and when it is told to stop; {how} is what it does then.
SCRIPT = """
import os, signal, subprocess, sys, time
journal, name, how = sys.argv[1:]
def note(what):
    with open(journal, "a") as f: f.write(f"{name} {what} {os.getpid()}\\n")
def stop(number, frame):
    note("told")
    if how != "deaf": note("ends"); sys.exit(0)
for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, stop)
if how == "family": subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
note("starts")
while True: time.sleep(0.05)
"""


class Stage:
    """A supervisor, its services, and what they noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[str, str]] = []
        self.supervisor = Supervisor(lambda name, what: self.told.append((name, what)))

    @property
    def journal(self) -> list[list[str]]:
        path = self.folder / "journal"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def count(self, name: str, what: str) -> int:
        return sum(line[:2] == [name, what] for line in self.journal)

    def service(self, name: str, *, how: str = "fine", stage: int = 1, grace: float = 10.0) -> Service:
        argv = [sys.executable, "-c", SCRIPT, str(self.folder / "journal"), name, how]
        return Service(
            name=name,
            argv=lambda: argv,
            log=self.folder / f"{name}.log",
            stage=stage,
            grace=grace,
            ready=lambda: self.count(name, "starts") > 0,
        )

    def failing(self, name: str, says: str) -> Service:
        argv = [sys.executable, "-c", f"import sys; sys.exit({says!r})"]
        return Service(name=name, argv=lambda: argv, log=self.folder / f"{name}.log")

    def looked(self, holds: Callable[[], bool]) -> bool:
        self.supervisor.look()
        return holds()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.supervisor.hurry()
    made.supervisor.stop()


def test_the_last_stage_is_stopped_first_and_each_before_the_next(stage: Stage) -> None:
    for name, number in (("database", 0), ("broker", 0), ("worker", 2), ("beat", 1)):
        stage.supervisor.start(stage.service(name, stage=number))
    assert stage.supervisor.names() == ["database", "broker", "worker", "beat"]
    stage.supervisor.stop()
    ends = [line[0] for line in stage.journal if line[1] == "ends"]
    assert ends[:2] == ["worker", "beat"]
    assert set(ends[2:]) == {"database", "broker"}
    assert stage.told == []


def test_who_is_deaf_is_killed_after_its_grace(stage: Stage) -> None:
    stage.supervisor.start(stage.service("deaf", how="deaf", grace=0.3))
    pid = stage.supervisor.pid("deaf")
    stage.supervisor.stop()
    assert stage.count("deaf", "told") == 1
    assert not psutil.pid_exists(pid)
    assert stage.told == [("deaf", "had not stopped after 0 s; killed")]


def test_in_a_hurry_no_grace_is_given(stage: Stage) -> None:
    stage.supervisor.start(stage.service("deaf", how="deaf", grace=600))
    stage.supervisor.hurry()
    began = time.monotonic()
    stage.supervisor.stop()
    assert time.monotonic() - began < 60, "it waited for the grace period"


def test_what_ends_is_started_again_and_its_children_go_with_it(stage: Stage) -> None:
    stage.supervisor.start(stage.service("parent", how="family"))
    first = stage.supervisor.pid("parent")
    children = psutil.Process(first).children()
    assert children
    assert stage.supervisor.starts("parent") == 1
    os.kill(first, signal.SIGKILL)
    eventually("it is back", lambda: stage.looked(lambda: stage.count("parent", "starts") == 2))
    assert stage.supervisor.starts("parent") == 2
    assert stage.supervisor.pid("parent") != first
    assert stage.told == [("parent", "was ended by SIGKILL; starting it again")]
    _, left = psutil.wait_procs(children, 10)
    assert not left


def test_a_kill_on_purpose_is_no_failure_however_often(stage: Stage) -> None:
    stage.supervisor.start(stage.service("worker"))
    for number in range(1, 8):
        stage.supervisor.kill("worker")
        eventually("it is back", lambda n=number: stage.looked(lambda: stage.count("worker", "starts") == n + 1))


def test_what_never_comes_up_is_given_up_with_its_own_last_word(stage: Stage) -> None:
    stage.supervisor.start(stage.failing("broken", "no such thing as a free port"))
    with pytest.raises(ServerUnavailable) as refused:
        eventually("it is given up", lambda: stage.looked(lambda: False), 60)
    assert str(refused.value).startswith("broken: it ended 5 times: no such thing as a free port; see ")


def test_what_is_not_ready_when_it_starts_says_why(stage: Stage) -> None:
    broken = stage.failing("broken", "no room")
    with pytest.raises(ServerUnavailable, match="broken: it ended: no room; see "):
        stage.supervisor.start(Service(name="broken", argv=broken.argv, log=broken.log, ready=lambda: False))
    never = stage.service("never")
    with pytest.raises(ServerUnavailable, match=r"never: it was not ready after 0.5 s: .*; see "):
        stage.supervisor.start(
            Service(name="never", argv=never.argv, log=never.log, ready=lambda: False, ready_within=0.5)
        )


def test_nothing_is_started_again_once_it_stops(stage: Stage) -> None:
    stage.supervisor.start(stage.service("worker"))
    stage.supervisor.stop()
    stage.supervisor.look()
    assert stage.count("worker", "starts") == 1


SUPERVISED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_supervisor import Stage
stage = Stage(Path(sys.argv[2]))
for name, number in (("database", 0), ("deaf", 1), ("worker", 2)):
    stage.supervisor.start(stage.service(name, how="deaf" if name == "deaf" else "family", stage=number, grace=0.5))
print("up", flush=True)
time.sleep(600)
"""


def test_the_watchdog_does_the_same_where_the_supervisor_was_killed(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "support")])
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(here), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 6  # three services, two children, the watchdog
    process.kill()
    process.wait(10)
    process.stdout.close()
    _, left = psutil.wait_procs(family, 20)
    assert not left
    told = [
        line[0]
        for line in (line.split() for line in (tmp_path / "journal").read_text().splitlines())
        if line[1] == "told"
    ]
    assert told == ["worker", "deaf", "database"]


@pytest.mark.parametrize(
    ("content", "last"),
    [(None, "it left no log"), ("", "it said nothing"), ("one\n  two \n\n", "two")],
)
def test_the_last_line_of_a_log(tmp_path: Path, content: str | None, last: str) -> None:
    log = tmp_path / "log"
    if content is not None:
        log.write_text(content)
    assert last_line(log) == last
