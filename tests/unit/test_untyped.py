"""What is declared is written by its type and read back as it was; where nothing is declared, only JSON is taken."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from corpus import NO_JSON, Bad
from pydantic import BaseModel, Field

from aegis import Context, Workflow, transition
from aegis.core.errors import InvalidData
from aegis.core.untyped import misread
from aegis.core.workflow import read_payload, snapshot


class Stage(StrEnum):
    NEW = "new"
    DONE = "done"


class Part(BaseModel):
    anything: Any = None


class Typed(Workflow, name="untyped.Typed"):
    state: Stage = Stage.NEW
    moment: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    day: date = date(2026, 1, 2)
    span: timedelta = timedelta(1)
    price: Decimal = Decimal("1.10")
    id_: UUID = UUID(int=7)
    some: set[int] = Field(default_factory=lambda: {1, 2})
    pair: tuple[int, str] = (1, "a")
    by_number: dict[int, str] = Field(default_factory=lambda: {7: "seven"})
    stage: Stage = Stage.DONE

    @transition(Stage.NEW, Stage.DONE, on="done")
    def done(self, ctx: Context, _: None) -> None: ...


class Open(Typed, name="untyped.Open"):
    """The same beside a field that takes anything, at any depth."""

    extra: dict[str, Any] = Field(default_factory=dict)
    parts: list[Part] = Field(default_factory=list)

    @transition(Stage.NEW, Stage.DONE, on="done")
    def done(self, ctx: Context, _: Any) -> None: ...


@pytest.mark.parametrize("made", [Typed(), Open()], ids=["typed", "beside an open one"])
def test_what_is_declared_is_written_as_it_is_declared(made: Typed) -> None:
    assert type(made).from_dict(snapshot(made)) == made


@pytest.mark.parametrize(
    "value", [None, True, 7, 1.5, "a", [1, [2.5, None]], {"a": {"b": ["c"]}}, {}, [], "ä€𝄞", -0.0, 2**53 - 1]
)
def test_json_is_taken_where_nothing_is_declared(value: Any) -> None:
    made = Open(extra={"a": value}, parts=[Part(anything=value)])
    assert Open.from_dict(snapshot(made)) == made
    _, data = read_payload(Open, "done", value)
    assert data == value


@pytest.mark.parametrize("bad", NO_JSON, ids=str)
def test_anything_else_is_refused_there_with_its_place(bad: Bad) -> None:
    for made, where in (
        (Open(extra={"a/b": [bad.value]}), "/extra/a~1b/0"),
        (Open(parts=[Part(), Part(anything=bad.value)]), "/parts/1/anything"),
    ):
        with pytest.raises(InvalidData) as caught:
            snapshot(made)
        ((pointer, problem),) = caught.value.problems
        assert bad.says in problem
        assert pointer == ("" if bad.at_the_top else where + bad.inside)


def test_a_class_without_such_a_field_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be read back at every commit for nothing."""
    made = Typed()
    data = made.to_dict()

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Typed, "model_validate", never)
    assert misread(made, data) is None


def test_what_does_not_fit_its_class_any_more_is_for_whoever_reads_it_back() -> None:
    made = Open()
    made.__dict__["span"] = "no span"
    assert misread(made, made.model_dump(mode="json", warnings=False)) is None
    with pytest.raises(InvalidData, match="/span"):
        snapshot(made)
