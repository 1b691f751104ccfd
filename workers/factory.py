"""Making a Celery app that speaks AEGIS, for workers, for beat, and for those who only ring."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection

from ..config.broker import Sentinels
from ..config.settings import Settings
from ..tasks.broker import PRIORITY_STEPS
from ..tasks.broker_check import sentinel_options
from ..tasks.entry import install
from .heartbeat import HeartbeatStep
from .schedule import schedule

# Between two tries to reach a broker that is away (seconds). Celery's own pauses grow to thirty.
_LONGEST_PAUSE: Final = 2
# What one Sentinel may take to answer, before the next one is asked (seconds).
_ASKING: Final = 1


class _Connection(Connection):
    """A connection that is tried again soon, however long the broker has been away, and that ends with it."""

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        pauses = {"interval_start": 1, "interval_step": 1, "interval_max": _LONGEST_PAUSE}
        return super()._ensure_connection(*args, **pauses | kwargs)

    def maybe_close_channel(self, channel: Any) -> None:
        """Close it, as far as that is possible, while it still knows to whom it was connected.

        kombu stops at a read that fails, and goes on when it closes everything once more: by then it has
        forgotten the connection, and putting back what is unacknowledged ends a busy worker (AttributeError).
        """
        super().maybe_close_channel(channel)
        if not channel.closed:
            super().maybe_close_channel(channel)


class _Amqp(AMQP):
    Connection = _Connection


def make_app(settings: Settings) -> Celery:
    """Return a Celery app with AEGIS's settings, tasks and heartbeat."""
    app = Celery("aegis", amqp=_Amqp, set_as_current=False)
    app.conf.update(
        broker_url=settings.broker,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # the default gives up after 100
        broker_transport_options=transport_options(settings),
        task_default_queue=settings.queue,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_pool="prefork",
        worker_prefetch_multiplier=1,
        worker_soft_shutdown_timeout=settings.stop_grace,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_proc_alive_timeout=15,
        worker_max_tasks_per_child=20_000,
        # Flower asks for events while it watches; nobody else pays for them.
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        beat_scheduler="aegis.workers.schedule:InProcessScheduler",
        beat_schedule=schedule(settings),
        enable_utc=True,
        timezone="UTC",
    )
    install(app)
    app.steps["worker"].add(HeartbeatStep)
    return app


def transport_options(settings: Settings) -> dict[str, Any]:
    """Return how kombu speaks to the broker; no retry_on_timeout: it would disable batches."""
    return {
        # Longer than any handler: heartbeats find the dead, a second copy only costs a look.
        "visibility_timeout": 6 * 3600,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "unacked_restore_limit": 100,  # each restore blocks the parent's loop
        "unacked_mutex_expire": 30,  # the default: 300 s of no restores after a crash
        "global_keyprefix": settings.broker_prefix,
        "priority_steps": list(PRIORITY_STEPS),
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 15,  # a half-open BRPOP is noticed
        **(_behind(settings.sentinels, settings) if settings.sentinels else {}),
    }


def _behind(sentinels: Sentinels, settings: Settings) -> dict[str, Any]:
    """Return the options of a broker that Sentinels name: shorter waits, there is another one to go to."""
    return {
        "master_name": settings.broker_master,
        # A Sentinel that has just come back knows no others yet, and may name a server of long ago.
        "min_other_sentinels": sentinels.most_lost,
        "sentinel_kwargs": sentinel_options(settings, _ASKING),
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
    }
