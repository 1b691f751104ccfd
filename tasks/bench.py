"""The workbench of one worker process: what it works with, made once, on first use."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Final, TypeVar

from ..config.keys import active_mac_key, mac_keys
from ..config.logging import get_logger
from ..config.settings import Settings
from ..core.bell import Ring
from ..core.chain import MacKey
from ..core.errors import DatabaseUnavailable
from ..core.workflow import registry
from ..persistence.database import Database
from ..persistence.operations import Terms
from ..persistence.records import Hand

T = TypeVar("T")

log = get_logger(__name__)

_FIRST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 2.0
_SAY_EVERY: Final = 30.0


@dataclass(frozen=True)
class Bench:
    """Database, bell and settings of one process of the worker ``worker_id``."""

    settings: Settings
    database: Database
    ring: Ring
    worker_id: str

    @cached_property
    def known(self) -> list[str]:
        """``type/version`` of the workflows that this worker can run."""
        return registry.known()

    @cached_property
    def mac_key(self) -> MacKey | None:
        """The key that authenticates transitions, where there is one."""
        return active_mac_key(self.settings)

    @cached_property
    def mac_keys(self) -> tuple[MacKey, ...]:
        """All such keys: what was saved before the newest was made carries the code of an older one."""
        return mac_keys(self.settings.key_folder)

    @property
    def actor(self) -> str:
        """Who the history says acted."""
        return f"worker:{self.worker_id}"

    @property
    def hand(self) -> Hand:
        """This thread of this process; it holds one workflow at a time."""
        return Hand(worker=self.worker_id, pid=os.getpid(), thread=threading.get_ident())

    @property
    def grace(self) -> timedelta:
        """How long after a ring a workflow is due again."""
        return timedelta(seconds=self.settings.ring_grace)

    @property
    def terms(self) -> Terms:
        """On what terms a handler sends events: its message says who sends it."""
        return Terms(
            actor=self.actor,
            grace=self.grace,
            max_bytes=self.settings.max_bytes,
            mac_key=self.mac_key,
            mac_keys=self.mac_keys,
        )

    def patiently(self, act: Callable[[], T]) -> T:
        """Act, as often as it takes for the database to answer.

        A worker without its database has nothing else to do, and what it holds is worth keeping.
        Only for what may be done twice.
        """
        wait, began, said = _FIRST_WAIT, time.monotonic(), 0.0
        while True:
            try:
                return act()
            except DatabaseUnavailable as error:
                if time.monotonic() - said > _SAY_EVERY:
                    said = time.monotonic()
                    log.warning("waiting for the database", reason=error.reason, for_seconds=round(said - began))
                time.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT)


def default_worker_id() -> str:
    """Return a name for a process that no worker's heartbeat speaks for."""
    return f"{socket.gethostname()}-{os.getpid()}"
