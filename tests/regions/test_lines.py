"""What the lines carry, when it arrives, and what is lost: decided without a clock and without a network."""

from __future__ import annotations

import random

import pytest

from aegis.recovery.regions import lines
from aegis.recovery.regions.lines import Lines, Terms


def made(**terms: object) -> Lines:
    return drawn(Terms(**terms))  # type: ignore[arg-type]


def drawn(terms: Terms, seed: int = 1) -> Lines:
    return Lines(terms, random.Random(seed))  # noqa: S311 - to be repeated


def test_a_packet_arrives_after_its_delay_and_not_before() -> None:
    line = made(delay=0.040)
    line.take(1, 2, b"one", 10.0)
    assert line.next() == pytest.approx(10.040)
    assert list(line.arrived(10.039)) == []
    assert list(line.arrived(10.041)) == [(2, b"one")]
    assert line.next() is None
    assert (line.carried, line.lost) == (1, 0)


def test_none_overtakes_another_of_its_line_whatever_the_jitter() -> None:
    line = made(delay=0.010, jitter=0.050)
    sent = [bytes([number]) for number in range(100)]
    for number, packet in enumerate(sent):
        line.take(1, 2, packet, number / 1000)
    assert line.next() is not None
    assert [packet for _, packet in line.arrived(1.0)] == sent


def test_jitter_is_within_its_bound_and_not_always_the_same() -> None:
    arrivals = set()
    for number in range(50):
        line = drawn(Terms(delay=0.010, jitter=0.005), number)
        line.take(1, 2, b"", 0.0)
        arrives = line.next()
        assert arrives is not None
        assert 0.010 <= arrives <= 0.015
        arrivals.add(arrives)
    assert len(arrivals) > 40


def test_a_line_that_is_cut_carries_nothing_in_either_direction_nor_what_was_under_way() -> None:
    line = made(delay=0.040)
    line.take(1, 2, b"under way", 0.0)
    line.terms = Terms(cut=frozenset({lines.pair(2, 1)}))
    line.take(1, 2, b"there", 0.01)
    line.take(2, 1, b"back", 0.01)
    line.take(1, 3, b"elsewhere", 0.01)
    assert list(line.arrived(1.0)) == [(3, b"elsewhere")]
    assert (line.carried, line.lost) == (1, 3)
    line.terms = Terms()
    line.take(2, 1, b"again", 1.0)
    assert list(line.arrived(1.0)) == [(1, b"again")]


def test_who_is_near_waits_for_nothing() -> None:
    line = made(delay=0.040, jitter=0.010, near=frozenset({4}))
    line.take(1, 2, b"far", 0.0)
    line.take(4, 1, b"asked", 0.0)
    line.take(1, 4, b"answered", 0.0)
    assert [packet for _, packet in line.arrived(0.0)] == [b"asked", b"answered"]


def test_what_is_under_way_is_bounded_for_each_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_MOST_UNDER_WAY", 3)
    line = made(delay=1.0)
    for _ in range(5):
        line.take(1, 2, b"", 0.0)
    line.take(2, 1, b"", 0.0)
    assert line.lost == 2
    assert len(list(line.arrived(2.0))) == 4
    line.take(1, 2, b"there is room again", 2.0)
    assert line.lost == 2


def test_terms_are_told_as_json() -> None:
    terms = Terms(delay=0.04, jitter=0.002, near=frozenset({4}), cut=frozenset({(1, 2), (1, 3)}))
    assert Terms.from_dict(terms.to_dict()) == terms
