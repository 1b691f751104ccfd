"""Servers that a service starts outside of its own group, as Patroni does with PostgreSQL: they end with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from local_engine import eventually

from aegis.servers import watchdog
from aegis.servers.supervisor import Service, Supervisor

# An agent that runs a server in a session of its own, writes its pid file as PostgreSQL does, and cares for nothing.
AGENT = """
import subprocess, sys, time
folder = sys.argv[1]
server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", folder], start_new_session=True)
with open(f"{folder}/new", "w") as file: file.write(f"{server.pid}\\n{folder}\\n")
import os; os.rename(f"{folder}/new", f"{folder}/postmaster.pid")
time.sleep(600)
"""

SUPERVISED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_what_is_left import agent
from aegis.servers.supervisor import Supervisor
Supervisor(lambda *_: None).start(agent(Path(sys.argv[2])))
print("up", flush=True)
time.sleep(600)
"""


def agent(folder: Path) -> Service:
    return Service(
        name="agent",
        argv=lambda: [sys.executable, "-c", AGENT, str(folder)],
        log=folder / "agent.log",
        grace=0.5,
        ready=(folder / "postmaster.pid").exists,
        leaves=folder / "postmaster.pid",
    )


def server(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "postmaster.pid").read_text().splitlines()[0]))


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def started_again(supervisor: Supervisor) -> bool:
    supervisor.look()
    return supervisor.starts("agent") == 2


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(lambda *_: None)
    made.start(agent(tmp_path))
    yield made
    made.stop()


def test_it_outlives_its_agent_and_ends_with_the_supervisor(supervisor: Supervisor, tmp_path: Path) -> None:
    left = server(tmp_path)
    os.kill(supervisor.pid("agent"), 9)
    eventually("the agent is started again", lambda: started_again(supervisor))
    assert not is_gone(left)  # the agent finds it when it comes back
    eventually("the agent runs another", lambda: server(tmp_path) != left)
    last = server(tmp_path)
    supervisor.stop()
    eventually("nothing is left", lambda: is_gone(last))
    left.kill()


def test_a_kill_takes_it_along_and_it_stays_down_until_it_is_revived(supervisor: Supervisor, tmp_path: Path) -> None:
    lost = server(tmp_path)
    supervisor.kill("agent", stay_down=True)
    eventually("it is gone", lambda: is_gone(lost))
    for _ in range(20):
        supervisor.look()
        time.sleep(0.05)
    assert supervisor.starts("agent") == 1
    supervisor.revive("agent")
    eventually("it is back", lambda: started_again(supervisor))


def test_the_watchdog_ends_it_where_the_supervisor_was_killed(tmp_path: Path) -> None:
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(here), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "support")])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    left = server(tmp_path)
    process.kill()
    process.wait(10)
    process.stdout.close()
    eventually("it is gone", lambda: is_gone(left))


@pytest.mark.parametrize("content", [None, "", "no number\n/somewhere\n", "{pid}\n", "{pid}\n/not/its/folder\n"])
def test_somebody_elses_process_is_left_alone(tmp_path: Path, content: str | None) -> None:
    """A stale pid file: the number may be another process's by now."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        if content is not None:
            (tmp_path / "postmaster.pid").write_text(content.replace("{pid}", str(other.pid)))
        watchdog.end_left(str(tmp_path / "postmaster.pid"))
        time.sleep(0.1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
