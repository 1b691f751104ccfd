"""``aegis up`` from the outside: a process that is started, looked at, interrupted and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from command_line import PROGRAM, CommandLine
from deployment import QUICK, SUPPORT
from local_engine import eventually
from private_servers import PrivateBroker, PrivatePostgres, folder

PARTS = ["postgresql", "valkey", "worker-1", "beat", "flower"]


class Up:
    """A running ``aegis up``."""

    def __init__(self, aegis: CommandLine, *options: str, **variables: str) -> None:
        self.aegis = aegis
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*PROGRAM, "up", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=aegis.folder,
            env=aegis.environment(**variables),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def screen(self) -> str:
        return "".join(self.lines)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.screen
        return "Ctrl-C stops all of it" in self.screen

    def family(self) -> list[psutil.Process]:
        """Every process that it started, whoever their parent is by now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@contextmanager
def running(aegis: CommandLine, *options: str, **variables: str) -> Iterator[Up]:
    up = Up(aegis, *options, **variables)
    try:
        eventually("aegis up is up", up.is_up, 90)
        yield up
    finally:
        if up.process.poll() is None:
            family = up.family()
            up.end(signal.SIGINT)
            _, left = psutil.wait_procs(family, 30)
            assert not left


@pytest.fixture
def aegis() -> Iterator[CommandLine]:
    """The command line with a home of its own, in which nothing was ever started."""
    with folder("up") as root:
        variables = {
            **QUICK,
            "AEGIS_HOME": str(root / "home"),
            "AEGIS_WORKFLOWS": "fault_workflows",
            "AEGIS_TEST_LEDGER": str(root / "ledger.jsonl"),
            "PYTHONPATH": str(SUPPORT),
        }
        yield CommandLine(variables, root)


def flower_tasks(url: str) -> list[dict[str, str]]:
    """What Flower's own table of tasks shows."""
    asked = {"draw": "1", "start": "0", "length": "50", "search[value]": "", "order[0][column]": "0"}
    asked |= {"order[0][dir]": "asc", "columns[0][data]": "name"}
    body = urllib.parse.urlencode(asked).encode()
    with urllib.request.urlopen(f"{url}/tasks/datatable", body, timeout=10) as answer:  # noqa: S310 - loopback
        found: list[dict[str, str]] = json.load(answer)["data"]
    return found


def history(aegis: CommandLine, workflow_id: str) -> list[str]:
    """The events of a workflow's chain."""
    return [link["event"] for link in aegis("history", workflow_id, "--json").document()]


def test_everything_runs_and_ends_with_the_terminal(aegis: CommandLine) -> None:
    with running(aegis) as up:
        rows = [line.split(maxsplit=2) for line in up.lines]
        shown = {row[0]: row for row in rows if row and row[0] in PARTS}
        assert list(shown) == PARTS
        family = up.family()
        assert {int(row[1]) for row in shown.values()} <= {process.pid for process in family}
        assert "Steps" in shown["worker-1"][2]
        assert aegis("health").status == 0, aegis("health")

        assert aegis("start", "Steps", "--id", "seen-in-flower").status == 0
        assert aegis("wait", "seen-in-flower").status == 0
        url = shown["flower"][2].strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        eventually("Flower shows three tasks", lambda: len(flower_tasks(url)) >= 3, 30)
        tasks = flower_tasks(url)
        assert {task["name"].rpartition(".")[2] for task in tasks} >= {"one", "two", "three"}
        assert all("seen-in-flower" in task["args"] for task in tasks)
        flower = psutil.Process(int(shown["flower"][1]))
        assert {c.laddr.ip for c in flower.net_connections("inet") if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}

        second = aegis("up")
        assert second.status == 2
        assert second.stderr.count("\n") == 1
        assert f"pid {up.process.pid}" in second.stderr or str(aegis.folder / "home") in second.stderr
        assert up.process.poll() is None

        assert up.end(signal.SIGINT) == 0
        assert "stopped; nothing is lost" in up.screen
        _, left = psutil.wait_procs(family, 20)  # the heartbeat's process says goodbye, and somebody has to reap it
        assert not left
        assert "Traceback" not in up.screen


