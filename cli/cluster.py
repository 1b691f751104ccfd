"""``aegis cluster``: three database nodes that take over from each other, on one machine, for trying out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from ..config.settings import Settings, settings
from ..core.errors import ServerUnavailable
from ..persistence.database import Database
from ..recovery.cluster import cluster as clusters
from ..recovery.cluster import patroni
from ..recovery.cluster.cluster import Cluster
from ..recovery.cluster.layout import Layout, load
from ..recovery.cluster.patroni import Member
from ..servers import stack
from ..servers.supervisor import Service, Supervisor
from ..workers.load import load_workflows
from .output import EXIT_NO, EXIT_OK, Output, json_option, status_text, table
from .up import have_a_key, look_after

_LOOK_EVERY: Final = 0.2
_DOWN_WITHIN: Final = 120.0


@click.group("cluster")
def cluster_command() -> None:
    """Run three database nodes that take over from each other, on this machine."""


@cluster_command.command("up")
@click.option(
    "--with-workers", "workers", default=0, show_default=True, type=click.IntRange(0, 64), help="How many, and beat."
)
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 256), help="Handlers at once in each; a core each by default."
)
@json_option
def up(out: Output, workers: int, concurrency: int | None) -> None:
    """Run the cluster below AEGIS_HOME, and a broker, until Ctrl-C.

    Three PostgreSQL under Patroni and three etcd, synchronous: what is acknowledged is on two of them. It goes
    on from where it was.
    """
    configured = settings()
    load_workflows(configured.workflows)
    began = time.monotonic()
    with stack.lock(configured):
        supervisor = Supervisor(lambda name, what: out.warn(f"{name} {what}"))
        pid_file = configured.places.cluster / "pid"

        def begin() -> None:
            cluster = Cluster.prepare(configured)
            pid_file.write_text(str(os.getpid()))
            told = _bring_up(out, cluster, configured, supervisor, workers, concurrency or os.cpu_count() or 1)
            _show(out, told, cluster, supervisor, time.monotonic() - began)

        try:
            look_after(out, supervisor, begin)
        finally:
            pid_file.unlink(missing_ok=True)
    if not out.as_json:
        out.console.print("stopped; nothing is lost: the next `aegis cluster up` goes on from here")


def _bring_up(
    out: Output, cluster: Cluster, configured: Settings, supervisor: Supervisor, workers: int, concurrency: int
) -> Settings:
    """Start everything in its order; return the settings that whoever works with it needs."""
    from ..persistence.migrate import upgrade  # noqa: PLC0415 - Alembic takes time to load

    def tell(what: str) -> None:
        if not out.as_json:
            out.console.print(f"waiting for {what}")

    cluster.start(supervisor, tell)
    if not configured.broker_url:
        supervisor.start(stack.broker(configured))
    broker = configured.broker_url or configured.places.broker_url
    told = Settings.model_validate(
        configured.model_dump() | {"database_url": cluster.layout.url(), "broker_url": broker}
    )
    database = Database(told.database, pool_size=1)
    try:
        upgrade(database, deployment=told.deployment)
        have_a_key(told, database)
    finally:
        database.close()
    for service in _processes(told, workers, concurrency):
        supervisor.start(service)
    return told


def _processes(told: Settings, workers: int, concurrency: int) -> list[Service]:
    if not workers:
        return []
    addresses = {"AEGIS_DATABASE_URL": told.database, "AEGIS_BROKER_URL": told.broker}
    logs = told.places.logs
    return [
        *(stack.worker(told, logs, number, concurrency, told=addresses) for number in range(1, workers + 1)),
        stack.beat(logs, told=addresses),
    ]


def _show(out: Output, told: Settings, cluster: Cluster, supervisor: Supervisor, took: float) -> None:
    members = cluster.members()
    addresses = {"AEGIS_DATABASE_URL": cluster.layout.url(), "AEGIS_BROKER_URL": told.broker}
    pids = {name: supervisor.pid(name) for name in supervisor.names()}

    def render(console: Console) -> None:
        console.print(Text.assemble(("the cluster is up", "bold green"), f" after {took:.1f} s"))
        console.print()
        console.print(_nodes(cluster.layout, members))
        console.print()
        for name, value in addresses.items():
            console.print(Text(f"export {name}='{value}'"))
        console.print()
        console.print(f"data {told.places.cluster}, logs {told.places.logs}")
        console.print("look with `aegis cluster status` from another terminal; Ctrl-C stops all of it")

    data = {"seconds": round(took, 2), "members": members, "pids": pids, "logs": told.places.logs} | addresses
    out.show(data, render)


@cluster_command.command("status")
@json_option
def status(out: Output) -> int:
    """Say who leads, who follows, and how far behind.

    Exit status: 0 every standby has what was acknowledged; 1 one has not, or nobody leads; 2 nothing answers.
    """
    layout = _layout(settings())
    members = patroni.members(layout)
    if not members:
        raise ServerUnavailable("the cluster", "no node of it answers", "start it with `aegis cluster up`")
    whole = clusters.is_whole(members)
    says = "a lost node loses nothing" if whole else "not whole: see the node that neither leads nor streams"

    def render(console: Console) -> None:
        console.print(_nodes(layout, members))
        console.print(Text.assemble("the cluster is ", status_text("ok" if whole else "degraded"), f": {says}"))

    out.show({"whole": whole, "members": members}, render)
    return EXIT_OK if whole else EXIT_NO


@cluster_command.command("switchover")
@click.argument("node", required=False)
@json_option
def switchover(out: Output, node: str | None) -> None:
    """Hand the lead over to NODE, or to the standby that suits best; nothing is lost, and nobody restarted."""
    layout = _layout(settings())
    began = time.monotonic()
    before = patroni.leader(patroni.members(layout))
    patroni.switch_over(layout, node)
    while (after := patroni.leader(patroni.members(layout))) is None or after == before:
        if time.monotonic() - began > _DOWN_WITHIN:
            raise ServerUnavailable("the cluster", "nobody leads it", "see `aegis cluster status`")
        time.sleep(_LOOK_EVERY)
    took = round(time.monotonic() - began, 1)
    out.say({"leader": after.name, "seconds": took}, f"{after.name} leads, after {took} s")


@cluster_command.command("down")
@click.option("--delete-data", is_flag=True, help="Remove the cluster with everything in its databases.")
@json_option
def down(out: Output, *, delete_data: bool) -> None:
    """Stop the cluster that runs below AEGIS_HOME, wherever it was started; its data stays."""
    configured = settings()
    _layout(configured)
    stopped = _stop(configured.places.cluster / "pid")
    with stack.lock(configured):  # refused as long as anything runs there
        if delete_data:
            clusters.remove(configured.places)
    says = "stopped" if stopped else "it did not run"
    out.say({"stopped": stopped, "deleted": delete_data}, f"{says}{'; its data is gone' if delete_data else ''}")


def _stop(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return False
    deadline = time.monotonic() + _DOWN_WITHIN
    while pid_file.exists():
        if time.monotonic() > deadline:
            raise ServerUnavailable("the cluster", f"it still runs after {_DOWN_WITHIN:g} s", "see its logs")
        time.sleep(_LOOK_EVERY)
    return True


def _layout(configured: Settings) -> Layout:
    found = load(configured.places)
    if found is None:
        problem = f"there is none below AEGIS_HOME={configured.home}"
        raise ServerUnavailable("the cluster", problem, "make one with `aegis cluster up`")
    return found


def _nodes(layout: Layout, members: Sequence[Member]) -> object:
    places = {node.name: f"{node.host}:{node.port}" for node in layout.nodes}
    rows = [
        (
            member.name,
            "primary" if member.leads else "synchronous standby" if member.follows else member.role,
            member.state,
            "" if member.leads else "unknown" if member.lag is None else f"{member.lag} bytes",
            places.get(member.name, ""),
        )
        for member in members
    ]
    return table(("node", "role", "state", "behind", "PostgreSQL"), rows)
