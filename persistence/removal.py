"""Removing on purpose: erasing a workflow's data, pruning old checkpoints, purging what has ended.

What stays proves the rest: commitments and hashes remain, and a record says who removed what, and
why - an erasure in the workflow's own chain, the others in the system's. Each function does one
bounded piece inside one transaction of its caller: all of it happened, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    cast,
    delete,
    func,
    lateral,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from ..core.errors import HistoryBroken, InvalidData, InvalidName, WrongStatus
from ..core.names import SYSTEM, check_new_id
from . import database as databases
from . import effects, moves, sqlite
from .database import in_transaction
from .models import ENDED, CheckpointRow, EventRow, LogRow, PayloadRow, TransitionRow, WorkflowRow
from .operations import Terms, check_reason, lock
from .records import Position
from .repository import commit, progress_of
from .system import Removal, hold, record
from .walk import Piece, Place, after, page

# How many checkpoints, or transitions, one piece removes.
_MOST: Final = 5000
_MOST_KEPT: Final = 1_000_000
_LONGEST: Final = timedelta(days=36_500)
_ENDED_FIRST: Final = ("completed", "cancelled (`aegis cancel` comes first)")
# What a row may say of a person.
_FORGOTTEN: Final[Mapping[str, Any]] = {"inbox": 0, "attributes": {}, "singleton": None}
# What these said stays: it is no user's data, and without it the chain could not be verified.
_KEPT_PAYLOADS: Final = ("erased", "imported")
_UNITS: Final = (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("m", timedelta(minutes=1)))

_W: Final = WorkflowRow.__table__.c
_T: Final = TransitionRow.__table__.c
_C: Final = CheckpointRow.__table__.c
_L: Final = LogRow.__table__.c


# --- erase --------------------------------------------------------------------------------------


def erase(session: Session, workflow_id: str, reason: str, terms: Terms) -> bool:
    """Erase a workflow's data, and with it the salts: the hashes stay, and tell nothing.

    Its payloads, its events, all its checkpoints, its attributes and its key, what its last error said. A
    transition ``erased`` says who did it and why; ``reason`` stays for ever, and must hold no personal data.
    Returns False if it was erased before, and there is nothing new.

    Raises:
        InvalidName, NotCanonical: the id, or the reason, which must not be empty; nothing was erased.
        WorkflowNotFound, WorkflowPurged, WrongStatus: nothing was erased.

    """
    check_new_id(workflow_id)
    if not reason.strip():
        raise InvalidName("reason", reason, "say why it is erased, without personal data: that stays")
    check_reason(reason)
    position, status, now = lock(session, workflow_id)
    if status not in ENDED:
        raise WrongStatus(workflow_id, status, "erasing", _ENDED_FIRST)
    listed = progress_of(session.connection(), workflow_id, position.seq)
    if not _delete_data(session, workflow_id):
        return False
    move = moves.intervene(
        position,
        "erased",
        {},
        status=status,
        payload={"reason": reason, "through": position.seq, "status": status},
        progress=listed,
        actor=terms.actor,
        at=max(now, position.moved_at),
        mac_key=terms.mac_key,
    )
    moved = commit(in_transaction(session), move, grace=terms.grace)
    assert moved is not None, "the row is locked: nobody can have moved it"  # noqa: S101
    return True


def _delete_data(session: Session, workflow_id: str) -> int:
    """Delete everything that a user, or a handler, gave a workflow; return how many rows that were."""
    connection = session.connection()

    def told_by(*events: str) -> Select[Any]:
        return select(_T.seq).where(_T.workflow_id == workflow_id, _T.event.in_(events))

    gone = 0
    for statement in (
        delete(PayloadRow).where(
            PayloadRow.workflow_id == workflow_id, PayloadRow.seq.not_in(told_by(*_KEPT_PAYLOADS))
        ),
        # Those of an erasure hold nothing.
        delete(CheckpointRow).where(
            CheckpointRow.workflow_id == workflow_id, CheckpointRow.seq.not_in(told_by("erased"))
        ),
        delete(EventRow).where(EventRow.workflow_id == workflow_id),
        # With the rows: a handler that outlived its workflow would fill in a result once more.
        effects.delete_of([workflow_id]),
    ):
        gone += connection.execute(statement).rowcount
    if gone:
        connection.execute(update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(_FORGOTTEN))
    return gone


# --- prune --------------------------------------------------------------------------------------


def prune(session: Session, place: Place, terms: Terms, *, keep: int, older_than: timedelta, reason: str = "") -> Piece:
    """Remove old checkpoints, but not the newest ``keep`` transitions' of a workflow, and not its first.

    Only those older than ``older_than``, by the database's time. No workflow's row is locked: what
    is below the newest is read by no worker, and a workflow never goes back.

    Raises:
        InvalidData, InvalidName, NotCanonical: a limit, or the reason, that cannot be; nothing was removed.

    """
    if not 1 <= keep <= _MOST_KEPT:
        raise InvalidData("the limits", [("/keep", f"{keep} is not between 1 and {_MOST_KEPT}")])
    check_span(older_than)
    check_reason(reason)
    until = databases.now(session.connection()) - older_than
    seen = session.execute(page(place, until, _oldest_of(keep) < until)).all()
    ids = [row.id for row in seen if row.chosen]
    if not ids:
        return Piece(removed=0, place=after(seen, seen))
    system = hold(session, terms)
    gone = session.execute(_delete_checkpoints(session.connection(), ids, keep, until)).all()
    # In one workflow the earlier is the older: what is gone of it is all up to there.
    through: dict[str, int] = {}
    for row in gone:
        through[row.workflow_id] = max(row.seq, through.get(row.workflow_id, 0))
    removals = [Removal(workflow_id=workflow_id, through_seq=seq) for workflow_id, seq in sorted(through.items())]
    # They are no part of the history, which tells of them: no record is needed.
    session.execute(effects.delete_old(ids, keep, until, _MOST))
    if removals:
        rule = f"all but the newest {keep} of a workflow, older than {span_text(older_than)}"
        record(session, system, "pruned", removals, _because(reason, rule), terms)
    return Piece(removed=len(gone), place=place if len(gone) == _MOST else after(seen, seen))


def _prunable(keep: int) -> Select[Any]:
    """Return the query for a workflow's checkpoints that may go, the oldest first."""
    return (
        select(_C.workflow_id, _C.seq, _C.number, _C.at)
        .where(_C.workflow_id == _W.id, _C.seq >= 1, _C.seq <= _W.seq - keep)
        .order_by(_C.seq, _C.number)
        .correlate(WorkflowRow)
    )


