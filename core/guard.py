"""Guards: whether an edge may be taken now. They are asked about a copy, and change nothing."""

from __future__ import annotations

from .errors import InvalidHandlerResult
from .machine import Edge
from .shown import shown
from .workflow import Workflow


def allows(workflow: Workflow, edge: Edge, payload: object) -> bool:
    """Ask the guard of ``edge``; ``workflow`` is a copy that nobody uses afterwards.

    Raises:
        InvalidHandlerResult: it answered with no bool, or changed the data.

    """
    if edge.guard is None:
        return True
    before = workflow.to_dict()
    answer = edge.guard(workflow) if edge.on is None else edge.guard(workflow, payload)
    name = f"{workflow.definition.type}.{edge.name}"
    if not isinstance(answer, bool):
        raise InvalidHandlerResult(name, f"its guard returned {shown(answer)}; it must return True or False")
    if workflow.to_dict() != before:
        raise InvalidHandlerResult(name, "its guard changed the workflow's data; only its handler may")
    return answer
