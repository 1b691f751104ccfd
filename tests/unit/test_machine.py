"""The state machine as data: what a state waits for, which edge is taken, what its fingerprint covers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import rfc8785

from aegis.core.errors import DefinitionError
from aegis.core.machine import Definition, Edge, Kind, Pending, WaitingEvent
from aegis.core.names import is_queue_name
from aegis.core.retry import Retry
from aegis.core.rules import check

ENTERED: Final = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)

# A parcel: packed at once; then picked up on an event, reminded of after an hour, and given up after a day.
PACK: Final = Edge(name="pack", sources=("ordered",), targets=("packed",))
PICK_UP: Final = Edge(name="pick_up", sources=("packed", "late"), targets=("gone", "refused"), on="driver")
GIVE_UP: Final = Edge(name="give_up", sources=("packed",), targets=("refused",), after=timedelta(days=1))
REMIND: Final = Edge(name="remind", sources=("packed",), targets=("late",), after=timedelta(hours=1))
RECALL: Final = Edge(name="recall", sources=("packed",), targets=("refused",), on="recall")
PARCEL: Final = Definition(
    type="Parcel",
    version=2,
    states=("ordered", "packed", "late", "gone", "refused"),
    initial="ordered",
    edges=(PACK, PICK_UP, GIVE_UP, REMIND, RECALL),
)
REMIND_AT: Final = ENTERED + timedelta(hours=1)


def event(name: str, received_at: datetime = ENTERED) -> WaitingEvent:
    return WaitingEvent(id=1, name=name, key="k", sender="user:ada", payload=b"null", received_at=received_at)


# --- what a state waits for -----------------------------------------------------------------


def test_the_machine_that_the_tests_use_is_a_good_one() -> None:
    check(PARCEL)


@pytest.mark.parametrize(("edge", "kind"), [(PACK, Kind.AUTOMATIC), (PICK_UP, Kind.EVENT), (GIVE_UP, Kind.TIMER)])
def test_the_kind_of_an_edge_is_what_sets_it_off(edge: Edge, kind: Kind) -> None:
    assert edge.kind is kind


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ("ordered", ["pack"]),
        ("packed", ["pick_up", "give_up", "remind", "recall"]),
        ("late", ["pick_up"]),
        ("gone", []),
        ("unheard of", []),
    ],
)
def test_a_state_is_left_by_its_edges_in_the_order_of_their_declaration(state: str, names: list[str]) -> None:
    assert [edge.name for edge in PARCEL.leaving(state)] == names


@pytest.mark.parametrize(
    ("state", "pending", "following", "final"),
    [
        ("ordered", Pending(automatic=PACK), PACK, False),
        ("packed", Pending(accepts=("driver", "recall"), timer=REMIND, timer_at=REMIND_AT), REMIND, False),
        ("late", Pending(accepts=("driver",)), None, False),
        ("gone", Pending(), None, True),
    ],
)
def test_what_a_workflow_waits_for(state: str, pending: Pending, following: Edge | None, *, final: bool) -> None:
    found = PARCEL.pending(state, entered_at=ENTERED)
    assert found == pending
    assert found.following is following
    assert found.final is final


def test_a_state_with_a_timer_alone_is_not_final() -> None:
    machine = replace(PARCEL, edges=(PACK, GIVE_UP))
    assert machine.pending("packed", entered_at=ENTERED) == Pending(timer=GIVE_UP, timer_at=ENTERED + timedelta(days=1))
    assert not machine.pending("packed", entered_at=ENTERED).final


def test_every_event_of_a_machine_is_listed_once() -> None:
    again = Edge(name="again", sources=("late",), targets=("packed",), on="recall")
    assert replace(PARCEL, edges=(*PARCEL.edges, again)).events() == ("driver", "recall")


@pytest.mark.parametrize(
    ("state", "name", "edge"),
    [
        ("packed", "driver", PICK_UP),
        ("late", "driver", PICK_UP),
        ("packed", "recall", RECALL),
        ("late", "recall", None),
        ("ordered", "driver", None),
        ("packed", "remind", None),
    ],
)
def test_an_event_is_taken_by_the_edge_of_the_state(state: str, name: str, edge: Edge | None) -> None:
    assert PARCEL.on_event(state, name) == (() if edge is None else (edge,))


# --- which edge is taken --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "waiting", "now", "chosen"),
    [
        # automatic: at once, whatever else there is
        ("ordered", None, ENTERED, PACK),
        ("ordered", event("driver"), ENTERED, PACK),
        # nothing to do yet
        ("packed", None, ENTERED, None),
        ("packed", None, REMIND_AT - SECOND, None),
        ("late", None, ENTERED + timedelta(days=99), None),
        ("gone", None, ENTERED, None),
        # the timer, from the very moment on
        ("packed", None, REMIND_AT, REMIND),
        ("packed", None, REMIND_AT + timedelta(days=9), REMIND),
        # the event, as long as the timer has not run out
        ("packed", event("driver"), ENTERED, PICK_UP),
        ("packed", event("recall"), REMIND_AT - SECOND, RECALL),
        ("late", event("driver"), ENTERED, PICK_UP),
        # both: whichever came first, however late it is handled
        ("packed", event("driver", REMIND_AT - SECOND), REMIND_AT + timedelta(days=9), PICK_UP),
        ("packed", event("driver", REMIND_AT), REMIND_AT, PICK_UP),
        ("packed", event("driver", REMIND_AT + SECOND), REMIND_AT + SECOND, REMIND),
        ("packed", event("driver", REMIND_AT + SECOND), REMIND_AT + timedelta(days=9), REMIND),
        # received before the state was even entered
        ("packed", event("driver", ENTERED - timedelta(days=1)), REMIND_AT + SECOND, PICK_UP),
        # an event that the state does not take
        ("late", event("recall"), ENTERED, None),
    ],
)
def test_the_edge_that_is_taken_now(
    state: str, waiting: WaitingEvent | None, now: datetime, chosen: Edge | None
) -> None:
    pending = PARCEL.pending(state, entered_at=ENTERED)
    assert PARCEL.choose(state, pending, waiting, now=now) == (() if chosen is None else (chosen,))


# --- the fingerprint ------------------------------------------------------------------------


def first_edge(**changes: Any) -> Definition:
    return replace(PARCEL, edges=(replace(PACK, **changes), *PARCEL.edges[1:]))


@pytest.mark.parametrize(
    "tuning",
    [
        {"retry": Retry(max_attempts=9, delay=0)},
        {"timeout": 30},
        {"queue": "slow"},
        {"transactional": True},
    ],
    ids=lambda tuning: next(iter(tuning)),
)
def test_tuning_leaves_the_fingerprint_alone(tuning: dict[str, Any]) -> None:
    tuned = first_edge(**tuning)
    assert tuned != PARCEL
    assert tuned.fingerprint == PARCEL.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        replace(PARCEL, type="Letter"),
        replace(PARCEL, version=3),
        replace(PARCEL, states=(*PARCEL.states, "lost")),
        replace(PARCEL, states=PARCEL.states[::-1]),
        replace(PARCEL, initial="packed"),
        replace(PARCEL, edges=PARCEL.edges[:-1]),
        first_edge(name="wrap"),
        first_edge(sources=("late",)),
        first_edge(targets=("packed", "late")),
        first_edge(on="order"),
        first_edge(after=SECOND),
        first_edge(after=timedelta(0)),
    ],
    ids=["type", "version", "state", "order", "initial", "edge", "name", "source", "target", "on", "after", "at-once"],
)
def test_another_machine_has_another_fingerprint(other: Definition) -> None:
    assert other.fingerprint != PARCEL.fingerprint


@pytest.mark.parametrize(
    "rule",
    [
        {"guard": lambda _workflow: True},
        {"give_up": "refused"},
        {"on": "order", "buffer": False},
        {"on": "order", "approvals": 2},
        {"on": "order", "four_eyes": True},
    ],
    ids=lambda rule: list(rule)[-1],
)
def test_a_rule_changes_the_fingerprint_and_only_where_there_is_one(rule: dict[str, Any]) -> None:
    without = first_edge(**{name: value for name, value in rule.items() if name == "on"})
    assert first_edge(**rule).fingerprint != without.fingerprint
    assert first_edge(**rule).fingerprint == first_edge(**rule).fingerprint


def test_several_automatic_edges_and_several_on_one_event_are_tried_in_their_order() -> None:
    wrap, bag = replace(PACK, name="wrap", guard=bool), replace(PACK, name="bag", guard=bool)
    leave = replace(PICK_UP, name="leave", guard=bool)
    machine = replace(PARCEL, edges=(wrap, bag, PACK, leave, PICK_UP, REMIND))
    check(machine)
    pending = machine.pending("ordered", entered_at=ENTERED)
    assert (pending.automatic, pending.alternatives, pending.following) == (wrap, (bag, PACK), wrap)
    assert machine.choose("ordered", pending, None, now=ENTERED) == (wrap, bag, PACK)
    pending = machine.pending("packed", entered_at=ENTERED)
    assert pending.accepts == ("driver",)
    assert machine.choose("packed", pending, event("driver"), now=ENTERED) == (leave, PICK_UP)


def test_timers_a_microsecond_apart_have_different_fingerprints() -> None:
    prints = {first_edge(after=timedelta(days=3650, microseconds=n)).fingerprint for n in range(3)}
    assert len(prints) == 3


def test_the_fingerprint_is_the_hash_of_the_machine_in_canonical_json() -> None:
    # It is in every envelope of every history: other bytes here would be another format.
    machine = Definition(
        type="Door",
        version=1,
        states=("shut", "open"),
        initial="shut",
        edges=(
            Edge(name="push", sources=("shut",), targets=("open",), on="hand"),
            Edge(name="swing", sources=("open",), targets=("shut",), after=timedelta(seconds=1.5)),
        ),
    )
    body = {
        "type": "Door",
        "version": 1,
        "states": ["shut", "open"],
        "initial": "shut",
        "transitions": [
            {"name": "push", "from": ["shut"], "to": ["open"], "on": "hand", "after": None},
            {"name": "swing", "from": ["open"], "to": ["shut"], "on": None, "after": "1.500000"},
        ],
    }
    assert machine.fingerprint == "sha256:" + hashlib.sha256(rfc8785.dumps(body)).hexdigest()


# --- the diagram ----------------------------------------------------------------------------


def test_the_diagram_shows_every_edge_and_every_end() -> None:
    assert PARCEL.diagram().splitlines() == [
        "stateDiagram-v2",
        "    [*] --> ordered",
        "    ordered --> packed: pack",
        "    packed --> gone: pick_up on driver",
        "    packed --> refused: pick_up on driver",
        "    late --> gone: pick_up on driver",
        "    late --> refused: pick_up on driver",
        "    packed --> refused: give_up after 1 day, 0:00:00",
        "    packed --> late: remind after 1:00:00",
        "    packed --> refused: recall on recall",
        "    gone --> [*]",
        "    refused --> [*]",
    ]


# --- checking a machine that no class stands behind ----------------------------------------


@pytest.mark.parametrize(
    ("machine", "method", "problem"),
    [
        (replace(PARCEL, edges=()), None, "declares no transition"),
        (first_edge(name="created"), "created", "the engine itself"),
        (first_edge(queue=""), "pack", "not a name for a queue"),
        (replace(PARCEL, states=(*PARCEL.states, "lost")), None, "'lost' cannot be reached"),
    ],
)
def test_a_bad_machine_is_refused(machine: Definition, method: str | None, problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem) as refused:
        check(machine)
    assert (refused.value.workflow, refused.value.method) == ("Parcel", method)


# --- names of queues ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "aegis", "slow-2", "eu.west_1", "UPPER", "9", "-", ".", "q" * 128])
def test_a_name_for_a_queue(name: str) -> None:
    assert is_queue_name(name)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a\n", "a/b", "a:b", "a,b", "a*", "a;b", "a$b", "ä", "٣", "²", "a\0", "q" * 129]
)
def test_not_a_name_for_a_queue(name: str) -> None:
    assert not is_queue_name(name)


@pytest.mark.parametrize("change", [lambda d: setattr(d, "version", 3), lambda d: setattr(d.edges[0], "on", "x")])
def test_a_machine_cannot_be_changed(change: Callable[[Definition], None]) -> None:
    with pytest.raises(AttributeError):
        change(PARCEL)
