"""Chaos: workers killed with SIGKILL at random, the broker's memory wiped once - and how long each took to heal."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import psutil
from redis import Redis

from ..config.settings import Settings
from ..persistence.database import Connection, Database
from ..servers.supervisor import Supervisor
from . import ledger

# Between two kills (seconds): a worker needs one or two of them to come back.
_SHORTEST: Final = 0.5
_LONGEST: Final = 1.5
_FIRST: Final = 0.3
# Rough, not endless: a large file needs a few undisturbed seconds at some time.
_MOST_KILLS: Final = 10
_LEAVE_LAST: Final = 5
_MOST_TRIES: Final = 40


@dataclass
class Wound:
    """Something that was done; ``is_healed`` says whether the workflows that it met can go on."""

    what: str
    at: float
    is_healed: Callable[[Connection], bool]
    healed_after: float | None = None


@dataclass
class Chaos:
    """Kills and wipes while it is looked at; ``wipe_at`` is the share of the work done by then."""

    settings: Settings
    supervisor: Supervisor
    database: Database
    run: str
    workers: tuple[str, ...]
    wipe_at: float = 0.4
    tell: Callable[[str], None] = lambda _: None
    wounds: list[Wound] = field(default_factory=list)
    kills: int = 0
    wipes: int = 0
    _following: float = field(default_factory=lambda: time.monotonic() + _FIRST)
    _random: random.Random = field(default_factory=random.Random)

    def look(self, done: int, of: int) -> None:
        """Do what is due, with so many workflows done of so many."""
        now = time.monotonic()
        self.heal()
        if not self.wipes and done >= of * self.wipe_at:
            self._wipe()
        elif self.kills < _MOST_KILLS and now >= self._following and of - done > _LEAVE_LAST and self._kill():
            self._following = now + self._random.uniform(_SHORTEST, _LONGEST)

    def heal(self) -> None:
        """Note what has recovered by now."""
        for wound in self.wounds:
            if wound.healed_after is None:
                with self.database.statement() as connection:
                    if wound.is_healed(connection):
                        wound.healed_after = time.monotonic() - wound.at

    def _kill(self) -> bool:
        # Who is at work first: a worker that is still starting has nothing to lose, and is only tried for a while.
        drawn = self._random.sample(self.workers, len(self.workers))
        for name in sorted(drawn, key=lambda each: not self._in_hand(each)):
            pid = self.supervisor.pid(name)
            if held := self._caught(name, pid):
                self._killed(name, pid, held)
                return True
        return False

    def _killed(self, name: str, pid: int, held: dict[str, int]) -> None:
        self.supervisor.kill(name)
        self.kills += 1
        healed = lambda connection: not ledger.still_in_hand(connection, held)  # noqa: E731 - it is kept
        self.wounds.append(Wound(what="kill", at=time.monotonic(), is_healed=healed))
        self.tell(f"{name} (pid {pid}) killed with {len(held)} workflow{'s' * (len(held) > 1)} in hand")

    def _caught(self, name: str, pid: int) -> dict[str, int]:
        """Stop a worker while it has something in hand, and return that; nothing if it never has.

        Its handlers take milliseconds: what was in hand when we asked is done when the signal comes.
        """
        # But not the process of its heartbeat, which has a session of its own and sees the worker out.
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # killed before, and not started again yet
            worker = psutil.Process(pid)
            family = [worker, *(one for one in worker.children() if os.getsid(one.pid) == pid)]
        if not family:
            return {}
        for _ in range(_MOST_TRIES):
            _each(family, psutil.Process.suspend)
            if held := self._in_hand(name):
                return held
            _each(family, psutil.Process.resume)
            time.sleep(self._random.uniform(0, 0.01))
        return {}

    def _in_hand(self, name: str) -> dict[str, int]:
        with self.database.statement() as connection:
            return ledger.in_hand(connection, self.run, name)

    def _wipe(self) -> None:
        with self.database.statement() as connection:
            unheard = ledger.waiting(connection, self.run)
        wipe(self.settings)
        self.wipes += 1
        healed = lambda connection: not unheard or ledger.has_any_moved(connection, unheard)  # noqa: E731 - it is kept
        self.wounds.append(Wound(what="wipe", at=time.monotonic(), is_healed=healed))
        self.tell(f"broker wiped with {len(unheard)} workflows waiting for their bell")

    def times(self, what: str) -> list[float]:
        """Return how long the wounds of a kind took to heal (seconds)."""
        return [w.healed_after for w in self.wounds if w.what == what and w.healed_after is not None]


def _each(family: list[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in family:
        with suppress(psutil.NoSuchProcess):
            act(process)


def wipe(settings: Settings) -> None:
    """Make the broker forget: everything, where it is private; what is ours, where it is somebody's."""
    client = Redis.from_url(settings.broker.replace("redis+socket://", "unix://"))
    if settings.embedded:
        client.flushall()
    else:
        keys = list(client.scan_iter(match=f"{settings.broker_prefix}*", count=1000))
        if keys:
            client.delete(*keys)
    client.close()
