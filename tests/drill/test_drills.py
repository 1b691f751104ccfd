"""Drills for real, on sandboxes: the quick ones pass, and what is not as it should be fails."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import CommandLine, Said
from local_engine import eventually

from aegis.config.keys import new_anchor_key
from aegis.config.settings import Settings, read
from aegis.recovery.drill.drill import Terms
from aegis.recovery.drill.faults import broker, history, workers
from aegis.recovery.drill.report import Report
from aegis.recovery.drill.sandbox import environment_of, is_pulse, own
from aegis.recovery.drill.scenario import Scenario
from aegis.recovery.drill.scenarios import BY_NAME, QUICK
from aegis.recovery.drill.scene import Fault, Scene
from aegis.recovery.drill.session import Session, Skipped, declared_for

pytestmark = pytest.mark.faults

# The times of a machine that others work on, too: what it must not lose, nor do twice, is the same on any.
PATIENT = {
    "AEGIS_OBJECTIVES": "process=0/60,broker=0/60,database=0/60,tampering=0/60",
    "AEGIS_HEALTH_TIMEOUT": "10",
}


def drill(aegis: CommandLine, *arguments: str, within: float = 400) -> Said:
    """Run `aegis drill` to its end; it is interrupted, and cleans up, if it takes for ever."""
    process = aegis.begin("drill", *arguments)
    try:
        stdout, stderr = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise
    return Said(status=process.returncode, stdout=stdout, stderr=stderr)


@pytest.fixture
def temporary(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sandboxes of this test are made, and those of no other."""
    made = home / "tmp"
    made.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