def _oldest_of(keep: int) -> ColumnElement[datetime]:
    return _prunable(keep).with_only_columns(_C.at).limit(1).scalar_subquery()


def _some_of(ids: Sequence[str], keep: int, until: datetime) -> Select[Any]:
    # First limited, then compared: else all that is too young would be read, to find that it is.
    oldest = lateral(_prunable(keep).limit(_MOST), name="oldest")
    return (
        select(oldest.c.workflow_id, oldest.c.seq, oldest.c.number)
        .select_from(WorkflowRow)
        .join(oldest, true())
        .where(_among(_W.id, ids), oldest.c.at < until)
        .limit(_MOST)
    )


def _some_of_file(ids: Sequence[str], keep: int, until: datetime) -> Select[Any]:
    """Return the same query for SQLite, which has no LATERAL."""
    return (
        select(_C.workflow_id, _C.seq, _C.number)
        .join(WorkflowRow, _C.workflow_id == _W.id)
        .where(_among(_W.id, ids), _C.seq >= 1, _C.seq <= _W.seq - keep, _C.at < until)
        .order_by(_C.workflow_id, _C.seq, _C.number)
        .limit(_MOST)
    )


def _delete_checkpoints(connection: Connection, ids: Sequence[str], keep: int, until: datetime) -> Any:
    some = (_some_of if connection.dialect.name == "postgresql" else _some_of_file)(ids, keep, until)
    key = tuple_(_C.workflow_id, _C.seq, _C.number)
    return delete(CheckpointRow).where(key.in_(some)).returning(_C.workflow_id, _C.seq)


# --- purge --------------------------------------------------------------------------------------


def purge(session: Session, place: Place, terms: Terms, *, older_than: timedelta, reason: str = "") -> Piece:
    """Remove workflows that ended, and of which nothing was heard for ``older_than``, for good.

    What stays of each is its id, which is never used again, its length, its head, and its places in
    the log. One whose transitions are not all in the log yet, or are not what the log says, is left.

    Raises:
        InvalidData, InvalidName, NotCanonical: a span, or a reason, that cannot be; nothing was removed.
        NotOnSQLite: there is no log that they could leave their places in.

    """
    _need_log(session)
    check_span(older_than)
    check_reason(reason)
    until = databases.now(session.connection()) - older_than
    seen = session.execute(page(place, until, _ripe(until))).all()
    taken = _bounded(seen)
    ids, ready = [row.id for row in taken if row.chosen], and_(_ripe(until), _is_logged())
    removed = 0
    if ids and session.execute(select(_W.id).where(_among(_W.id, ids), ready).limit(1)).all():
        system = hold(session, terms)
        rule = f"ended, and unchanged for {span_text(older_than)}"
        removals = _locked(session, ids, ready)
        removed = _purge(session, system, removals, _because(reason, rule), terms)
    return Piece(removed=removed, place=after(taken, seen))


def purge_one(
    session: Session, workflow_id: str, terms: Terms, *, older_than: timedelta | None = None, reason: str = ""
) -> None:
    """Remove one workflow for good; see ``purge``.

    Raises:
        InvalidName, InvalidData, NotCanonical: nothing was removed.
        WorkflowNotFound, WorkflowPurged: there is none, or none any more.
        WrongStatus: it has not ended, is too young, or is not wholly in the log yet.
        HistoryBroken: it is not what the log says: what is left of it is evidence.
        NotOnSQLite: there is no log that it could leave its place in.

    """
    _need_log(session)
    check_new_id(workflow_id)
    check_reason(reason)
    if older_than is not None:
        check_span(older_than)
    system = hold(session, terms)
    position, status, now = lock(session, workflow_id)
    if status not in ENDED:
        raise WrongStatus(workflow_id, status, "purging", _ENDED_FIRST)
    if older_than is not None and not _holds(session, workflow_id, _ripe(now - older_than)):
        raise WrongStatus(workflow_id, status, "purging", [f"unchanged for {span_text(older_than)}"])
    _need_logged(session, position, status)
    one = Removal(workflow_id=workflow_id, through_seq=position.seq, head=position.head)
    _purge(session, system, [one], _because(reason, "by its id"), terms)


