"""Measuring: what is lost, done twice, in doubt and late, on ledgers and movements that are written by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from aegis.core.objective import DEFAULTS
from aegis.persistence import observe
from aegis.persistence.observe import Sight
from aegis.recovery.drill import measure, movement
from aegis.recovery.drill.ledger import EVENT, START, Request
from aegis.recovery.drill.movement import Move, Movement, place
from aegis.recovery.drill.scenarios import BY_NAME
from aegis.recovery.drill.scene import Fault
from aegis.recovery.drill.workload import Turn
from aegis.testing.ledger import EFFECT, Entry

WORKER, LONG = BY_NAME["worker"], BY_NAME["long-handler"]
PROCESS = next(each for each in DEFAULTS if each.name == "process")


def asked(workflow_id: str, at: float, kind: str = START, error: str = "", *, new: bool = True) -> Request:
    key = "decide" if kind == EVENT else ""
    return Request(kind=kind, workflow_id=workflow_id, key=key, asked_at=at, answered_at=at, error=error, new=new)


def seen(workflow_id: str, seq: int = 4, status: str = "completed", kind: str = "DrillSteps") -> Sight:
    return Sight(
        workflow_id=workflow_id,
        type=kind,
        status=status,
        seq=seq,
        claim=seq,
        owner=None,
        pid=None,
        updated_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def sights(*given: Sight) -> dict[str, Sight]:
    return {sight.workflow_id: sight for sight in given}


def test_what_was_acknowledged_and_is_not_there_is_lost() -> None:
    requests = [asked("a", 1), asked("b", 2), asked("c", 3), asked("c", 4, EVENT), asked("a", 4, EVENT)]
    counted = measure.count(requests, sights(seen("a"), seen("c")), {("a", "decide")})
    assert [(each.workflow_id, each.kind) for each in counted.lost] == [("b", START), ("c", EVENT)]
    assert counted.acknowledged == 5
    assert measure.loss(counted.lost, at=10) == 8
    assert measure.loss(counted.lost, at=1) == 2, "who was cut off went on for a while"
    assert measure.loss(counted.lost[:1], at=1) > 0, "what was lost although it came after the fault is lost, too"
    assert measure.loss([], at=10) == 0


def test_what_was_refused_is_not_lost_but_in_doubt_if_it_is_there() -> None:
    requests = [
        *(asked("a", 1, error="gone"), asked("a", 2, new=False)),  # the first had been carried out
        *(asked("b", 1, error="gone"), asked("b", 2)),  # the first had not
        asked("c", 1, error="gone"),  # never answered, and there
        asked("d", 1, error="gone"),  # never answered, and not there
    ]
    counted = measure.count(requests, sights(seen("a"), seen("b"), seen("c")), set())
    assert (counted.acknowledged, counted.refused, counted.ambiguous) == (2, 4, 2)
    assert not counted.lost


def test_more_transitions_than_there_are_were_recorded_twice() -> None:
    requests = [asked("a", 1), asked("b", 1), asked("l", 1)]
    counted = measure.count(requests, sights(seen("a", 5), seen("b", 4), seen("l", 3, kind="DrillLong")), set())
    assert counted.doubled == 1 + 2


def test_what_did_not_complete_is_named() -> None:
    counted = measure.count([asked("a", 1), asked("b", 1)], sights(seen("a", 2, "failed"), seen("b")), set())
    assert counted.unfinished == {"a": "failed"}


def move(at: float, workflow_id: str, seq: int, claim: int) -> Move:
    return Move(happened=at, at=at, workflow_id=workflow_id, place=(seq, claim), transitions=1)


def test_recovered_is_when_the_first_and_the_last_of_those_met_moved_again() -> None:
    fault = Fault(at=10, told="", met={"a": (1, 1), "b": (2, 5)})
    before, others = move(9, "a", 1, 1), move(10.1, "x", 7, 7)
    assert measure.recovered(fault, [before, others], 10) == (None, None)
    first = move(11, "a", 1, 2)  # taken in hand again
    assert measure.recovered(fault, [before, others, first], 10) == (1, None)
    last = move(13.5, "b", 3, 5)  # committed
    assert measure.recovered(fault, [before, others, first, last, move(15, "a", 2, 2)], 10) == (1, 3.5)
    assert measure.recovered(replace(fault, enough=1), [first, last], 10) == (1, 1)
    assert measure.recovered(fault, [first, last], 10.5) == (0.5, 3)


def test_what_is_seen_late_and_happened_before_the_fault_is_no_recovery() -> None:
    """Nobody could look meanwhile: the first look after it shows what was committed just before."""
    fault = Fault(at=10, told="", met={"a": (1, 0), "b": (2, 0)})
    late = replace(move(30.2, "a", 2, 0), happened=9.9)
    ended = replace(move(30.2, "b", 3, 0), happened=9.9, ended=True)
    assert measure.recovered(fault, [late], 10) == (None, None)
    # It was at 2 already: only what is beyond that counts. And the other had ended before it could be met.
    assert measure.recovered(fault, [late, ended, move(31, "a", 2, 0)], 10) == (None, None)
    assert measure.recovered(fault, [late, ended, move(32, "a", 3, 0)], 10) == (22, 22)


def test_to_be_taken_in_hand_is_to_get_on_for_a_long_handler_alone() -> None:
    """A restore raises the numbers of all claims: that is no workflow that moves."""
    short, long = seen("a", 1, "pending"), seen("l", 0, "pending", "DrillLong")
    assert place(short) == place(replace(short, claim=2**32 + 1))
    assert place(long) < place(replace(long, claim=1))
    assert place(short) < place(replace(short, seq=2))


class Rows:
    """A database of one table, as a watcher sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Sight] = []
        self.now = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
        monkeypatch.setattr(observe, "sights", lambda *_, **__: iter(self.rows))
        monkeypatch.setattr(movement, "now", lambda _: self.now)

    @contextmanager
    def statement(self) -> Iterator[None]:
        yield


