"""Faults at the ports: loaded into a worker as if it were a workflow module, it wraps what meets the outside.

``AEGIS_TEST_FAULT`` says where and what, as ``point:deed``; each happens once in a deployment (the
file that ``AEGIS_TEST_FAULT_ONCE`` names is made when it does), or ``point:deed:always``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import event
from sqlalchemy.orm import Session

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence import effects, repository
from aegis.tasks import attempt as attempt_module
from aegis.tasks.broker import Broker


def _kill_child() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_worker() -> None:
    """End the worker, with all its children, but not the process that writes its heartbeat."""
    os.kill(os.getppid(), signal.SIGKILL)  # its other children die with it
    _kill_child()


def _kill_host() -> None:
    """End all of it, as a host that is lost does."""
    for sibling in psutil.Process(os.getppid()).children():
        if "aegis.workers.pulse" in sibling.cmdline():
            sibling.suspend()
            sibling.kill()
    _kill_worker()


def _lose_answer() -> None:
    raise DatabaseUnavailable("test", "the answer got lost")


DEEDS: dict[str, Callable[[], None]] = {
    "child": _kill_child,
    "worker": _kill_worker,
    "host": _kill_host,
    "unknown": _lose_answer,
}


def _once() -> bool:
    try:
        Path(os.environ["AEGIS_TEST_FAULT_ONCE"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _before(owner: Any, name: str, deed: Callable[[], None]) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _once():
            deed()
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, deed: Callable[[], None]) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if result is not None and _once():
            deed()
        return result

    setattr(owner, name, wrapped)


def _at_the_commit_inside(name: str, deed: Callable[[], None]) -> None:
    """Do it where the transaction of a transactional handler is committed: ``before_commit`` or ``after_commit``."""
    real = attempt_module.Attempt._run_inside
    inside: list[bool] = []

    def run_inside(*args: Any) -> Any:
        inside.append(True)
        try:
            return real(*args)
        finally:
            inside.pop()

    def happen(session: Session) -> None:
        if inside and not session.in_nested_transaction() and _once():
            deed()

    attempt_module.Attempt._run_inside = run_inside  # type: ignore[method-assign]
    event.listen(Session, name, happen)


POINTS: dict[str, Callable[[Callable[[], None]], None]] = {
    "before claim": lambda deed: _before(repository, "claim", deed),
    "after claim": lambda deed: _after(repository, "claim", deed),
    "in handler": lambda deed: _before(attempt_module, "handle", deed),
    "after handler": lambda deed: _after(attempt_module, "handle", deed),
    "after commit": lambda deed: _after(repository, "commit", deed),
    "before COMMIT inside": lambda deed: _at_the_commit_inside("before_commit", deed),
    "after COMMIT inside": lambda deed: _at_the_commit_inside("after_commit", deed),
    "after intent": lambda deed: _after(effects, "begin", deed),
    "before record": lambda deed: _before(effects, "finish", deed),
    "after record": lambda deed: _after(effects, "finish", deed),
    "before ring": lambda deed: _before(Broker, "ring", deed),
    "after ring": lambda deed: _after(Broker, "ring", deed),
}

fault = os.environ.get("AEGIS_TEST_FAULT")
if fault:
    point, _, deed_name = fault.partition(":")
    POINTS[point](DEEDS[deed_name])
