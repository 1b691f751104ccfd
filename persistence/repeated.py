"""A start that is repeated: whether what was started under the id is what is asked for now.

Between the two there may have been a deployment. What is stored is brought along first as a worker would:
upgraded, and with the defaults of fields that are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..core.canonical import canonical, load, pointer_step
from ..core.errors import HistoryBroken, InvalidData, NotCanonical, StartConflict, UnknownVersion, UpgradeFailed
from ..core.starting import Conditions, Start, compared
from ..core.workflow import Workflow, read_data, snapshot
from .history import is_erased, version_at
from .models import CheckpointRow, PayloadRow, WorkflowRow

_ANY_SIZE: Final = 2**30

_W: Final = WorkflowRow.__table__.c


def was_started(session: Session, workflow_id: str, start: Start[Any], data: Mapping[str, Any]) -> bool:
    """Whether it was started before, with the data and the conditions that are given now.

    Raises:
        StartConflict: with something else, or with what cannot be brought to the code here.

    """
    workflow: type[Workflow] = type(start.workflow)
    found = session.execute(select(_W.type, _W.version).where(_W.id == workflow_id)).one_or_none()
    if found is None:
        return False
    if found.type != workflow.definition.type:
        raise StartConflict(workflow_id, [f"type: {found.type} then, {workflow.definition.type} now"])
    before, said = _first_of(session, workflow_id)
    conditions = Conditions(
        priority=start.priority, queue=start.queue, singleton=start.singleton, attributes=start.attributes or {}
    )
    unlike = differences(before, dict(data))
    # The same bytes may mean something else to another version; where there never was one, nobody has to look.
    if unlike or workflow.definition.upgrades:
        version = version_at(session.connection(), workflow_id, 0, found.version)
        unlike = _brought_along(workflow, before, version, data, unlike)
    if unlike := unlike + differences(compared(said), conditions.compared()):
        raise StartConflict(workflow_id, unlike)
    return True


def _brought_along(
    workflow: type[Workflow], before: Any, version: int, data: Mapping[str, Any], unlike: list[str]
) -> list[str]:
    """Return what differs once the old data is as the class here has it; where it cannot be, what differs as it is."""
    try:
        return differences(snapshot(read_data(workflow, before, version)), dict(data))
    except (UnknownVersion, UpgradeFailed, InvalidData, NotCanonical) as error:
        # Word for word the same is the same, also where an application older than the stored data says it again.
        return unlike and [*unlike, f"and the code here cannot read what it was started with: {error}"]


def _first_of(session: Session, workflow_id: str) -> tuple[Any, object]:
    """Return the data that a workflow was started with, and what was said of the conditions."""
    row = session.execute(
        select(CheckpointRow.body, PayloadRow.body.label("said"))
        .outerjoin(PayloadRow, (PayloadRow.workflow_id == CheckpointRow.workflow_id) & (PayloadRow.seq == 0))
        .where(CheckpointRow.workflow_id == workflow_id, CheckpointRow.seq == 0, CheckpointRow.number == 0)
    ).one_or_none()
    if row is None:
        if is_erased(session.connection(), workflow_id, 0):
            raise StartConflict(workflow_id, ["its data was erased: nothing is left to compare with"])
        raise HistoryBroken(workflow_id, 0, "its first checkpoint is missing; `aegis verify` tells more")
    members: Any = load(bytes(row.body))
    return members["state"], None if row.said is None else load(bytes(row.said))


_NOTHING: Final = object()


def differences(before: object, now: object, pointer: str = "") -> list[str]:
    """Return where two JSON values differ, as lines for a person.

    They are compared by their canonical bytes: to Python, ``True == 1`` and ``1 == 1.0``.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in differences(before.get(key, _NOTHING), now.get(key, _NOTHING), pointer + pointer_step(key))
        ]
    then, given = _shown(before), _shown(now)
    return [] if then == given else [f"{pointer or '/'}: {_cut(then)} then, {_cut(given)} now"]


def _shown(value: object) -> str:
    return "nothing" if value is _NOTHING else canonical(value, max_bytes=_ANY_SIZE).decode()


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - a line's worth
