"""The broker as AEGIS uses it: a doorbell that may forget everything at any moment."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Final, TypeVar

from celery import Celery
from kombu.exceptions import KombuError

from ..config.logging import get_logger
from ..config.settings import safe_url
from ..core.bell import Bell
from ..core.errors import BrokerUnavailable
from ..core.starting import HIGHEST_PRIORITY

T = TypeVar("T")

TRANSITION: Final = "aegis.transition"
# A queue that nobody reads, with one message in it: when that is gone, the broker lost its memory.
_MARK: Final = "aegis.mark"
# How long a broker that did not answer is not asked again (seconds).
_AWAY_FOR: Final = 1.0
# Of a queue in Redis: kombu's own, which an app has that says nothing about it.
PRIORITY_STEPS: Final = (0, 3, 6, 9)
_WORKFLOWS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "aegis:workflow")

log = get_logger(__name__)


class Broker:
    """Ringing, and the few questions that recovery asks; made for one Celery app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._away_until = 0.0

    @property
    def url(self) -> str:
        """The broker's address, without its password."""
        return safe_url(str(self._app.conf.broker_url))

    def ring(self, bells: Sequence[Bell], /) -> bool:
        """Put the bells on their queues, many in one pipelined publish; return whether all are there.

        A broker that is away is logged, never raised: whatever was not rung is due soon.
        """
        try:
            self._act(lambda producer: self._publish(producer, bells))
        except BrokerUnavailable as error:
            log.warning("not rung", bells=len(bells), reason=error.reason)
            return False
        return True

    def lengths(self, queues: Iterable[str | None]) -> dict[str | None, int]:
        """Return how many messages wait in each queue (None: the default one).

        Raises:
            BrokerUnavailable: nothing is known then.

        """
        return {queue: self._length(queue or self._app.conf.task_default_queue) for queue in set(queues)}

    def remembers(self) -> bool:
        """Whether the mark is still there.

        Raises:
            BrokerUnavailable: nothing is known then.

        """
        return self._length(_MARK) > 0

    def remember(self) -> None:
        """Leave the mark.

        Raises:
            BrokerUnavailable: it may not be there.

        """
        self._act(
            lambda producer: producer.publish(
                "", routing_key=_MARK, exchange="", declare=[self._app.amqp.queues[_MARK]], serializer="json"
            )
        )

    def ping(self) -> None:
        """Ask for a sign of life.

        Raises:
            BrokerUnavailable: there was none.

        """
        self._length(_MARK)

    def _publish(self, producer: Any, bells: Sequence[Bell]) -> None:
        if len(bells) == 1:
            self._publish_one(producer, bells[0])
            return
        # Any retry option of the transport would silently turn a batch into single publishes.
        if not producer.supports_batch_publish:
            log.debug("the broker takes no batches", bells=len(bells))
        with producer.batch():
            for bell in bells:
                self._publish_one(producer, bell)

    def _publish_one(self, producer: Any, bell: Bell) -> None:
        amqp = self._app.amqp
        current = self._app.current_worker_task
        message = amqp.as_task_v2(
            # Fresh each time: an id that is used again would be poisoned for ever by one revoke.
            str(uuid.uuid4()),
            TRANSITION,
            args=(bell.workflow_id, bell.seq),
            # What Flower and the logs show.
            shadow=bell.label,
            argsrepr=f"({bell.workflow_id!r}, {bell.seq})",
            kwargsrepr="{}",
            root_id=str(uuid.uuid5(_WORKFLOWS, bell.workflow_id)),
            parent_id=current.request.id if current is not None else None,
            ignore_result=True,
        )
        queue = bell.queue or self._app.conf.task_default_queue
        priority = _told(bell.priority, producer.connection.transport.driver_type)
        amqp.send_task_message(producer, TRANSITION, message, queue=queue, retry=False, priority=priority)

    def _length(self, queue: str) -> int:
        def ask(producer: Any) -> int:
            # Not passive: with a key prefix, kombu asks Redis for the queue under its bare name.
            declared = producer.channel.queue_declare(queue=queue, durable=True, auto_delete=False)
            return int(declared.message_count)

        return self._act(ask)

    def _act(self, act: Callable[[Any], T]) -> T:
        if time.monotonic() < self._away_until:
            raise BrokerUnavailable(self.url, "it did not answer a moment ago")
        try:
            with self._app.producer_or_acquire() as producer:
                _connect(producer.connection)
                return act(producer)
        except self._errors as error:
            # The next callers need not wait out the same time-outs, in an application's request perhaps.
            self._away_until = time.monotonic() + _AWAY_FOR
            raise BrokerUnavailable(self.url, _reason(error)) from error

    @cached_property
    def _errors(self) -> tuple[type[Exception], ...]:
        """What the transport raises when the broker is away, or breaks off."""
        connection = self._app.connection_for_write()
        told = (*connection.connection_errors, *connection.channel_errors)
        return (OSError, KombuError, *(error for error in told if issubclass(error, Exception)))


def _connect(connection: Any) -> None:
    """Connect, if it is not: once to each host. Left to itself, kombu goes on trying for six seconds."""
    # One try asks all Sentinels; kombu takes each of them for a server of its own.
    servers = [url for url in connection.alt if not url.startswith("sentinel://")]
    connection.ensure_connection(max_retries=max(0, len(servers) - 1), interval_start=0, interval_step=0)


def _told(priority: int, transport: str) -> int:
    """Return how a broker is told a priority, 0 to 9: in kombu's Redis, 0 is the most urgent.

    There each step is a list of its own. Only those steps are used that every app has which was not told
    otherwise: what is put on another list, such an app would never read.
    """
    if transport != "redis":
        return priority
    return max(step for step in PRIORITY_STEPS if step <= HIGHEST_PRIORITY - priority)


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
