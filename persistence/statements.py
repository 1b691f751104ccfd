"""The two hot statements, written with SQLAlchemy Core against the tables and compiled once.

What they write is said once, by functions that are given the ``Words`` of a database; PostgreSQL does all
of it in one statement each, SQLite one after the other (``plain.py``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeAlias

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    Text,
    Update,
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
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.types import TypeEngine

from . import sql
from .models import CheckpointRow, EventRow, PayloadRow, TransitionRow, WorkflowRow

_W: Final = WorkflowRow.__table__.c
_MOMENT: Final = sql.MOMENT

# SQLAlchemy's dialects are not typed.
DIALECT: Final = PGDialect_psycopg2()  # type: ignore[no-untyped-call]
_PARAMETER: Final = re.compile(r"<<(\w+)>>")

POSITION: Final = (
    *("id", "type", "version", "definition", "state", "seq", "head", "claim", "attempt"),
    *("moved_at", "entered_at", "following", "accepts", "timer_at", "queue", "inbox", "pausing"),
    *("entered_seq", "checkpoint_number", "home_queue", "priority", "deadline", "checkpoint_on_transition"),
)
SNAPSHOT: Final = ("body", "number", "salt", "commitment")
EVENT: Final = ("id", "name", "key", "sender", "payload", "received_at", "reason")


class Words(Protocol):
    """How a database is told what the statements are given."""

    def given(self, name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> ColumnElement[Any]:
        """Return a parameter."""

    def among(self, column: ColumnElement[Any], name: str, type_: type[TypeEngine[Any]]) -> ColumnElement[bool]:
        """Return the condition that a column is one of a parameter's several."""

    def document(self, name: str) -> ColumnElement[Any]:
        """Return a parameter that is a JSON document, given as canonical text."""

    @property
    def no_list(self) -> ColumnElement[Any]:
        """The document ``[]``."""


