"""Conditions of a start: what becomes of spans, what is said of them, and how a history leaves them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.core.canonical import canonical, load
from aegis.core.errors import AegisError, InvalidData, InvalidName, NotCanonical
from aegis.core.recovery import is_overdue
from aegis.core.starting import Conditions, Start, check_attributes, compared, conditions_in
from aegis.core.workflow import Context, Workflow, transition

NOW: Final = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
NOW_TEXT: Final = "2026-11-22T10:00:00.000000Z"
LATER_TEXT: Final = "2026-11-22T11:00:00.000000Z"


class Lamp(StrEnum):
    OFF = "off"
    ON = "on"


class Light(Workflow, name="starting.Light"):
    state: Lamp = Lamp.OFF

    @transition(Lamp.OFF, Lamp.ON)
    def switch(self, ctx: Context) -> None: ...


def conditions(**given: Any) -> Conditions:
    start = Start(Light(), **given)
    start.check()
    return start.conditions(NOW)


def test_without_conditions_there_is_nothing_to_say() -> None:
    assert conditions() == Conditions()
    assert conditions().said() == {}
    assert conditions(delay=timedelta(0), priority=0, attributes={}).said() == {}


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=12))])
def test_a_moment_is_the_same_in_any_zone_and_a_span_counts_from_now(zone: timezone) -> None:
    moment = (NOW + HOUR).astimezone(zone)
    assert conditions(delay=moment) == conditions(delay=HOUR)
    assert conditions(deadline=moment).said() == {"deadline": LATER_TEXT}
    assert conditions(delay=NOW.astimezone(zone)).begins_at is None


def test_a_deadline_is_after_the_beginning() -> None:
    assert conditions(delay=HOUR, deadline=2 * HOUR).deadline == NOW + 2 * HOUR
    for deadline in (HOUR, NOW + HOUR, timedelta(minutes=1)):
        with pytest.raises(InvalidData, match="/deadline"):
            conditions(delay=HOUR, deadline=deadline)


def test_what_is_compared_does_not_move_with_the_clock() -> None:
    first = conditions(delay=HOUR, deadline=2 * HOUR, priority=3, attributes={"a": 1}, singleton="k", queue="q")
    assert first.compared() == {"priority": 3, "attributes": {"a": 1}, "singleton": "k", "queue": "q"}
    assert compared(first.said()) == first.compared()
    assert compared(None) == compared({}) == {}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "delay": st.timedeltas(timedelta(0), timedelta(days=36_000)),
            "deadline": st.timedeltas(timedelta(days=36_001), timedelta(days=36_525)),
            "priority": st.integers(0, 9),
            "queue": st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True),
            "singleton": st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
            "attributes": st.dictionaries(
                st.from_regex(r"[a-z_]{1,10}", fullmatch=True),
                st.booleans()
                | st.integers(-(2**53) + 1, 2**53 - 1)
                | st.text(st.characters(codec="ascii"), max_size=9),
                max_size=8,
            ),
        },
    )
)
def test_what_was_accepted_is_read_back_from_the_history(given: dict[str, Any]) -> None:
    try:
        made = conditions(**given)
    except NotCanonical:
        assert any("\0" in str(value) for value in given["attributes"].values())
        return
    said: Any = load(canonical(made.said()))
    assert conditions_in([("created", said)]) == made


def test_a_history_tells_what_became_of_them() -> None:
    first = conditions(deadline=HOUR, attributes={"a": 1}, priority=3).said()
    began: list[tuple[str, Any]] = [("created", first), ("paused", {"reason": "x"}), ("resumed", {})]
    assert conditions_in(began).deadline == NOW + HOUR
    retried = [*began, ("failed", {}), ("retried", {"deadline": NOW_TEXT})]
    assert conditions_in(retried).deadline == NOW
    lapsed = [*retried, ("lapse", {"deadline": NOW_TEXT})]
    assert conditions_in(lapsed) == Conditions(priority=3, attributes={"a": 1})
    renamed = [*lapsed, ("pack", {"attributes": {"b": "x"}}), ("pack", {})]
    assert conditions_in(renamed).attributes == {"b": "x"}
    assert conditions_in([("created", {"reason": "erased"})]) == Conditions()
    assert conditions_in([]) == Conditions()


@pytest.mark.parametrize(
    "said",
    [
        {"priority": 10},
        {"priority": "9"},
        {"queue": "a b"},
        {"queue": 7},
        {"singleton": "a b"},
        {"attributes": {"a": [1]}},
        {"attributes": [1]},
        {"begins_at": "tomorrow"},
        {"deadline": 7},
    ],
)
def test_a_history_that_says_what_cannot_be_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(AegisError):
        conditions_in([("created", said)])


def test_attributes_are_kept_as_json_writes_them() -> None:
    assert check_attributes(None) == {}
    kept = check_attributes({"a": 1.0, "b": 1, "c": True, "d": "x", "e": 1.5})
    assert [type(kept[name]) for name in "abcde"] == [int, int, bool, str, float]


@pytest.mark.parametrize("name", ["", "a b", "1a", "ä", "a-b", "a.b", "x" * 129, "a\0"])
def test_an_attribute_is_called_like_a_variable(name: str) -> None:
    with pytest.raises(InvalidName):
        check_attributes({name: 1})


@pytest.mark.parametrize(
    ("deadline", "passed"), [(None, False), (NOW + timedelta(microseconds=1), False), (NOW, True), (NOW - HOUR, True)]
)
def test_a_deadline_has_passed_from_its_moment_on(deadline: datetime | None, *, passed: bool) -> None:
    assert is_overdue(deadline, now=NOW) is passed
