"""What beat runs, and how often; and a beat that runs it itself.

AEGIS's periodic work runs inside the beat process: recovery must not wait in a queue behind what
it is to recover, nor for a worker that has a child to spare. Any number of beats may run. An app
with a scheduler of its own (``django-celery-beat``) publishes the same tasks to workers instead.
"""

from __future__ import annotations

from threading import Thread
from typing import Any, Final

from celery.beat import ScheduleEntry, Scheduler

from ..config.settings import Settings
from ..tasks.backups import look
from ..tasks.entry import ANCHOR, BACKUP, CHECKPOINT, PERIODIC, RETAIN, SCRUB, SLOW, SWEEP, run_periodic
from ..tasks.scrub import pause

# Whether an anchor is due is looked at more often than one is written: transitions may come in numbers.
_LOOKS: Final = 12
_RETENTION: Final = 300.0


def schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the entries for Celery's ``beat_schedule``."""
    every = {
        SWEEP: settings.sweep_interval,
        CHECKPOINT: settings.checkpoint_interval / 10,
        ANCHOR: settings.anchor_interval / _LOOKS,
        SCRUB: pause(settings),
        RETAIN: _RETENTION,
        BACKUP: look(settings),
    }
    return {
        name.replace(".", "-"): {"task": name, "schedule": seconds, "options": {"expires": seconds}}
        for name, seconds in every.items()
    }


class InProcessScheduler(Scheduler):
    """Celery's scheduler, but AEGIS's own entries are run where it stands; the rest is published."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing of ours needs Celery's five minutes between two looks at the schedule.
        self._aside: dict[str, Thread] = {}
        self.max_interval = min(self.max_interval, self.app.conf.beat_schedule["aegis-sweep"]["schedule"])

    @property
    def producer(self) -> Any:
        """Return none: asked for it, Celery's own would wait for a broker that is away, and no sweep would run.

        What is published gets one from the app's pool when its time has come.
        """
        return None

    def setup_schedule(self) -> None:
        """Take the schedule from the app; nothing has to be remembered from run to run."""
        self.merge_inplace(self.app.conf.beat_schedule)

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Run one of ours, publish any other."""
        if entry.task in SLOW:
            self._run_aside(entry.task)
        elif entry.task in PERIODIC:
            run_periodic(self.app, entry.task)
        else:
            super().apply_entry(entry, producer=producer)

    def _run_aside(self, name: str) -> None:
        """Run it in a thread of its own, unless the one before still does."""
        before = self._aside.get(name)
        if before is None or not before.is_alive():
            # A daemon: whatever it is at, it may be cut off at any moment, as by a crash.
            self._aside[name] = Thread(target=run_periodic, args=(self.app, name), name=name, daemon=True)
            self._aside[name].start()
