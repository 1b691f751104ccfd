"""The servers that a benchmark runs on: private ones in a folder of their own, gone with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from aegis.config.settings import Settings
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.servers.postgres import Postgres
from aegis.servers.valkey import Valkey

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Addresses, and the processes whose processor time is counted."""

    folder: Path
    database_url: str
    broker_url: str
    postgres: psutil.Process
    broker: psutil.Process

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of everything that is measured."""
        return {
            **os.environ,
            "AEGIS_DATABASE_URL": self.database_url,
            "AEGIS_BROKER_URL": self.broker_url,
            "AEGIS_LOG_LEVEL": "warning",
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges",
            **more,
        }


@contextmanager
def servers() -> Iterator[Servers]:
    """Run a PostgreSQL with durable settings and a Valkey, with AEGIS's schema."""
    folder = Path(tempfile.mkdtemp(prefix="aegis-bench-"))
    folder.chmod(0o755)
    settings = Settings(home=folder)
    postgres, valkey = Postgres.prepare(settings), Valkey.prepare(settings)
    running = [
        subprocess.Popen(
            postgres.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **postgres.identity
        ),
        subprocess.Popen(valkey.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"),
    ]
    try:
        while not (postgres.is_ready() and valkey.is_ready()):
            time.sleep(0.05)
        database = Database(settings.database, pool_size=1)
        upgrade(database)
        database.close()
        yield Servers(
            folder=folder,
            database_url=settings.database.replace("postgresql+psycopg2", "postgresql"),
            broker_url=settings.broker,
            postgres=psutil.Process(running[0].pid),
            broker=psutil.Process(running[1].pid),
        )
    finally:
        for process, number in zip(running, (signal.SIGINT, signal.SIGTERM), strict=True):
            process.send_signal(number)
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def worker(app: str, environment: Mapping[str, str], *options: str) -> Iterator[psutil.Process]:
    """Run a Celery worker and wait until it is ready."""
    argv = [sys.executable, "-m", "celery", "--quiet", "-A", app, "worker", "--loglevel=WARNING", *options]
    quiet = ["--without-mingle", "--without-gossip", "--hostname=bench@%h"]
    process = subprocess.Popen(
        [*argv, *quiet], env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=HERE
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def cpu_seconds(process: psutil.Process) -> float:
    """Return the processor time of a process and all below it, including those that have ended."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            used = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total
