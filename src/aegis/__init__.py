"""AEGIS: durable workflows on Celery.

A workflow is a state machine declared as a class; each transition runs as one Celery task, which
commits a checkpoint to PostgreSQL before it acknowledges its message.
"""

from .core.approval import Approval
from .core.effect import Happened
from .core.errors import AegisError, DidNotHappen
from .core.machine import Definition
from .core.retry import Retry, RetryAfter
from .core.upgrade import upgrade
from .core.workflow import Context, Workflow, transition

__all__ = [
    "AegisError",
    "Approval",
    "Context",
    "Definition",
    "DidNotHappen",
    "Happened",
    "Retry",
    "RetryAfter",
    "Workflow",
    "transition",
    "upgrade",
]
