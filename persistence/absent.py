"""What is not there on purpose: pruned or purged, each with a record in the system's chain that says so.

A row that says so by itself excuses nothing: the record committed to all of its rows, by their digest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, and_, func, select

from ..core.anchor import Entry
from ..core.canonical import Json, is_canonical, load
from ..core.errors import NotCanonical
from ..core.finding import Code, Finding
from ..core.loss import loss_digest
from ..core.names import SYSTEM
from ..core.removal import removals_digest
from ..core.verify import NOTHING_REMOVED, Removed
from .models import LogRow, PayloadRow, RemovalRow, TransitionRow
from .span import Span

_R: Final = RemovalRow.__table__.c
_T: Final = TransitionRow.__table__.c
_P: Final = PayloadRow.__table__.c
_L: Final = LogRow.__table__.c
LOSS: Final = "loss_accepted"
_KINDS: Final = ("pruned", "purged")


class Records:
    """The records of removals, each checked once."""

    def __init__(self) -> None:
        self._in_order: set[int] = set()
        self.excused = False
        """Whether any of them was taken at its word."""
        self._losses: dict[int, bool] = {}

    def removed(self, connection: Connection, span: Span) -> dict[str, Removed]:
        """Return what was removed of some workflows, as far as the records of it are in order."""
        rows = connection.execute(
            select(_R.workflow_id, _R.system_seq, _R.kind, _R.through_seq, _R.head)
            .where(span.holds(_R.workflow_id))
            .order_by(_R.workflow_id, _R.system_seq)
        ).all()
        unknown = {row.system_seq for row in rows} - self._in_order
        self._in_order |= {seq for seq, committed, found in _digests(connection, unknown) if committed == found}
        removed: dict[str, Removed] = {}
        for row in rows:
            if row.system_seq in self._in_order:
                self.excused = True
                removed[row.workflow_id] = _and(removed.get(row.workflow_id, NOTHING_REMOVED), row)
        return removed

    def lost(self, connection: Connection, indexes: Collection[int]) -> dict[int, int]:
        """Return which of these entries of the log are known to be lost, and the record that says so.

        Only as far as the records are in order: each committed to exactly the entries that it is about.
        """
        rows = connection.execute(
            select(_L.log_index, _L.lost_seq).where(_L.log_index.in_(indexes), _L.lost_seq.is_not(None))
        ).all()
        for seq in {row.lost_seq for row in rows} - self._losses.keys():
            self._losses[seq] = all(committed == found for committed, found in _losses(connection, seq))
        known = {row.log_index: row.lost_seq for row in rows if self._losses[row.lost_seq]}
        self.excused = self.excused or bool(known)
        return known

    @staticmethod
    def broken(connection: Connection) -> Iterator[Finding]:
        """Go through all records; yield those whose rows are not the ones that they committed to."""
        found_wrong = [(seq, one, other) for seq, one, other in _digests(connection, None) if one != other]
        for seq in _records_of_losses(connection):
            found_wrong += [(seq, one, other) for one, other in _losses(connection, seq) if one != other]
        for seq, committed, found in found_wrong:
            yield Finding(workflow_id=SYSTEM, seq=seq, code=Code.PAYLOAD_MISMATCH, expected=committed, actual=found)


def _and(before: Removed, row: Any) -> Removed:
    if row.kind == "purged":
        return Removed(
            pruned_through=before.pruned_through, purged_through=row.through_seq, purged_head=bytes(row.head or b"")
        )
    return Removed(
        pruned_through=max(before.pruned_through, row.through_seq),
        purged_through=before.purged_through,
        purged_head=before.purged_head,
    )


def _digests(connection: Connection, seqs: Collection[int] | None) -> Iterator[tuple[int, str | None, str | None]]:
    """Yield of each record the digest that it committed to, and that of the rows; None where there is none."""
    if seqs is not None and not seqs:
        return
    record = (
        select(_T.seq, _T.event, _P.body)
        .outerjoin_from(TransitionRow, PayloadRow, and_(_P.workflow_id == _T.workflow_id, _P.seq == _T.seq))
        .where(_T.workflow_id == SYSTEM, _T.event.in_(_KINDS))
        .subquery()
    )
    query = (
        select(
            func.coalesce(record.c.seq, _R.system_seq),
            *(record.c.event, record.c.body, _R.workflow_id, _R.kind, _R.through_seq, _R.head),
        )
        .select_from(record)
        .join(RemovalRow, _R.system_seq == record.c.seq, full=True)
        .order_by(func.coalesce(record.c.seq, _R.system_seq))
        .execution_options(stream_results=True, max_row_buffer=1000)
    )
    if seqs is not None:
        query = query.where(_R.system_seq.in_(seqs))
    for seq, rows in groupby(connection.execute(query), itemgetter(0)):
        listed = list(rows)
        event, body = listed[0][1], listed[0][2]
        removed = [(row[3], row[4], row[5], None if row[6] is None else bytes(row[6])) for row in listed if row[3]]
        fits = bool(removed) and all(kind == event for _, kind, _, _ in removed)
        yield seq, _committed(body), _digest(removed) if fits else None


def _records_of_losses(connection: Connection) -> list[int]:
    """Return the records of losses, and those that entries of the log say there are."""
    told = select(_T.seq).where(_T.workflow_id == SYSTEM, _T.event == LOSS)
    said = select(_L.lost_seq).where(_L.lost_seq.is_not(None))
    return sorted(connection.execute(told.union(said)).scalars())


def _losses(connection: Connection, seq: int) -> Iterator[tuple[str | None, str | None]]:
    """Yield the digest that a record of a loss committed to, and that of the entries that name it."""
    own = and_(_P.workflow_id == _T.workflow_id, _P.seq == _T.seq)
    record = connection.execute(
        select(_T.event, _P.body)
        .outerjoin_from(TransitionRow, PayloadRow, own)
        .where(_T.workflow_id == SYSTEM, _T.seq == seq)
    ).one_or_none()
    rows = connection.execute(select(_L.log_index, _L.workflow_id, _L.seq, _L.hash).where(_L.lost_seq == seq)).all()
    entries = [(row[0], Entry(workflow_id=row[1], seq=row[2], hash=bytes(row[3]))) for row in rows]
    committed = None if record is None or record[0] != LOSS else _committed(record[1])
    # Of none, too: nothing may be lost but the end of the log, where a record says so.
    yield committed, loss_digest(entries).hex()


def _digest(removed: list[tuple[str, str, int, bytes | None]]) -> str | None:
    """Return the digest of rows; None if there can be none, as nobody can have committed to them."""
    try:
        return removals_digest(removed).hex()
    except NotCanonical:
        return None


def _committed(body: Any) -> str | None:
    """Return the digest in a record's payload; nothing that is equal to it if it cannot be read."""
    payload: Json = load(bytes(body)) if body is not None and is_canonical(bytes(body)) else None
    digest = payload.get("digest") if isinstance(payload, dict) else None
    return digest if isinstance(digest, str) else "a digest"