class _PostgreSQL:
    def given(self, name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> ColumnElement[Any]:
        """Return a parameter that PostgreSQL knows the type of, also where it is null or selected."""
        return cast(literal_column(f"<<{name}>>"), type_)

    def among(self, column: ColumnElement[Any], name: str, type_: type[TypeEngine[Any]]) -> ColumnElement[bool]:
        return column == func.any(self.given(name, ARRAY(type_)))

    def document(self, name: str) -> ColumnElement[Any]:
        return self.given(name, JSONB)

    @property
    def no_list(self) -> ColumnElement[Any]:
        return cast(literal("[]"), JSONB)


# --- claim ------------------------------------------------------------------------------------


def taking(words: Words) -> Update:
    """Return the write that takes a workflow in hand."""
    given = words.given
    ours = _W.owner == given("worker", Text)
    # A hand that asks for work holds none: what is in it was left over when an answer got lost.
    in_hand = and_(ours, _W.owner_pid == given("pid", Integer), _W.owner_thread == given("thread", BigInteger))
    dropped = and_(ours, words.among(_W.owner_pid, "gone", Integer))
    return (
        update(WorkflowRow)
        .where(
            _W.id == given("workflow_id", Text),
            _W.seq == given("seq", BigInteger),
            _W.ready_at <= sql.now(),
            or_(_W.owner.is_(None), in_hand, dropped),
            words.among(_W.type + "/" + cast(_W.version, Text), "known", Text),
        )
        .values(
            owner=given("worker", Text),
            owner_pid=given("pid", Integer),
            owner_thread=given("thread", BigInteger),
            claim=_W.claim + 1,
            attempt=_W.attempt + case((in_hand, 0), else_=1),
            claimed_at=sql.now(),
            strayed=0,
            updated_at=sql.now(),
        )
    )


def _claim() -> Select[Any]:
    # A claim that a crash of PostgreSQL takes back has harmed nothing: it does not wait for the
    # disk. The setting ends with the statement's own transaction.
    mode = select(func.set_config("synchronous_commit", "off", true()).label("set")).cte("mode")
    claimed = (
        taking(_PostgreSQL())
        .where(mode.c.set.is_not(None))  # read, so that it is run
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


# --- commit -----------------------------------------------------------------------------------


def moving(words: Words) -> ReturningUpdate[Any]:
    """Return the write that moves a workflow's row on."""
    given = words.given
    seq = given("seq", BigInteger)
    ended = given("ended", Boolean)
    status = given("status", Text)
    inbox = _W.inbox - case((given("event_id", BigInteger).is_not(None), 1), else_=0)
    # A pause was asked for, or an event came, while the handler ran: then the next claim sees to it.
    called = or_(_W.pausing.is_not(None), and_(inbox > 0, words.document("accepts") != words.no_list))
    rests = or_(ended, status.is_not(None))
    at_once = or_(given("at_once", Boolean), called)
    timer_at = given("timer_at", _MOMENT)
    # What the deadline sets off is done once.
    deadline = case((given("deadline_met", Boolean), null()), else_=_W.deadline)
    wakes_at = sql.least(timer_at, deadline)
    return (
        update(WorkflowRow)
        .where(
            _W.id == given("workflow_id", Text),
            # The fence: a worker presumed dead, and a person who was overtaken, change no row.
            _W.seq == seq - 1,
            _W.claim == given("claim", BigInteger),
        )
        .values(
            seq=seq,
            head=given("hash", LargeBinary),
            version=given("version", Integer),
            definition=given("definition", Text),
            state=given("state", Text),
            status=case((status.is_not(None), status), (ended, "completed"), (at_once, "pending"), else_="waiting"),
            following=given("following", Text),
            accepts=words.document("accepts"),
            inbox=inbox,
            # An event that waits already may be for other workers than the timer.
            queue=func.coalesce(
                case(
                    (and_(called, not_(given("at_once", Boolean))), given("event_queue", Text)),
                    else_=given("queue", Text),
                ),
                _W.home_queue,
            ),
            moved_at=given("at", _MOMENT),
            entered_at=given("entered_at", _MOMENT),
            entered_seq=given("entered_seq", BigInteger),
            steered_by=func.coalesce(given("steered_by", Text), _W.steered_by),
            timer_at=timer_at,
            deadline=deadline,
            attributes=func.coalesce(words.document("attributes"), _W.attributes),
            ready_at=case((rests, null()), (at_once, sql.now()), else_=wakes_at),
            due_at=case((rests, null()), (at_once, sql.now() + given("grace", sql.SPAN)), else_=wakes_at),
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
            error=words.document("error"),
            updated_at=sql.now(),
        )
        .returning(
            _W.id, _W.seq, and_(_W.due_at.is_not(None), _W.rings != literal_column("0")).label("ready"), _W.queue
        )
    )


Columns: TypeAlias = Mapping[str, ColumnElement[Any]]


def transition_of(words: Words, workflow_id: ColumnElement[Any], seq: ColumnElement[Any]) -> Columns:
    """Return the columns of the transition's row."""
    given = words.given
    return {
        "workflow_id": workflow_id,
        "seq": seq,
        "event": given("event", Text),
        "from_state": given("from_state", Text),
        "to_state": given("state", Text),
        "actor": given("actor", Text),
        "attempt": given("attempt", Integer),
        "at": given("at", _MOMENT),
        "envelope": given("envelope", LargeBinary),
        "hash": given("hash", LargeBinary),
        "mac": given("mac", LargeBinary),
        "mac_key": given("mac_key", Text),
    }


def checkpoint_of(words: Words, workflow_id: ColumnElement[Any], seq: ColumnElement[Any]) -> Columns:
    """Return the columns of its checkpoint's row."""
    given = words.given
    return {
        "workflow_id": workflow_id,
        "seq": seq,
        "number": literal(0),
        "kind": literal("transition"),
        "body": given("checkpoint", LargeBinary),
        "salt": given("checkpoint_salt", LargeBinary),
        "commitment": given("commitment", LargeBinary),
        "at": given("at", _MOMENT),
    }


def payload_of(words: Words, workflow_id: ColumnElement[Any], seq: ColumnElement[Any]) -> Columns:
    """Return the columns of its payload's row; there is one if ``payload`` is not null."""
    given = words.given
    return {
        "workflow_id": workflow_id,
        "seq": seq,
        "body": given("payload", LargeBinary),
        "salt": given("payload_salt", LargeBinary),
    }


def consuming(words: Words, workflow_id: ColumnElement[Any], seq: ColumnElement[Any]) -> Update:
    """Return the write that consumes the event which was taken; there is one if ``event_id`` is not null."""
    taken = (EventRow.id == words.given("event_id", BigInteger), EventRow.workflow_id == workflow_id)
    return update(EventRow).where(*taken).values(consumed_seq=seq)


def _commit() -> Select[Any]:
    words = _PostgreSQL()
    moved = moving(words).cte("moved")
    key = moved.c.id, moved.c.seq

    def written(table: Any, columns: Columns, *, unless: ColumnElement[bool] | None = None) -> Any:
        rows = select(*columns.values()).select_from(moved)
        return insert(table).from_select(list(columns), rows if unless is None else rows.where(~unless))

    recorded = written(TransitionRow, transition_of(words, *key))
    saved = written(CheckpointRow, checkpoint_of(words, *key))
    payload = payload_of(words, *key)
    attached = written(PayloadRow, payload, unless=payload["body"].is_(None))
    consumed = consuming(words, *key)
    return select(*moved.c).add_cte(
        recorded.cte("recorded"), saved.cte("saved"), attached.cte("attached"), consumed.cte("consumed")
    )


class Hot:
    """A statement compiled once, in the shapes that drivers need it in.

    ``text`` takes its parameters by name, ``numbered`` by their places in ``names``; ``prepare`` and
    ``execute`` are the same statement kept ready on the server, which saves planning it anew each time
    (more than half of its cost).
    """

    def __init__(self, statement: Select[Any]) -> None:
        compiled = str(statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))
        names = list(dict.fromkeys(_PARAMETER.findall(compiled)))
        # Named by its content: whoever prepared it on a shared connection, it is the same statement.
        self.name = "aegis_" + hashlib.sha256(compiled.encode()).hexdigest()[:16]
        self.text = _PARAMETER.sub(r"%(\1)s", compiled)
        self.numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", compiled)
        self.names = tuple(names)
        self.prepare = f"PREPARE {self.name} AS {self.numbered}"
        self.execute = f"EXECUTE {self.name} ({', '.join(f'%({name})s' for name in names)})"


CLAIM: Final = Hot(_claim())
COMMIT: Final = Hot(_commit())
