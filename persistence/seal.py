"""Whether a checkpoint inside a handler is what its writer left: asked before anything is built on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, and_, select

from ..core.canonical import is_canonical, load
from ..core.chain import MacKey, transition_hash
from ..core.seal import flaw, inside_hash, required_from
from .models import CheckpointRow, TransitionRow
from .records import Position, Snapshot

_C: Final = CheckpointRow.__table__.c
_T: Final = TransitionRow.__table__.c


def is_vouched_for(connection: Connection, position: Position, snapshot: Snapshot, keys: Sequence[MacKey]) -> bool:
    """Whether it carries the code that it has to carry; a transition's own needs none, that has one itself.

    It has to, if the transition that it follows was made when every transition had to.
    """
    if not snapshot.number or not keys:
        return True
    by_id = {key.id: key for key in keys}
    row = connection.execute(
        select(_C.mac, _C.mac_key, _T.envelope)
        .join_from(CheckpointRow, TransitionRow, and_(_T.workflow_id == _C.workflow_id, _T.seq == _C.seq))
        .where(_C.workflow_id == position.workflow_id, _C.seq == position.seq, _C.number == snapshot.number)
    ).one_or_none()
    if row is None:
        return False
    mac = None if row.mac is None else bytes(row.mac)
    hash_ = inside_hash(position.workflow_id, position.seq, snapshot.number, snapshot.commitment)
    needed = _is_needed(position, bytes(row.envelope), by_id)
    return flaw(mac, row.mac_key, hash_, by_id, needed=needed) is None


def _is_needed(position: Position, envelope: bytes, keys: Mapping[str, MacKey]) -> bool:
    """Judge by the envelope, not by a column beside it; one that is not the head's says nothing."""
    if transition_hash(envelope) != position.head or not is_canonical(envelope):
        return True
    members: Any = load(envelope)
    since = required_from(keys)
    return since is not None and str(members["at"]) >= since
