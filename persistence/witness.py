"""The log beside what was anchored: each entry, the transition that it is of, and what the outside says of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from sqlalchemy import BigInteger, Connection, Text, cast, func, literal, or_, select, tuple_

from ..core.anchor import Entry
from ..core.finding import Code, Finding, Severity
from ..core.merkle import leaf_hash, root_of
from ..core.verify import NOTHING_REMOVED
from . import bulk, log
from .absent import Records
from .audit import Progress, Tally
from .database import Database
from .models import LogRow, NodeRow, TransitionRow, WorkflowRow
from .span import Span

# Whole groups of 256, so that each node of the tree is seen whole.
_BATCH: Final = 256 * 20
_WIDTH: Final = 256
_BITS: Final = 8
# More levels than any log of 64-bit indexes has.
_MOST_LEVELS: Final = 7
_MOST_TOLD: Final = 100
# Keys in one statement.
_AT_ONCE: Final = 500
_LARGEST: Final = 2**63 - 1

_T: Final = TransitionRow.__table__.c
_L: Final = LogRow.__table__.c

Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place in the log: what an anchor says stands there, and what the database says does."""

    index: int
    anchored: Entry | None
    logged: Entry | None

    @property
    def entry(self) -> Entry | None:
        """The one that counts."""
        return self.anchored or self.logged


# --- all of it ------------------------------------------------------------------------------


def compare(
    database: Database, anchored: Iterator[tuple[int, Entry]], records: Records, tally: Tally, progress: Progress
) -> Iterator[Finding]:
    """Go through the whole log, beside what is anchored of it; yield what differs.

    ``anchored`` are entries with their places, in their order; what follows them is not anchored yet.
    """
    nodes = _Nodes()
    start = 0
    while True:
        outside = dict(islice(anchored, _BATCH))
        # After the anchors were read: the log cannot be shorter than what was anchored of it before.
        with database.snapshot() as connection:
            inside, as_logged = _read(connection, start)
            if not outside and not inside:
                following = _next_after(connection, start)
                if following is None:
                    yield from _nodes_without_leaves(connection)
                    return
                # However far away somebody has moved an entry: what is in between is told of once.
                yield _of_the_log(start, f"entries up to {following}", None)
                start, nodes.broken = following // _BATCH * _BATCH, True
                continue
            doubtful = [
                Place(index=index, anchored=outside.get(index), logged=inside.get(index))
                for index in sorted(outside.keys() | inside.keys())
                if index not in as_logged or (index in outside and outside[index] != inside[index])
            ]
            yield from judge(connection, doubtful, records)
            yield from nodes.check(connection, start, inside)
            yield from _holes(start, outside, inside)
        tally.entries += len(outside.keys() | inside.keys())
        progress(tally)
        start += _BATCH


def of_its_state(connection: Connection, found: log.LogState) -> Iterator[Finding]:
    """Tell where what is said of the log is not so: what comes next would get the wrong place, or none at all."""
    size = _size(connection)
    if found.size != size:
        yield _of_the_log(size, f"a log of {size} entries", f"a state that speaks of {found.size}")
    newest = cast(cast(func.pg_snapshot_xmax(func.pg_current_snapshot()), Text), BigInteger)
    next_transaction: int = connection.execute(select(newest)).scalar_one()
    horizon: int | None = found.horizon  # whoever owns the table can have it hold nothing
    if horizon is None or (horizon > next_transaction and not log.is_elsewhere(connection, found)):
        yield _of_the_log(None, f"a horizon up to {next_transaction}", f"one of {horizon}")


def _size(connection: Connection) -> int:
    newest: int | None = connection.execute(select(func.max(_L.log_index))).scalar_one()
    return 0 if newest is None else newest + 1


def _read(connection: Connection, start: int) -> tuple[dict[int, Entry], set[int]]:
    """Return a batch of the log, and the places in it whose transitions have the hash that stands there."""
    inside: dict[int, Entry] = {}
    as_logged: set[int] = set()

    def receive(row: bulk.Row) -> None:
        index = bulk.number(row[0])
        inside[index] = Entry(bulk.text(row[1]) or "", bulk.number(row[2]), row[3] or b"")
        if row[4] == bulk.TRUE:
            as_logged.add(index)

    query = (
        select(_L.log_index, _L.workflow_id, _L.seq, _L.hash, _T.hash == _L.hash)
        .outerjoin_from(LogRow, TransitionRow, (_T.workflow_id == _L.workflow_id) & (_T.seq == _L.seq))
        .where(_L.log_index >= start, _L.log_index < start + _BATCH)
    )
    bulk.read(connection, query, receive)
    return inside, as_logged


