"""Transitions per second of AEGIS beside bare Celery, in one run on the same servers; and where the time goes.

    ./run bench                     # three rounds of 100 workflows of ten transitions each
    python benchmarks/throughput.py --rounds 5 --workflows 200

Both sides: prefork 4, acks late, the same PostgreSQL with fsync and synchronous_commit on, the same
Valkey, about 1 KB of data. The rounds alternate. Machines are shared: take the ratio, not the rates.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil
import psycopg2

from aegis.core import chain
from servers import Servers, cpu_seconds, servers, worker

STEPS = 10
TEXT = "x" * 900
AT_A_TIME = 4
ROUNDS_OF_ONE = 5000


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared."""

    name: str
    start: Callable[[str], None]
    count: str
    """SQL: how many workflows of a round are done."""
    durations: str
    """SQL: the seconds that each workflow of a round took."""
    process: psutil.Process


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of one side gave: rate, and milliseconds of processor time per transition."""

    rate: float
    parent: float
    children: float
    postgres: float
    broker: float


def main() -> None:
    """Measure and print."""
    options = _options()
    with servers() as given:
        os.environ.update(given.environment(AEGIS_WORKFLOWS="bench_workflows"))
        with _sides(given, options.concurrency) as sides:
            for side in sides:  # once for nothing: imports, connections, plans
                _throughput(given, side, 10)
            rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
            for _ in range(options.rounds):
                for side in sides:
                    rounds[side.name].append(_throughput(given, side, options.workflows))
            _print_rounds(rounds, options)
            for side in sides:
                _print_latency(side, _latency(given, side, options.workflows))
        _print_parts(rounds["aegis"], _ours(options.workflows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workflows", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=4)
    return parser.parse_args()


@contextmanager
def _sides(given: Servers, concurrency: int) -> Iterator[list[Side]]:
    import bare  # noqa: PLC0415 - it reads the environment when it is imported
    from bench_workflows import TenSteps  # noqa: PLC0415

    from aegis.sync import DurableWorkflowEngine  # noqa: PLC0415

    with psycopg2.connect(given.database_url) as connection, connection.cursor() as cursor:
        cursor.execute(bare.SCHEMA)
    engine = DurableWorkflowEngine(actor="app:bench")
    environment = given.environment(AEGIS_WORKFLOWS="bench_workflows")
    concurrently = f"--concurrency={concurrency}"
    with (
        worker("aegis.workers.app", environment, concurrently) as ours,
        worker("bare", environment, concurrently, "-Q", "bare") as theirs,
    ):
        yield [
            Side(
                name="aegis",
                start=lambda name: _start(engine, TenSteps, name),
                count="SELECT count(*) FROM aegis_workflow WHERE id LIKE %s AND status = 'completed'",
                durations="SELECT extract(epoch FROM updated_at - created_at) FROM aegis_workflow WHERE id LIKE %s",
                process=ours,
            ),
            Side(
                name="bare",
                start=lambda name: bare.start(name, STEPS, TEXT),
                count=f"SELECT count(*) FROM bare_workflow WHERE id LIKE %s AND seq = {STEPS}",
                durations=(
                    "SELECT extract(epoch FROM max(at) - min(at)) FROM bare_checkpoint"
                    " WHERE workflow_id LIKE %s GROUP BY workflow_id"
                ),
                process=theirs,
            ),
        ]


def _start(engine: object, kind: type, name: str) -> None:
    engine.start(kind(text=TEXT), id=name)  # type: ignore[attr-defined]


def _throughput(given: Servers, side: Side, workflows: int) -> Round:
    """Start many workflows while nobody consumes, then let them run; count transitions a second."""
    name = f"{side.name}-{time.monotonic_ns()}"
    side.process.suspend()
    children = [child for child in side.process.children() if not _is_pulse(child)]
    for number in range(workflows):
        side.start(f"{name}-{number:05d}")
    before = _usage(given, side, children)
    began = time.monotonic()
    side.process.resume()
    with psycopg2.connect(given.database_url) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            while True:
                cursor.execute(side.count, (f"{name}-%",))
                if cursor.fetchone() == (workflows,):
                    break
                time.sleep(0.02)
    seconds = time.monotonic() - began
    after = _usage(given, side, children)
    transitions = workflows * STEPS
    parts = [(b - a) / transitions * 1000 for a, b in zip(before, after, strict=True)]
    return Round(
        rate=transitions / seconds, parent=parts[0] - parts[1], children=parts[1], postgres=parts[2], broker=parts[3]
    )


def _usage(given: Servers, side: Side, children: list[psutil.Process]) -> list[float]:
    return [
        cpu_seconds(side.process),
        sum(cpu_seconds(child) for child in children),
        cpu_seconds(given.postgres),
        cpu_seconds(given.broker),
    ]


def _is_pulse(process: psutil.Process) -> bool:
    return "aegis.workers.pulse" in process.cmdline()


def _latency(given: Servers, side: Side, workflows: int) -> list[float]:
    """Run workflows four at a time; return how long each took (seconds), from start to its last commit."""
    name = f"{side.name}-latency-{time.monotonic_ns()}"

    def one(number: int) -> None:
        full = f"{name}-{number:05d}"
        side.start(full)
        with psycopg2.connect(given.database_url) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                while True:
                    cursor.execute(side.count, (full,))
                    if cursor.fetchone() == (1,):
                        return
                    time.sleep(0.005)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(one, range(workflows)))
    with psycopg2.connect(given.database_url) as connection, connection.cursor() as cursor:
        cursor.execute(side.durations, (f"{name}-%",))
        return sorted(float(row[0]) for row in cursor.fetchall())


def _ours(workflows: int) -> dict[str, float]:
    """Run transitions in this process, without Celery; return milliseconds of processor time by part."""
    from bench_workflows import TenSteps  # noqa: PLC0415 - it needs the environment

    from aegis.config.settings import settings  # noqa: PLC0415
    from aegis.core.bell import Bell  # noqa: PLC0415
    from aegis.persistence import repository  # noqa: PLC0415
    from aegis.sync import DurableWorkflowEngine  # noqa: PLC0415
    from aegis.tasks import attempt  # noqa: PLC0415
    from aegis.tasks.bench import Bench  # noqa: PLC0415
    from aegis.tasks.broker import Broker  # noqa: PLC0415
    from aegis.tasks.transition import run_transition  # noqa: PLC0415
    from aegis.workers.factory import make_app  # noqa: PLC0415

    engine = DurableWorkflowEngine(actor="app:bench")
    bench = Bench(settings(), engine.database, lambda _: True, "bench")
    names = [engine.start(TenSteps(text=TEXT)).id for _ in range(workflows)]
    parts = {"claim": 0.0, "commit": 0.0, "hash": 0.0}
    _timed(repository, "claim", parts, "claim")
    _timed(repository, "commit", parts, "commit")
    _timed(attempt.moves, "advance", parts, "hash")
    for seq in range(STEPS):  # once for nothing
        run_transition(bench, names[0], seq)
    parts.update(dict.fromkeys(parts, 0.0))
    began = time.process_time()
    for name in names[1:]:
        for seq in range(STEPS):
            run_transition(bench, name, seq)
    total = time.process_time() - began
    broker = Broker(make_app(settings()))
    bells = [Bell(workflow_id=name, seq=99, queue="nobody", label="bench") for name in names]
    broker.ring(bells[:1])
    began = time.process_time()
    for bell in bells:
        broker.ring([bell])
    publishing = (time.process_time() - began) / len(bells) * 1000
    count = (len(names) - 1) * STEPS
    each = {part: seconds / count * 1000 for part, seconds in parts.items()}
    return {**each, "rest": total / count * 1000 - sum(each.values()), "publish": publishing}


def _timed(owner: object, name: str, parts: dict[str, float], part: str) -> None:
    real = getattr(owner, name)

    def timed(*args: object, **kwargs: object) -> object:
        began = time.process_time()
        try:
            return real(*args, **kwargs)
        finally:
            parts[part] += time.process_time() - began

    setattr(owner, name, timed)


def _print_parts(rounds: list[Round], ours: dict[str, float]) -> None:
    median = {
        part: statistics.median(getattr(one, part) for one in rounds) for part in ("parent", "children", "postgres")
    }
    own = ours["claim"] + ours["commit"] + ours["hash"] + ours["rest"]
    celery = median["parent"] + median["children"] - own - ours["publish"]
    print("\nCPU per transition of AEGIS by part, ms")
    print(f"  Celery                 {celery:.2f}   (its parent, and its share of the child)")
    print(f"  publishing the next    {ours['publish']:.2f}   (kombu)")
    print(
        f"  ours                   {own:.2f}   (claim {ours['claim']:.2f}, commit {ours['commit']:.2f},"
        f" envelope and hashes {ours['hash']:.2f}, the rest {ours['rest']:.2f})"
    )
    print(f"  PostgreSQL             {median['postgres']:.2f}")
    whole = celery + own + ours["publish"] + median["postgres"]
    made = _link()
    print(
        f"\nEnvelope and hashes are {ours['hash'] / whole:.1%} of that. By themselves, in microseconds of a transition:"
    )
    print(
        f"  canonical JSON {made['canonical']:.1f}, SHA-256 {made['hashes']:.1f}, salts {made['salts']:.1f},"
        f" records around them {made['rest']:.1f}; a code (HMAC) would add {made['code']:.1f}"
    )


def _link() -> dict[str, float]:
    """Tie transitions with the same data, and nothing else; return microseconds of processor time by part."""
    now = datetime.now(UTC)
    step = chain.Step(
        workflow_id="bench-17",
        seq=7,
        type="bench.TenSteps",
        definition="sha256:" + "ab" * 32,
        event="advance",
        from_state="s6",
        to_state="s7",
        actor="worker:bench",
        attempt=1,
        at=now,
        state={"state": "s7", "text": TEXT},
    )
    salts = (os.urandom(32), os.urandom(32))
    made = chain.link(step, b"p" * 32, salts=salts, max_bytes=2**18)
    key = chain.MacKey(id="k", secret=os.urandom(32), required_from=now)
    return _by_part(
        whole=lambda: chain.link(step, b"p" * 32, salts=(os.urandom(32), os.urandom(32)), max_bytes=2**18),
        canonical=lambda: (
            chain.checkpoint_body(step.workflow_id, step.seq, step.state, max_bytes=2**18),
            made.envelope.to_bytes(),
        ),
        hashes=lambda: (chain.checkpoint_commitment(salts[0], made.checkpoint), chain.transition_hash(made.body)),
        salts=lambda: (os.urandom(32), os.urandom(32)),
        code=lambda: key.code(made.hash),
    )


def _by_part(**parts: Callable[[], object]) -> dict[str, float]:
    found = {}
    for name, part in parts.items():
        began = time.process_time()
        for _ in range(ROUNDS_OF_ONE):
            part()
        found[name] = (time.process_time() - began) / ROUNDS_OF_ONE * 1e6
    return {**found, "rest": found["whole"] - found["canonical"] - found["hashes"] - found["salts"]}


def _print_rounds(rounds: dict[str, list[Round]], options: argparse.Namespace) -> None:
    print(
        f"{options.rounds} rounds of {options.workflows} workflows of {STEPS} transitions,"
        f" prefork {options.concurrency}, {os.cpu_count()} cores\n"
    )
    print("             transitions/s        CPU per transition, ms (median)")
    print("             median    min    max   Celery's parent  child  PostgreSQL  broker    all")
    for name, found in rounds.items():
        rates = [one.rate for one in found]
        parts = [statistics.median(getattr(one, part) for one in found) for part in ("parent", "children")]
        parts += [statistics.median(getattr(one, part) for one in found) for part in ("postgres", "broker")]
        print(
            f"{name:<12} {statistics.median(rates):6.0f} {min(rates):6.0f} {max(rates):6.0f}"
            f"   {parts[0]:15.2f} {parts[1]:6.2f} {parts[2]:11.2f} {parts[3]:7.2f} {sum(parts):6.2f}"
        )
    pairs = zip(rounds["aegis"], rounds["bare"], strict=True)
    ratios = [ours.rate / theirs.rate for ours, theirs in pairs]
    print(f"\nAEGIS / bare: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})\n")


def _print_latency(side: Side, durations: list[float]) -> None:
    p50 = statistics.median(durations) * 1000
    p99 = durations[min(len(durations) - 1, int(len(durations) * 0.99))] * 1000
    print(f"{side.name:<12} a workflow of {STEPS}, {AT_A_TIME} at a time: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


if __name__ == "__main__":
    main()