def test_a_watcher_tells_when_it_happened_and_what_went_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(monkeypatch)
    watching = Movement(rows, "")  # type: ignore[arg-type]
    watching.stop()
    rows.rows = [replace(seen("a", 2, "pending"), updated_at=rows.now - timedelta(seconds=5))]
    began = time.monotonic()
    watching.look()
    (first,) = watching.moves()
    assert began - 5.5 < first.happened < time.monotonic() - 4.9
    assert (first.place, first.transitions) == ((2, 0), 3)
    rows.rows = [seen("a", 1, "pending")]
    watching.look()
    assert [(fall.workflow_id, fall.was, fall.found) for fall in watching.falls()] == [("a", 2, 1)]
    rows.rows = [seen("a", 2, "pending")]
    watching.look()
    assert [each.transitions for each in watching.moves()] == [3, 0, 1]
    watching.forget(["a"])
    rows.rows = [seen("a", 0, "pending")]
    watching.look()
    assert len(watching.falls()) == 1, "one that goes back on purpose is no loss"
    assert not measure.of_what_was_seen(watching.falls()).passed
    assert measure.of_what_was_seen([]).passed


def turn(number: int, at: float, attempt: int = 1, workflow_id: str = "l") -> Turn:
    return Turn(workflow_id=workflow_id, attempt=attempt, number=number, at=at)


def test_work_lost_is_what_a_long_handler_had_to_do_again() -> None:
    fault = Fault(at=10, told="", victim="l")
    done = [*(turn(number, 5 + number / 2) for number in range(1, 10)), turn(1, 6, workflow_id="other")]
    assert measure.work_lost(done, fault) is None, "it never ran again"
    # It goes on after the turn 4, of the second 7.
    assert measure.work_lost([*done, turn(5, 12, attempt=2)], fault) == pytest.approx(3)
    assert measure.work_lost([*done, turn(10, 12, attempt=2)], fault) == pytest.approx(0.5)
    assert measure.work_lost([*done, turn(1, 12, attempt=2)], fault) == pytest.approx(4.5)


def test_the_gap_is_the_longest_without_an_acknowledgement() -> None:
    requests = [asked("a", 1), asked("b", 2), asked("c", 4, error="gone"), asked("d", 7)]
    assert measure.gap(requests, 0, 8) == 5
    assert measure.gap(requests, 0, 20) == 13
    assert measure.gap([], 0, 3) == 3


def test_what_stood_still_is_the_longest_without_an_answer_or_a_transition() -> None:
    answered = [asked(str(at), at) for at in range(1, 21)]
    moves = [move(at, "w", at, 0) for at in (1, 2, 9, 10, 11, 20)]
    assert measure.stood_still(answered, moves, 1, 20) == 9
    taken = replace(move(15, "l", 0, 2), transitions=0)
    assert measure.stood_still(answered, [*moves, taken], 1, 20) == 9, "taken in hand, and nothing committed"
    silent = [each for each in answered if not 3 <= each.answered_at <= 15]
    assert measure.stood_still(silent, [move(at, "w", at, 0) for at in range(21)], 1, 20) == 14
    assert measure.stood_still(answered[:2], moves, 1, 60) == 58, "it is counted up to the end, where it never ends"


