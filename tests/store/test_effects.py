"""Effects on a real database: run at least once, recorded once, and what becomes of one that nobody knows of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from pydantic import BaseModel
from store_workbench import RecordingRing, claimed, everything, make_due, sql, value
from store_workflows import SCRIPT, Act, Booking, Once, Parcel, Relay

from aegis import Context, DidNotHappen, Happened, Retry, Workflow, transition
from aegis.core.errors import (
    AegisError,
    DatabaseUnavailable,
    EffectInDoubt,
    EffectNotFound,
    EffectsOpen,
    InvalidData,
    InvalidHandlerResult,
    InvalidName,
    NotCanonical,
    WorkflowNotFound,
    WrongStatus,
)
from aegis.persistence import effects
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.records import Hand
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

Script = dict[str, Act]


class Provider:
    """Somebody outside: counts what it is asked to do, by the key, and answers as it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answer: Callable[[], object] = lambda: {"charge": "ch_1"}

    def charge(self, key: str, amount: int = 1) -> object:
        self.calls.append(key)
        return self.answer()


@pytest.fixture
def provider() -> Provider:
    return Provider()


def failing(error: BaseException) -> Callable[[], object]:
    def answer() -> object:
        raise error

    return answer


def pay(provider: Provider, **options: Any) -> Act:
    """A handler with one effect, whose result it keeps."""

    def act(workflow: Any, ctx: Context) -> None:
        workflow.address = repr(ctx.effect("charge", provider.charge, ctx.effect_key("charge"), amount=3, **options))

    return act


def effect_of(database: Database, name: str = "charge") -> Any:
    with database.statement() as connection:
        (found,) = [one for one in effects.listed(connection) if one.name == name]
    return found


def again(bench: Bench, workflow_id: str = "p", seq: int = 0) -> Ended:
    make_due(bench.database, workflow_id)
    return run_transition(bench, workflow_id, seq)


@pytest.fixture
def died(engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider) -> str:
    """A parcel whose worker died between doing something outside and writing it down."""

    def die() -> object:
        raise KeyboardInterrupt  # the process ends here, as far as the effect can tell

    provider.answer = die
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    with pytest.raises(KeyboardInterrupt):
        run_transition(bench, "p", 0)
    assert effect_of(database).status == "begun"
    provider.answer = lambda: {"charge": "ch_1"}
    return "p"


# --- the good way ---------------------------------------------------------------------------


def test_an_effect_is_begun_done_and_told_in_the_chain(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    seen: list[str] = []

    def look() -> object:
        seen.append(effect_of(database).status)
        return {"charge": "ch_1"}

    provider.answer = look
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED

    assert seen == ["begun"], "the intent is committed before anything is done"
    assert provider.calls == ["p:1:charge"]
    found = effect_of(database)
    assert (found.workflow_id, found.seq, found.transition, found.status) == ("p", 1, "pack", "done")
    assert (found.attempt, found.actor, found.result) == (1, "worker:w@test", {"charge": "ch_1"})
    assert found.ended_at >= found.begun_at
    told = hashlib.sha256(b'{"charge":"ch_1"}').hexdigest()
    assert engine.history("p")[-1].payload == {"effects": [{"name": "charge", "key": "p:1:charge", "result": told}]}
    assert engine.verify_integrity("p") == (True, None)
    assert engine.effects("p") == [found]


def test_a_recorded_effect_is_not_done_again(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, provider: Provider
) -> None:
    results: list[object] = []

    def act(_workflow: Any, ctx: Context) -> None:
        results.append(ctx.effect("charge", provider.charge, ctx.effect_key("charge")))
        if ctx.attempt == 1:
            raise RuntimeError

    script["pack"] = act
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    assert again(bench) is Ended.COMMITTED
    assert results == [{"charge": "ch_1"}] * 2
    assert provider.calls == ["p:1:charge"]


class Receipt(BaseModel):
    at: datetime
    amounts: tuple[int, ...]


AT = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (Receipt(at=AT, amounts=(1, 2)), {"at": "2026-11-24T10:30:00Z", "amounts": [1, 2]}),
        ((1, 2.0, "a"), [1, 2, "a"]),
        ({"when": timedelta(seconds=90)}, {"when": "PT1M30S"}),
        ("päy €", "päy €"),
    ],
)
def test_the_first_attempt_is_given_the_very_value_that_a_later_one_is(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, given: object, kept: object
) -> None:
    results: list[object] = []

    def act(_workflow: Any, ctx: Context) -> None:
        results.append(ctx.effect("look", lambda: given))
        if ctx.attempt == 1:
            raise RuntimeError

    script["pack"] = act
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    again(bench)
    assert results == [kept, kept]
    assert [type(one) for one in results] == [type(kept)] * 2