def _need_log(session: Session) -> None:
    remedy = "erase the data of what has ended, or delete the whole file when it is not needed any more"
    sqlite.refuse(session.connection(), "purging", remedy)


def _ripe(until: datetime) -> ColumnElement[bool]:
    return and_(_W.status.in_(ENDED), _W.updated_at < until, _W.id != SYSTEM)


def _bounded(rows: Sequence[Any]) -> Sequence[Any]:
    """Return the first rows of a page, as many as have no more transitions than one piece may remove, or one."""
    total = 0
    for count, row in enumerate(rows):
        total += row.seq + 1 if row.chosen else 0
        if count and total > _MOST:
            return rows[:count]
    return rows


def _locked(session: Session, ids: Sequence[str], ready: ColumnElement[bool]) -> list[Removal]:
    """Lock those workflows of which the condition holds, also once they had to be waited for; return them."""
    rows = session.execute(select(_W.id, _W.seq, _W.head).where(_among(_W.id, ids), ready).with_for_update())
    return [Removal(workflow_id=row.id, through_seq=row.seq, head=bytes(row.head)) for row in rows]


def _is_logged() -> ColumnElement[bool]:
    """Return the condition that every transition of a workflow has its place in the log, as it is."""
    same = and_(_L.workflow_id == _T.workflow_id, _L.seq == _T.seq, _L.hash == _T.hash)
    of_it = (
        select(func.count())
        .select_from(TransitionRow)
        .join(LogRow, same)
        .where(_T.workflow_id == _W.id, _T.seq <= _W.seq)
        .correlate(WorkflowRow)
        .scalar_subquery()
    )
    placed = and_(_L.workflow_id == _W.id, _L.seq == _W.seq, _L.lost_seq.is_(None))
    head = select(_L.hash).where(placed).correlate(WorkflowRow).scalar_subquery()
    return and_(of_it == _W.seq + 1, head == _W.head)


def _need_logged(session: Session, position: Position, status: str) -> None:
    workflow_id, seq = position.workflow_id, position.seq
    if _holds(session, workflow_id, _is_logged()):
        return
    places = select(func.count()).where(_L.workflow_id == workflow_id, _L.seq <= seq, _L.lost_seq.is_(None))
    if session.execute(places).scalar_one() == seq + 1:
        raise HistoryBroken(workflow_id, seq, "it is not what the log says; `aegis verify` tells more")
    raise WrongStatus(workflow_id, status, "purging", ["in the log to its end, which beat sees to within a minute"])


def _holds(session: Session, workflow_id: str, condition: ColumnElement[bool]) -> bool:
    return session.execute(select(_W.id).where(_W.id == workflow_id, condition)).one_or_none() is not None


def _purge(session: Session, system: Position, removals: Sequence[Removal], reason: str, terms: Terms) -> int:
    """Remove locked workflows, once it is written down: the database lets no transition go before."""
    if not removals:
        return 0
    record(session, system, "purged", removals, reason, terms)
    connection, ids = session.connection(), [one.workflow_id for one in removals]
    connection.execute(delete(PayloadRow).where(_among(PayloadRow.workflow_id, ids)))
    connection.execute(delete(CheckpointRow).where(_among(CheckpointRow.workflow_id, ids)))
    connection.execute(delete(EventRow).where(_among(EventRow.workflow_id, ids)))
    connection.execute(effects.delete_of(ids))
    each = func.unnest(cast(ids, ARRAY(Text))).column_valued("each")
    connection.execute(select(func.aegis_purge(each))).all()
    connection.execute(delete(WorkflowRow).where(_among(_W.id, ids)))
    return len(removals)


# --- shared -------------------------------------------------------------------------------------


def check_span(span: timedelta) -> None:
    """Refuse an age that nothing can have.

    Raises:
        InvalidData: it is negative, or longer than a hundred years.

    """
    if not timedelta(0) <= span <= _LONGEST:
        raise InvalidData("the limits", [("/older_than", f"{span} is not between 0 and {_LONGEST.days} days")])


def span_text(span: timedelta) -> str:
    """Return a span as the command line takes it: ``90d``, ``12h``, ``30m``, ``45s``."""
    for unit, length in _UNITS:
        if span and not span % length:
            return f"{span // length}{unit}"
    return f"{span.total_seconds():g}s"


def _among(column: Any, ids: Sequence[str]) -> ColumnElement[bool]:
    among: ColumnElement[bool] = column.in_(ids)
    return among


def _because(reason: str, rule: str) -> str:
    return f"{reason} ({rule})" if reason else rule