def test_it_goes_on_once_something_that_was_asked_for_afterwards_is_answered_and_moves() -> None:
    before = replace(asked("a", 12), asked_at=9)
    assert not measure.is_served([before], [move(12, "w", 1, 0)], 10)
    assert not measure.is_served([asked("b", 12, error="gone")], [move(12, "w", 1, 0)], 10)
    assert not measure.is_served([asked("b", 12)], [move(9, "w", 1, 0)], 10)
    assert not measure.is_served([asked("b", 12)], [replace(move(12, "w", 1, 0), transitions=0)], 10)
    assert measure.is_served([asked("b", 12)], [move(12, "w", 1, 0)], 10)


def test_clients_that_are_never_served_again_are_a_failure() -> None:
    assert measure.of_the_service([asked("a", 11)], 10, 0).passed
    assert not measure.of_the_service([asked("a", 9)], 10, 0).passed
    still = measure.of_the_service([asked("a", 11)], 10, 1)
    assert (still.passed, still.measured) == (False, "1 still ask in vain, after 1 requests")


def test_what_is_given_up_by_going_back_is_what_came_until_everything_was_stopped() -> None:
    fault = Fault(at=11, told="", until=10, stopped=20)
    requests = [asked("a", 9), asked("b", 15), asked("c", 21), asked("a", 12, EVENT), asked("a", 18, EVENT)]
    assert [each.workflow_id for each in measure.promised(requests, fault)] == ["a", "c"]
    assert len(measure.promised(requests, replace(fault, stopped=None))) == 5, "none came within the second"
    assert measure.events_given_up(requests, fault, until=17) == 1
    assert measure.of_the_events(1, 1).passed
    assert not measure.of_the_events(2, 1).passed


def test_what_is_lost_and_was_anchored_has_to_be_listed() -> None:
    counted = measure.count([asked("a", 1), asked("b", 5), asked("c", 1)], sights(seen("c")), set())
    assert [each.workflow_id for each in counted.lost] == ["a", "b"]
    assert measure.of_what_is_listed(counted, {"a"}, {"a", "c"}).passed
    assert not measure.of_what_is_listed(counted, {"b"}, {"a", "c"}).passed
    assert not measure.of_what_is_listed(counted, {"a", "b"}, {"c"}).passed, "nothing was anchored: it proves nothing"


def test_effects_that_were_had_twice_are_counted_once_each() -> None:
    entry = Entry(kind=EFFECT, workflow_id="a", seq=1, name="one", attempt=1, pid=1, at=0)
    assert measure.repeated([entry, replace(entry, attempt=2), replace(entry, attempt=3), replace(entry, seq=2)]) == 1


def verdicts(counted: measure.Count, seconds: float | None, scenario: str = "worker", **changes: float) -> set[str]:
    """The names of the checks that failed."""
    declared = replace(PROCESS, **changes)
    return {c.name for c in measure.of_the_counts(counted, BY_NAME[scenario], declared, seconds) if not c.passed}


def test_the_verdict_fails_where_anything_is_off() -> None:
    fine = measure.count([asked("a", 1)], sights(seen("a")), set())
    assert verdicts(fine, 0.0) == set()
    lost = measure.count([asked("a", 1), asked("b", 2)], sights(seen("a")), set())
    assert verdicts(lost, 8.0) == {"acknowledged and lost", "RPO"}
    assert verdicts(lost, 8.0, rpo=10) == set(), "where a loss is declared, it may be lost"
    assert verdicts(lost, 11.0, rpo=10) == {"acknowledged and lost", "RPO"}
    assert verdicts(lost, 8.0, "long-handler", rpo=10) == {"acknowledged and lost"}, "acknowledged is acknowledged"
    assert verdicts(fine, None, "long-handler", rpo=10) == {"work lost"}
    assert verdicts(measure.count([asked("a", 1)], sights(seen("a", 5)), set()), 0.0) == {"recorded twice"}
    assert verdicts(measure.count([asked("a", 1)], sights(seen("a", 1, "pending")), set()), 0.0) == {"completed"}
    assert verdicts(measure.count([], {}, set()), 0.0) == {"acknowledged and lost"}, "nothing was promised at all"


def test_the_time_is_judged_against_what_is_declared() -> None:
    assert measure.of_the_time(PROCESS, PROCESS.rto, 9, {}).passed
    assert not measure.of_the_time(PROCESS, PROCESS.rto + 0.01, 9, {}).passed
    never = measure.of_the_time(PROCESS, None, 20, {"w": "pending"})
    assert (never.passed, never.measured) == (False, "not within 20 s: 1, w is pending")
