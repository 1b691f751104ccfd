"""How a worker takes a message in: what is no call at all is refused there, before anything is made of it.

Celery itself takes a body of another shape for a fault of its own, ends the worker, and puts the message back:
one such message would end every worker that there is, again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default

_PARTS = 3


def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., Any]:
    """Return what handles the messages of a task: Celery's own, for those that it can handle."""
    receive = default(task, app, consumer)

    def receive_or_refuse(message: Any, *arguments: Any, **options: Any) -> Any:
        if not _is_call(message.payload):
            raise InvalidTaskError("it is not (arguments, keyword arguments, options)")  # logged, and thrown away
        return receive(message, *arguments, **options)

    return receive_or_refuse


def _is_call(payload: object) -> bool:
    if isinstance(payload, dict):  # Celery's first protocol
        return isinstance(payload.get("args"), list) and isinstance(payload.get("kwargs", {}), dict)
    if not isinstance(payload, list | tuple) or len(payload) != _PARTS:
        return False
    args, kwargs, options = payload
    return isinstance(args, list | tuple) and isinstance(kwargs, dict) and isinstance(options, dict | None)
