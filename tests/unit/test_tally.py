"""Approvals and four eyes, as a chain alone shows them: what is named, and that both verifiers name the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.cli import verify_bundle
from aegis.core.canonical import Json, load
from aegis.core.chain import ENGINE_EVENTS, Link, Step, genesis, link
from aegis.core.finding import Code
from aegis.core.verify import Audit, Evidence, StoredCheckpoint, StoredTransition

WORKFLOW: Final = "b-1"
DEPLOYMENT: Final = "aegis.example/test"
BEGIN: Final = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


class Told:
    """One transition of a history: its event, its payload, and whether it leads to another state."""

    def __init__(self, event: str, *, moves: bool | None = None, actor: str = "worker:w", **payload: Json) -> None:
        self.event, self.actor, self.payload = event, actor, payload
        self.moves = (
            event not in {"created", "approved", "disregarded", "paused", "resumed"} if moves is None else moves
        )


def created(actor: str = "user:ada") -> Told:
    return Told("created", actor=actor)


def approved(sender: str, approvals: int, transition: str = "approve", **more: Any) -> Told:
    return Told("approved", sender=sender, key="k", data=None, transition=transition, approvals=approvals, **more)


def taken(event: str, sender: str, **more: Any) -> Told:
    return Told(event, sender=sender, key="k", data=None, **more)


def chain(told: Sequence[Told]) -> list[Link]:
    made: list[Link] = []
    prev, state = genesis(DEPLOYMENT, WORKFLOW), "s0"
    for seq, one in enumerate(told):
        before, state = state, f"s{seq}" if one.moves else state
        step = Step(
            workflow_id=WORKFLOW,
            seq=seq,
            type="Budget",
            definition="sha256:" + "0" * 64,
            event=one.event,
            from_state=before if seq else None,
            to_state=state,
            actor=one.actor,
            attempt=1,
            at=BEGIN + timedelta(seconds=seq),
            state={"seq": seq},
            payload=one.payload or None,
        )
        salt = hashlib.sha256(str(seq).encode()).digest()
        made.append(link(step, prev, salts=(salt, salt), max_bytes=10_000))
        prev = made[-1].hash
    return made


def stored(one: Link, *, payload: bool = True) -> tuple[StoredTransition, StoredCheckpoint]:
    envelope = one.envelope
    members: Any = load(one.body)
    return (
        StoredTransition(
            workflow_id=WORKFLOW,
            seq=envelope.seq,
            event=envelope.event,
            from_state=envelope.from_state,
            to_state=envelope.to_state,
            actor=envelope.actor,
            attempt=envelope.attempt,
            at=members["at"],
            envelope=one.body,
            hash=one.hash,
            payload=one.payload if payload else None,
            payload_salt=one.payload_salt if payload else None,
        ),
        StoredCheckpoint(
            workflow_id=WORKFLOW,
            seq=envelope.seq,
            number=0,
            body=one.checkpoint,
            salt=one.checkpoint_salt,
            commitment=envelope.checkpoint,
        ),
    )


def by_the_audit(links: Sequence[Link], *, gone: Sequence[int] = ()) -> list[tuple[int | None, str, str]]:
    audit = Audit(WORKFLOW, Evidence(deployment=DEPLOYMENT))
    for one in links:
        audit.transition(*stored(one, payload=one.envelope.seq not in gone), None)
    return [
        (found.seq, str(found.expected), str(found.actual))
        for found in audit.findings
        if found.code is Code.RULE_BROKEN
    ]


def by_the_script(links: Sequence[Link], *, gone: Sequence[int] = ()) -> list[tuple[int | None, str, str]]:
    tally, found = verify_bundle.Tally(), []
    for one in links:
        envelope: Any = load(one.body)
        said: Any = {} if one.payload is None else load(one.payload)
        if one.envelope.seq in gone:
            tally.lose()
            continue
        found += [(one.envelope.seq, expected, actual) for expected, actual in tally.count(envelope, said)]
    return found


def broken(told: Sequence[Told], *, gone: Sequence[int] = ()) -> list[tuple[int | None, str, str]]:
    """Return what both find, which must be the same."""
    links = chain(told)
    found = by_the_audit(links, gone=gone)
    assert sorted(by_the_script(links, gone=gone)) == sorted(found)  # type: ignore[type-var]
    return found


SUBMITTED: Final = [created(), taken("submit", "user:bob")]

KEPT: Final = {
    "two who approve": [*SUBMITTED, approved("user:eve", 1), taken("approve", "user:ada", approvals=2)],
    "four eyes, by who only began it": [*SUBMITTED, taken("approve", "user:ada", four_eyes=True)],
    "both rules": [
        *SUBMITTED,
        approved("user:eve", 1, four_eyes=True),
        taken("approve", "user:ada", approvals=2, four_eyes=True),
    ],
    "a pause between": [
        *SUBMITTED,
        approved("user:eve", 1),
        Told("paused", reason="lunch"),
        Told("resumed"),
        taken("approve", "user:ada", approvals=2),
    ],
    "what is disregarded counts for nothing": [
        *SUBMITTED,
        approved("user:eve", 1),
        Told("disregarded", sender="user:eve", transition="approve", approvals=1, rule="already approved"),
        Told("disregarded", sender="user:bob", transition="approve", approvals=1, rule="four eyes", four_eyes=True),
        taken("approve", "user:ada", approvals=2, four_eyes=True),
    ],
    "each transition has its own count": [
        *SUBMITTED,
        approved("user:eve", 1, "approve"),
        approved("user:eve", 1, "reject"),
        taken("reject", "user:ada", approvals=2),
    ],
    "a state that is entered anew counts anew": [
        *SUBMITTED,
        approved("user:eve", 1),
        taken("amend", "user:bob"),
        approved("user:eve", 1),
        taken("approve", "user:ada", approvals=2),
    ],
    "as many as were needed before fewer were": [
        *SUBMITTED,
        approved("user:eve", 1),
        approved("user:ada", 2),
        taken("approve", "user:max", approvals=2),
    ],
    "an automatic transition moves on nobody's behalf": [
        *SUBMITTED,
        Told("check"),
        taken("approve", "user:ada", four_eyes=True),
    ],
    "a member of the payload's own of that name": [
        created(),
        Told("submit", sender="user:bob", key="k", data={"approvals": 7, "four_eyes": True}),
    ],
}


@pytest.mark.parametrize("name", KEPT)
def test_a_history_whose_rules_were_kept(name: str) -> None:
    assert broken(KEPT[name]) == []


ANOTHER: Final = "an approval by another sender"
EYES: Final = "a sender who did not move it on before"

BROKEN: Final = {
    "one who approves twice": (
        [*SUBMITTED, approved("user:eve", 1), approved("user:eve", 2)],
        [(3, ANOTHER, "one more by user:eve"), (3, "approvals 1", "approvals 2")],
    ),
    "the last one had approved": (
        [*SUBMITTED, approved("user:eve", 1), taken("approve", "user:eve", approvals=2)],
        [(3, ANOTHER, "one more by user:eve")],
    ),
    "too few": (
        [*SUBMITTED, approved("user:eve", 1), taken("approve", "user:ada", approvals=3)],
        [(3, "3 approvals", "2 by user:ada, user:eve")],
    ),
    "none of them in this state": (
        [*SUBMITTED, approved("user:eve", 1), taken("amend", "user:bob"), taken("approve", "user:ada", approvals=2)],
        [(4, "2 approvals", "1 by user:ada")],
    ),
    "none of them for this transition": (
        [*SUBMITTED, approved("user:eve", 1, "reject"), taken("approve", "user:ada", approvals=2)],
        [(3, "2 approvals", "1 by user:ada")],
    ),
    "what was disregarded": (
        [
            *SUBMITTED,
            Told("disregarded", sender="user:eve", transition="approve", approvals=0, rule="four eyes"),
            taken("approve", "user:ada", approvals=2),
        ],
        [(3, "2 approvals", "1 by user:ada")],
    ),
    "a number that does not fit": ([*SUBMITTED, approved("user:eve", 2)], [(2, "approvals 1", "approvals 2")]),
    "who began it": ([created(), taken("approve", "user:ada", four_eyes=True)], [(1, EYES, "user:ada")]),
    "who moved it on": ([*SUBMITTED, taken("approve", "user:bob", four_eyes=True)], [(2, EYES, "user:bob")]),
    "who moved it on, past a handler of nobody's": (
        [*SUBMITTED, Told("check"), Told("paused"), taken("approve", "user:bob", four_eyes=True)],
        [(4, EYES, "user:bob")],
    ),
    "who moved it on, as one of several": (
        [*SUBMITTED, approved("user:bob", 1, four_eyes=True)],
        [(2, EYES, "user:bob")],
    ),
    "an approval that leads elsewhere": (
        [*SUBMITTED, Told("approved", moves=True, sender="user:eve", transition="approve", approvals=1)],
        [(2, "a state that stays", "approved from s1 to s2")],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_that_was_broken_is_named_at_the_transition(name: str) -> None:
    told, found = BROKEN[name]
    assert broken(told) == found


def test_nothing_is_concluded_from_what_cannot_be_read_any_more() -> None:
    told = [*SUBMITTED, approved("user:eve", 1), taken("approve", "user:bob", approvals=2, four_eyes=True)]
    assert broken(told) == [(3, EYES, "user:bob")]
    assert broken(told, gone=[1]) == []  # who submitted it is not known
    told[-1] = taken("approve", "user:eve", approvals=2)
    assert broken(told) == [(3, ANOTHER, "one more by user:eve")]
    assert broken(told, gone=[2]) == []


senders = st.sampled_from(["user:ada", "user:bob", "user:eve"])
counts = st.integers(1, 3)
flags = st.fixed_dictionaries({}, optional={"four_eyes": st.booleans()})
steps = st.one_of(
    st.builds(
        lambda s, n, t, f: approved(s, n, t, **f), senders, counts, st.sampled_from(["approve", "reject"]), flags
    ),
    st.builds(lambda e, s, f: taken(e, s, **f), st.sampled_from(["approve", "reject", "submit"]), senders, flags),
    st.builds(lambda s, n, f: taken("approve", s, approvals=n, **f), senders, counts, flags),
    st.builds(lambda: Told("check")),
    st.builds(lambda moves: Told("upgraded", moves=moves, from_version=1), st.booleans()),
    st.builds(lambda: Told("paused", reason="lunch")),
    st.builds(lambda s: Told("disregarded", sender=s, transition="approve", approvals=0), senders),
)


@settings(max_examples=300, deadline=None)
@given(told=st.lists(steps, max_size=12), gone=st.sets(st.integers(1, 12), max_size=2))
def test_both_find_the_same_in_any_history(told: list[Told], gone: set[int]) -> None:
    told = [created(), *told]
    without = [seq for seq in gone if seq < len(told) and told[seq].payload]
    broken(told, gone=without)


def test_both_know_the_same_events_of_the_engine() -> None:
    assert set(ENGINE_EVENTS) == verify_bundle.ENGINE_EVENTS
    assert {event: status for event, status in ENGINE_EVENTS.items() if status} == verify_bundle.STATUS_AFTER
