"""Starting many workflows: ``start_many`` beside a loop of ``start``, and both inside the caller's transaction.

    python benchmarks/starting.py --count 1000 --rounds 5

Each round does all of it in turn, and the figures are medians of rounds; the ratio is that of one round's own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

from bench_workflows import TenSteps
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from aegis.config.settings import settings
from aegis.sync import DurableWorkflowEngine, Start
from servers import servers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with servers() as given:
        os.environ.update(given.environment())
        settings.cache_clear()
        measure(options.count, options.rounds)


def measure(count: int, rounds: int) -> None:
    """Print how long each way takes, in turn."""
    engine = DurableWorkflowEngine(actor="app:bench")
    own = create_engine(settings().database)
    ways = {
        "a loop of start": lambda: [engine.start(one.workflow) for one in made(count)],
        "start_many": lambda: engine.start_many(made(count)),
        "a loop of start, session=": lambda: in_one(
            own, lambda session: [engine.start(one.workflow, session=session) for one in made(count)]
        ),
        "start_many, session=": lambda: in_one(own, lambda session: engine.start_many(made(count), session=session)),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # once before anything is measured
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - began)
    first = took["a loop of start"]
    print(f"{os.cpu_count()} cores; {count:,} workflows of about 1 KB, {rounds} rounds\n")
    for name, seconds in took.items():
        ratio = statistics.median(loop / one for loop, one in zip(first, seconds, strict=True))
        median = statistics.median(seconds)
        print(f"{name:28} {median:6.2f} s  {median / count * 1000:6.2f} ms each  {ratio:5.1f} times as fast")


def made(count: int) -> list[Start[TenSteps]]:
    """Return so many workflows."""
    return [Start(TenSteps(text="x" * 900)) for _ in range(count)]


def in_one(own: Engine, act: Callable[[Session], object]) -> None:
    """Act inside one transaction of the caller's."""
    with Session(own) as session, session.begin():
        act(session)


if __name__ == "__main__":
    main()
