"""What a second region costs: commits and transitions beside the primary and far from it, beside one region alone.

    python benchmarks/regions.py [--rounds 3] [--round-trips 0 10 40]

Needs Linux and root. One cluster of three nodes runs on the loopback interface: one region. Another one has each
node in a region of its own: network namespaces, between which every packet is delayed by half of the round trip,
which is what `ping` shows. Both are synchronous: a commit is acknowledged once a second node has it. A worker
(prefork, 4) runs in the one region, one beside the primary, one in another region; each has a broker of its own
beside it. In each round all of them work in turn.

commit       one INSERT that is its own transaction, on a connection that is open
start        ``engine.start`` of one workflow of about 1 KB, without a bell
transitions  a second, of workflows of ten transitions; the worker does nothing else
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from bench_workflows import STEPS, TenSteps

from aegis.config.settings import Settings
from aegis.core.errors import ServerUnavailable
from aegis.core.starting import Start
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.migrate import upgrade
from aegis.persistence.operations import Terms
from aegis.recovery.cluster.cluster import Cluster
from aegis.recovery.regions.regions import NAMES, running
from aegis.servers import stack
from aegis.servers.supervisor import Supervisor
from aegis.tasks.broker import Broker
from aegis.workers.factory import make_app

CHILDREN: Final = 4
COMMITS: Final = 200
STARTS: Final = 60
# The transitions of a measurement take about so long (seconds), found out with a few workflows before.
TAKES: Final = 6.0
FEW, MOST = 12, 200
PATIENCE: Final = 120.0
TERMS: Final = Terms(actor="app:bench", grace=timedelta(hours=1), max_bytes=65536)
ONE: Final = "one region"
# Nothing is due while it is measured, so no beat is needed, and none rings in another region.
TOLD: Final = {"AEGIS_RING_GRACE": "600", "AEGIS_ANCHORS": "none", "AEGIS_WORKFLOWS": "bench_workflows"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is; ``enter`` puts the calling thread there."""

    name: str
    settings: Settings
    enter: Callable[[], AbstractContextManager[None]]


@dataclass
class Figures:
    """What was measured in one place, at one distance."""

    commits: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


# --- what is measured ---------------------------------------------------------------------------


def measure(place: Place, figures: Figures, name: str) -> None:
    """Measure once, from this place."""
    with place.enter(), opened(place.settings) as database:
        with database.statement() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS bench (note text)")
            insert = lambda _: connection.exec_driver_sql("INSERT INTO bench VALUES ('x')")  # noqa: E731
            figures.commits += timed(insert, COMMITS)
        silent = DurableWorkflowEngine(database, lambda _: True, TERMS)
        figures.starts += timed(lambda number: silent.start(made(), id=f"{name}-s{number}"), STARTS)
        engine = DurableWorkflowEngine(database, Broker(make_app(place.settings)).ring, TERMS)
        pilot = rate(engine, database, f"{name}-p", FEW)
        figures.rates.append(rate(engine, database, f"{name}-t", min(MOST, max(FEW, int(pilot * TAKES / STEPS)))))


def timed(act: Callable[[int], Any], count: int) -> list[float]:
    """Return how long each took, in milliseconds; the first ones do not count."""
    found = []
    for number in range(count + 5):
        began = time.perf_counter()
        act(number)
        found.append((time.perf_counter() - began) * 1000)
    return found[5:]


def rate(engine: DurableWorkflowEngine, database: Database, name: str, count: int) -> float:
    """Return how many transitions a second the worker makes with so many workflows."""
    engine.start_many([Start(made(), id=f"{name}{number}") for number in range(count)])
    query = (
        "SELECT count(*), extract(epoch FROM max(at) - min(at)) FROM aegis_transition"
        " WHERE starts_with(workflow_id, %(name)s) AND seq > 0"
    )
    deadline = time.monotonic() + PATIENCE
    while True:
        with database.statement() as connection:
            done, seconds = connection.exec_driver_sql(query, {"name": name}).one()
        if done == count * STEPS:
            return done / float(seconds)
        if time.monotonic() > deadline:
            raise SystemExit(f"{done} of {count * STEPS} transitions after {PATIENCE:g} s: see the worker's log")
        time.sleep(0.1)


def made() -> TenSteps:
    """Return a workflow of about 1 KB."""
    return TenSteps(text="x" * 900)


