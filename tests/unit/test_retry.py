"""Retry: how long to wait after which attempt, and when to give up."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.core.errors import InvalidData
from aegis.core.retry import Retry, RetryAfter

STEADY: Final = Retry(max_attempts=1_000_000, jitter=0)


def seconds(policy: Retry, attempt: int, key: str = "w:1") -> float | None:
    delay = policy.next_delay(attempt, key=key)
    return None if delay is None else delay.total_seconds()


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (Retry(jitter=0), [1, 2, 4, 8, None, None]),
        (Retry(max_attempts=1), [None, None]),
        (Retry(max_attempts=2, jitter=0), [1, None]),
        (Retry(max_attempts=5, delay=0.5, factor=3, jitter=0), [0.5, 1.5, 4.5, 13.5, None]),
        (Retry(max_attempts=6, delay=10, factor=2, max_delay=35, jitter=0), [10, 20, 35, 35, 35, None]),
        (Retry(max_attempts=4, delay=7, factor=1, jitter=0), [7, 7, 7, None]),
        (Retry(max_attempts=4, delay=0, jitter=0), [0, 0, 0, None]),
        (Retry(max_attempts=4, delay=5, max_delay=5, jitter=0), [5, 5, 5, None]),
    ],
)
def test_delays_grow_by_the_factor_up_to_the_most_and_end_with_the_attempts(
    policy: Retry, delays: list[float | None]
) -> None:
    assert [seconds(policy, attempt) for attempt in range(1, len(delays) + 1)] == delays


@pytest.mark.parametrize("factor", [1.0001, 2.0, 1e300])
def test_attempt_10_000_waits_for_the_most_and_overflows_nothing(factor: float) -> None:
    policy = Retry(max_attempts=1_000_000, factor=factor, max_delay=2, jitter=0)
    assert seconds(policy, 10_000) == 2


def test_a_zero_delay_stays_zero_at_attempt_10_000() -> None:
    assert seconds(Retry(max_attempts=1_000_000, delay=0), 10_000) == 0


def test_the_defaults_are_five_attempts_from_one_second_to_five_minutes() -> None:
    assert Retry() == Retry(max_attempts=5, delay=1, factor=2, max_delay=300, jitter=0.1)
    assert seconds(STEADY, 10_000) == 300


# --- jitter ---------------------------------------------------------------------------------


def test_the_same_failure_always_waits_for_as_long() -> None:
    policy = Retry(jitter=1)
    assert len({policy.next_delay(2, key="w:7") for _ in range(20)}) == 1


def test_the_jitter_of_a_key_does_not_depend_on_the_process() -> None:
    # SHA-256 of the key and the attempt: hash() would give another number in each process.
    assert Retry(delay=100, jitter=0.5).next_delay(1, key="w:1") == timedelta(seconds=68.297_528)


def test_failures_of_many_workflows_are_spread_over_the_whole_jitter() -> None:
    policy = Retry(delay=100, jitter=0.5)
    delays = [seconds(policy, 1, f"w-{number}:1") for number in range(500)]
    found = [delay for delay in delays if delay is not None]
    assert 50 <= min(found) < 55
    assert 145 < max(found) < 150
    assert 95 < sum(found) / len(found) < 105


def test_each_attempt_has_a_jitter_of_its_own() -> None:
    policy = Retry(max_attempts=50, delay=100, factor=1, jitter=0.5)
    assert len({policy.next_delay(attempt, key="w:1") for attempt in range(1, 50)}) == 49


@given(
    attempt=st.integers(1, 200),
    jitter=st.floats(0, 1),
    delay=st.floats(0, 100),
    factor=st.floats(1, 1e6),
    key=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_a_delay_is_off_by_no_more_than_the_jitter(
    attempt: int, jitter: float, delay: float, factor: float, key: str
) -> None:
    def policy(share: float) -> Retry:
        return Retry(max_attempts=1000, delay=delay, factor=factor, max_delay=100, jitter=share)

    exact, jittered = seconds(policy(0), attempt), seconds(policy(jitter), attempt, key)
    assert exact is not None
    assert jittered is not None
    assert 0 <= exact <= 100
    microsecond = 1e-6
    assert exact * (1 - jitter) - microsecond <= jittered <= min(100, exact * (1 + jitter)) + microsecond


def test_at_the_most_the_jitter_only_shortens_and_spreads_all_the_same() -> None:
    policy = Retry(max_attempts=10, delay=300, max_delay=300, jitter=0.1)
    delays = [seconds(policy, 5, f"w-{number}:1") for number in range(500)]
    found = [delay for delay in delays if delay is not None]
    assert 270 <= min(found) < 271
    assert 299 < max(found) <= 300


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_attempts": 0}, r"max_attempts=0\) never tries: it must be 1 or more"),
        ({"max_attempts": -1}, r"max_attempts=-1\)"),
        ({"delay": -0.1}, r"delay=-0.1, max_delay=300\): needs 0 <= delay <= max_delay"),
        ({"delay": 10, "max_delay": 9}, r"delay=10, max_delay=9\)"),
        ({"max_delay": 0.5}, r"delay=1, max_delay=0.5\)"),
        ({"factor": 0.99}, r"factor=0.99\) would wait less each time: it must be 1 or more"),
        ({"factor": -2}, r"factor=-2\)"),
        ({"jitter": -0.01}, r"jitter=-0.01\) is a share of the delay: it must be from 0 to 1"),
        ({"jitter": 1.01}, r"jitter=1.01\)"),
        ({"jitter": float("nan")}, r"jitter=nan\)"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**fields)


@pytest.mark.parametrize("field", ["delay", "factor", "max_delay"])
def test_a_policy_with_what_is_no_number_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=r"Retry\(.*nan"):  # and not later, when an attempt has failed
        Retry(**{field: float("nan")})


@pytest.mark.parametrize("most", [float("inf"), 1e15])
def test_a_policy_is_refused_if_it_could_not_be_waited_for(most: float) -> None:
    try:
        policy = Retry(max_attempts=200, max_delay=most)
    except ValueError:
        return  # refused where it was written: good
    assert policy.next_delay(100, key="w:1") is not None  # or else it works


def test_fields_are_given_by_name_and_stay() -> None:
    with pytest.raises(TypeError):
        Retry(3)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Retry().delay = 3  # type: ignore[misc]


# --- by the kind of error ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "error", "again"),
    [
        (Retry(), ValueError(), True),
        (Retry(), SystemExit(), True),
        (Retry(on=(OSError,)), OSError(), True),
        (Retry(on=(OSError,)), FileNotFoundError(), True),
        (Retry(on=(OSError,)), ValueError(), False),
        (Retry(never=(OSError,)), ValueError(), True),
        (Retry(never=(OSError,)), FileNotFoundError(), False),
        (Retry(on=(OSError,), never=(FileNotFoundError,)), FileNotFoundError(), False),
        (Retry(on=(OSError,), never=(FileNotFoundError,)), PermissionError(), True),
        (Retry(on=(FileNotFoundError,), never=(OSError,)), FileNotFoundError(), False),
        (Retry(on=(OSError, KeyError)), KeyError(), True),
    ],
)
def test_whether_there_is_another_attempt_depends_on_the_error(
    policy: Retry, error: BaseException, *, again: bool
) -> None:
    assert policy.may_follow(error) is again
    assert (policy.next_delay(1, key="w:1", error=error) is not None) is again
    assert policy.next_delay(policy.max_attempts, key="w:1", error=error) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"on": OSError},
            r"Retry\(on=<class 'OSError'>\) is no tuple of exceptions: write on=\(OSError, TimeoutError\)",
        ),
        ({"on": (int,)}, r"on=\(<class 'int'>,\)\) is no tuple of exceptions"),
        ({"on": (OSError(),)}, "is no tuple of exceptions"),
        ({"on": [OSError]}, "is no tuple of exceptions"),
        ({"never": "OSError"}, "never='OSError'.* is no tuple of exceptions: write never="),
        ({"never": None}, "is no tuple of exceptions"),
        ({"on": ()}, "never tries again: leave out on"),
        ({"on": (OSError,), "never": (OSError, ValueError)}, "never tries again: leave out on, or make them differ"),
    ],
)
def test_kinds_of_errors_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**fields)


# --- when the other side says when ----------------------------------------------------------------

NOW: Final = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("delay", "wait"),
    [
        (0, timedelta(0)),
        (1.5, timedelta(seconds=1.5)),
        (timedelta(hours=1), timedelta(hours=1)),
        (NOW + timedelta(hours=1), timedelta(hours=1)),
        (NOW - timedelta(hours=1), timedelta(0)),
        (NOW.astimezone(timezone(timedelta(hours=5))) + timedelta(hours=1), timedelta(hours=1)),
        (NOW + timedelta(days=9999), timedelta(days=366)),
    ],
)
def test_how_long_to_wait_for_a_time(delay: Any, wait: timedelta) -> None:
    assert RetryAfter(delay).wait(NOW) == wait


@pytest.mark.parametrize(
    ("delay", "problem"),
    [
        (-0.001, "-0.001 is not from 0 to 3.16224e+07 seconds, which is a year"),
        (timedelta(seconds=-1), "is not from 0 to"),
        (timedelta(days=367), "is not from 0 to"),
        (float("inf"), "inf is not from 0 to"),
        (float("nan"), "nan is not from 0 to"),
        ("30", "'30' is no time: give seconds, a timedelta, or a datetime with a zone"),
        (None, "None is no time"),
        (True, "True is no time"),
        (NOW.replace(tzinfo=None), "2026-11-22T10:00:00 has no time zone"),
    ],
)
def test_what_is_no_time_to_wait_for(delay: Any, problem: str) -> None:
    with pytest.raises(InvalidData, match=re.escape(problem)):
        RetryAfter(delay)


def test_it_counts_by_default_and_says_when() -> None:
    assert (RetryAfter(1).counts, RetryAfter(1, counts=False).counts) == (True, False)
    assert str(RetryAfter(90)) == "to be tried again after 0:01:30"
    assert str(RetryAfter(NOW)) == "to be tried again at 2026-11-22T10:00:00+00:00"
