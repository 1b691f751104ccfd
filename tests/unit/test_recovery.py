"""Recovery's decisions: whom to ring, when to look again, who is dead, whose work is abandoned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from aegis.core.recovery import (
    Brokers,
    Claimed,
    Due,
    Heartbeat,
    Policy,
    abandoned,
    brokers,
    dead_workers,
    next_look,
    to_ring,
)

NOW: Final = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
LONG_AGO: Final = NOW - timedelta(days=1)
POLICY: Final = Policy(heartbeat_timeout=timedelta(seconds=12), ring_grace=timedelta(seconds=5))


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


# --- whom to ring ---------------------------------------------------------------------------


def due(number: int = 0, *, rings: int = 1, queue: str | None = None, claimed: bool = False) -> Due:
    return Due(workflow_id=f"w-{number}", seq=number, queue=queue, label="t", rings=rings, claimed=claimed, due_at=NOW)


def many(count: int, *, start: int = 0, **fields: Any) -> list[Due]:
    return [due(number, **fields) for number in range(start, start + count)]


@pytest.mark.parametrize("length", [0, 1, 10_000])
def test_a_workflow_without_a_bell_under_way_is_always_rung(length: int) -> None:
    assert to_ring([due(rings=0)], {None: length}, POLICY) == [due(rings=0)]


@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize("lengths", [{None: 0}, {}, {"another": 10_000}])
def test_an_empty_queue_has_lost_its_bells_and_all_are_rung_again(
    count: int, lengths: Mapping[str | None, int]
) -> None:
    assert to_ring(many(count), lengths, POLICY) == many(count)


@pytest.mark.parametrize(
    ("waiting", "due_there", "lost"),
    [
        (500, 500, False),
        (10_000, 500, False),  # others are in the queue, too
        (1, 3, False),  # counted at slightly different moments
        (1, 4, True),
        (9, 11, False),
        (9, 12, True),
        (10, 13, False),  # a tenth, and two
        (10, 14, True),
        (100, 112, False),
        (100, 113, True),
        (1, 500, True),
    ],
)
def test_a_queue_that_is_merely_long_is_left_alone_and_one_that_lost_bells_is_not(
    waiting: int, due_there: int, *, lost: bool
) -> None:
    assert to_ring(many(due_there), {None: waiting}, POLICY) == (many(due_there) if lost else [])


def test_each_queue_is_judged_by_itself() -> None:
    long, wiped, default = many(20, queue="long"), many(20, start=20, queue="wiped"), many(20, start=40)
    rung = to_ring([*long, *wiped, *default], {"long": 20, "wiped": 0, None: 20}, POLICY)
    assert rung == wiped


def test_workflows_that_were_never_rung_do_not_make_a_queue_look_as_if_it_had_lost_bells() -> None:
    fresh, waiting = many(100, rings=0), many(3, start=100)
    assert to_ring([*fresh, *waiting], {None: 3}, POLICY) == fresh


def test_workflows_in_hand_do_not_make_a_queue_look_as_if_it_had_lost_bells() -> None:
    in_hand, waiting = many(100, claimed=True), many(3, start=100)
    assert to_ring([*in_hand, *waiting], {None: 3}, POLICY) == []


@pytest.mark.parametrize("rings", [0, 1, 8])
def test_a_workflow_in_hand_is_not_rung(rings: int) -> None:
    assert to_ring([due(rings=rings, claimed=True)], {}, POLICY) == []


@pytest.mark.parametrize(
    ("rings", "rung"), [(1, False), (7, False), (8, True), (9, False), (15, False), (16, True), (800, True)]
)
def test_in_a_queue_that_is_long_every_eighth_look_rings_all_the_same(rings: int, *, rung: bool) -> None:
    rows = [due(rings=rings)]
    assert to_ring(rows, {None: 10_000}, POLICY) == (rows if rung else [])


def test_the_number_of_looks_is_the_policys() -> None:
    policy = Policy(heartbeat_timeout=timedelta(1), ring_grace=timedelta(1), most_waits=3)
    rows = [due(number, rings=number) for number in range(7)]
    assert [row.rings for row in to_ring(rows, {None: 10_000}, policy)] == [0, 3, 6]


def test_nothing_due_is_nothing_to_ring() -> None:
    assert to_ring([], {None: 5}, POLICY) == []


# --- when to look again ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rings", "seconds"),
    [(0, 5), (1, 10), (2, 20), (3, 40), (6, 320), (7, 600), (8, 600), (20, 600), (10_000, 600), (10**9, 600)],
)
def test_looks_are_twice_as_far_apart_each_time_up_to_ten_minutes(rings: int, seconds: float) -> None:
    assert next_look(due(rings=rings), POLICY) == timedelta(seconds=seconds)


def test_the_most_that_looks_are_apart_is_the_policys() -> None:
    policy = Policy(heartbeat_timeout=timedelta(1), ring_grace=timedelta(seconds=1), longest_look=timedelta(seconds=30))
    assert [next_look(due(rings=n), policy).total_seconds() for n in range(7)] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("rings", [0, 1, 20])
def test_a_workflow_in_hand_is_looked_at_every_minute(rings: int) -> None:
    assert next_look(due(rings=rings, claimed=True), POLICY) == timedelta(minutes=1)


# --- who is dead ------------------------------------------------------------------------------


def beat(worker_id: str = "a", *, seen: float = 0, pids: tuple[int, ...] = (7,)) -> Heartbeat:
    return Heartbeat(
        worker_id=worker_id, pids=frozenset(pids), types=frozenset(), queues=frozenset(), seen_at=ago(seen)
    )


@pytest.mark.parametrize(("silent", "dead"), [(0, False), (11.9, False), (12, False), (12.1, True), (9999, True)])
def test_a_worker_is_dead_when_it_was_silent_for_longer_than_the_time_out(silent: float, *, dead: bool) -> None:
    assert dead_workers([beat(seen=silent)], POLICY, now=NOW, watched_since=LONG_AGO) == (["a"] if dead else [])


def test_only_the_silent_of_several_are_dead() -> None:
    beats = [beat("a", seen=1), beat("b", seen=60), beat("c", seen=12), beat("d", seen=13)]
    assert dead_workers(beats, POLICY, now=NOW, watched_since=LONG_AGO) == ["b", "d"]


@pytest.mark.parametrize(("watched", "dead"), [(0, False), (5, False), (9, False), (9.1, True)])
def test_who_could_not_speak_for_a_while_has_three_quarters_of_the_time_out_to_do_so(
    watched: float, *, dead: bool
) -> None:
    found = dead_workers([beat(seen=3600)], POLICY, now=NOW, watched_since=ago(watched))
    assert found == (["a"] if dead else [])


def test_who_spoke_just_before_nobody_could_has_the_whole_time_out_from_then() -> None:
    assert dead_workers([beat(seen=11)], POLICY, now=NOW, watched_since=ago(10)) == []
    assert dead_workers([beat(seen=12.1)], POLICY, now=NOW, watched_since=ago(10)) == ["a"]


def test_a_heartbeat_from_the_future_is_no_death() -> None:
    assert dead_workers([beat(seen=-60)], POLICY, now=NOW, watched_since=LONG_AGO) == []


# --- whose work is abandoned --------------------------------------------------------------------


def claimed(owner: str = "a", *, pid: int = 7, thread: int | None = 1, at: float = 600) -> Claimed:
    return Claimed(workflow_id="w", claim=1, owner=owner, pid=pid, thread=thread, claimed_at=ago(at))


def is_abandoned(claim: Claimed, *living: Heartbeat, watched_since: datetime = LONG_AGO) -> bool:
    found = abandoned([claim], living, POLICY, now=NOW, watched_since=watched_since)
    assert found in ([], [claim])
    return bool(found)


def test_a_claim_of_a_process_that_lives_is_not_abandoned() -> None:
    assert not is_abandoned(claimed(pid=7), beat(pids=(5, 7, 9)))


def test_a_claim_of_a_process_that_its_living_worker_no_longer_has_is_abandoned() -> None:
    assert is_abandoned(claimed(pid=8), beat(pids=(5, 7, 9)))


def test_a_process_of_the_same_number_in_another_worker_does_not_count() -> None:
    assert is_abandoned(claimed("a", pid=8), beat("a", pids=(7,)), beat("b", pids=(8,)))


@pytest.mark.parametrize(
    ("claimed_before_beat", "gone"), [(-1, False), (0, False), (1, False), (2, False), (2.1, True), (60, True)]
)
def test_a_heartbeat_says_nothing_of_a_process_that_was_forked_while_it_was_on_its_way(
    claimed_before_beat: float, *, gone: bool
) -> None:
    claim = claimed(pid=8, at=3 + claimed_before_beat)
    assert is_abandoned(claim, beat(seen=3, pids=(7,))) is gone


@pytest.mark.parametrize(("age", "gone"), [(0, False), (12, False), (12.1, True), (3600, True)])
def test_a_claim_of_a_worker_that_nobody_knows_is_abandoned_after_the_time_out(age: float, *, gone: bool) -> None:
    assert is_abandoned(claimed("unknown", at=age), beat("a")) is gone
    assert is_abandoned(claimed("unknown", at=age)) is gone


@pytest.mark.parametrize(("watched", "gone"), [(0, False), (9, False), (9.1, True)])
def test_the_time_of_an_unknown_worker_counts_from_when_sweeps_run_without_a_gap(watched: float, *, gone: bool) -> None:
    assert is_abandoned(claimed("unknown", at=3600), watched_since=ago(watched)) is gone


def test_a_missing_process_does_not_wait_for_the_time_out() -> None:
    assert is_abandoned(claimed(pid=8, at=5), beat(seen=1, pids=(7,)), watched_since=NOW)


def test_only_the_abandoned_of_several_claims_are_returned_in_their_order() -> None:
    claims = [claimed("gone"), claimed("a", pid=7), claimed("a", pid=8), claimed("b", pid=1)]
    living = [beat("a", pids=(7,)), beat("b", pids=(1,))]
    found = abandoned(claims, living, POLICY, now=NOW, watched_since=LONG_AGO)
    assert found == [claims[0], claims[2]]


def test_no_claims_are_no_abandoned_claims() -> None:
    assert abandoned([], [beat()], POLICY, now=NOW, watched_since=LONG_AGO) == []


def test_what_a_hand_held_before_it_took_something_else_is_abandoned() -> None:
    """One hand holds one workflow at a time: what is older was left over by an error nobody thought of."""
    left, held = claimed(at=600), claimed(at=30)
    others = [claimed(thread=2, at=900), claimed(pid=8, at=900), claimed("b", at=900)]
    living = [beat("a", pids={7, 8}), beat("b", pids={7})]
    assert abandoned([held, *others, left], living, POLICY, now=NOW, watched_since=LONG_AGO) == [left]


@pytest.mark.parametrize(
    ("rings", "due_for", "rung"),
    [
        (1, 0, True),  # rung 5 s before it was due, 5 s ago: before the server led
        (1, 2, True),
        (1, -3, False),  # not yet due for 3 s: rung 2 s ago
        (3, 0, True),  # looked at 20 s ago
        (3, -17, False),  # looked at 3 s ago
        (30, 0, True),  # ten minutes ago: no look is later
        (30, -597, False),
    ],
)
def test_what_was_rung_before_a_fail_over_is_rung_once_more_though_the_queue_is_long(
    rings: int, due_for: float, *, rung: bool
) -> None:
    row = replace(due(rings=rings), due_at=ago(due_for))
    assert to_ring([row], {None: 100}, POLICY, ago(4)) == ([row] if rung else [])
    assert to_ring([row], {None: 100}, POLICY) == []
    assert to_ring([replace(row, claimed=True)], {None: 100}, POLICY, ago(4)) == []


# --- where somebody listens -------------------------------------------------------------------


def listener(broker: str | None, *, seen: float = 0) -> Heartbeat:
    types = queues = pids = frozenset[Any]()
    return Heartbeat(worker_id="w", pids=pids, types=types, queues=queues, seen_at=ago(seen), broker=broker)


HERE, THERE = listener("here"), listener("there", seen=20)


@pytest.mark.parametrize(
    ("before", "living", "dead", "expected"),
    [
        ({}, [HERE], [], Brokers(known={"here": None})),
        ({"here": None}, [HERE, listener("there")], [], Brokers(known={"here": None, "there": None})),
        # Found dead at this moment, and silent for long: left at once.
        ({"here": None, "there": None}, [HERE], [THERE], Brokers(known={"here": None}, left=frozenset({"there"}))),
        # Another listens there.
        (
            {"here": None, "there": None},
            [HERE, listener("there")],
            [THERE],
            Brokers(known={"here": None, "there": None}),
        ),
        # It left of itself, or its neighbour buried it: it has the time to come back.
        ({"here": None, "there": None}, [HERE], [], Brokers(known={"here": None, "there": NOW})),
        ({"here": None, "there": ago(12)}, [HERE], [], Brokers(known={"here": None, "there": ago(12)})),
        ({"here": None, "there": ago(13)}, [HERE], [], Brokers(known={"here": None}, left=frozenset({"there"}))),
        ({"here": None, "there": ago(13)}, [HERE, listener("there")], [], Brokers(known={"here": None, "there": None})),
        # Nobody listens elsewhere, or one that does not say where: nothing is decided.
        ({"there": None}, [], [THERE], Brokers(known={"there": None})),
        ({"here": None, "there": ago(99)}, [HERE, listener(None)], [], Brokers(known={"here": None, "there": ago(99)})),
    ],
)
def test_a_broker_is_left_once_nobody_has_listened_there_for_too_long(
    before: dict[str, datetime | None], living: list[Heartbeat], dead: list[Heartbeat], expected: Brokers
) -> None:
    assert brokers(before, living, dead, POLICY, now=NOW) == expected
