"""What beat runs, and how often; and a beat that runs it itself.

AEGIS's periodic work runs inside the beat process: recovery must not wait in a queue behind what
it is to recover, nor for a worker that has a child to spare. Any number of beats may run. An app
with a scheduler of its own (``django-celery-beat``) publishes the same tasks to workers instead.
"""

from __future__ import annotations

from typing import Any

from celery.beat import ScheduleEntry, Scheduler

from ..config.settings import Settings
from ..tasks.entry import CHECKPOINT, PERIODIC, SWEEP, run_periodic


def schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the entries for Celery's ``beat_schedule``."""
    sweep, checkpoint = settings.sweep_interval, settings.checkpoint_interval / 10
    return {
        "aegis-sweep": {"task": SWEEP, "schedule": sweep, "options": {"expires": sweep}},
        "aegis-checkpoint": {"task": CHECKPOINT, "schedule": checkpoint, "options": {"expires": checkpoint}},
    }


class InProcessScheduler(Scheduler):
    """Celery's scheduler, but AEGIS's own entries are run where it stands; the rest is published."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing of ours needs Celery's five minutes between two looks at the schedule.
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
        if entry.task in PERIODIC:
            run_periodic(self.app, entry.task)
        else:
            super().apply_entry(entry, producer=producer)