def test_several_effects_are_told_in_the_order_in_which_they_were_begun_also_those_of_earlier_attempts(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        if ctx.attempt == 1:
            ctx.effect("zebra", lambda: 1)
            ctx.effect("ant", lambda: 2)
            raise RuntimeError
        # The attempt that wins goes another way; what was done is done.

    script["pack"] = act
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert again(bench) is Ended.COMMITTED
    payload: Any = engine.history("p")[-1].payload
    assert [one["name"] for one in payload["effects"]] == ["zebra", "ant"]


def test_the_next_transition_has_effects_of_its_own(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, provider: Provider
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        ctx.effect("charge", provider.charge, ctx.effect_key("charge"))

    script["one"] = script["two"] = act
    engine.start(Relay(), id="r")
    run_transition(bench, "r", 0)
    run_transition(bench, "r", 1)
    assert provider.calls == ["r:1:charge", "r:2:charge"]


def test_a_handler_without_effects_costs_no_statement_and_leaves_no_trace(
    engine: DurableWorkflowEngine, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(effects, "told", asked)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.history("p")[-1].payload is None


# --- when it is not known what happened --------------------------------------------------------


def test_an_effect_that_raised_is_done_again_with_the_same_key(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    provider.answer = failing(TimeoutError("no answer"))
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    found = effect_of(database)
    assert (found.status, found.error["type"], found.error["message"]) == ("begun", "TimeoutError", "no answer")
    provider.answer = lambda: "ch_2"
    assert again(bench) is Ended.COMMITTED
    assert provider.calls == ["p:1:charge"] * 2
    found = effect_of(database)
    assert (found.status, found.attempt, found.error, found.result) == ("done", 2, None, "ch_2")


def test_after_a_death_it_is_done_again_by_default(bench: Bench, died: str, provider: Provider) -> None:
    assert again(bench) is Ended.COMMITTED
    assert provider.calls == ["p:1:charge"] * 2


@pytest.mark.parametrize("answer", [DidNotHappen, DidNotHappen("no such charge")], ids=["class", "instance"])
def test_after_a_death_the_provider_is_asked_and_it_did_not_happen(
    bench: Bench, script: Script, died: str, provider: Provider, answer: object
) -> None:
    asked: list[str] = []
    script["pack"] = pay(provider, check=lambda key: (asked.append(key), answer)[1], repeat=False)
    assert again(bench) is Ended.COMMITTED
    assert asked == ["p:1:charge"]
    assert provider.calls == ["p:1:charge"] * 2


def test_a_check_may_raise_that_it_did_not_happen(bench: Bench, script: Script, died: str, provider: Provider) -> None:
    def check(key: str) -> object:
        raise DidNotHappen(key)

    script["pack"] = pay(provider, check=check, repeat=False)
    assert again(bench) is Ended.COMMITTED
    assert len(provider.calls) == 2


def test_after_a_death_the_provider_is_asked_and_it_happened(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, died: str, provider: Provider
) -> None:
    script["pack"] = pay(provider, check=lambda _: Happened({"charge": "ch_0"}))
    assert again(bench) is Ended.COMMITTED
    assert len(provider.calls) == 1
    assert effect_of(database).result == {"charge": "ch_0"}
    assert engine.get("p").to_dict()["address"] == "{'charge': 'ch_0'}"


def test_the_provider_is_not_asked_of_what_is_only_beginning(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, provider: Provider
) -> None:
    script["pack"] = pay(provider, check=failing(AssertionError()))
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED


def test_a_check_that_raises_leaves_the_effect_as_it_was(
    bench: Bench, database: Database, script: Script, died: str, provider: Provider
) -> None:
    def check(_key: str) -> object:
        raise ConnectionError

    script["pack"] = pay(provider, check=check)
    before = effect_of(database)
    assert again(bench) is Ended.FAILED
    assert effect_of(database) == before
    assert len(provider.calls) == 1


def test_a_check_that_returns_nonsense_fails_the_workflow(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, died: str, provider: Provider
) -> None:
    script["pack"] = pay(provider, check=lambda _: True)
    assert again(bench) is Ended.COMMITTED
    found = engine.describe("p")
    assert found.error is not None
    assert "returned True; it must return Happened(result) or DidNotHappen" in found.error["message"]
    assert len(provider.calls) == 1


def test_what_may_not_be_repeated_and_cannot_be_asked_goes_in_doubt(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, died: str, provider: Provider
) -> None:
    script["pack"] = pay(provider, repeat=False)
    assert again(bench) is Ended.COMMITTED
    found = engine.describe("p")
    assert (found.status, found.state, found.seq) == ("failed", "new", 1)
    assert found.error is not None
    assert found.error["type"] == "aegis.core.errors.EffectInDoubt"
    for part in ("'charge'", "'p'", "p:1:charge", "aegis effect p charge --done JSON", "--redo"):
        assert part in found.error["message"]
    assert effect_of(database).status == "in doubt"
    assert [one.name for one in engine.effects(in_doubt=True)] == ["charge"]
    assert len(provider.calls) == 1
    assert engine.verify_integrity("p") == (True, None)


def test_a_retry_without_an_answer_is_in_doubt_again(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, died: str, provider: Provider
) -> None:
    script["pack"] = pay(provider, repeat=False)
    again(bench)
    script["pack"] = pay(provider)  # also where the code says otherwise by now
    engine.retry("p")
    assert run_transition(bench, "p", 2) is Ended.COMMITTED
    assert engine.describe("p").status == "failed"
    assert len(provider.calls) == 1


class Way(StrEnum):
    OPEN = "open"
    PAID = "paid"
    GIVEN_UP = "given up"


class Careful(Workflow, name="store.Careful"):
    """A transition that leads to a state of its own where it fails for good."""

    state: Way = Way.OPEN

    @transition(Way.OPEN, Way.PAID, retry=Retry(max_attempts=2, delay=0.1), give_up=Way.GIVEN_UP)
    def pay(self, ctx: Context) -> Any:
        return SCRIPT["pay"](self, ctx)


def test_a_doubt_does_not_lead_to_the_state_of_giving_up_and_any_other_failure_tells_of_its_effects(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, provider: Provider
) -> None:
    provider.answer = failing(TimeoutError())
    for name, repeat, state in (("doubtful", False, "open"), ("failed", True, "given up")):
        script["pay"] = lambda _, ctx, repeat=repeat: ctx.effect("charge", provider.charge, "k", repeat=repeat)
        engine.start(Careful(), id=name)
        assert run_transition(bench, name, 0) is Ended.FAILED
        assert again(bench, name) is Ended.COMMITTED
        assert engine.describe(name).state == state
    assert engine.describe("doubtful").status == "failed"
    payload: Any = engine.history("failed")[-1].payload
    assert payload["effects"] == [{"name": "charge", "key": "failed:1:charge", "result": None}]


@pytest.mark.parametrize("then", [None, ValueError("something else")], ids=["goes on", "raises another"])
def test_a_handler_cannot_swallow_a_doubt(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, died: str, provider: Provider, then: Exception | None
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        try:
            ctx.effect("charge", provider.charge, "k", repeat=False)
        except EffectInDoubt:
            if then is not None:
                raise then from None

    script["pack"] = act
    assert again(bench) is Ended.COMMITTED
    found = engine.describe("p")
    assert found.status == "failed"
    assert found.error is not None
    assert found.error["type"].endswith("EffectInDoubt")


def test_what_is_known_not_to_have_happened_is_done_again_although_it_may_not_be_repeated(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    provider.answer = failing(DidNotHappen("the connection was refused"))
    script["pack"] = pay(provider, repeat=False)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    found = effect_of(database)
    assert (found.status, found.error["message"]) == ("not done", "it did not happen: the connection was refused")
    provider.answer = lambda: 1
    assert again(bench) is Ended.COMMITTED
    assert effect_of(database).status == "done"


def test_a_handler_may_go_on_without_an_effect_that_failed_and_the_chain_says_that_nobody_knows(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, provider: Provider
) -> None:
    provider.answer = failing(TimeoutError())

    def act(_workflow: Any, ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            ctx.effect("mail", provider.charge, "k")
        provider.answer = failing(DidNotHappen())
        with pytest.raises(DidNotHappen):
            ctx.effect("fax", provider.charge, "k")

    script["pack"] = act
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.history("p")[-1].payload == {"effects": [{"name": "mail", "key": "p:1:mail", "result": None}]}


# --- what may not be ------------------------------------------------------------------------------


async def _later() -> None: ...


def _unrecordable() -> Iterator[tuple[str, object]]:
    yield "nan", float("nan")
    yield "object", object()
    yield "large", "x" * 300_000
    yield "huge integer", 2**60
    yield "surrogate", "\ud800"
    yield "bytes", b"\xff"
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    yield "deep", deep


@pytest.mark.parametrize("result", [pytest.param(value, id=name) for name, value in _unrecordable()])
def test_a_result_that_cannot_be_recorded_leaves_the_effect_in_doubt(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider, result: object
) -> None:
    provider.answer = lambda: result
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    found = engine.describe("p")
    assert found.status == "failed"
    assert found.error is not None
    assert found.error["type"].endswith("InvalidHandlerResult")
    assert "happened, and what came of it cannot be recorded" in found.error["message"]
    assert (effect_of(database).status, effect_of(database).result) == ("in doubt", None)
    engine.retry("p")
    run_transition(bench, "p", 2)
    assert len(provider.calls) == 1


def test_a_handler_cannot_swallow_that_a_result_was_not_recorded(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        with suppress(InvalidHandlerResult):
            ctx.effect("look", object)

    script["pack"] = act
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert engine.describe("p").status == "failed"


def test_a_coroutine_is_no_result_and_leaves_no_warning(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    script["pack"] = lambda _, ctx: ctx.effect("later", lambda: _later())  # noqa: PLW0108 - it hides that it is async
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    error = engine.describe("p").error
    assert error is not None
    assert "it is a coroutine" in error["message"]


MISUSES: dict[str, tuple[Callable[[Context], object], str]] = {
    "a name twice": (
        lambda ctx: [ctx.effect("a", int), ctx.effect("a", int)],
        "it has a second effect 'a'; give each a name of its own",
    ),
    "a name with blanks": (lambda ctx: ctx.effect("a b", int), "'a b' is not a name of an effect"),
    "a name that is none": (lambda ctx: ctx.effect(7, int), "'7' is not a name of an effect"),  # type: ignore[arg-type]
    "a name that is too long": (lambda ctx: ctx.effect("a" * 129, int), "is not a name of an effect"),
    "no function": (lambda ctx: ctx.effect("a", 7), "the effect 'a' is 7; give a plain function"),  # type: ignore[arg-type]
    "an async function": (lambda ctx: ctx.effect("a", _later), "give a plain function"),
    "a generator": (lambda ctx: ctx.effect("a", _unrecordable), "give a plain function"),
    "a key of a name that is none": (lambda ctx: ctx.effect_key(""), "'' is not a name of an effect"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_a_misuse_fails_the_workflow_at_once(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, misuse: str
) -> None:
    act, says = MISUSES[misuse]
    script["pack"] = lambda _, ctx: act(ctx)
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    found = engine.describe("p")
    assert found.status == "failed"
    assert found.error is not None
    assert found.error["type"] == "aegis.core.errors.InvalidHandlerResult"
    assert says in found.error["message"]
    assert value(database, "SELECT count(*) FROM aegis_effect WHERE name <> 'a'") == 0


def test_a_transactional_handler_has_no_effects(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["book"] = lambda _, ctx: ctx.effect("a", int)
    engine.start(Booking(), id="b")
    run_transition(bench, "b", 0)
    found = engine.describe("b")
    assert (found.status, value(database, "SELECT count(*) FROM aegis_effect")) == ("failed", 0)
    assert found.error is not None
    assert "what a transactional handler does outside cannot be taken back" in found.error["message"]


def test_two_handlers_of_one_state_have_no_effect_in_common(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    """What the other was told is not what this one asked for."""
    script["decide"] = lambda _, ctx: (ctx.effect("mail", lambda: "decided"), 1 / 0)
    script["expire"] = lambda _, ctx: ctx.effect("mail", provider.charge, "k")
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    engine.send("p", "decide", {"send": True})
    assert run_transition(bench, "p", 1) is Ended.FAILED
    sql(database, "UPDATE aegis_event SET received_at = received_at + interval '9 days'")
    past = "timer_at = now() - interval '1 s', entered_at = now() - interval '8 days', queue = 'night', attempt = 0"
    sql(database, f"UPDATE aegis_workflow SET {past}")  # noqa: S608
    assert again(bench, seq=1) is Ended.COMMITTED
    error = engine.describe("p").error
    assert error is not None
    assert "the effect 'mail' is one of decide already" in error["message"]
    assert not provider.calls


def test_the_effect_of_a_handler_that_was_renamed_is_the_same(
    bench: Bench, database: Database, died: str, provider: Provider
) -> None:
    sql(database, "UPDATE aegis_effect SET transition = 'wrap'")
    assert again(bench) is Ended.COMMITTED
    assert effect_of(database).transition == "pack"


# --- who may write ----------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["begin", "finish"])
def test_an_answer_that_gets_lost_does_not_make_it_happen_twice(
    engine: DurableWorkflowEngine,
    bench: Bench,
    script: Script,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
) -> None:
    real, lost = getattr(effects, statement), []

    def write(*arguments: Any) -> bool:
        wrote: bool = real(*arguments)
        if not lost:
            lost.append(True)
            raise DatabaseUnavailable("test", "the answer got lost")
        return wrote

    monkeypatch.setattr(effects, statement, write)
    script["pack"] = pay(provider, repeat=False)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert lost
    assert engine.describe("p").state == "packed"
    assert len(provider.calls) == 1


def test_a_worker_whose_claim_is_lost_begins_nothing(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        engine.cancel("p")
        ctx.effect("charge", provider.charge, "k")

    script["pack"] = act
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert not provider.calls
    assert value(database, "SELECT count(*) FROM aegis_effect") == 0


def test_what_happened_while_somebody_cancelled_is_recorded_all_the_same(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    provider.answer = lambda: (engine.cancel("p", reason="enough"), "ch_1")[1]
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert (effect_of(database).status, effect_of(database).result) == ("done", "ch_1")
    assert engine.history("p")[-1].payload == {
        "reason": "enough",
        "effects": [{"name": "charge", "key": "p:1:charge", "result": None}],
    }
    assert engine.verify_integrity("p") == (True, None)


def test_a_worker_that_was_presumed_dead_cannot_say_how_it_went_once_another_has_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    def taken() -> object:
        sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL, owner_thread = NULL")
        provider.answer = lambda: "of the second"
        assert run_transition(Bench(bench.settings, database, bench.ring, "w2@test"), "p", 0) is Ended.COMMITTED
        return "of the first"

    provider.answer = taken
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert (effect_of(database).result, effect_of(database).actor) == ("of the second", "worker:w2@test")
    assert len(provider.calls) == 2


# --- a person says how it went --------------------------------------------------------------------------


@pytest.fixture
def doubtful(bench: Bench, script: Script, died: str, provider: Provider) -> str:
    """A parcel that was stopped, because nobody knows whether it was charged."""
    script["pack"] = pay(provider, repeat=False)
    assert again(bench) is Ended.COMMITTED
    provider.calls.clear()
    return died


def test_a_person_says_that_it_happened(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing, doubtful: str, provider: Provider
) -> None:
    ring.take()
    engine.resolve_effect(
        doubtful, "charge", Happened({"charge": "ch_9"}), reason="seen in the bank's list", retry=True
    )
    assert [bell.workflow_id for bell in ring.take()] == ["p"]
    assert run_transition(bench, "p", 2) is Ended.COMMITTED
    assert not provider.calls
    last = engine.history("p")[-1]
    assert last.to_state == "packed"
    assert last.payload == {
        "effects": [
            {
                "name": "charge",
                "key": "p:1:charge",
                "result": hashlib.sha256(b'{"charge":"ch_9"}').hexdigest(),
                "resolved_by": "user:ada",
                "reason": "seen in the bank's list",
            }
        ]
    }
    assert engine.history("p")[-2].payload == {"reason": "seen in the bank's list"}
    assert engine.verify_integrity("p") == (True, None)


def test_a_person_says_that_it_did_not_happen(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing, doubtful: str, provider: Provider
) -> None:
    ring.take()
    engine.resolve_effect(doubtful, "charge", DidNotHappen(), reason="the bank says no")
    assert not ring.take()
    assert engine.describe("p").status == "failed", "it waits for whoever retries it"
    engine.retry("p")
    assert run_transition(bench, "p", 2) is Ended.COMMITTED
    assert provider.calls == ["p:1:charge"]
    payload: Any = engine.history("p")[-1].payload
    assert [(one["resolved_by"], one["reason"]) for one in payload["effects"]] == [("user:ada", "the bank says no")]


def test_a_mistake_can_be_taken_back_before_the_workflow_goes_on(engine: DurableWorkflowEngine, doubtful: str) -> None:
    engine.resolve_effect(doubtful, "charge", DidNotHappen(), reason="no")
    engine.resolve_effect(doubtful, "charge", Happened(1), reason="yes, after all")
    (found,) = engine.effects("p")
    assert (found.status, found.result, found.reason) == ("done", 1, "yes, after all")


REFUSALS: dict[str, tuple[Callable[[DurableWorkflowEngine], object], type[AegisError], str]] = {
    "no reason": (
        lambda e: e.resolve_effect("p", "charge", Happened(1), reason=" "),
        InvalidName,
        "say how it is known",
    ),
    "a reason without end": (
        lambda e: e.resolve_effect("p", "charge", Happened(1), reason="x" * 2001),
        InvalidName,
        "2001 characters",
    ),
    "a result that is no JSON": (
        lambda e: e.resolve_effect("p", "charge", Happened(float("nan")), reason="r"),
        NotCanonical,
        "nan",
    ),
    "no answer": (
        lambda e: e.resolve_effect("p", "charge", True, reason="r"),  # type: ignore[arg-type]
        InvalidData,
        "neither Happened",
    ),
    "another name": (lambda e: e.resolve_effect("p", "refund", Happened(1), reason="r"), EffectNotFound, "charge"),
    "a name that cannot be": (
        lambda e: e.resolve_effect("p", "\x00", Happened(1), reason="r"),
        EffectNotFound,
        "charge",
    ),
    "another workflow": (lambda e: e.resolve_effect("q", "charge", Happened(1), reason="r"), WorkflowNotFound, "'q'"),
    "no id": (lambda e: e.resolve_effect("", "charge", Happened(1), reason="r"), InvalidName, "workflow id"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_resolution_that_cannot_be_is_refused_and_writes_nothing(
    engine: DurableWorkflowEngine, database: Database, doubtful: str, refusal: str
) -> None:
    act, kind, says = REFUSALS[refusal]
    before = everything(database)
    with pytest.raises(kind, match=says):
        act(engine)
    assert everything(database) == before


def test_nobody_says_how_it_went_while_a_handler_runs(
    engine: DurableWorkflowEngine, database: Database, died: str
) -> None:
    sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL, owner_thread = NULL")
    make_due(database, "p")
    claimed(database, "p", hand=Hand(worker="w", pid=1, thread=1))
    with pytest.raises(WrongStatus, match="is running; resolving an effect needs"):
        engine.resolve_effect("p", "charge", Happened(1), reason="r")


def test_nobody_changes_what_is_known(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, provider: Provider
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        ctx.effect("charge", provider.charge, "k")
        raise RuntimeError

    script["pack"] = act
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    with pytest.raises(WrongStatus, match="the effect 'charge', which is done"):
        engine.resolve_effect("p", "charge", DidNotHappen(), reason="r")


def test_a_retry_of_what_was_not_stopped_is_refused_as_a_whole(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    provider.answer = failing(TimeoutError())
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    before = everything(database)
    with pytest.raises(WrongStatus, match="retrying"):
        engine.resolve_effect("p", "charge", Happened(1), reason="r", retry=True)
    assert everything(database) == before


def test_the_effects_of_a_workflow_that_is_not_there(engine: DurableWorkflowEngine) -> None:
    with pytest.raises(WorkflowNotFound):
        engine.effects("nobody")
    assert engine.effects() == []


# --- removing and carrying away --------------------------------------------------------------------------


def test_an_erasure_takes_the_results_and_a_handler_that_outlived_it_puts_none_back(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    def erased() -> object:
        engine.cancel("p")
        engine.erase("p", reason="asked to")
        return {"name": "Ada"}

    provider.answer = erased
    script["pack"] = pay(provider)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert value(database, "SELECT count(*) FROM aegis_effect") == 0
    assert engine.verify_integrity("p") == (True, None)


def test_a_purge_takes_the_effects(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, provider: Provider
) -> None:
    from log_workbench import take_up_all  # noqa: PLC0415 - only this test needs the log

    script["act"] = lambda _, ctx: ctx.effect("charge", provider.charge, "k") and None
    engine.start(Once(), id="o")
    run_transition(bench, "o", 0)
    take_up_all(database)
    assert engine.purge("o") == 1
    assert value(database, "SELECT count(*) FROM aegis_effect") == 0


def test_pruning_takes_what_transitions_tell_of_that_are_old_and_leaves_what_is_open(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, provider: Provider
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        ctx.effect("charge", provider.charge, "k")

    def stop(_workflow: Any, ctx: Context) -> None:
        ctx.effect("open", provider.charge, "k")
        raise InvalidHandlerResult("x", "it stops here")

    script["one"], script["two"] = act, stop
    engine.start(Relay(), id="r")
    run_transition(bench, "r", 0)
    run_transition(bench, "r", 1)
    for seq in (2, 4, 6):  # many of the engine's own transitions come after the one that is open
        engine.retry("r")
        run_transition(bench, "r", seq + 1)
    assert [one.name for one in engine.effects()] == ["charge", "open"]
    assert engine.prune(keep=1, older_than=timedelta(0)) > 0
    assert [one.name for one in engine.effects()] == ["open"]
    assert engine.verify_integrity("r") == (True, None)


def test_a_workflow_with_open_effects_is_not_carried_away_but_may_be_read(
    engine: DurableWorkflowEngine, bench: Bench, doubtful: str
) -> None:
    with pytest.raises(EffectsOpen, match=r"\(charge\).*--without-effects"):
        engine.export_bundle("p")
    assert engine.export_bundle("p", without_effects=True).head.status == "failed"
    engine.resolve_effect("p", "charge", Happened(1), reason="r", retry=True)
    run_transition(bench, "p", 2)
    assert engine.export_bundle("p").head.state == "packed"


def test_a_cancelled_workflow_goes_on_nowhere_and_may_be_carried_away(
    engine: DurableWorkflowEngine, doubtful: str
) -> None:
    engine.cancel("p")
    assert engine.export_bundle("p").head.status == "cancelled"
