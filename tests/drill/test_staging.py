"""Drills on a system that is there already: one that is named, that others work with, and that a command breaks."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import CommandLine, Said
from local_engine import eventually

from aegis.config.settings import Settings, read
from aegis.core.errors import DrillNotRun
from aegis.persistence import observe, watch
from aegis.persistence.database import Database
from aegis.persistence.schema import deployment_name
from aegis.persistence.watch import Worker
from aegis.recovery.drill.drill import Terms
from aegis.recovery.drill.sandbox import Needs, Sandbox, environment_of, sandbox
from aegis.recovery.drill.scenarios import BY_NAME
from aegis.recovery.drill.staging import Orders, Staging, rehearse
from aegis.recovery.drill.workload import DrillApproval

pytestmark = pytest.mark.faults

NAME = "aegis.example/drill"
# The times of a machine that others work on, too.
PATIENT = {"AEGIS_OBJECTIVES": "process=0/60,broker=0/60", "AEGIS_HEALTH_TIMEOUT": "10"}
OTHERS = "theirs"
WITHIN = 400.0


@pytest.fixture(scope="module")
def site() -> Iterator[Sandbox]:
    """A deployment that runs, with its own supervisor, and a workflow of somebody else."""
    with sandbox(read({}), lambda _: None, Needs()) as box:
        box.engine().start(DrillApproval(outside=""), id=OTHERS)
        yield box


@pytest.fixture
def aegis(site: Sandbox, tmp_path: Path) -> CommandLine:
    """The command line of somebody who works with that deployment."""
    return CommandLine({**environment_of(site.settings), **PATIENT}, tmp_path)


def python(code: str) -> str:
    """Return a command that runs this."""
    return shlex.join([sys.executable, "-c", code])


def leaves(path: Path) -> str:
    """Return a command that leaves a line in a file."""
    return python(f"open({str(path)!r}, 'a').write('done\\n')")


def drilled(box: Sandbox) -> int:
    """How many workflows there are that a drill has started."""
    with box.database.statement() as connection:
        return sum(sight.workflow_id != OTHERS for sight in observe.sights(connection, ""))


def drill(aegis: CommandLine, *arguments: str, **variables: str) -> Said:
    """Run a drill to its end, however busy the machine is."""
    process = aegis.begin("drill", *arguments, **variables)
    try:
        stdout, stderr = process.communicate(timeout=WITHIN)
    finally:
        process.terminate()
        process.wait(60)
    return Said(status=process.returncode, stdout=stdout, stderr=stderr)


def report_of(said: Said) -> dict[str, Any]:
    assert said.stdout, said.stderr
    (report,) = json.loads(said.stdout)["reports"]
    assert said.status == 0, said.stderr + json.dumps(report["outcomes"][0]["checks"], indent=1)
    assert isinstance(report, dict)
    return report


def test_a_broker_that_a_command_empties(site: Sandbox, aegis: CommandLine) -> None:
    flush = python(
        f"import redis; redis.Redis.from_url({site.settings.broker!r}.replace('redis+socket', 'unix')).flushall()"
    )
    report = report_of(drill(aegis, "broker-wiped", "--staging", NAME, "--inject", flush, "--json"))
    assert report["system"] == f"{NAME}, a staging system"
    (outcome,) = report["outcomes"]
    assert shlex.split(outcome["told"].split("`")[1]) == shlex.split(flush)
    assert outcome["acknowledged"] >= 30
    assert outcome["met"] > 0
    assert (outcome["lost"], outcome["doubled"], outcome["repeated"]) == (0, 0, None)
    assert outcome["rto"] > 0
    names = [check["name"] for check in outcome["checks"]]
    assert {"acknowledged and lost", "completed", "invariants", "chains and anchors", "runbook"} <= set(names)
    assert [ran["command"] for ran in outcome["commands"]] == [
        str(command) for command in (*BY_NAME["broker-wiped"].check, *BY_NAME["broker-wiped"].over)
    ]
    assert site.engine().describe(OTHERS).status == "waiting", "what others have there is left alone"
    health = json.loads(aegis("health", "--json").stdout)
    (line,) = [check for check in health["checks"] if check["name"] == "drills"]
    assert line["says"].startswith("broker ")


def test_a_worker_that_a_command_kills_is_mended_by_another_once(
    site: Sandbox, aegis: CommandLine, tmp_path: Path
) -> None:
    kill = python(f"import os; os.kill({site.supervisor.pid('worker-1')}, 9)")
    undone = tmp_path / "undone"
    said = drill(aegis, "worker", "--staging", NAME, "--inject", kill, "--undo", leaves(undone), "--json")
    (outcome,) = report_of(said)["outcomes"]
    assert outcome["met"] > 0
    assert undone.read_text() == "done\n"


def test_a_command_that_does_not_end_well_is_no_drill_and_is_mended(
    site: Sandbox, aegis: CommandLine, tmp_path: Path
) -> None:
    undone = tmp_path / "undone"
    broken = python("raise SystemExit('no such host')")
    said = drill(aegis, "worker", "--staging", NAME, "--inject", broken, "--undo", leaves(undone))
    assert said.status == 2
    assert "ended with 1: no such host; mend the command" in said.stderr
    assert undone.read_text() == "done\n"
    said = drill(aegis, "worker", "--staging", NAME, "--inject", "/no/such/program --now")
    assert said.status == 2
    assert "`/no/such/program --now` ended with 127: No such file or directory" in said.stderr


def test_what_mends_it_is_not_interrupted_and_the_drill_says_that_it_was(
    site: Sandbox, aegis: CommandLine, tmp_path: Path
) -> None:
    begun, undone = tmp_path / "begun", tmp_path / "undone"
    slow = python(f"import time; open({str(begun)!r}, 'w').close(); time.sleep(3); open({str(undone)!r}, 'w').close()")
    hangs = python("import time; time.sleep(60)")
    process = aegis.begin("drill", "worker", "--staging", NAME, "--inject", hangs, "--undo", slow)
    try:
        eventually("the command that was given runs", lambda: running(process.pid, "time.sleep(60)"), 90)
        process.send_signal(signal.SIGINT)
        eventually("it is mended", begun.exists)
    finally:
        process.send_signal(signal.SIGTERM)  # somebody who is impatient
        said = aegis.end(process)
    assert undone.exists()
    assert said.status not in {0, 1}
    assert not running(process.pid, "time.sleep(60)"), "the command that was given has ended with it"


def running(parent: int, words: str) -> bool:
    """Whether a descendant of a process runs this."""
    with suppress(psutil.Error):
        return any(words in " ".join(child.cmdline()) for child in psutil.Process(parent).children(recursive=True))
    return False


def test_the_time_counts_from_what_a_person_does_and_what_is_not_mended_has_failed(
    site: Sandbox, aegis: CommandLine, tmp_path: Path
) -> None:
    """The words of a command that is given are left as they are, and it runs where the drill was called."""
    kill = python(f"import os; os.kill({site.supervisor.pid('worker-1')}, 9)")
    heal = python("import sys; open('healed', 'w').write(' '.join(sys.argv[1:]))") + " client kill ID 5"
    broken = python("raise SystemExit('access denied')")
    orders = ("--inject", kill, "--heal", heal, "--undo", broken)
    said = drill(aegis, "disk-full", "--staging", NAME, *orders, "--json", AEGIS_OBJECTIVES="disk=0/60")
    assert said.status == 1, said.stderr
    (outcome,) = json.loads(said.stdout)["reports"][0]["outcomes"]
    assert (tmp_path / "healed").read_text() == "client kill ID 5"
    (typed,) = [ran for ran in outcome["commands"] if ran["stage"] == "heal"]
    assert (typed["status"], typed["passed"]) == (0, True)
    assert outcome["timeline"]["healed"] is not None
    failed = {check["name"]: check["measured"] for check in outcome["checks"] if not check["passed"]}
    assert set(failed) == {"undone"}, failed
    assert "access denied" in failed["undone"]


def test_where_nothing_is_to_break_what_counts_is_for_how_long_nothing_went_on(
    site: Sandbox, aegis: CommandLine
) -> None:
    """The command returns at once, and what it began goes on: the drill waits until all is served again."""
    valkey = site.supervisor.pid("valkey")
    freeze = "import os, signal, subprocess, sys, time; pid = int(sys.argv[1]); os.kill(pid, signal.SIGSTOP)"
    later = "import os, signal, sys, time; time.sleep(4); os.kill(int(sys.argv[1]), signal.SIGCONT)"
    begin = f"{freeze}; subprocess.Popen([sys.executable, '-c', {later!r}, sys.argv[1]], start_new_session=True)"
    said = drill(aegis, "switch-over", "--staging", NAME, "--inject", f"{python(begin)} {valkey}", "--json")
    (outcome,) = json.loads(said.stdout)["reports"][0]["outcomes"]
    assert outcome["rto"] > 3, "workers had no broker for four seconds"


def test_another_deployment_than_the_one_that_is_named_is_left_alone(
    site: Sandbox, aegis: CommandLine, tmp_path: Path
) -> None:
    before, ran = drilled(site), tmp_path / "ran"
    said = drill(aegis, "worker", "--staging", "aegis.example/production", "--inject", leaves(ran))
    assert said.status == 2
    assert (
        f"'aegis.example/production' could not be run: the database of these settings is that of '{NAME}'"
        in said.stderr
    )
    assert drilled(site) == before
    assert not ran.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("worker", "--inject", "true"), "--inject goes with --staging"),
        (("worker", "--undo", "true"), "--undo goes with --staging"),
        (("worker", "--staging", NAME), "--staging needs --inject"),
        (("quick", "--staging", NAME, "--inject", "true"), "--staging goes with one scenario"),
        (
            ("worker", "--staging", NAME, "--inject", "kill 'x"),
            '--inject is no command: No closing quotation in "kill \'x"',
        ),
        (("worker", "--staging", NAME, "--inject", ""), "--inject is no command: it is empty"),
        (("tampering", "--staging", NAME, "--inject", "true"), "it can be done on a sandbox alone"),
        (("asynchronous", "--staging", NAME, "--inject", "true"), "it can be done on a sandbox alone"),
        (("whole-machine", "--staging", NAME, "--inject", "true"), "name that with --heal"),
    ],
)
def test_what_does_not_go_together(home: Path, arguments: tuple[str, ...], problem: str) -> None:
    said = CommandLine({"AEGIS_HOME": str(home)}, home)("drill", *arguments)
    assert said.status == 2
    assert problem in said.stderr


def test_workers_that_do_not_know_the_drills_workflows_are_left_alone(database: Database, tmp_path: Path) -> None:
    with database.statement() as connection:
        name = deployment_name(connection)
    settings = Settings(database_url=database.url, broker_url="redis://127.0.0.1:1/0", home=tmp_path)
    terms, orders = Terms(load=1, seed=1), Orders(inject=["true"])

    def refused() -> str:
        with pytest.raises(DrillNotRun) as caught:
            rehearse(settings, name, BY_NAME["worker"], orders, terms, 1, lambda _: None)
        return str(caught.value)

    assert "it has no worker that lives" in refused()
    with database.statement() as connection:
        watch.beat(connection, Worker(id="w", host="h", pid=1, pids=(1,), queues=("aegis",), types=("DrillSteps/1",)))
    assert "none of its workers knows DrillApproval, DrillLong; add aegis.recovery.drill.workload" in refused()
    with database.statement() as connection:
        assert list(observe.sights(connection, "")) == []


def test_what_it_took_away_has_to_come_back(database: Database, tmp_path: Path) -> None:
    """Else the next run would measure a system that is half there."""
    settings = Settings(database_url=database.url, broker_url="redis://127.0.0.1:1/0", home=tmp_path)
    box = Staging(tmp_path, settings, "any", lambda _: None, whole_within=0.3)
    box.workers = 2
    with pytest.raises(DrillNotRun, match="0 of 2 workers live"):
        box.restore()
    box.database.close()