def test_a_killed_aegis_up_leaves_no_orphan_and_the_next_goes_on(aegis: CommandLine) -> None:
    with running(aegis, "--no-flower") as up:
        said = aegis("start", "Steps", "--id", "cut-off", "--data", '{"pause": 2}')
        assert said.status == 0, said
        eventually(
            "the first transition is recorded", lambda: len(aegis("history", "cut-off", "--json").document()) > 1
        )
        family = up.family()
        assert len(family) > 5
        up.end(signal.SIGKILL)
        _, left = psutil.wait_procs(family, 40)
        assert not left, left
    with running(aegis, "--no-flower") as up:
        assert aegis("wait", "cut-off", "--timeout", "60").status == 0
        assert history(aegis, "cut-off") == ["created", "one", "two", "three"]
        assert aegis("verify", "--all").status == 0
        assert up.end(signal.SIGTERM) == 0


def test_ctrl_c_lets_handlers_finish(aegis: CommandLine) -> None:
    with running(aegis, "--no-flower") as up:
        assert aegis("start", "Steps", "--id", "slow", "--data", '{"pause": 3}').status == 0
        eventually("a handler runs", (aegis.folder / "ledger.jsonl").exists)
        assert up.end(signal.SIGINT) == 0
        assert "killed" not in up.screen
    with running(aegis, "--no-flower"):
        assert aegis("wait", "slow", "--timeout", "60").status == 0
        links = aegis("history", "slow", "--json").document()
        assert [link["attempt"] for link in links] == [1, 1, 1, 1]


def test_a_worker_that_is_killed_is_started_again(aegis: CommandLine) -> None:
    with running(aegis, "--no-flower") as up:
        worker = next(int(line.split()[1]) for line in up.lines if line.startswith("worker-1"))
        os.kill(worker, signal.SIGKILL)
        eventually("it is said", lambda: "worker-1 was ended by SIGKILL; starting it again" in up.screen)
        assert aegis("start", "Steps", "--id", "after").status == 0
        assert aegis("wait", "after", "--timeout", "60").status == 0


def test_servers_that_are_set_are_used_and_left_alone(
    aegis: CommandLine, database_url: str, broker: PrivateBroker, postgres: PrivatePostgres
) -> None:
    theirs = {"AEGIS_DATABASE_URL": database_url, "AEGIS_BROKER_URL": broker.url, "AEGIS_BROKER_PREFIX": "up:"}
    with running(aegis, "--no-flower", **theirs) as up:
        assert [line.split()[:2] for line in up.lines if line.startswith(("database", "broker"))] == [
            ["database", "yours"],
            ["broker", "yours"],
        ]
        assert not any(line.startswith(("postgresql", "valkey")) for line in up.lines)
        assert not (aegis.folder / "home" / "postgres").exists()
        assert aegis("start", "Steps", "--id", "theirs", **theirs).status == 0
        assert aegis("wait", "theirs", **theirs).status == 0
        assert up.end(signal.SIGTERM) == 0
    postgres.execute("SELECT 1")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AEGIS_WORKFLOWS": "no_such_module"}, "no_such_module"),
        ({"AEGIS_DATABASE_URL": "postgresql://aegis@127.0.0.1:1/none"}, "AEGIS_BROKER_URL"),
        ({"AEGIS_HOME": "/proc/aegis"}, "AEGIS_HOME=/proc/aegis"),
        ({"AEGIS_SWEEP_INTERVAL": "often"}, "AEGIS_SWEEP_INTERVAL"),
    ],
)
def test_what_cannot_come_up_says_why_in_one_line(aegis: CommandLine, variables: dict[str, str], says: str) -> None:
    began = time.monotonic()
    said = aegis("up", **variables)
    assert says in said.complaint(), time.monotonic() - began
    assert "stopping" not in said.stdout
