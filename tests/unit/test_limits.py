"""Time limits in threads: they meet the body, with its name, once, and nothing after it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from aegis.core.errors import HandlerTimeout
from aegis.tasks import limits
from aegis.tasks.limits import time_limit
from aegis.tasks.result import describe


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """One thread that is not the main one."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def spin(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0)  # the others may have the interpreter meanwhile


def test_a_body_that_runs_out_of_time_is_met_in_its_thread(thread: ThreadPoolExecutor) -> None:
    def body() -> float:
        began = time.monotonic()
        with pytest.raises(HandlerTimeout) as caught, time_limit("Order.pay", 0.1):
            spin(5)
        assert (caught.value.transition, caught.value.timeout) == ("Order.pay", 0.1)
        assert str(caught.value) == "Order.pay did not finish within its timeout of 0.1 s"
        assert describe(caught.value, 1)["type"] == "aegis.core.errors.HandlerTimeout"
        assert "in spin" in "".join(traceback.format_exception(caught.value)), "it says where it was met"
        return time.monotonic() - began

    assert 0.1 <= thread.submit(body).result() < 1.0


def test_each_thread_has_its_own_limit() -> None:
    def body(number: int) -> str:
        with pytest.raises(HandlerTimeout) as caught, time_limit(f"Order.pay{number}", 0.1 + number / 100):
            spin(5)
        return str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(body, range(4)))
    assert told == [f"Order.pay{n} did not finish within its timeout of {0.1 + n / 100:g} s" for n in range(4)]


def test_a_body_that_catches_it_is_not_met_again(thread: ThreadPoolExecutor) -> None:
    def body() -> str:
        with time_limit("Order.pay", 0.02):
            try:
                spin(5)
            except HandlerTimeout:
                spin(0.1)
                return "cleaned up"
        return "not met"

    assert thread.submit(body).result() == "cleaned up"


def test_an_error_of_the_body_is_its_own(thread: ThreadPoolExecutor) -> None:
    def body() -> None:
        with time_limit("Order.pay", 5):
            raise KeyError("x")

    with pytest.raises(KeyError):
        thread.submit(body).result()


def test_c_code_meets_it_when_it_comes_back(thread: ThreadPoolExecutor) -> None:
    def body() -> float:
        began = time.monotonic()
        with pytest.raises(HandlerTimeout), time_limit("Order.pay", 0.05):
            time.sleep(0.3)
        return time.monotonic() - began

    assert thread.submit(body).result() >= 0.3


def _rounds(length: Callable[[int], float], count: int) -> tuple[int, int]:
    """Run bodies that end when their time does; return how many were met, and how many were not."""
    met = 0
    for number in range(count):
        try:
            with time_limit("Order.pay", 0.002):
                spin(length(number))
        except HandlerTimeout:
            met += 1
        spin(0.0005)  # here it would arrive that comes too late
    return met, count - met


def test_nothing_is_raised_after_a_body_that_ends_in_the_last_moment() -> None:
    # Around the limit by steps of 40 microseconds, in several threads that hold each other up.
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(_rounds, lambda number: 0.001 + number % 100 * 40e-6, 400) for _ in range(3)]
        met, not_met = (sum(each) for each in zip(*(one.result() for one in found), strict=True))
    assert met > 50
    assert not_met > 50


def test_fast_bodies_leave_no_watcher_behind(thread: ThreadPoolExecutor) -> None:
    def body() -> None:
        for _ in range(1000):
            with time_limit("Order.pay", 3600):
                pass

    thread.submit(body).result()
    ends = time.monotonic() + 10
    while any(one.name == "aegis-time-limit" for one in threading.enumerate()):
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_the_end_of_a_body_waits_for_a_watcher_that_is_about_to_raise(
    thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in = limits._raise_in
    begun = threading.Event()

    def slowly(thread: int, error: type[BaseException] | None) -> None:
        begun.set()
        if error is not None:
            time.sleep(0.1)
        raise_in(thread, error)

    monkeypatch.setattr(limits, "_raise_in", slowly)

    def body() -> str:
        try:
            with time_limit("Order.pay", 0.01):
                begun.wait()
        except HandlerTimeout:
            spin(0.2)
            return "within"
        spin(0.2)
        return "never"

    assert thread.submit(body).result() in {"within", "never"}
