"""The files that others run AEGIS from: Procfile and docker-compose.yml."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import psutil
import pytest
import yaml
from deployment import Deployment
from fault_workflows import Steps
from local_engine import eventually

from aegis.config.settings import read

ROOT = Path(__file__).parents[2]


def test_the_procfile_runs_everything_under_any_runner(deployment: Deployment, tmp_path: Path) -> None:
    """honcho runs its lines; a workflow completes; it stops them all."""
    environment = {
        **os.environ,
        **deployment.environment,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (tmp_path / "honcho.log").open("wb") as log:
        runner = subprocess.Popen(
            [sys.executable, "-m", "honcho", "--no-colour", "-f", str(ROOT / "Procfile"), "start", "worker", "beat"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deployment.engine.start(Steps(), id="steps")
        deployment.await_status("steps", "completed", within=60)
        started = psutil.Process(runner.pid).children(recursive=True)
        runner.send_signal(signal.SIGTERM)
        runner.wait(30)
        eventually("nothing of it is left", lambda: not any(process.is_running() for process in started))
    finally:
        for process in psutil.Process(runner.pid).children(recursive=True) if runner.poll() is None else []:
            process.kill()
        runner.kill()
        runner.wait(10)


def test_the_procfile_names_every_process_of_the_compose_file() -> None:
    lines = [line for line in (ROOT / "Procfile").read_text().splitlines() if line and not line.startswith("#")]
    commands = {name: shlex.split(command.strip()) for name, _, command in (line.partition(":") for line in lines)}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert commands.keys() == services.keys() - {"postgres", "valkey", "migrate"}
    for name in ("worker", "beat"):
        assert services[name]["command"] == commands[name]


def test_the_compose_file_of_sentinels_fits_the_one_it_is_added_to() -> None:
    ours = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    added = yaml.safe_load((ROOT / "deploy" / "compose.sentinel.yml").read_text())
    services = added["services"]
    places = {name: s["networks"]["default"]["ipv4_address"] for name, s in services.items() if "networks" in s}
    watchers = {name: s for name, s in services.items() if name.startswith("sentinel-")}
    ran_by_us = ours.keys() - {"postgres", "valkey"}
    assert services.keys() == {"valkey", "valkey-2", *watchers} | ran_by_us
    for name in ran_by_us:
        settings = read({"AEGIS_DATABASE_URL": "postgresql://h/d", **services[name]["environment"]})
        assert settings.sentinels is not None
        assert settings.sentinels.hosts == tuple((places[watcher], 26379) for watcher in sorted(watchers))
        for watcher in watchers.values():
            told = watcher["command"][2]
            majority = len(watchers) // 2 + 1
            assert f"sentinel monitor {settings.broker_master} {places['valkey']} 6379 {majority}\n" in told
            assert watcher["depends_on"].keys() == {"valkey", "valkey-2"}
    follows = services["valkey-2"]["command"]
    assert follows[-2:] == ["--replicaof", f"{places['valkey']} 6379"]
    assert follows[:-2] == ours["valkey"]["command"], "either of them is the master one day"
    kept = {s["volumes"][0].partition(":")[0] for name, s in services.items() if "volumes" in s}
    assert kept == added["volumes"].keys()


def test_the_compose_file_refers_to_nothing_that_is_not_there() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    for name, needed in waits.items():
        assert needed.keys() <= services.keys(), name
        for other, condition in needed.items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in services[other]
    list(TopologicalSorter({name: list(needed) for name, needed in waits.items()}).static_order())
    for name, service in services.items():
        assert service.keys() & {"image", "build"}, name
        if name not in {"migrate", "beat"}:
            assert "healthcheck" in service, name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in compose["volumes"]


COMPOSED = ("docker-compose.yml", "deploy/compose.cluster.yml")


@pytest.mark.parametrize("file", COMPOSED)
def test_nothing_has_a_worker_or_beat_restarted_because_something_else_is_away(file: str) -> None:
    """`aegis health` is down with PostgreSQL, too; a worker that is restarted for that loses what it has in hand."""
    services = yaml.safe_load((ROOT / file).read_text())["services"]
    assert {"worker", "beat"} <= services.keys()
    for name, service in services.items():
        told = service.get("healthcheck", {}).get("test", [])
        assert not any("aegis health" in word for word in told), name


@pytest.mark.parametrize("file", COMPOSED)
def test_the_check_of_a_worker_finds_its_heartbeat_and_nothing_else(
    file: str, deployment: Deployment, tmp_path: Path
) -> None:
    kind, check = yaml.safe_load((ROOT / file).read_text())["services"]["worker"]["healthcheck"]["test"]
    worker = deployment.worker()
    parent, pulse = psutil.Process(worker.pid), worker.pulse()
    # What a container would see: here are also the workers of others.
    seen = tmp_path / "proc"
    command = check.replace("$$", "$").replace("/proc/", f"{seen}/")
    assert kind == "CMD-SHELL"
    assert str(seen) in command

    def status() -> int:
        return subprocess.run(["sh", "-c", command], check=False).returncode

    note(seen, parent.pid, parent.cmdline())
    note(seen, 2, ["sh", "-c", check])  # itself
    assert status() == 1
    note(seen, pulse.pid, pulse.cmdline())
    assert status() == 0


def note(proc: Path, pid: int, arguments: list[str]) -> None:
    """Write down a process as the kernel shows it."""
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cmdline").write_text("\0".join(arguments) + "\0")


@pytest.mark.parametrize("file", COMPOSED)
def test_no_variable_of_a_compose_file_is_refused_as_a_setting(file: str) -> None:
    """Whoever exports one, to give it to docker compose, uses `aegis` in the same shell."""
    text = (ROOT / file).read_text()
    named = set(re.findall(r"\$\{(\w+)", text))
    assert named
    for name in named:
        read({name: "proposal.workflow"})


def test_the_compose_file_sets_only_what_can_be_set() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    given = compose["services"]["worker"]["environment"]
    filled = {name: value.replace("${POSTGRES_PASSWORD:-aegis}", "secret") for name, value in given.items()}
    settings = read(filled | {"AEGIS_WORKFLOWS": "proposal.workflow"})
    assert not settings.embedded
