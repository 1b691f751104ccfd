"""The log: all transitions of all workflows in one order, and the Merkle tree over it.

One process at a time gives out places, in batches, to what has committed. Nothing is ever changed:
beside the leaves, the tree keeps the nodes over 256, 65,536, ... of them as soon as these are
whole, so that adding to it, its root, and proofs about it cost what is new, not its length.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, Text, and_, cast, column, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ..core.anchor import Entry
from ..core.errors import LogBroken
from ..core.merkle import leaf_hash, node_hash, root_of
from ..core.note import LogHead
from . import sql, sqlite
from .database import reason_of
from .models import AnchorRow, LogRow, LogStateRow, NodeRow, TransitionRow

# The letters of "aegl".
_LOCK: Final = 0x6165676C
_WIDTH: Final = 256
_BITS: Final = 8


@dataclass(frozen=True, kw_only=True)
class LogState:
    """How far the log is: ``size`` leaves; every transition of a transaction below ``horizon`` is in it."""

    size: int
    horizon: int
    system: str


def is_kept(connection: Connection) -> bool:
    """Whether there is a log here; in SQLite, whose transactions have no numbers, there is none."""
    return connection.dialect.name != "sqlite"


def lock(connection: Connection) -> bool:
    """Take the log for this transaction; False if another process has it.

    Raises:
        NotOnSQLite: there is no log.

    """
    sqlite.refuse(connection, "the log, and what is anchored of it,")
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK))).scalar_one())


def state(connection: Connection) -> LogState:
    """Return how far the log is."""
    row = connection.execute(select(LogStateRow.size, LogStateRow.horizon, LogStateRow.system)).one()
    return LogState(size=row.size, horizon=row.horizon, system=row.system)


def is_of(workflow_id: Any, seq: Any) -> ColumnElement[bool]:
    """Return the condition that an entry is of a transition; one that was lost has its place for itself."""
    return and_(LogRow.workflow_id == workflow_id, LogRow.seq == seq, LogRow.lost_seq.is_(None))


def oldest_outside(connection: Connection, found: LogState) -> datetime | None:
    """Return the time of the oldest transition that has no place yet; None if all have."""
    table = TransitionRow.__table__.c
    placed = select(1).where(is_of(table.workflow_id, table.seq)).exists()
    query = select(func.min(table.at)).where(~placed)
    if not is_elsewhere(connection, found):
        query = query.where(table.xact >= found.horizon)
    oldest: datetime | None = connection.execute(query).scalar_one()
    return oldest


def is_elsewhere(connection: Connection, found: LogState) -> bool:
    """Whether what the log counts are the transactions of another cluster: it was dumped there and restored here."""
    return found.system != _system(connection)


def server(connection: Connection) -> str:
    """Return what names the server of this moment: another one after a restart, a restore and a fail-over."""
    started, on = connection.execute(select(func.pg_postmaster_start_time(), sql.timeline())).one()
    return f"{_system(connection)}/{on}/{started.isoformat()}"


# --- growing ------------------------------------------------------------------------------


def take_up(connection: Connection, limit: int) -> int:
    """Give the next places in the log to at most so many transitions; return how many.

    To be called with the log locked. Transitions are found by their transactions, of which those
    are looked at that are all over: one that is still running may yet commit below others.

    Raises:
        LogBroken: what is in the log already is not whole, or goes on beyond where it ends.

    """
    before = state(connection)
    system = _system(connection)
    running = cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger)
    bound: int = connection.execute(select(running)).scalar_one()
    # What another cluster wrote, before it was dumped and restored here, has that one's transactions.
    moved = system != before.system
    fresh = _fresh(connection, before, None if moved else bound, limit)
    if fresh:
        _append(connection, before.size, fresh)
    more = len(fresh) == limit
    connection.execute(
        update(LogStateRow).values(
            size=before.size + len(fresh),
            horizon=bound if not more else before.horizon if moved else fresh[-1].xact,
            system=before.system if moved and more else system,
        )
    )
    return len(fresh)


def _fresh(connection: Connection, before: LogState, bound: int | None, limit: int) -> list[Any]:
    table = TransitionRow.__table__.c
    known = select(1).where(is_of(table.workflow_id, table.seq)).exists()
    query = (
        select(table.workflow_id, table.seq, table.hash, table.xact)
        .where(~known)
        .order_by(table.xact, table.workflow_id, table.seq)
        .limit(limit)
    )
    if bound is not None:
        query = query.where(table.xact >= before.horizon, table.xact < bound)
    return list(connection.execute(query))


def take_over(connection: Connection, size: int, entries: Sequence[Entry], lost: Collection[int], record: int) -> None:
    """Add entries that were anchored before a recovery; those in ``lost`` have no transition any more.

    Raises:
        LogBroken: what is in the log already is not whole, or goes on beyond where it ends.

    """
    rows = [
        {
            "log_index": size + place,
            "workflow_id": entry.workflow_id,
            "seq": entry.seq,
            "hash": entry.hash,
            "lost_seq": record if size + place in lost else None,
        }
        for place, entry in enumerate(entries)
    ]
    try:
        connection.execute(insert(LogRow), rows)
        _keep_nodes(connection, size, size + len(rows))
    except IntegrityError as error:
        raise LogBroken(size, f"it ends here, and yet goes on: {reason_of(error)}") from None
    connection.execute(update(LogStateRow).values(size=size + len(rows)))


def _append(connection: Connection, size: int, rows: Sequence[Any]) -> None:
    try:
        connection.execute(insert(LogRow), [_leaf(size + place, row) for place, row in enumerate(rows)])
        _keep_nodes(connection, size, size + len(rows))
    except IntegrityError as error:
        raise LogBroken(size, f"it ends here, and yet goes on: {reason_of(error)}") from None


def _leaf(index: int, row: Any) -> Mapping[str, Any]:
    return {"log_index": index, "workflow_id": row.workflow_id, "seq": row.seq, "hash": row.hash}


def _system(connection: Connection) -> str:
    control = func.pg_control_system().table_valued(column("system_identifier"))
    return str(connection.execute(select(control.c.system_identifier)).scalar_one())


def _keep_nodes(connection: Connection, old: int, new: int) -> None:
    """Keep the nodes that became whole when the log grew from ``old`` to ``new`` leaves."""
    tree, level = Tree(connection), 1
    while new >> _BITS * level:
        whole = range(old >> _BITS * level, new >> _BITS * level)
        rows = [{"level": level, "number": number, "hash": tree.over(level, number)} for number in whole]
        if rows:
            connection.execute(insert(NodeRow), rows)
        level += 1


# --- the tree -----------------------------------------------------------------------------


class Tree:
    """The tree over the log, as ``core.merkle`` asks for it; what it has read it keeps, up to a bound."""

    _MOST: Final = 64

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._read: dict[tuple[int, int], dict[int, bytes]] = {}

    def mth(self, start: int, end: int) -> bytes:
        """Return the hash over the leaves from ``start`` up to ``end``, as RFC 6962 cuts ranges.

        Raises:
            LogBroken: leaves or nodes are missing.

        """
        count = end - start
        if count & (count - 1) or start % count:
            middle = start + (1 << (count - 1).bit_length() - 1)
            return node_hash(self.mth(start, middle), self.mth(middle, end))
        level = (count.bit_length() - 1) // _BITS
        first = start >> _BITS * level
        return root_of(self._node(level, first + number) for number in range(count >> _BITS * level))

    def root(self, size: int) -> bytes:
        """Return the root over the first ``size`` leaves."""
        return self.mth(0, size) if size else root_of([])

    def over(self, level: int, number: int) -> bytes:
        """Return the hash of node ``number`` of a level, made from the 256 below it.

        Raises:
            LogBroken: one of these is missing.

        """
        first = number * _WIDTH
        return root_of(self._node(level - 1, below) for below in range(first, first + _WIDTH))

    def _node(self, level: int, number: int) -> bytes:
        siblings = self._siblings(level, number // _WIDTH)
        if number not in siblings:
            what = "the entry" if level == 0 else f"the node over {_WIDTH**level} entries"
            raise LogBroken(number << _BITS * level, f"{what} is missing")
        return siblings[number]

    def _siblings(self, level: int, above: int) -> dict[int, bytes]:
        """Return the nodes of a level (0: the leaves) below node ``above`` of the next, by their numbers."""
        if (level, above) not in self._read:
            if len(self._read) >= self._MOST:
                self._read.pop(next(iter(self._read)))
            within = (above * _WIDTH, above * _WIDTH + _WIDTH - 1)
            if level == 0:
                found = select(LogRow.log_index, LogRow.hash).where(LogRow.log_index.between(*within))
                self._read[level, above] = {at: leaf_hash(bytes(one)) for at, one in self._connection.execute(found)}
            else:
                kept = select(NodeRow.number, NodeRow.hash).where(
                    NodeRow.level == level, NodeRow.number.between(*within)
                )
                self._read[level, above] = {at: bytes(one) for at, one in self._connection.execute(kept)}
        return self._read[level, above]


# --- what was anchored ------------------------------------------------------------------------


def entries(connection: Connection, start: int, end: int) -> list[Entry]:
    """Return the leaves from ``start`` up to ``end``, by the transitions that they are of.

    Raises:
        LogBroken: one is missing.

    """
    table = LogRow.__table__.c
    rows = connection.execute(
        select(table.log_index, table.workflow_id, table.seq, table.hash)
        .where(table.log_index >= start, table.log_index < end)
        .order_by(table.log_index)
    ).all()
    for place, row in enumerate(rows):
        if row.log_index != start + place:
            raise LogBroken(start + place, "the entry is missing")
    if len(rows) != end - start:
        raise LogBroken(start + len(rows), "the entry is missing")
    return [Entry(workflow_id=row.workflow_id, seq=row.seq, hash=bytes(row.hash)) for row in rows]


def keep_anchor(connection: Connection, head: LogHead, note: str) -> None:
    """Note that an anchor was written; what counts is where else it stands."""
    row = {"size": head.size, "root": head.root, "at": head.at, "note": note}
    connection.execute(insert(AnchorRow).values(row))


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """What the database has of the newest anchor."""

    size: int
    at: datetime


def last_anchored(connection: Connection) -> Anchored | None:
    """Return what the newest anchor was about; None if none was ever written."""
    query = select(AnchorRow.size, AnchorRow.at).order_by(AnchorRow.id.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else Anchored(size=row.size, at=row.at)


def places(connection: Connection, workflow_id: str) -> dict[int, tuple[int, bytes]]:
    """Return the places of a workflow's transitions in the log, and the hashes that stand there, by seq."""
    rows = connection.execute(
        select(LogRow.seq, LogRow.log_index, LogRow.hash).where(
            LogRow.workflow_id == workflow_id, LogRow.lost_seq.is_(None)
        )
    )
    return {row.seq: (row.log_index, bytes(row.hash)) for row in rows}


def newest(connection: Connection) -> datetime | None:
    """Return when the newest transition was, by the log and what has no place in it yet; None if there is none."""
    table = TransitionRow.__table__.c
    found: datetime | None = connection.execute(
        select(table.at).order_by(table.xact.desc(), table.at.desc()).limit(1)
    ).scalar_one_or_none()
    return found
