"""The two hot statements, written with SQLAlchemy Core against the tables and compiled once."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Interval,
    LargeBinary,
    Select,
    Text,
    and_,
    case,
    cast,
    func,
    insert,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.types import TypeEngine

from . import sql
from .models import CheckpointRow, EventRow, PayloadRow, TransitionRow, WorkflowRow

_W: Final = WorkflowRow.__table__.c
_MOMENT: Final = DateTime(timezone=True)

# SQLAlchemy's dialects are not typed.
DIALECT: Final = PGDialect_psycopg2()  # type: ignore[no-untyped-call]
_PARAMETER: Final = re.compile(r"<<(\w+)>>")

POSITION: Final = (
    *("id", "type", "version", "definition", "state", "seq", "head", "claim", "attempt"),
    *("moved_at", "entered_at", "following", "accepts", "timer_at", "queue", "inbox", "pausing"),
    *("entered_seq", "checkpoint_number"),
)
SNAPSHOT: Final = ("body", "number", "salt", "commitment")
EVENT: Final = ("id", "name", "key", "sender", "payload", "received_at")


def _given(name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> ColumnElement[Any]:
    """Return a parameter that PostgreSQL knows the type of, also where it is null or selected."""
    return cast(literal_column(f"<<{name}>>"), type_)


def _claim() -> Select[Any]:
    # A claim that a crash of PostgreSQL takes back has harmed nothing: it does not wait for the
    # disk. The setting ends with the statement's own transaction.
    mode = select(func.set_config("synchronous_commit", "off", true()).label("set")).cte("mode")
    ours = _W.owner == _given("worker", Text)
    # A hand that asks for work holds none: what is in it was left over when an answer got lost.
    in_hand = and_(ours, _W.owner_pid == _given("pid", Integer), _W.owner_thread == _given("thread", BigInteger))
    dropped = and_(ours, _W.owner_pid == func.any(_given("gone", ARRAY(Integer))))
    claimed = (
        update(WorkflowRow)
        .where(
            _W.id == _given("workflow_id", Text),
            _W.seq == _given("seq", BigInteger),
            _W.ready_at <= sql.now(),
            or_(_W.owner.is_(None), in_hand, dropped),
            (_W.type + "/" + cast(_W.version, Text)) == func.any(_given("known", ARRAY(Text))),
            mode.c.set.is_not(None),  # read, so that it is run,
        )
        .values(
            owner=_given("worker", Text),
            owner_pid=_given("pid", Integer),
            owner_thread=_given("thread", BigInteger),
            claim=_W.claim + 1,
            attempt=_W.attempt + case((in_hand, 0), else_=1),
            claimed_at=sql.now(),
            strayed=0,
            updated_at=sql.now(),
        )
        .returning(*(_W[name] for name in POSITION))
        .cte("claimed")
    )
    newest = (
        select(*(CheckpointRow.__table__.c[name] for name in SNAPSHOT))
        .where(CheckpointRow.workflow_id == claimed.c.id, CheckpointRow.seq == claimed.c.seq)
        .order_by(CheckpointRow.number.desc())
        .limit(1)
        .lateral("newest")
    )
    waiting = (
        select(*(EventRow.__table__.c[name] for name in EVENT))
        .where(
            EventRow.workflow_id == claimed.c.id,
            EventRow.consumed_seq.is_(None),
            claimed.c.inbox > 0,
            claimed.c.accepts.has_key(EventRow.name),
        )
        .order_by(EventRow.id)
        .limit(1)
        .lateral("waiting")
    )
    return select(*claimed.c, sql.now(), *newest.c, *waiting.c).select_from(
        claimed.outerjoin(newest, true()).outerjoin(waiting, true())
    )


def _commit() -> Select[Any]:
    seq = _given("seq", BigInteger)
    ended = _given("ended", Boolean)
    status = _given("status", Text)
    inbox = _W.inbox - case((_given("event_id", BigInteger).is_not(None), 1), else_=0)
    # A pause was asked for, or an event came, while the handler ran: then the next claim sees to it.
    called = or_(_W.pausing.is_not(None), and_(inbox > 0, _given("accepts", JSONB) != cast(literal("[]"), JSONB)))
    rests = or_(ended, status.is_not(None))
    at_once = or_(_given("at_once", Boolean), called)
    timer_at = _given("timer_at", _MOMENT)
    moved = (
        update(WorkflowRow)
        .where(
            _W.id == _given("workflow_id", Text),
            # The fence: a worker presumed dead, and a person who was overtaken, change no row.
            _W.seq == seq - 1,
            _W.claim == _given("claim", BigInteger),
        )
        .values(
            seq=seq,
            head=_given("hash", LargeBinary),
            version=_given("version", Integer),
            definition=_given("definition", Text),
            state=_given("state", Text),
            status=case((status.is_not(None), status), (ended, "completed"), (at_once, "pending"), else_="waiting"),
            following=_given("following", Text),
            accepts=_given("accepts", JSONB),
            inbox=inbox,
            # An event that waits already may be for other workers than the timer.
            queue=case(
                (and_(called, not_(_given("at_once", Boolean))), _given("event_queue", Text)),
                else_=_given("queue", Text),
            ),
            moved_at=_given("at", _MOMENT),
            entered_at=_given("entered_at", _MOMENT),
            entered_seq=_given("entered_seq", BigInteger),
            timer_at=timer_at,
            ready_at=case((rests, null()), (at_once, sql.now()), else_=timer_at),
            due_at=case((rests, null()), (at_once, sql.now() + _given("grace", Interval)), else_=timer_at),
            rings=case((at_once, 1), else_=0),
            attempt=0,
            owner=null(),
            owner_pid=null(),
            owner_thread=null(),
            claimed_at=null(),
            checkpoint_number=0,
            checkpointed_at=sql.now(),
            checkpoint_asked_at=null(),
            # A pause that was asked for has happened, or, on a workflow that ended, never will.
            pausing=case((rests, null()), else_=_W.pausing),
            error=_given("error", JSONB),
            updated_at=sql.now(),
        )
        .returning(
            _W.id, _W.seq, and_(_W.due_at.is_not(None), _W.rings != literal_column("0")).label("ready"), _W.queue
        )
        .cte("moved")
    )

    def written(table: Any, **columns: ColumnElement[Any]) -> Any:
        return insert(table).from_select(list(columns), select(*columns.values()).select_from(moved))

    recorded = written(
        TransitionRow,
        workflow_id=moved.c.id,
        seq=moved.c.seq,
        event=_given("event", Text),
        from_state=_given("from_state", Text),
        to_state=_given("state", Text),
        actor=_given("actor", Text),
        attempt=_given("attempt", Integer),
        at=_given("at", _MOMENT),
        envelope=_given("envelope", LargeBinary),
        hash=_given("hash", LargeBinary),
        mac=_given("mac", LargeBinary),
        mac_key=_given("mac_key", Text),
    )
    saved = written(
        CheckpointRow,
        workflow_id=moved.c.id,
        seq=moved.c.seq,
        number=literal(0),
        kind=literal("transition"),
        body=_given("checkpoint", LargeBinary),
        salt=_given("checkpoint_salt", LargeBinary),
        commitment=_given("commitment", LargeBinary),
        at=_given("at", _MOMENT),
    )
    payload = _given("payload", LargeBinary)
    attached = insert(PayloadRow).from_select(
        ["workflow_id", "seq", "body", "salt"],
        select(moved.c.id, moved.c.seq, payload, _given("payload_salt", LargeBinary)).where(payload.is_not(None)),
    )
    consumed = (
        update(EventRow)
        .where(EventRow.id == _given("event_id", BigInteger), EventRow.workflow_id == moved.c.id)
        .values(consumed_seq=moved.c.seq)
    )
    return select(*moved.c).add_cte(
        recorded.cte("recorded"), saved.cte("saved"), attached.cte("attached"), consumed.cte("consumed")
    )


class Hot:
    """A statement compiled once, in the two shapes that psycopg2 needs it in.

    ``text`` takes its parameters by name; ``prepare`` and ``execute`` are the same statement kept
    ready on the server, which saves planning it anew each time (more than half of its cost).
    """

    def __init__(self, statement: Select[Any]) -> None:
        compiled = str(statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))
        names = list(dict.fromkeys(_PARAMETER.findall(compiled)))
        # Named by its content: whoever prepared it on a shared connection, it is the same statement.
        self.name = "aegis_" + hashlib.sha256(compiled.encode()).hexdigest()[:16]
        self.text = _PARAMETER.sub(r"%(\1)s", compiled)
        numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", compiled)
        self.prepare = f"PREPARE {self.name} AS {numbered}"
        self.execute = f"EXECUTE {self.name} ({', '.join(f'%({name})s' for name in names)})"


CLAIM: Final = Hot(_claim())
COMMIT: Final = Hot(_commit())
