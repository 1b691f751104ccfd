"""SQL that databases say differently, by one name each: a moment, a span of time, the larger of two.

In SQLite, which has no types for these, a moment is the number of microseconds since 1970, and a span the
number of its microseconds: so they compare, and add up, as they do in PostgreSQL. ``sqlite.py`` has the
functions that SQLite lacks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, ColumnElement, DateTime, Dialect, Integer, Interval, Text, func, literal
from sqlalchemy.dialects.postgresql import INTERVAL, JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, TypeDecorator, TypeEngine
from typing_extensions import override

__all__ = ["MOMENT", "SPAN", "began", "greatest", "least", "moment", "now", "span", "upsert"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


class Span(TypeDecorator[timedelta]):
    """A length of time."""

    impl = Interval
    cache_ok = True

    @override
    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else INTERVAL())

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name != "sqlite" else value // MICROSECOND

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name != "sqlite" else value * MICROSECOND


class Moment(TypeDecorator[datetime]):
    """A moment, which has a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @override
    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else TIMESTAMP(timezone=True))

    @override
    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        return SPAN if isinstance(value, timedelta) else self

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name != "sqlite" else (value - EPOCH) // MICROSECOND

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name != "sqlite" else EPOCH + int(value) * MICROSECOND


MOMENT: Final = Moment()
SPAN: Final = Span()


def document(*, none_as_null: bool = False) -> TypeEngine[Any]:
    """Return the type of a JSON document; with ``none_as_null``, None is SQL's NULL."""
    return JSONB(none_as_null=none_as_null).with_variant(JSON(none_as_null=none_as_null), "sqlite")


# What a column that counts upwards by itself has to be called in each.
COUNTER: Final = BigInteger().with_variant(Integer(), "sqlite")


# --- times --------------------------------------------------------------------------------------


def now() -> ColumnElement[datetime]:
    """Return the database's time at this moment, the only one that counts."""
    return func.clock_timestamp(type_=MOMENT)


def began() -> ColumnElement[datetime]:
    """Return the database's time when this statement began: the same wherever in it it is asked for."""
    return func.statement_timestamp(type_=MOMENT)


def moment(value: datetime) -> ColumnElement[datetime]:
    """Return a given moment, where no column says that it is one."""
    return literal(value, MOMENT)


def span(value: timedelta) -> ColumnElement[timedelta]:
    """Return a given length of time, where no moment beside it says that it is one."""
    return literal(value, SPAN)


class iso(FunctionElement[str]):  # noqa: N801 - it is called like a function
    """``iso(moment)``: a moment as envelopes write it; null where none can."""

    type = Text()
    inherit_cache = True


@compiles(iso)
def _iso(element: Any, compiler: Any, **options: Any) -> str:
    # Null for an infinite time.
    moment_ = compiler.process(element.clauses, **options)
    return f"to_char(timezone('UTC', {moment_}), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


@compiles(iso, "sqlite")
def _iso_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    moment_ = compiler.process(element.clauses, **options)
    seconds = f"strftime('%Y-%m-%dT%H:%M:%S', {moment_} / 1000000, 'unixepoch')"
    return f"{seconds} || printf('.%06dZ', {moment_} % 1000000)"


class timeline(FunctionElement[str]):  # noqa: N801 - likewise
    """``timeline()``: the server's, which is another one after each fail-over; empty where there is none."""

    type = Text()
    inherit_cache = True


@compiles(timeline)
def _timeline(_element: Any, _compiler: Any, **_: Any) -> str:
    return "left(pg_walfile_name(pg_current_wal_lsn()), 8)"


@compiles(timeline, "sqlite")
def _timeline_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "''"


# --- of several -----------------------------------------------------------------------------------


def greatest(*values: Any) -> ColumnElement[Any]:
    """Return the largest of these that is not null."""
    return func.greatest(*values, type_=_type_of(values))


def least(*values: Any) -> ColumnElement[Any]:
    """Return the smallest of these that is not null."""
    return func.least(*values, type_=_type_of(values))


def _type_of(values: tuple[Any, ...]) -> TypeEngine[Any]:
    found: TypeEngine[Any] = next(value.type for value in values if hasattr(value, "type"))
    return found


# --- counts inside of documents -------------------------------------------------------------------


class count_in(FunctionElement[int]):  # noqa: N801 - it is called like a function
    """``count_in(document, name)``: the number that a document has there; 0 if it has none."""

    type = Integer()
    inherit_cache = True


class with_count(FunctionElement[Any]):  # noqa: N801 - likewise
    """``with_count(document, name, number)``: the document, with that number there."""

    inherit_cache = True


@compiles(count_in)
def _count_in(element: Any, compiler: Any, **options: Any) -> str:
    document_, name = (compiler.process(part, **options) for part in element.clauses)
    return (
        f"CASE WHEN jsonb_typeof({document_} -> {name}) = 'number'"
        f" THEN CAST({document_} ->> {name} AS INTEGER) ELSE 0 END"
    )


@compiles(count_in, "sqlite")
def _count_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    document_, name = (compiler.process(part, **options) for part in element.clauses)
    return (
        f"CASE WHEN json_type({document_}, '$.' || {name}) = 'integer'"
        f" THEN json_extract({document_}, '$.' || {name}) ELSE 0 END"
    )


@compiles(with_count)
def _with_count(element: Any, compiler: Any, **options: Any) -> str:
    document_, name, number = (compiler.process(part, **options) for part in element.clauses)
    return f"({document_} || jsonb_build_object({name}, {number}))"


@compiles(with_count, "sqlite")
def _with_count_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    document_, name, number = (compiler.process(part, **options) for part in element.clauses)
    return f"json_set({document_}, '$.' || {name}, {number})"


# --- what a document holds ------------------------------------------------------------------------


class holds(FunctionElement[bool]):  # noqa: N801 - likewise
    """``holds(document, members)``: whether a flat document has all of these members; they are canonical text."""

    type = Boolean()
    inherit_cache = True


@compiles(holds)
def _holds(element: Any, compiler: Any, **options: Any) -> str:
    document_, members = (compiler.process(part, **options) for part in element.clauses)
    return f"({document_} @> CAST({members} AS JSONB))"


@compiles(holds, "sqlite")
def _holds_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    document_, members = (compiler.process(part, **options) for part in element.clauses)
    return (
        f"NOT EXISTS (SELECT 1 FROM json_each({members}) AS asked WHERE NOT EXISTS"  # noqa: S608 - SQLAlchemy's own text
        f" (SELECT 1 FROM json_each({document_}) AS there WHERE there.key = asked.key"
        f" AND there.type = asked.type AND there.value = asked.value))"
    )


# --- in the tables' definitions ---------------------------------------------------------------------


class bytes_in(FunctionElement[int]):  # noqa: N801 - likewise
    """``bytes_in(column)``: how many bytes there are in it."""

    type = Integer()
    inherit_cache = True


@compiles(bytes_in)
def _bytes_in(element: Any, compiler: Any, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


@compiles(bytes_in, "sqlite")
def _bytes_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"length({compiler.process(element.clauses, **options)})"


class this_transaction(FunctionElement[int]):  # noqa: N801 - likewise
    """The number of the transaction that writes a row; 0 where they have none."""

    type = BigInteger()
    inherit_cache = True


@compiles(this_transaction)
def _this_transaction(_element: Any, _compiler: Any, **_: Any) -> str:
    return "(pg_current_xact_id()::text)::bigint"


@compiles(this_transaction, "sqlite")
def _this_transaction_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "0"
