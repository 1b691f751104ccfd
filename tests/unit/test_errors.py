"""The error tree: facts, message and type survive a pickle, and the message is one line."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any, Final

import pytest

from aegis.core import errors
from aegis.core.errors import (
    AegisError,
    AlreadyApproved,
    BackupFailed,
    BrokerUnavailable,
    BundleRefused,
    CheckpointPruned,
    ClaimLost,
    ClockRefused,
    ConfigurationError,
    DatabaseUnavailable,
    DataErased,
    DeadlineExceeded,
    DefinitionError,
    DidNotHappen,
    DrillNotRun,
    EffectInDoubt,
    EffectNotFound,
    EffectsOpen,
    EventConflict,
    EventRefused,
    ForeignSession,
    FourEyes,
    HandlerTimeout,
    HistoryBroken,
    InvalidData,
    InvalidHandlerResult,
    InvalidName,
    LogBroken,
    NotABundle,
    NotANote,
    NotCanonical,
    NotOnSQLite,
    RestoreFailed,
    SchemaMismatch,
    ServerUnavailable,
    SingletonConflict,
    SinkUnavailable,
    StartConflict,
    UnknownEvent,
    UnknownVersion,
    UnknownWorkflowType,
    UpgradeFailed,
    WaitTimeout,
    WorkflowNotCompleted,
    WorkflowNotFound,
    WorkflowPurged,
    WrongStatus,
)

# Each class with the facts that it is made from, and what a person must find in its message.
SAMPLES: Final[list[tuple[type[AegisError], dict[str, Any], list[str]]]] = [
    (
        DefinitionError,
        {"workflow": "Order", "method": "pay", "problem": "it has no target", "remedy": "name one"},
        ["Order.pay", "it has no target", "name one"],
    ),
    (
        DefinitionError,
        {"workflow": "Order", "method": None, "problem": "it is empty", "remedy": "fill it"},
        ["Order: it is empty", "fill it"],
    ),
    (InvalidHandlerResult, {"transition": "Order.pay", "problem": "it returned 1"}, ["Order.pay", "it returned 1"]),
    (HandlerTimeout, {"transition": "Order.pay", "timeout": 2.5}, ["Order.pay", "2.5 s"]),
    (DidNotHappen, {"reason": "no route"}, ["it did not happen: no route"]),
    (DidNotHappen, {"reason": ""}, ["it did not happen"]),
    (
        EffectInDoubt,
        {"workflow_id": "o-1", "name": "charge", "key": "o-1:1:charge"},
        ["'o-1'", "'charge'", "'o-1:1:charge'", "aegis effect o-1 charge --done JSON", "--redo"],
    ),
    (
        EffectNotFound,
        {"workflow_id": "o-1", "name": "charg", "known": ("mail", "charge")},
        ["'o-1'", "'charg'", "charge, mail", "aegis effects o-1"],
    ),
    (EffectNotFound, {"workflow_id": "o-1", "name": "charge", "known": ()}, ["'charge'", "none"]),
    (EffectsOpen, {"workflow_id": "o-1", "names": ("charge", "mail")}, ["'o-1'", "charge, mail", "--without-effects"]),
    (NotCanonical, {"pointer": "/a/0", "problem": "nan is not a number"}, ["nan is not a number", "/a/0"]),
    (NotCanonical, {"pointer": "", "problem": "it is too large"}, ["it is too large", "the top of the document"]),
    (
        InvalidData,
        {"what": "the payload of 'pay'", "problems": (("/amount", "not a number"), ("/to", "missing"))},
        ["the payload of 'pay'", "/amount: not a number", "/to: missing"],
    ),
    (InvalidName, {"what": "event key", "value": "a b", "rule": "no blanks"}, ["'a b'", "event key", "no blanks"]),
    (
        UnknownWorkflowType,
        {"type_name": "Ordr", "known": ("Order", "Invoice")},
        ["'Ordr'", "Invoice, Order", "AEGIS_WORKFLOWS"],
    ),
    (UnknownWorkflowType, {"type_name": "Ordr", "known": ()}, ["'Ordr'", "none", "AEGIS_WORKFLOWS"]),
    (
        UnknownEvent,
        {"type_name": "Order", "event": "pey", "accepted": (("pay", ("open", "late")), ("cancel", ("open",)))},
        ["Order", "'pey'", "cancel (in open), pay (in open, late)"],
    ),
    (UnknownEvent, {"type_name": "Order", "event": "pey", "accepted": ()}, ["Order", "'pey'", "none at all"]),
    (
        EventRefused,
        {"workflow_id": "o-1", "event": "pay", "state": "paid", "accepted": ("send", "cancel")},
        ["'o-1'", "'pay'", "'paid'", "send, cancel", "nothing was sent"],
    ),
    (
        EventRefused,
        {"workflow_id": "o-1", "event": "pay", "state": "paid", "accepted": ()},
        ["it accepts: no event at all"],
    ),
    (
        AlreadyApproved,
        {"workflow_id": "o-1", "event": "pay", "sender": "user:ada"},
        ["'o-1'", "'pay'", "user:ada has sent", "somebody else"],
    ),
    (
        FourEyes,
        {"workflow_id": "o-1", "event": "pay", "sender": "user:ada"},
        ["'o-1'", "'pay'", "moved on by user:ada", "somebody else"],
    ),
    (
        UnknownVersion,
        {"type_name": "Order", "version": 4, "known": (3, 2)},
        ["version 4 of Order", "known: 2, 3", "deploy the newer code"],
    ),
    (
        UnknownVersion,
        {"type_name": "Order", "version": 1, "known": (3,)},
        ["version 1 of Order", "known: 3", "@upgrade(1)"],
    ),
    (
        UpgradeFailed,
        {"type_name": "Order", "version": 1, "problem": "KeyError: 'total'"},
        ["Order from version 1", "KeyError: 'total'"],
    ),
    (WorkflowNotFound, {"workflow_id": "o-1", "seq": None}, ["'o-1'", "aegis list"]),
    (WorkflowNotFound, {"workflow_id": "o-1", "seq": 7}, ["'o-1'", "seq 7"]),
    (
        StartConflict,
        {"workflow_id": "o-1", "differences": ("total: 1 then, 2 now", "to: a then, b now")},
        ["'o-1'", "total: 1 then, 2 now; to: a then, b now", "another id"],
    ),
    (
        SingletonConflict,
        {"type_name": "Order", "key": "customer-7", "holder": "o-1", "status": "waiting", "state": "new"},
        ["'o-1'", "Order", "'customer-7'", "waiting in state 'new'", "attach=True"],
    ),
    (
        DeadlineExceeded,
        {"workflow_id": "o-1", "deadline": "2026-11-24T10:30:00.000000Z", "state": "new"},
        ["'o-1'", "2026-11-24T10:30", "'new'", "aegis retry o-1 --deadline"],
    ),
    (
        ForeignSession,
        {"problem": "it is in autocommit", "remedy": "begin a transaction"},
        ["session=", "it is in autocommit", "begin a transaction"],
    ),
    (
        EventConflict,
        {"workflow_id": "o-1", "key": "mail-7", "event": "pay"},
        ["'o-1'", "'mail-7'", "'pay'", "use a new key"],
    ),
    (
        WrongStatus,
        {"workflow_id": "o-1", "status": "failed", "operation": "pause", "allowed": ("pending", "waiting")},
        ["'o-1'", "is failed", "pause", "pending or waiting"],
    ),
    (
        WorkflowNotCompleted,
        {"workflow_id": "o-1", "status": "failed", "reason": "no money"},
        ["'o-1'", "is failed: no money"],
    ),
    (WorkflowNotCompleted, {"workflow_id": "o-1", "status": "cancelled", "reason": None}, ["'o-1'", "is cancelled"]),
    (
        WaitTimeout,
        {"workflow_id": "o-1", "timeout": 1.5, "status": "waiting", "state": "review"},
        ["'o-1'", "1.5 s", "waiting", "'review'"],
    ),
    (
        ClockRefused,
        {"database": "shop", "problem": "it is no test", "remedy": "mark it"},
        ["the clock of shop", "it is no test", "mark it"],
    ),
    (ClaimLost, {"workflow_id": "o-1", "seq": 7}, ["'o-1'", "seq 7"]),
    (
        NotABundle,
        {"source": "b.json", "problem": "line 3 is damaged"},
        ["b.json", "line 3 is damaged", "export it again"],
    ),
    (NotANote, {"what": "the key", "problem": "its id is wrong"}, ["the key", "its id is wrong"]),
    (HistoryBroken, {"workflow_id": "o-1", "seq": 7, "problem": "it was edited"}, ["'o-1'", "7", "it was edited"]),
    (LogBroken, {"index": 256, "problem": "an entry is missing"}, ["the log", "256", "an entry is missing", "--all"]),
    (DataErased, {"workflow_id": "o-1", "seq": 7}, ["'o-1'", "transition 7", "erased", "aegis history"]),
    (CheckpointPruned, {"workflow_id": "o-1", "seq": 7}, ["'o-1'", "transition 7", "pruned", "later ones are kept"]),
    (WorkflowPurged, {"workflow_id": "o-1"}, ["'o-1'", "purged", "another id"]),
    (
        BundleRefused,
        {"source": "order.json", "findings": ("transition 3: HASH_MISMATCH", "transition 4: PREV_MISMATCH")},
        ["order.json", "nothing was written", "transition 3: HASH_MISMATCH; transition 4: PREV_MISMATCH"],
    ),
    (
        ConfigurationError,
        {"source": "AEGIS_QUEUE", "problem": "it is no name", "remedy": "use letters"},
        ["AEGIS_QUEUE", "it is no name", "use letters"],
    ),
    (
        DatabaseUnavailable,
        {"url": "postgresql://h/d", "reason": "refused"},
        ["postgresql://h/d", "refused", "aegis up", "AEGIS_DATABASE_URL"],
    ),
    (SchemaMismatch, {"found": None, "wanted": "0003"}, ["no AEGIS schema", "0003", "aegis db upgrade"]),
    (SchemaMismatch, {"found": "0001", "wanted": "0003"}, ["at 0001", "needs 0003", "aegis db upgrade"]),
    (
        BrokerUnavailable,
        {"url": "redis://h", "reason": "refused"},
        ["redis://h", "refused", "aegis up", "AEGIS_BROKER_URL"],
    ),
    (NotOnSQLite, {"what": "purging", "remedy": "erase it"}, ["purging", "SQLite", "erase it"]),
    (
        SinkUnavailable,
        {"place": "/mnt/anchors.jsonl", "reason": "No space left on device"},
        ["/mnt/anchors.jsonl", "No space left on device", "AEGIS_ANCHORS"],
    ),
    (
        ServerUnavailable,
        {"server": "PostgreSQL", "problem": "it ended", "remedy": "see the log"},
        ["PostgreSQL", "it ended", "see the log"],
    ),
    (
        BackupFailed,
        {"what": "backup 1", "problem": "it was cut short", "remedy": "take another"},
        ["backup 1", "it was cut short", "take another"],
    ),
    (
        RestoreFailed,
        {"what": "--to 7", "problem": "there is no such anchor", "remedy": "the nearest: 5"},
        ["--to 7", "there is no such anchor", "the nearest: 5"],
    ),
    (
        DrillNotRun,
        {"scenario": "worker", "problem": "there was no load", "remedy": "raise --load"},
        ["'worker'", "there was no load", "raise --load"],
    ),
]
samples = pytest.mark.parametrize(
    ("kind", "facts", "shown"), SAMPLES, ids=[f"{kind.__name__}-{n}" for n, (kind, *_) in enumerate(SAMPLES)]
)


def facts_of(error: AegisError, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(error, name) for name in names}


def test_every_error_class_has_a_sample_here() -> None:
    declared = {
        member
        for member in vars(errors).values()
        if inspect.isclass(member) and issubclass(member, BaseException) and member is not AegisError
    }
    assert declared == {kind for kind, *_ in SAMPLES}


def test_every_error_is_of_the_one_tree() -> None:
    exceptions = [m for m in vars(errors).values() if inspect.isclass(m) and issubclass(m, BaseException)]
    assert [kind for kind in exceptions if not issubclass(kind, AegisError)] == []


@samples
def test_an_error_keeps_its_facts_as_fields(kind: type[AegisError], facts: dict[str, Any], shown: list[str]) -> None:
    assert set(inspect.signature(kind).parameters) == set(facts), "the sample gives every fact"
    assert facts_of(kind(**facts), facts) == facts


@samples
def test_an_error_survives_being_pickled_and_copied(
    kind: type[AegisError], facts: dict[str, Any], shown: list[str]
) -> None:
    error = kind(**facts)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes, of a moment ago
        assert type(again) is kind
        assert facts_of(again, facts) == facts
        assert str(again) == str(error)
    assert str(copy.deepcopy(error)) == str(error)


@samples
def test_an_error_says_what_is_wrong_in_one_line(
    kind: type[AegisError], facts: dict[str, Any], shown: list[str]
) -> None:
    message = str(kind(**facts))
    assert len(message.splitlines()) == 1
    assert [part for part in shown if part not in message] == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnknownWorkflowType("a", (name for name in ["b"])),
        lambda: UnknownEvent("a", "b", ((name, iter("d")) for name in ["c"])),
        lambda: WrongStatus("a", "b", "c", (name for name in ["d"])),
    ],
)
def test_what_can_be_gone_through_only_once_is_kept(make: Callable[[], AegisError]) -> None:
    error = make()
    first, second, pickled = str(error), str(error), str(pickle.loads(pickle.dumps(error)))  # noqa: S301 - our own bytes
    assert first == second == pickled


@pytest.mark.parametrize(("length", "shown"), [(60, "x" * 60), (61, "x" * 57 + "...")])
def test_a_name_that_is_too_long_for_a_line_is_cut(length: int, shown: str) -> None:
    assert f"'{shown}' is not" in str(InvalidName("queue", "x" * length, "at most 128"))


@pytest.mark.parametrize(
    "error",
    [
        NotCanonical("/a\nb", "it holds U+0000"),  # a key of the document
        InvalidData("the payload", [("/a\nb", "it is missing")]),  # likewise
        ConfigurationError("AEGIS_QUEUE=a\nb", "it is no name", "use letters"),  # a value of the environment
        WorkflowNotCompleted("o-1", "failed", "no money\nat all"),  # what a handler's exception said
        InvalidName("workflow id", "a\nb", "no line breaks"),
        UnknownWorkflowType("a\nb", ["c"]),
        UnknownEvent("Order", "a\nb", [("c", ["d"])]),
        BundleRefused("a\nb.json", ["transition 3 of a\nb"]),
        SinkUnavailable("/mnt/a\nb", "what a store answered\nin several lines"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_line_break_in_what_came_from_outside_does_not_break_the_line(error: AegisError) -> None:
    assert len(str(error).splitlines()) == 1
