"""AEGIS: durable workflows on Celery.

A workflow is a state machine declared as a class; each transition runs as one Celery task, which
commits a checkpoint to PostgreSQL before it acknowledges its message.
"""

from typing import TYPE_CHECKING, Any

from .core.approval import Approval
from .core.effect import Happened
from .core.errors import AegisError, ConfigurationError, DidNotHappen
from .core.machine import Definition
from .core.retry import Retry, RetryAfter
from .core.starting import Start
from .core.upgrade import upgrade
from .core.workflow import Context, Workflow, transition

if TYPE_CHECKING:
    from .engine import DurableWorkflowEngine

__all__ = [
    "AegisError",
    "Approval",
    "Context",
    "Definition",
    "DidNotHappen",
    "DurableWorkflowEngine",
    "Happened",
    "Retry",
    "RetryAfter",
    "Start",
    "Workflow",
    "transition",
    "upgrade",
]


def _not_installed(name: str | None) -> ConfigurationError:
    remedy = "pip install 'aegis-workflows[async]', or use the blocking engine, aegis.sync.DurableWorkflowEngine"
    return ConfigurationError("aegis.DurableWorkflowEngine", f"{name} is not installed", remedy)


def __getattr__(name: str) -> Any:
    """Load the engine when it is asked for: who declares workflows need not wait for Celery and SQLAlchemy."""
    if name != "DurableWorkflowEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .engine import DurableWorkflowEngine  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _not_installed(error.name) from error
    except ImportError as error:  # as SQLAlchemy says that it misses greenlet
        raise _not_installed("greenlet") from error
    return DurableWorkflowEngine