def logged(connection: Connection, start: int, end: int) -> dict[int, Entry]:
    """Return what the log has at the places from ``start`` up to ``end``."""
    rows = connection.execute(
        select(_L.log_index, _L.workflow_id, _L.seq, _L.hash).where(_L.log_index >= start, _L.log_index < end)
    )
    return {row[0]: Entry(workflow_id=row[1], seq=row[2], hash=bytes(row[3] or b"")) for row in rows}


def _next_after(connection: Connection, start: int) -> int | None:
    found: int | None = connection.execute(select(func.min(_L.log_index)).where(_L.log_index >= start)).scalar_one()
    return found


def _holes(start: int, outside: Mapping[int, Entry], inside: Mapping[int, Entry]) -> Iterator[Finding]:
    """Tell of places that nothing is known of, though there are others after them."""
    known = outside.keys() | inside.keys()
    for index in range(start, max(known, default=start)):
        if index not in known:
            yield _of_the_log(index, "an entry", None)


def _nodes_without_leaves(connection: Connection) -> Iterator[Finding]:
    """Tell of nodes that are kept over leaves that are not there: the log would trip over them when it gets there."""
    whole = literal(min(_size(connection), _LARGEST), BigInteger).op(">>")(NodeRow.level * _BITS)
    beyond = or_(~NodeRow.level.between(1, _MOST_LEVELS), NodeRow.number < 0, NodeRow.number >= whole)
    kept = select(NodeRow.level, NodeRow.number, NodeRow.hash).where(beyond).order_by(NodeRow.level, NodeRow.number)
    for row in connection.execute(kept.limit(_MOST_TOLD)):
        index = row.number * _WIDTH**row.level if 1 <= row.level <= _MOST_LEVELS else None
        yield _of_the_log(index, None, f"node {row.number} of level {row.level} {bytes(row.hash or b'').hex()}")


class _Nodes:
    """The tree's nodes, computed from the leaves as these come by."""

    def __init__(self) -> None:
        self._group: dict[int, list[bytes]] = defaultdict(list)
        """The nodes of a level that are not yet below one of the next."""
        self._count: dict[int, int] = defaultdict(int)
        self.broken = False

    def check(self, connection: Connection, start: int, inside: Mapping[int, Entry]) -> Iterator[Finding]:
        """Compare those that the leaves of a batch complete with those that are kept."""
        made: dict[tuple[int, int], bytes] = {}
        for first in range(start, start + _BATCH, _WIDTH):
            leaves = [inside.get(index) for index in range(first, first + _WIDTH)]
            whole = [leaf_hash(leaf.hash) for leaf in leaves if leaf is not None]
            if len(whole) != _WIDTH:
                # Nothing above a hole can be computed; the hole itself is told of, if it is one.
                self.broken = True
                break
            self._add(made, 1, root_of(whole))
        kept = self._kept(connection, made)
        for (level, number), digest in made.items():
            if kept.get((level, number)) != digest:
                expected = f"node of level {level} {digest.hex()}"
                found = kept.get((level, number))
                yield _of_the_log(number * _WIDTH**level, expected, None if found is None else found.hex())

    def _add(self, made: dict[tuple[int, int], bytes], level: int, digest: bytes) -> None:
        if self.broken:
            return
        made[level, self._count[level]] = digest
        self._count[level] += 1
        self._group[level].append(digest)
        if len(self._group[level]) == _WIDTH:
            self._add(made, level + 1, root_of(self._group.pop(level)))

    @staticmethod
    def _kept(connection: Connection, made: Mapping[tuple[int, int], bytes]) -> dict[tuple[int, int], bytes]:
        kept: dict[tuple[int, int], bytes] = {}
        for level in {level for level, _ in made}:
            numbers = [number for at, number in made if at == level]
            rows = connection.execute(
                select(NodeRow.number, NodeRow.hash).where(
                    NodeRow.level == level, NodeRow.number >= min(numbers), NodeRow.number <= max(numbers)
                )
            )
            kept |= {(level, row[0]): bytes(row[1] or b"") for row in rows}
        return kept


