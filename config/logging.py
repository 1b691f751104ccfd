"""Logging: fixed events with keys, through structlog onto the standard library's loggers.

As a library AEGIS configures nothing: its records are the standard library's and go where the
application sends them, with the keys in the text. Its own processes call ``configure``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog

from .settings import Settings


@dataclass(frozen=True)
class Said:
    """The message of a record: an event and its keys, for whoever formats it as text or otherwise."""

    event: str
    keys: Mapping[str, Any]

    def __str__(self) -> str:
        """Return one line."""
        return " ".join([self.event, *(f"{key}={value!r}" for key, value in self.keys.items())])


def get_logger(name: str, **keys: Any) -> structlog.stdlib.BoundLogger:
    """Return a logger whose events carry keys, on top of the standard library's logger of that name."""
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.PositionalArgumentsFormatter(), _say],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
        **keys,
    )
    return logger


def configure(settings: Settings) -> None:
    """Send every record of this process to standard error, in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                _unpack,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=_rendering(settings),
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    if settings.log_level == "info":
        # Celery tells of each message, twice and without the workflow's id; AEGIS tells of each transition.
        for name in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _say(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Make the call of the standard library's logger; the keys stay apart, so that none can collide."""
    options = {name: event.pop(name) for name in ("exc_info", "stack_info", "stacklevel") if name in event}
    return {"msg": Said(str(event.pop("event")), event), **options}


def _unpack(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    said = event["_record"].msg
    if isinstance(said, Said):
        event.update(said.keys)
        event["event"] = said.event
    return event


def _rendering(settings: Settings) -> list[structlog.types.Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if settings.log_format == "json":
        return [strip, structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    # Plain: the default would print every local variable, whatever secret is in it.
    plain = structlog.dev.plain_traceback
    return [strip, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=plain)]