@contextmanager
def opened(given: Settings) -> Iterator[Database]:
    """Give a database, with connections from where the calling thread is now."""
    database = Database(given.database, pool_size=1, pre_ping=False)
    try:
        yield database
    finally:
        database.close()


# --- what runs ----------------------------------------------------------------------------------


@contextmanager
def one_region(root: Path) -> Iterator[Place]:
    """Run a cluster on the loopback interface, with a worker."""
    own = Settings(home=root)
    supervisor = Supervisor(lambda *_: None)
    try:
        cluster = Cluster.prepare(own)
        cluster.start(supervisor)
        supervisor.start(stack.broker(own))
        addresses = {"database_url": cluster.layout.url(), "broker_url": own.places.broker_url}
        settings = Settings.model_validate(own.model_dump() | addresses)
        migrate(settings.database)
        told = {**TOLD, "AEGIS_DATABASE_URL": settings.database_url, "AEGIS_BROKER_URL": settings.broker_url}
        supervisor.start(stack.worker(settings, own.places.logs, 1, CHILDREN, told={**told, "AEGIS_HOME": str(root)}))
        yield Place(name=ONE, settings=settings, enter=nullcontext)
    finally:
        supervisor.stop()


def migrate(url: str) -> None:
    """Make the tables."""
    database = Database(url, pool_size=1)
    upgrade(database, deployment="aegis.example/regions")
    database.close()


@contextmanager
def all_of_it(root: Path) -> Iterator[tuple[Callable[[float], None], list[Place]]]:
    """Run everything; give what sets the round trip (seconds), and the places."""
    with running(Settings(home=root / "three")) as (regions, supervisor), one_region(root / "one") as one:
        migrate(regions.url)
        leads = regions.leader()
        far = next(name for name in NAMES if name != leads)
        places = [one]
        for name, called in ((leads, "beside the primary"), (far, "another region")):
            told = {**TOLD, "AEGIS_HOME": str(regions.settings.home)}
            for service in regions.workers(str(name), 1, CHILDREN, told):
                supervisor.start(service)
            region = regions.all[str(name)]
            enter = lambda name=name: regions.network.inside(str(name))  # noqa: E731
            places.append(Place(name=called, settings=region.settings, enter=enter))
        yield lambda seconds: regions.network.delay(seconds / 2), places


# --- figures ------------------------------------------------------------------------------------


def per_cent(found: Sequence[float], share: float) -> float:
    """Return the value that so much of it does not exceed."""
    return sorted(found)[min(len(found) - 1, int(len(found) * share))]


def line(name: str, trip: str, figures: Figures, one: Figures) -> str:
    """Return a line of the table."""
    share = statistics.median(mine / theirs for mine, theirs in zip(figures.rates, one.rates, strict=True))
    return (
        f"{name:20} {trip:>10} {per_cent(figures.commits, 0.5):8.2f} / {per_cent(figures.commits, 0.99):6.2f}"
        f" {per_cent(figures.starts, 0.5):8.1f} / {per_cent(figures.starts, 0.99):6.1f}"
        f" {statistics.median(figures.rates):9.1f} ({min(figures.rates):.0f} to {max(figures.rates):.0f}) {share:8.2f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-trips", type=float, nargs="+", default=[0.0, 10.0, 40.0], help="milliseconds")
    options = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    os.environ.setdefault("AEGIS_LOG_LEVEL", "warning")
    found: defaultdict[tuple[str, str], Figures] = defaultdict(Figures)
    with ExitStack() as stack_:
        root = Path(stack_.enter_context(tempfile.TemporaryDirectory(prefix="aegis-regions-")))
        root.chmod(0o755)
        try:
            set_trip, places = stack_.enter_context(all_of_it(root))
        except ServerUnavailable as error:
            sys.exit(str(error))
        one, *others = places
        for number in range(options.rounds):
            measure(one, found[ONE, ""], f"{number}")
            for trip in options.round_trips:
                set_trip(trip / 1000)
                for place in others:
                    measure(place, found[place.name, f"{trip:g} ms"], f"{number}-{trip:g}-{others.index(place)}")
            set_trip(0.0)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(f"{os.cpu_count()} cores; {options.rounds} rounds\n")
    columns = f"{'commit: p50 / p99':>17} {'start: p50 / p99':>17} {'transitions a second':>24} {'share':>8}"
    print(f"{'worker':20} {'round trip':>10} {columns}")
    for (name, trip), figures in found.items():
        print(line(name, trip, figures, found[ONE, ""]))


if __name__ == "__main__":
    main()