def sandboxes(temporary: Path) -> list[psutil.Process]:
    """The processes of sandboxes that are there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("AEGIS_HOME", "").startswith(f"{temporary}/aegis-drill-"):
                found.append(process)
    return found


def left_over(temporary: Path) -> list[psutil.Process]:
    """Those that are there some seconds after a drill."""
    return psutil.wait_procs(sandboxes(temporary), 20)[1]


def folders(temporary: Path) -> list[Path]:
    return list(temporary.glob("aegis-drill-*"))


def test_the_quick_drills_pass_and_leave_nothing_but_their_reports(home: Path, temporary: Path) -> None:
    new_anchor_key(home / "keys", "aegis.example/drill")
    aegis = CommandLine({"AEGIS_HOME": str(home), "TMPDIR": str(temporary), **PATIENT}, home)
    said = drill(aegis, "quick", "--json", "--seed", "7", "--report", str(home / "reports"))
    assert said.stdout, said.stderr
    assert said.status == 0, said.stderr + "\n".join(_missed(json.loads(said.stdout)))
    reports = {each["scenario"]: each for each in json.loads(said.stdout)["reports"]}
    assert tuple(reports) == QUICK
    for name, report in reports.items():
        assert report["verdict"] == "PASS"
        assert report["measured"]["lost"] == 0
        (outcome,) = report["outcomes"]
        assert outcome["acknowledged"] >= 30, "there was a load worth the name"
        assert outcome["met"] > 0 or name == "tampering"
        assert 0 < outcome["rto"] <= report["objective"]["rto"]
        typed = [ran["command"] for ran in outcome["commands"]]
        page = BY_NAME[name]
        assert typed == [str(command) for command in (*page.check, *page.heal, *page.over)]
        assert aegis("drill", "verify", str(home / "reports" / f"{name}.json")).status == 0
    assert (left_over(temporary), folders(temporary)) == ([], [])
    assert sorted(path.name for path in home.iterdir()) == ["drills", "keys", "reports", "tmp"]
    health = json.loads(aegis("health", "--json").stdout)
    (line,) = [check for check in health["checks"] if check["name"] == "drills"]
    assert line["state"] == "ok"
    assert "tampering" in line["says"]


def _missed(document: dict[str, Any]) -> list[str]:
    return [
        f"{report['scenario']}: {check}, {[ran for ran in outcome['commands'] if not ran['passed']]}"
        for report in document["reports"]
        for outcome in report["outcomes"]
        for check in outcome["checks"]
        if not check["passed"]
    ]


# --- a drill that can fail -----------------------------------------------------------------


def without_beat(scene: Scene) -> Fault:
    """The broker wiped, and nobody there who sweeps: nothing can be rung again."""
    with scene.box.hands_off:
        scene.box.supervisor.take_away("beat")
    return broker.wipe_broker(scene)


def behind_its_back(scene: Scene) -> Fault:
    """A worker killed; and a workflow, of which a client was told that it is accepted, is made never to have been."""
    done = next(each for each in scene.movement.sights().values() if each.status == "completed")
    with scene.box.database.transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for table in ("aegis_workflow", "aegis_transition", "aegis_checkpoint", "aegis_payload", "aegis_event"):
            column = "id" if table == "aegis_workflow" else "workflow_id"
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE {column} = %(id)s", {"id": done.workflow_id})  # noqa: S608
    return workers.kill_worker(scene)


def names_another(scene: Scene) -> Fault:
    """Two transitions edited, of which the drill was told one."""
    fault = history.tamper(scene)
    other = next(
        each
        for each in scene.movement.sights().values()
        if each.status == "completed" and each.workflow_id != fault.victim
    )
    history._edit(scene, other.workflow_id, 1, "user:mallory")
    return fault


def run_one(home: Path, scenario: Scenario, patience: float | None = None, **variables: str) -> Report:
    settings = read({"AEGIS_HOME": str(home), **variables})
    with Session(settings, Terms(load=8, seed=3, patience=patience), print) as session:
        (report,) = session.run([scenario], 1)
    assert isinstance(report, Report)
    return report


def missed(report: Report) -> set[str]:
    return {check.name for outcome in report.outcomes for check in outcome.checks if not check.passed}


@pytest.mark.parametrize(
    ("scenario", "fault", "misses", "lost"),
    [
        # Recovery switched off: what waited for its bell never moves again.
        ("broker-wiped", without_beat, {"RTO", "completed"}, 0),
        # A ledger entry that is not in the database.
        ("worker", behind_its_back, {"acknowledged and lost", "RPO", "invariants", "chains and anchors"}, 1),
        ("tampering", names_another, {"named", "invariants", "chains and anchors", "runbook"}, 0),
    ],
)
def test_a_drill_fails_where_recovery_does(
    home: Path, temporary: Path, scenario: str, fault: Callable[[Scene], Fault], misses: set[str], lost: int
) -> None:
    report = run_one(home, replace(BY_NAME[scenario], fault=fault), patience=6)
    assert not report.passed
    assert misses <= missed(report)
    assert report.outcomes[0].lost == lost
    assert (report.rpo or 0) > 0 or not lost
    assert (left_over(temporary), folders(temporary)) == ([], [])


def test_an_objective_that_nothing_can_reach_is_missed(home: Path, temporary: Path) -> None:
    aegis = CommandLine({"AEGIS_HOME": str(home), "TMPDIR": str(temporary), "AEGIS_OBJECTIVES": "broker=0/0.001"}, home)
    said = drill(aegis, "broker-wiped")
    assert said.status == 1, said
    assert "broker-wiped  FAIL" in said.stdout
    assert "broker-wiped, run 1: RTO: " in said.stdout
    assert "declared 0.001 s" in said.stdout
    assert "the reports are not sealed: there is no key" in said.stderr
    assert "broker-wiped took " in aegis("health").stdout


# --- ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_drill_ends_its_processes(home: Path, temporary: Path, number: signal.Signals) -> None:
    aegis = CommandLine({"AEGIS_HOME": str(home), "TMPDIR": str(temporary)}, home)
    process = aegis.begin("drill", "worker")
    eventually("a worker of the sandbox lives", lambda: any(map(is_pulse, sandboxes(temporary))), within=120)
    time.sleep(0.5)  # somewhere in its course, not at a certain place
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    assert left_over(temporary) == []
    assert number == signal.SIGKILL or folders(temporary) == []
    assert not (home / "drills").exists()


# --- the sandbox -----------------------------------------------------------------------------


def test_a_sandbox_has_the_patience_of_its_deployment_and_nothing_else_of_it(tmp_path: Path) -> None:
    given = read(
        {
            "AEGIS_DATABASE_URL": "postgresql://production/aegis",
            "AEGIS_BROKER_URL": "redis://production",
            "AEGIS_HEARTBEAT_TIMEOUT": "30",
            "AEGIS_SWEEP_INTERVAL": "2",
            "AEGIS_KEYS": "/etc/aegis/keys",
            "AEGIS_ANCHORS": "s3://bucket/prefix",
            "AEGIS_PURGE_AFTER": "1",
            "AEGIS_WORKFLOWS": "shop.workflows",
        }
    )
    made = own(given, tmp_path, {"checkpoint_interval": 5.0})
    assert made.embedded
    assert (made.heartbeat_timeout, made.sweep_interval, made.checkpoint_interval) == (30, 2, 5)
    assert made.key_folder.is_relative_to(tmp_path)
    assert all(place.startswith(str(tmp_path)) for place in made.anchor_places)
    assert (made.purge_after, made.workflows) == (0, ("aegis.recovery.drill.workload",))
    assert read(environment_of(made)) == made, "its processes are told the very same"


def test_what_cannot_be_run_here_is_skipped_with_the_reason(tmp_path: Path) -> None:
    scenario = replace(BY_NAME["disk-full"], skipped=lambda: "it needs root")
    with Session(Settings(home=tmp_path), Terms(load=8, seed=1), print) as session:
        assert list(session.run([scenario], 1)) == [Skipped(scenario="disk-full", reason="it needs root")]


def test_the_objective_of_a_long_handler_is_scaled_to_how_often_its_sandbox_saves(tmp_path: Path) -> None:
    long = BY_NAME["long-handler"]
    for given, rpo in (
        ({}, 5.0),
        ({"AEGIS_CHECKPOINT_INTERVAL": "600"}, 2.5),
        ({"AEGIS_OBJECTIVES": "long-handler=60/5"}, 1),
    ):
        settings = read({"AEGIS_HOME": str(tmp_path), **given})
        assert declared_for(settings, long).rpo == pytest.approx(rpo)
    assert declared_for(settings, BY_NAME["worker"]).rpo == 0
