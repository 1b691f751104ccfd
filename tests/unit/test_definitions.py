"""What is refused when a workflow class is made, and what is not."""

from __future__ import annotations

import functools
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum, IntEnum, StrEnum
from typing import Any, Final, Literal, TypeVar

import pytest
from pydantic import BaseModel, Field

from aegis.core.errors import DefinitionError, InvalidData, UnknownWorkflowType
from aegis.core.machine import Kind
from aegis.core.retry import Retry
from aegis.core.workflow import Context, Workflow, handle, read_payload, registry, snapshot, transition


class Gate(StrEnum):
    SHUT = "shut"
    OPEN = "open"
    GONE = "gone"


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"


class Lamp(StrEnum):
    OFF = "off"
    SHUT = "shut"


class Floor(IntEnum):
    GROUND = 0
    FIRST = 1


class Nameless(StrEnum):
    NOTHING = ""
    SOMETHING = "something"


class Ticket(BaseModel):
    """A payload."""

    number: int
    holder: str | None = None


class Opaque:
    """Something that pydantic has no schema for."""


Make = Callable[[], object]
M = TypeVar("M", bound=Make)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A class that must be refused: what its error must name, and a part of each of its sentences."""

    make: Make
    method: str | None
    problem: str
    remedy: str
    name: str


REFUSALS: Final[list[Refusal]] = []


def refused(method: str | None, problem: str, remedy: str, *, name: str | None = None) -> Callable[[M], M]:
    """Put what makes a class into the table; the class has its name in camel case, unless told."""

    def add(make: M) -> M:
        camel = "".join(part.capitalize() for part in make.__name__.split("_"))
        REFUSALS.append(
            Refusal(make=make, method=method, problem=problem, remedy=remedy, name=camel if name is None else name)
        )
        return make

    return add


# --- the state ------------------------------------------------------------------------------


@refused(None, "it has transitions but no field `state`", "declare `state: Stage = Stage.FIRST`")
def bad_no_state() -> None:
    class BadNoState(Workflow):
        title: str = ""

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "the type of `state` is not an enumeration", "Stage is a StrEnum of the states")
def bad_state_text() -> None:
    class BadStateText(Workflow):
        state: str = "shut"

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "the type of `state` is not an enumeration", "declare `state: Stage = Stage.FIRST`")
def bad_state_optional() -> None:
    class BadStateOptional(Workflow):
        state: Door | None = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "the type of `state` is not an enumeration", "declare `state: Stage = Stage.FIRST`")
def bad_state_literal() -> None:
    class BadStateLiteral(Workflow):
        state: Literal["shut", "open"] = "shut"

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "the values of its states are not all strings", "Stage is a StrEnum")
def bad_state_numbers() -> None:
    class BadStateNumbers(Workflow):
        state: Floor = Floor.GROUND

        @transition(Floor.GROUND, Floor.FIRST)
        def climb(self, ctx: Context) -> None: ...


@refused(None, "the values of its states are not all strings", "Stage is a StrEnum")
def bad_state_empty_value() -> None:
    class BadStateEmptyValue(Workflow):
        state: Nameless = Nameless.SOMETHING

        @transition(Nameless.SOMETHING, Nameless.NOTHING)
        def drop(self, ctx: Context) -> None: ...


@refused(None, "`state` has no default, which would be the initial state", "declare `state: Stage = Stage.FIRST`")
def bad_state_no_default() -> None:
    class BadStateNoDefault(Workflow):
        state: Door

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "`state` has no default", "declare `state: Stage = Stage.FIRST`")
def bad_state_default_factory() -> None:
    class BadStateDefaultFactory(Workflow):
        state: Door = Field(default_factory=lambda: Door.SHUT)

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "`state` has no default", "declare `state: Stage = Stage.FIRST`")
def bad_state_foreign_default() -> None:
    class BadStateForeignDefault(Workflow):
        state: Door = Lamp.SHUT  # type: ignore[assignment]

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


# --- the machine ----------------------------------------------------------------------------


@refused(None, "it declares no transition", "declare at least one with @transition(source, target)")
def bad_no_transition() -> None:
    class BadNoTransition(Workflow):
        state: Door = Door.SHUT


@refused(None, "state 'gone' cannot be reached from 'shut'", "add a transition to it, or remove the state")
def bad_unreachable() -> None:
    class BadUnreachable(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.GONE, Gate.OPEN)
        def back(self, ctx: Context) -> None: ...


@refused("swing", "state 'shut' already has the automatic transition push", "give all but the last of them guard=")
def bad_two_automatic() -> None:
    class BadTwoAutomatic(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE)
        def swing(self, ctx: Context) -> None: ...


@refused("ask", "state 'shut' is left at once by push, so this could never run", "start from a state that waits")
def bad_event_beside_automatic() -> None:
    class BadEventBesideAutomatic(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.GONE, on="asked")
        def ask(self, ctx: Context, payload: None) -> None: ...

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused("rust", "state 'shut' is left at once by push, so this could never run", "start from a state that waits")
def bad_timer_beside_automatic() -> None:
    class BadTimerBesideAutomatic(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, after=timedelta(days=1))
        def rust(self, ctx: Context) -> None: ...


@refused("remove", "state 'shut' already has a transition on 'asked'", "or keep one, with several targets if need be")
def bad_event_twice() -> None:
    class BadEventTwice(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked")
        def let_in(self, ctx: Context, payload: None) -> None: ...

        @transition((Gate.OPEN, Gate.SHUT), Gate.GONE, on="asked")
        def remove(self, ctx: Context, payload: None) -> None: ...


@refused("fall", "state 'shut' already has a timer after 1 day, 0:00:00", "keep one of the two")
def bad_timer_twice() -> None:
    class BadTimerTwice(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, after=timedelta(days=1))
        def rust(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, after=timedelta(hours=24))
        def fall(self, ctx: Context) -> None: ...


@refused(
    "back", "from state 'off' automatic transitions follow each other for ever", "a state that ends, or that waits"
)
def bad_endless_pair() -> None:
    class BadEndlessPair(Workflow):
        state: Lamp = Lamp.SHUT

        @transition(Lamp.SHUT, Lamp.OFF)
        def push(self, ctx: Context) -> None: ...

        @transition(Lamp.OFF, Lamp.SHUT)
        def back(self, ctx: Context) -> None: ...


@refused("spin", "from state 'gone' automatic transitions follow each other for ever", "a state that ends")
def bad_endless_branch() -> None:
    class BadEndlessBranch(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, (Gate.OPEN, Gate.GONE))
        def push(self, ctx: Context) -> Gate:
            return Gate.OPEN

        @transition(Gate.GONE, Gate.GONE)
        def spin(self, ctx: Context) -> None: ...


# --- one transition -------------------------------------------------------------------------


@refused("push", "its source 'shut' is no Door", "name a state of this workflow")
def bad_source_text() -> None:
    class BadSourceText(Workflow):
        state: Door = Door.SHUT

        @transition("shut", Door.OPEN)  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "its target <Lamp.SHUT: 'shut'> is no Door", "name a state of this workflow")
def bad_target_foreign() -> None:
    class BadTargetForeign(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, (Door.OPEN, Lamp.SHUT))
        def push(self, ctx: Context) -> None: ...


@refused("push", "its target [<Door.OPEN: 'open'>] is no Door", "name a state of this workflow")
def bad_target_list() -> None:
    class BadTargetList(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, [Door.OPEN])  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "it has no source or no target", "give at least one state for each")
def bad_no_target() -> None:
    class BadNoTarget(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, ())
        def push(self, ctx: Context) -> None: ...


@refused("push", "it has no source or no target", "give at least one state for each")
def bad_no_source() -> None:
    class BadNoSource(Workflow):
        state: Door = Door.SHUT

        @transition((), Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused("push", "a source or a target is named twice", "name each state once")
def bad_source_twice() -> None:
    class BadSourceTwice(Workflow):
        state: Door = Door.SHUT

        @transition((Door.SHUT, Door.SHUT), Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused("push", "a source or a target is named twice", "name each state once")
def bad_target_twice() -> None:
    class BadTargetTwice(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, (Door.OPEN, Door.OPEN))
        def push(self, ctx: Context) -> None: ...


@refused("push", "it has both on= and after=", "one transition for the event and one for the timer")
def bad_event_and_timer() -> None:
    class BadEventAndTimer(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked", after=timedelta(1))
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "'please open' is not a name for an event", "use letters, digits and underscores")
def bad_event_name() -> None:
    class BadEventName(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="please open")
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "'' is not a name for an event", "use letters, digits and underscores")
def bad_event_nameless() -> None:
    class BadEventNameless(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="")
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "is not a name for an event", "use letters, digits and underscores")
def bad_event_name_long() -> None:
    class BadEventNameLong(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="e" * 129)
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "on=7 has the wrong type", 'write it like on="decide"')
def bad_event_type() -> None:
    class BadEventType(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on=7)  # type: ignore[arg-type]
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "after=0:00:00 is not in the future", "give a positive timedelta, or leave it out")
def bad_timer_now() -> None:
    class BadTimerNow(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, after=timedelta(0))
        def push(self, ctx: Context) -> None: ...


@refused("push", "after=-1 day, 23:59:59 is not in the future", "give a positive timedelta, or leave it out")
def bad_timer_past() -> None:
    class BadTimerPast(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, after=timedelta(seconds=-1))
        def push(self, ctx: Context) -> None: ...


@refused("push", "after=60 has the wrong type", "write it like after=timedelta(days=7)")
def bad_timer_number() -> None:
    class BadTimerNumber(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, after=60)  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "timeout=0 would end it before it began", "give seconds above 0, or leave it out")
def bad_timeout_zero() -> None:
    class BadTimeoutZero(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, timeout=0)
        def push(self, ctx: Context) -> None: ...


@refused("push", "timeout=-0.5 would end it before it began", "give seconds above 0, or leave it out")
def bad_timeout_negative() -> None:
    class BadTimeoutNegative(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, timeout=-0.5)
        def push(self, ctx: Context) -> None: ...


@refused("push", "timeout=", "")
def bad_timeout_not_a_number() -> None:
    class BadTimeoutNotANumber(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, timeout=float("nan"))
        def push(self, ctx: Context) -> None: ...


@refused("push", "timeout=datetime.timedelta(seconds=30) has the wrong type", "write it like timeout=30")
def bad_timeout_type() -> None:
    class BadTimeoutType(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, timeout=timedelta(seconds=30))  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "timeout=True has the wrong type", "write it like timeout=30")
def bad_timeout_true() -> None:
    class BadTimeoutTrue(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, timeout=True)
        def push(self, ctx: Context) -> None: ...


@refused("push", "retry=5 has the wrong type", "write it like retry=Retry(max_attempts=5)")
def bad_retry_number() -> None:
    class BadRetryNumber(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, retry=5)  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "'slow jobs' is not a name for a queue", "use letters, digits, '.', '_' and '-'")
def bad_queue_name() -> None:
    class BadQueueName(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, queue="slow jobs")
        def push(self, ctx: Context) -> None: ...


@refused("push", "queue=7 has the wrong type", 'write it like queue="slow"')
def bad_queue_type() -> None:
    class BadQueueType(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, queue=7)  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "transactional='yes' has the wrong type", "write it like transactional=True")
def bad_transactional_type() -> None:
    class BadTransactionalType(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, transactional="yes")  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("cancelled", "the engine itself uses this name in the history", "call the method something else")
def bad_engine_name() -> None:
    class BadEngineName(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def cancelled(self, ctx: Context) -> None: ...


# --- its handler ----------------------------------------------------------------------------


@refused("push", "its handler is async, or a generator", "write it as a plain `def`")
def bad_handler_async() -> None:
    class BadHandlerAsync(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        async def push(self, ctx: Context) -> None: ...


@refused("push", "its handler is async, or a generator", "write it as a plain `def`")
def bad_handler_generator() -> None:
    class BadHandlerGenerator(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> Iterator[int]:
            yield 1


@refused("push", "its handler is async, or a generator", "write it as a plain `def`")
def bad_handler_async_generator() -> None:
    class BadHandlerAsyncGenerator(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        async def push(self, ctx: Context) -> AsyncIterator[int]:
            yield 1


@refused("push", "its handler takes no context", "write def push(self, ctx: Context)")
def bad_handler_no_context() -> None:
    class BadHandlerNoContext(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self) -> None: ...


@refused("push", "", "write def push(self, ctx: Context)")
def bad_handler_context_by_name() -> None:
    class BadHandlerContextByName(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, *, ctx: Context) -> None: ...


@refused("push", "its handler takes 'force', but there is no event to give it", "add on=..., or remove the parameter")
def bad_handler_parameter() -> None:
    class BadHandlerParameter(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context, force: float) -> None: ...


@refused("rust", "its handler takes 'force', but there is no event to give it", "add on=..., or remove the parameter")
def bad_timer_parameter() -> None:
    class BadTimerParameter(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, after=timedelta(1))
        def rust(self, ctx: Context, *, force: float) -> None: ...


# --- its payload ----------------------------------------------------------------------------


@refused("push", "takes its payload and nothing more, this one takes 0", "with None for an event without payload")
def bad_payload_missing() -> None:
    class BadPayloadMissing(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context) -> None: ...


@refused("push", "takes its payload and nothing more, this one takes 2", "write def push(self, ctx: Context, payload")
def bad_payload_two() -> None:
    class BadPayloadTwo(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context, first: int, second: int) -> None: ...


@refused("push", "the payload has no type", "write def push(self, ctx: Context, payload: Payload)")
def bad_payload_untyped() -> None:
    class BadPayloadUntyped(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context, payload) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


@refused("push", "the payload's type cannot be used (name 'Tickt' is not defined)", "payload: Payload")
def bad_payload_unknown_name() -> None:
    class BadPayloadUnknownName(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context, payload: Tickt) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@refused("push", "the payload's type cannot be used", "payload: Payload")
def bad_payload_unknown_attribute() -> None:
    class BadPayloadUnknownAttribute(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context, payload: functools.Ticket) -> None: ...  # type: ignore[name-defined]


@refused("push", "the payload's type cannot be used", "payload: Payload")
def bad_payload_no_schema() -> None:
    class BadPayloadNoSchema(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context, payload: Opaque) -> None: ...


@refused("push", "", "write def push(self, ctx: Context, payload: Payload)")
def bad_payload_by_name() -> None:
    class BadPayloadByName(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context, *, payload: int) -> None: ...


@refused("push", "", "write def push(self, ctx: Context, payload: Payload)")
def bad_payload_keywords() -> None:
    class BadPayloadKeywords(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="asked")
        def push(self, ctx: Context, **payload: int) -> None: ...


# --- names and versions -------------------------------------------------------------------------


@refused(None, "version=0", "give a whole number from 1")
def bad_version_zero() -> None:
    class BadVersionZero(Workflow, version=0):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "version='1'", "give a whole number from 1")
def bad_version_text() -> None:
    class BadVersionText(Workflow, version="1"):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "version=True", "give a whole number from 1")
def bad_version_true() -> None:
    class BadVersionTrue(Workflow, version=True):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "this is not a name for a type", "use letters, digits, '_' and '.'", name="bad type/name")
def bad_type_name() -> None:
    class BadTypeName(Workflow, name="bad type/name"):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "this is not a name for a type", "use letters, digits, '_' and '.'", name="")
def bad_type_nameless() -> None:
    class BadTypeNameless(Workflow, name=""):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused(None, "this is not a name for a type", "use letters, digits, '_' and '.'", name="T" * 129)
def bad_type_name_long() -> None:
    class BadTypeNameLong(Workflow, name="T" * 129):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused("definition", "a workflow has this attribute already", "call it otherwise")
def bad_field_definition() -> None:
    class BadFieldDefinition(Workflow):
        state: Door = Door.SHUT
        definition: str = ""  # type: ignore[assignment]

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...


@refused("to_dict", "a workflow has this attribute already", "call it otherwise")
def bad_field_to_dict() -> None:
    with warnings.catch_warnings(action="ignore"):  # pydantic's own, of a name that is taken

        class BadFieldToDict(Workflow):
            state: Door = Door.SHUT
            to_dict: str = ""  # type: ignore[assignment]

            @transition(Door.SHUT, Door.OPEN)
            def push(self, ctx: Context) -> None: ...


@refused("to_dict", "", "")
def bad_transition_to_dict() -> None:
    class BadTransitionToDict(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def to_dict(self, ctx: Context) -> None: ...  # type: ignore[override]


# --- guards, approvals, giving up -------------------------------------------------------------


def always(_workflow: Workflow) -> bool:
    return True


def whatever(_workflow: Workflow, _payload: object) -> bool:
    return True


@refused("push", "guard=True cannot be called", "write it like guard=lambda workflow: ...")
def bad_guard_no_function() -> None:
    class BadGuardNoFunction(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, guard=True)  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "cannot be called with workflow alone", "write it like guard=lambda workflow: ...")
def bad_guard_of_an_event() -> None:
    class BadGuardOfAnEvent(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, guard=whatever)
        def push(self, ctx: Context) -> None: ...


@refused("push", "cannot be called with workflow and payload alone", "guard=lambda workflow, payload: ...")
def bad_guard_without_payload() -> None:
    class BadGuardWithoutPayload(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked", guard=always)
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "its guard is async, or a generator", "write it as a plain `def` that returns a bool")
def bad_guard_async() -> None:
    async def soon(_workflow: Workflow) -> bool:
        return True

    class BadGuardAsync(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, guard=soon)  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("rust", "a timer has no guard", "let its handler return one of several targets")
def bad_guard_of_a_timer() -> None:
    class BadGuardOfATimer(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, after=timedelta(1), guard=always)
        def rust(self, ctx: Context) -> None: ...


@refused("swing", "state 'shut' would never be left where every guard says no", "leave out guard= on the last")
def bad_guard_on_the_last() -> None:
    class BadGuardOnTheLast(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, guard=always)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, guard=always)
        def swing(self, ctx: Context) -> None: ...


@refused("remove", "already has a transition on 'asked': push, without a guard", "give all but the last of them guard=")
def bad_guard_after_one_without() -> None:
    class BadGuardAfterOneWithout(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked")
        def push(self, ctx: Context, payload: None) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, on="asked", guard=whatever)
        def remove(self, ctx: Context, payload: None) -> None: ...


@refused("close", "takes 'asked' with another payload type", "the same annotation")
def bad_payload_of_one_event_twice() -> None:
    class BadPayloadOfOneEventTwice(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked")
        def push(self, ctx: Context, payload: int) -> None: ...

        @transition(Gate.OPEN, Gate.GONE, on="asked")
        def close(self, ctx: Context, payload: str) -> None: ...


@refused("close", "buffer=True for 'asked', which is buffer=False for push", "say the same for all transitions")
def bad_buffer_of_one_event_twice() -> None:
    class BadBufferOfOneEventTwice(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked", buffer=False)
        def push(self, ctx: Context, payload: None) -> None: ...

        @transition(Gate.OPEN, Gate.GONE, on="asked")
        def close(self, ctx: Context, payload: None) -> None: ...


@refused("push", "are about an event, and it waits for none", "add on=..., or leave them out")
def bad_buffer_without_event() -> None:
    class BadBufferWithoutEvent(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, buffer=False)
        def push(self, ctx: Context) -> None: ...


@refused("push", "are about an event, and it waits for none", "add on=..., or leave them out")
def bad_approvals_without_event() -> None:
    class BadApprovalsWithoutEvent(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, approvals=2)
        def push(self, ctx: Context) -> None: ...


@refused("rust", "are about an event, and it waits for none", "add on=..., or leave them out")
def bad_four_eyes_without_event() -> None:
    class BadFourEyesWithoutEvent(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, after=timedelta(1), four_eyes=True)
        def rust(self, ctx: Context) -> None: ...


@refused("push", "approvals=0 are none that could be given", "give a whole number from 1 to 100")
def bad_approvals_none() -> None:
    class BadApprovalsNone(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked", approvals=0)
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "approvals=101 are none that could be given", "give a whole number from 1 to 100")
def bad_approvals_too_many() -> None:
    class BadApprovalsTooMany(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked", approvals=101)
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "approvals=True has the wrong type", "write it like approvals=2")
def bad_approvals_bool() -> None:
    class BadApprovalsBool(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked", approvals=True)
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "buffer=0 has the wrong type", "write it like buffer=False")
def bad_buffer_number() -> None:
    class BadBufferNumber(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked", buffer=0)  # type: ignore[arg-type]
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "four_eyes='yes' has the wrong type", "write it like four_eyes=True")
def bad_four_eyes_text() -> None:
    class BadFourEyesText(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, on="asked", four_eyes="yes")  # type: ignore[arg-type]
        def push(self, ctx: Context, payload: None) -> None: ...


@refused("push", "its give_up <Lamp.OFF: 'off'> is no Gate", "name a state of this workflow")
def bad_give_up_elsewhere() -> None:
    class BadGiveUpElsewhere(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, give_up=Lamp.OFF)
        def push(self, ctx: Context) -> None: ...


@refused("push", "give_up names several states", "name the one state that it leads to then")
def bad_give_up_several() -> None:
    class BadGiveUpSeveral(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, give_up=(Gate.OPEN, Gate.GONE))  # type: ignore[arg-type]
        def push(self, ctx: Context) -> None: ...


@refused("push", "where it gives up, give_up='shut' would begin it again, for ever", "name another state")
def bad_give_up_in_a_circle() -> None:
    class BadGiveUpInACircle(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, give_up=Gate.SHUT)
        def push(self, ctx: Context) -> None: ...


@refused("disregarded", "the engine itself uses this name in the history", "call the method something else")
def bad_name_of_the_engine() -> None:
    class BadNameOfTheEngine(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def disregarded(self, ctx: Context) -> None: ...


@refused("lapse", "it has deadline=True, and on= or after= beside it", "declare one transition for the deadline")
def bad_deadline_on_an_event() -> None:
    class BadDeadlineOnAnEvent(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, deadline=True, on="lapse")
        def lapse(self, ctx: Context, _: None) -> None: ...


@refused("lapse", "it has deadline=True, and on= or after= beside it", "declare one transition for the deadline")
def bad_deadline_after() -> None:
    class BadDeadlineAfter(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, deadline=True, after=timedelta(days=1))
        def lapse(self, ctx: Context) -> None: ...


@refused("second", "state 'shut' already has first for the deadline", "keep one of the two")
def bad_deadline_twice() -> None:
    class BadDeadlineTwice(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, deadline=True)
        def first(self, ctx: Context) -> None: ...

        @transition((Gate.SHUT, Gate.OPEN), Gate.GONE, deadline=True)
        def second(self, ctx: Context) -> None: ...


@refused("lapse", "nothing but the deadline leaves state 'open'", "give the state another way out")
def bad_deadline_alone() -> None:
    class BadDeadlineAlone(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.OPEN, Gate.GONE, deadline=True)
        def lapse(self, ctx: Context) -> None: ...


@refused("lapse", "deadline='tomorrow' has the wrong type", "write it like deadline=True")
def bad_deadline_that_is_a_moment() -> None:
    class BadDeadlineThatIsAMoment(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, deadline="tomorrow")  # type: ignore[arg-type]
        def lapse(self, ctx: Context) -> None: ...


@refused("lapse", "its handler takes 'payload', but there is no event to give it", "remove the parameter")
def bad_deadline_with_a_payload() -> None:
    class BadDeadlineWithAPayload(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition(Gate.SHUT, Gate.GONE, deadline=True)
        def lapse(self, ctx: Context, payload: int) -> None: ...


def test_a_deadline_stands_beside_whatever_else_leaves_a_state() -> None:
    class Deadlined(Workflow, name="definitions.Deadlined"):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context) -> None: ...

        @transition((Gate.SHUT, Gate.OPEN), Gate.GONE, deadline=True)
        def lapse(self, ctx: Context) -> None: ...

        @transition(Gate.OPEN, Gate.GONE, on="take")
        def take(self, ctx: Context, _: None) -> None: ...

    definition = Deadlined.definition
    edge = definition.at_deadline("open")
    assert edge is not None
    assert (edge.name, edge.kind) == ("lapse", Kind.DEADLINE)
    assert definition.at_deadline("gone") is None
    pending = definition.pending("shut", entered_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert pending.automatic is not None
    assert (pending.automatic.name, pending.timer, pending.accepts) == ("push", None, ())
    assert "open --> gone: lapse at the deadline" in definition.diagram()


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.make.__name__)
def test_a_class_that_cannot_work_is_refused_when_it_is_made(refusal: Refusal) -> None:
    with pytest.raises(DefinitionError) as caught:
        refusal.make()
    error = caught.value
    assert (error.workflow, error.method) == (refusal.name, refusal.method)
    assert refusal.problem in error.problem
    assert refusal.remedy in error.remedy
    assert error.remedy
    assert len(str(error).splitlines()) == 1
    with pytest.raises(UnknownWorkflowType):
        registry.get(refusal.name)


def test_a_transition_below_a_classmethod_is_refused_and_not_forgotten() -> None:
    # @classmethod hides the mark of @transition; beside another transition to the state nobody would notice.
    with pytest.raises(DefinitionError) as caught:

        class HiddenTransition(Workflow):
            state: Gate = Gate.SHUT

            @transition(Gate.SHUT, Gate.OPEN, on="pushed")
            def push(self, ctx: Context, payload: None) -> None: ...

            @transition(Gate.SHUT, Gate.GONE, on="thrown_away")
            def throw(self, ctx: Context, payload: None) -> None: ...

            @classmethod
            @transition(Gate.OPEN, Gate.GONE)
            def remove(cls, ctx: Context) -> None: ...

    assert caught.value.method == "remove"


# --- what is not refused --------------------------------------------------------------------


class GoodEvents(Workflow):
    """Every kind of payload, with annotations that are text: see the __future__ at the top."""

    state: Gate = Gate.SHUT

    @transition(Gate.SHUT, Gate.SHUT, on="nothing")
    def nothing(self, ctx: Context, payload: None) -> None: ...

    @transition(Gate.SHUT, Gate.SHUT, on="number")
    def number(self, ctx: Context, payload: int) -> None: ...

    @transition(Gate.SHUT, Gate.SHUT, on="text")
    def text(self, ctx: Context, payload: str) -> None: ...

    @transition(Gate.SHUT, Gate.SHUT, on="listed")
    def listed(self, ctx: Context, payload: list[int]) -> None: ...

    @transition(Gate.SHUT, Gate.SHUT, on="mapped")
    def mapped(self, ctx: Context, payload: dict[str, bool]) -> None: ...

    @transition(Gate.SHUT, Gate.SHUT, on="day")
    def day(self, ctx: Context, payload: date) -> None: ...

    @transition(Gate.SHUT, Gate.SHUT, on="either")
    def either(self, ctx: Context, payload: Ticket | None) -> None: ...

    @transition(Gate.SHUT, Gate.OPEN, on="ticket")
    def ticket(self, ctx: Context, payload: Ticket) -> None: ...

    @transition(Gate.OPEN, Gate.GONE, on="anything")
    def anything(self, ctx: Context, payload: Any) -> None: ...


@pytest.mark.parametrize(
    ("event", "given", "seen", "stored"),
    [
        ("nothing", None, None, None),
        ("number", 7, 7, 7),
        ("text", "é", "é", "é"),
        ("listed", [1, 2], [1, 2], [1, 2]),
        ("mapped", {"a": True}, {"a": True}, {"a": True}),
        ("day", "2026-11-22", date(2026, 11, 22), "2026-11-22"),
        ("either", None, None, None),
        ("either", {"number": 7}, Ticket(number=7), {"number": 7, "holder": None}),
        ("ticket", {"number": 7, "holder": "Ada"}, Ticket(number=7, holder="Ada"), {"number": 7, "holder": "Ada"}),
        ("ticket", Ticket(number=7), Ticket(number=7), {"number": 7, "holder": None}),
        ("anything", [None, {"a": 1}], [None, {"a": 1}], [None, {"a": 1}]),
    ],
)
def test_a_payload_has_the_type_of_its_annotation(event: str, given: object, seen: object, stored: object) -> None:
    assert read_payload(GoodEvents, event, given) == (seen, stored)


@pytest.mark.parametrize("event", ["nothing", "number", "listed", "mapped", "day", "ticket"])
def test_a_payload_of_another_type_is_refused(event: str) -> None:
    with pytest.raises(InvalidData):
        read_payload(GoodEvents, event, "not that")


def test_a_payload_type_that_only_the_surrounding_function_knows() -> None:
    class Receipt(BaseModel):
        total: int

    class GoodLocalPayload(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="paid")
        def pay(self, ctx: Context, payload: list[Receipt]) -> None: ...

    seen, stored = read_payload(GoodLocalPayload, "paid", [{"total": 3}])
    assert seen == [Receipt(total=3)]
    assert stored == [{"total": 3}]


def test_a_payload_type_that_only_the_class_knows() -> None:
    class GoodNestedPayload(Workflow):
        class Receipt(BaseModel):
            total: int

        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="paid")
        def pay(self, ctx: Context, payload: Receipt) -> None: ...

    seen, _ = read_payload(GoodNestedPayload, "paid", {"total": 3})
    assert seen == GoodNestedPayload.Receipt(total=3)


def make_with_a_payload_of_its_own() -> type[Workflow]:
    class Coupon(BaseModel):
        code: str

    class GoodInnerName(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="cut")
        def cut(self, ctx: Context, payload: Coupon) -> None: ...

    assert Coupon(code="x")
    return GoodInnerName


def test_a_payload_type_is_the_one_of_the_function_that_makes_the_class_and_not_of_its_callers() -> None:
    Coupon = int  # noqa: N806 - the very name that the function called here uses for something else
    made = make_with_a_payload_of_its_own()
    assert Coupon is int
    assert read_payload(made, "cut", {"code": "A"})[1] == {"code": "A"}


def test_an_annotation_that_is_quoted_twice_over() -> None:
    class GoodQuotedPayload(Workflow):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN, on="paid")
        def pay(self, ctx: Context, payload: "int") -> None: ...  # noqa: UP037 - that is the point

    assert read_payload(GoodQuotedPayload, "paid", 3) == (3, 3)


class GoodManyEnds(Workflow):
    state: Gate = Gate.SHUT

    @transition(Gate.SHUT, (Gate.OPEN, Gate.GONE))
    def first(self, ctx: Context) -> Gate:
        return Gate.OPEN

    @transition((Gate.OPEN, Gate.GONE), (Gate.OPEN, Gate.GONE), on="again", queue="slow", timeout=1.5)
    def again(self, ctx: Context, payload: None) -> Gate:
        return Gate.GONE

    @transition((Gate.OPEN, Gate.GONE), Gate.GONE, after=timedelta(hours=1), transactional=True)
    def rust(self, ctx: Context) -> None: ...


def test_edges_with_several_sources_and_several_targets() -> None:
    edges = {edge.name: edge for edge in GoodManyEnds.definition.edges}
    assert {name: (edge.sources, edge.targets, edge.kind) for name, edge in edges.items()} == {
        "first": (("shut",), ("open", "gone"), Kind.AUTOMATIC),
        "again": (("open", "gone"), ("open", "gone"), Kind.EVENT),
        "rust": (("open", "gone"), ("gone",), Kind.TIMER),
    }
    assert (edges["again"].queue, edges["again"].timeout, edges["rust"].transactional) == ("slow", 1.5, True)
    assert GoodManyEnds.definition.states == ("shut", "open", "gone")
    assert GoodManyEnds.definition.initial == "shut"


def test_options_that_are_left_out_have_their_defaults() -> None:
    edge = GoodManyEnds.definition.edges[0]
    assert (edge.retry, edge.timeout, edge.queue, edge.transactional) == (Retry(), None, None, False)
    assert (edge.buffer, edge.guard, edge.approvals, edge.four_eyes, edge.give_up) == (True, None, 1, False, None)


class GoodGuards(Workflow):
    """Everything that guards, approvals and giving up allow."""

    state: Gate = Gate.SHUT

    @transition(Gate.SHUT, Gate.OPEN, guard=always, give_up=Gate.GONE)
    def push(self, ctx: Context) -> None: ...

    @transition(Gate.SHUT, Gate.OPEN, guard=lambda _workflow, *_more, _shy=1: True)
    def swing(self, ctx: Context) -> None: ...

    @transition(Gate.SHUT, Gate.OPEN)
    def force(self, ctx: Context) -> None: ...

    @transition(Gate.OPEN, Gate.GONE, on="asked", guard=whatever, approvals=2, four_eyes=True, buffer=False)
    def remove(self, ctx: Context, payload: int) -> None: ...

    @transition(Gate.OPEN, Gate.SHUT, on="asked", guard=isinstance, buffer=False, give_up=Gate.OPEN)
    def close(self, ctx: Context, payload: int) -> None: ...

    @transition(Gate.OPEN, Gate.GONE, after=timedelta(1), give_up=Gate.OPEN)
    def rust(self, ctx: Context) -> None: ...


def test_guards_approvals_and_giving_up() -> None:
    definition = GoodGuards.definition
    assert [edge.name for edge in definition.on_event("open", "asked")] == ["remove", "close"]
    assert (definition.keeps("asked"), definition.accepting("asked")) == (False, ("open",))
    remove = definition.on_event("open", "asked")[0]
    assert (remove.approvals, remove.four_eyes, remove.buffer, remove.guard) == (2, True, False, whatever)
    assert [edge.give_up for edge in definition.edges] == ["gone", None, None, None, "open", "open"]


def test_a_state_that_only_giving_up_leads_to_is_reached() -> None:
    class GoodGivingUp(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN, give_up=Gate.GONE)
        def push(self, ctx: Context) -> None: ...

    assert "    shut --> gone: push gave up" in GoodGivingUp.definition.diagram().splitlines()


def test_optional_parameters_of_a_handler_without_an_event_are_its_own_affair() -> None:
    class GoodDefaults(Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.SHUT, Gate.OPEN)
        def push(self, ctx: Context, force: float = 1.0, *more: int, **most: int) -> None: ...

        @transition(Gate.OPEN, Gate.GONE)
        def remove(self, *everything: object) -> None: ...

    assert [edge.name for edge in GoodDefaults.definition.edges] == ["push", "remove"]


def test_an_enumeration_need_not_be_a_str_enum() -> None:
    class Plain(Enum):
        ON = "on"
        OFF = "off"

    class GoodPlainEnum(Workflow):
        state: Plain = Plain.ON

        @transition(Plain.ON, Plain.OFF)
        def switch(self, ctx: Context) -> None: ...

    assert GoodPlainEnum.definition.states == ("on", "off")
    assert GoodPlainEnum().to_dict() == {"state": "on"}


def test_a_loop_that_waits_is_no_endless_one() -> None:
    class GoodLoop(Workflow):
        state: Lamp = Lamp.SHUT

        @transition(Lamp.SHUT, Lamp.OFF, after=timedelta(seconds=1))
        def push(self, ctx: Context) -> None: ...

        @transition(Lamp.OFF, Lamp.SHUT)
        def back(self, ctx: Context) -> None: ...

    assert registry.get("GoodLoop") is GoodLoop


# --- inheritance ----------------------------------------------------------------------------


class Titled(Workflow):
    """A base for others: data, and neither state nor transitions."""

    title: str = "untitled"

    def shout(self) -> str:
        return self.title.upper()


def test_a_base_class_without_state_is_no_workflow_type() -> None:
    assert not hasattr(Titled, "definition")
    with pytest.raises(UnknownWorkflowType):
        registry.get("Titled")


def test_a_workflow_has_the_data_and_methods_of_its_base_class() -> None:
    class GoodTitled(Titled):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...

    assert GoodTitled(title="a").shout() == "A"
    assert GoodTitled(title="a").to_dict() == {"title": "a", "state": "shut"}
    assert registry.get("GoodTitled") is GoodTitled


class Pushing:
    """Transitions for several workflows; not a model."""

    @transition(Gate.SHUT, Gate.OPEN)
    def push(self, ctx: Context) -> None: ...


def test_transitions_may_come_from_a_class_that_is_no_workflow() -> None:
    class GoodMixedIn(Pushing, Workflow):
        state: Gate = Gate.SHUT

        @transition(Gate.OPEN, Gate.GONE)
        def remove(self, ctx: Context) -> None: ...

    assert [edge.name for edge in GoodMixedIn.definition.edges] == ["push", "remove"]


class GoodParent(Workflow, version=3):
    state: Gate = Gate.SHUT

    @transition(Gate.SHUT, Gate.OPEN)
    def push(self, ctx: Context) -> None: ...

    @transition(Gate.OPEN, Gate.GONE)
    def remove(self, ctx: Context) -> None: ...


def test_a_child_has_its_parents_transitions_and_those_it_declares() -> None:
    class GoodChild(GoodParent, version=4):
        @transition(Gate.OPEN, Gate.SHUT, on="close")
        def remove(self, ctx: Context, payload: None) -> None: ...  # type: ignore[override]

        @transition(Gate.OPEN, Gate.GONE, after=timedelta(1))
        def rust(self, ctx: Context) -> None: ...

    edges = {edge.name: edge.kind for edge in GoodChild.definition.edges}
    assert edges == {"push": Kind.AUTOMATIC, "remove": Kind.EVENT, "rust": Kind.TIMER}
    assert (GoodParent.definition.version, GoodChild.definition.version) == (3, 4)
    assert {edge.kind for edge in GoodParent.definition.edges} == {Kind.AUTOMATIC}, "the parent is as it was"


def test_a_child_can_turn_a_transition_into_an_ordinary_method() -> None:
    class GoodPlainMethod(GoodParent):
        @transition(Gate.OPEN, Gate.GONE, after=timedelta(1))
        def rust(self, ctx: Context) -> None: ...

        def remove(self, ctx: Context) -> None: ...

    assert [edge.name for edge in GoodPlainMethod.definition.edges] == ["push", "rust"]


# --- class arguments ------------------------------------------------------------------------


def test_a_class_has_the_name_and_version_that_it_is_given() -> None:
    class Anything(Workflow, name="shop.good_order", version=7):
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...

    assert (Anything.definition.type, Anything.definition.version) == ("shop.good_order", 7)
    assert registry.get("shop.good_order") is Anything
    with pytest.raises(UnknownWorkflowType):
        registry.get("Anything")


def test_without_arguments_a_class_has_its_own_name_and_version_1() -> None:
    assert (GoodEvents.definition.type, GoodEvents.definition.version) == ("GoodEvents", 1)


def test_pydantics_own_class_arguments_are_passed_on() -> None:
    class GoodOptions(Workflow, version=2, str_strip_whitespace=True):
        state: Door = Door.SHUT
        title: str = ""

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...

    assert GoodOptions(title="  a ").title == "a"
    assert GoodOptions.definition.version == 2


def test_what_the_definition_promises_the_handler_keeps() -> None:
    workflow = GoodManyEnds()
    assert handle(workflow, GoodManyEnds.definition.edges[0], None, None) == "open"  # type: ignore[arg-type]
    assert snapshot(workflow) == {"state": "open"}