# --- some of it -----------------------------------------------------------------------------


def judge(connection: Connection, places: Sequence[Place], records: Records) -> Iterator[Finding]:
    """Yield what is wrong with the transitions that stand at these places, and with the places."""
    keys = [(place.entry.workflow_id, place.entry.seq) for place in places if place.entry is not None]
    stored = _hashes(connection, keys)
    accepted = records.lost(connection, [place.index for place in places])
    lost = [key for key in keys if key not in stored]
    tell = _Lost(connection, {workflow_id for workflow_id, _ in lost}, records) if lost else None
    for place in places:
        entry = place.entry
        assert entry is not None, "a place is known by what stands there"  # noqa: S101
        if place.index in accepted and place.logged == (place.anchored or place.logged):
            said = f"lost in a recovery, and accepted: aegis:system {accepted[place.index]}"
            yield _of(entry, Code.LOST, entry.hash.hex(), said, place.index)
            continue
        found = stored.get((entry.workflow_id, entry.seq))
        finding = tell(place.index, entry) if found is None and tell is not None else None
        if finding is not None:
            yield finding
            if finding.severity is Severity.FAILURE and place.logged is None:
                continue  # its place went with it: that is told already
        elif found is not None and found != entry.hash:
            code = Code.LOG_INCONSISTENT if place.anchored is None else Code.ANCHOR_MISMATCH
            yield _of(entry, code, entry.hash.hex(), found.hex(), place.index)
        if place.anchored is not None and place.logged != place.anchored:
            was = None if place.logged is None else _line(place.logged)
            yield _of(entry, Code.LOG_INCONSISTENT, _line(entry), was, place.index)


def _hashes(connection: Connection, keys: Sequence[Key]) -> dict[Key, bytes]:
    if not keys:
        return {}
    found: dict[Key, bytes] = {}
    for start in range(0, len(keys), _AT_ONCE):
        some = tuple_(_T.workflow_id, _T.seq).in_(keys[start : start + _AT_ONCE])
        rows = connection.execute(select(_T.workflow_id, _T.seq, _T.hash).where(some))
        found |= {(row[0], row[1]): bytes(row[2] or b"") for row in rows}
    return found


class _Lost:
    """Says of transitions that are not there what became of them."""

    def __init__(self, connection: Connection, ids: set[str], records: Records) -> None:
        self._removed = {
            workflow_id: records.removed(connection, Span(only=workflow_id)).get(workflow_id, NOTHING_REMOVED)
            for workflow_id in ids
        }
        self._rows = set(connection.execute(select(WorkflowRow.id).where(WorkflowRow.id.in_(ids))).scalars())
        self._ends: dict[str, int] = {
            row[0]: row[1]
            for row in connection.execute(
                select(_T.workflow_id, func.max(_T.seq)).where(_T.workflow_id.in_(ids)).group_by(_T.workflow_id)
            )
        }

    def __call__(self, index: int, entry: Entry) -> Finding | None:
        removed, end = self._removed[entry.workflow_id], self._ends.get(entry.workflow_id, -1)
        if entry.seq < removed.purged_through:
            return None
        if entry.seq == removed.purged_through and entry.hash == removed.purged_head:
            return _of(entry, Code.PURGED, f"seq 0 to {entry.seq}", "purged on purpose", index)
        if end < 0 and entry.workflow_id not in self._rows:
            return _of(entry, Code.MISSING_WORKFLOW, entry.hash.hex(), None, index)
        return _of(entry, Code.TRUNCATED if entry.seq > end else Code.SEQ_GAP, entry.hash.hex(), None, index)


def _line(entry: Entry) -> str:
    return f"{entry.workflow_id} {entry.seq} {entry.hash.hex()}"


def _of(entry: Entry, code: Code, expected: str, actual: str | None, index: int) -> Finding:
    return Finding(
        workflow_id=entry.workflow_id, seq=entry.seq, code=code, expected=expected, actual=actual, log_index=index
    )


def _of_the_log(index: int | None, expected: str | None, actual: str | None) -> Finding:
    return Finding(
        workflow_id=None, seq=None, code=Code.LOG_INCONSISTENT, expected=expected, actual=actual, log_index=index
    )
