"""Reading a workflow class: what its declarations say, and what is wrong with them."""

from __future__ import annotations

import inspect
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import Enum
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, PydanticSchemaGenerationError, RootModel, create_model

from .errors import DefinitionError
from .machine import Definition, Edge
from .names import SYSTEM_TYPE
from .retry import Retry

MARK: Final = "__aegis_transition__"
_MAX_TYPE_NAME: Final = 128

PayloadModel: TypeAlias = type[RootModel[Any]]


def handlers_of(cls: type[BaseModel], type_name: str) -> dict[str, Callable[..., Any]]:
    """Return the handlers in the order of their declaration, those of base classes first.

    Raises:
        DefinitionError: a handler is hidden below ``@classmethod`` or ``@staticmethod``.

    """
    seen: dict[str, Callable[..., Any]] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if hasattr(getattr(member, "__func__", None), MARK):
                kind = type(member).__name__
                raise DefinitionError(type_name, name, f"it is a {kind}", "a handler is a plain method: it needs self")
            if callable(member) and hasattr(member, MARK):
                seen[name] = member
            elif name in seen:
                del seen[name]  # overridden by something that is no transition
    return seen


def _states_of(cls: type[BaseModel], type_name: str) -> type[Enum]:
    def wrong(problem: str) -> DefinitionError:
        return DefinitionError(
            type_name, None, problem, "declare `state: Stage = Stage.FIRST`, where Stage is a StrEnum of the states"
        )

    declared = cls.model_fields.get("state")
    if declared is None:
        raise wrong("it has transitions but no field `state`")
    states = declared.annotation
    if not (isinstance(states, type) and issubclass(states, Enum)):
        raise wrong("the type of `state` is not an enumeration")
    if not all(isinstance(state.value, str) and state.value for state in states):
        raise wrong("the values of its states are not all strings")
    if not isinstance(declared.default, states):
        raise wrong("`state` has no default, which would be the initial state")
    return states


def define(
    cls: type[BaseModel], type_name: str, version: object, handlers: Mapping[str, Callable[..., Any]]
) -> Definition:
    """Return what a class declares, each declaration well-formed; ``rules.check`` judges the whole.

    Raises:
        DefinitionError: names the class, the method and the remedy.

    """
    states = _states_of(cls, type_name)
    if type_name == SYSTEM_TYPE:
        raise DefinitionError(type_name, None, "this type is the system's own", "name the class otherwise")
    if not type_name or len(type_name) > _MAX_TYPE_NAME or not type_name.replace(".", "_").isidentifier():
        raise DefinitionError(type_name, None, "this is not a name for a type", "use letters, digits, '_' and '.'")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DefinitionError(type_name, None, f"version={version!r}", "give a whole number from 1")
    return Definition(
        type=type_name,
        version=version,
        states=tuple(state.value for state in states),
        initial=cls.model_fields["state"].default.value,
        edges=tuple(_edge(type_name, states, name, handler) for name, handler in handlers.items()),
    )


def _edge(type_name: str, states: type[Enum], name: str, handler: Callable[..., Any]) -> Edge:
    declared: dict[str, Any] = dict(getattr(handler, MARK))

    def wrong(problem: str, remedy: str) -> DefinitionError:
        return DefinitionError(type_name, name, problem, remedy)

    def names(what: str, given: object) -> Any:
        named = given if isinstance(given, tuple) else (given,)
        for state in named:
            if not isinstance(state, states):
                raise wrong(f"its {what} {state!r} is no {states.__name__}", "name a state of this workflow")
        return tuple(state.value for state in named)

    if (
        inspect.iscoroutinefunction(handler)
        or inspect.isasyncgenfunction(handler)
        or inspect.isgeneratorfunction(handler)
    ):
        raise wrong("its handler is async, or a generator", "write it as a plain `def`: a worker would never await it")
    for option, kinds, example in _OPTIONS:
        if not isinstance(declared[option], kinds) or (kinds is not bool and isinstance(declared[option], bool)):
            raise wrong(f"{option}={declared[option]!r} has the wrong type", f"write it like {option}={example}")
    states_of = {"sources": names("source", declared["sources"]), "targets": names("target", declared["targets"])}
    if declared["give_up"] is not None:
        if isinstance(declared["give_up"], tuple):
            raise wrong("give_up names several states", "name the one state that it leads to then")
        states_of["give_up"] = names("give_up", declared["give_up"])[0]
    edge = Edge(name=name, **declared | states_of)
    check_guard(type_name, edge)
    return edge


_OPTIONS: Final[tuple[tuple[str, Any, str], ...]] = (
    ("on", (str, type(None)), '"decide"'),
    ("after", (timedelta, type(None)), "timedelta(days=7)"),
    ("retry", Retry, "Retry(max_attempts=5)"),
    ("timeout", (int, float, type(None)), "30"),
    ("queue", (str, type(None)), '"slow"'),
    ("transactional", bool, "True"),
    ("deadline", bool, "True"),
    ("buffer", bool, "False"),
    ("approvals", int, "2"),
    ("four_eyes", bool, "True"),
)


def check_guard(type_name: str, edge: Edge) -> None:
    """Check that a guard can be asked: with the workflow, and with the payload where there is an event.

    Raises:
        DefinitionError: it cannot.

    """
    guard = edge.guard
    example = "guard=lambda workflow: ..." if edge.on is None else "guard=lambda workflow, payload: ..."
    if guard is None:
        return
    if not callable(guard):
        raise DefinitionError(type_name, edge.name, f"guard={guard!r} cannot be called", f"write it like {example}")
    if inspect.iscoroutinefunction(guard) or inspect.isasyncgenfunction(guard) or inspect.isgeneratorfunction(guard):
        raise DefinitionError(
            type_name, edge.name, "its guard is async, or a generator", "write it as a plain `def` that returns a bool"
        )
    given = ("workflow",) if edge.on is None else ("workflow", "payload")
    try:
        inspect.signature(guard).bind(*given)
    except TypeError:
        problem = f"its guard cannot be called with {' and '.join(given)} alone"
        raise DefinitionError(type_name, edge.name, problem, f"write it like {example}") from None
    except ValueError:
        return  # something of C that does not say what it takes


_OWN_PARAMETERS: Final = 2  # self and ctx
_BY_POSITION: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_TAKES_ANY_NUMBER: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(type_name: str, edge: Edge, handler: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return what the handler takes beside self and ctx, which are given by position."""
    parameters = list(inspect.signature(handler).parameters.values())
    own, others = parameters[:_OWN_PARAMETERS], parameters[_OWN_PARAMETERS:]
    anything = bool(own) and own[-1].kind is inspect.Parameter.VAR_POSITIONAL
    if not anything and (len(own) < _OWN_PARAMETERS or any(p.kind not in _BY_POSITION for p in own)):
        raise DefinitionError(
            type_name, edge.name, "its handler takes no context", f"write def {edge.name}(self, ctx: Context)"
        )
    return others


def check_signature(cls: type[BaseModel], edge: Edge, handler: Callable[..., Any]) -> None:
    """Check the handler of a transition without an event.

    Raises:
        DefinitionError: it takes something that nobody would give it.

    """
    type_name = _type_name(cls)
    required = [
        p for p in _parameters(type_name, edge, handler) if p.default is p.empty and p.kind not in _TAKES_ANY_NUMBER
    ]
    if required:
        raise DefinitionError(
            type_name,
            edge.name,
            f"its handler takes {required[0].name!r}, but there is no event to give it",
            "add on=..., or remove the parameter",
        )


def payloads_of(cls: type[BaseModel], handlers: Mapping[str, Callable[..., Any]]) -> dict[str, PayloadModel]:
    """Check what every handler takes, and return the models of the payloads by the events' names.

    Raises:
        DefinitionError: a handler takes what it is not given, or two take one event as different types.

    """
    definition: Definition = cls.definition  # type: ignore[attr-defined]  # set by now, see Workflow
    payloads: dict[str, PayloadModel] = {}
    for edge in definition.edges:
        if edge.on is None:
            check_signature(cls, edge, handlers[edge.name])
            continue
        payload = payload_of(cls, edge, handlers[edge.name])
        before = payloads.setdefault(edge.on, payload)
        if before.model_fields["root"].annotation != payload.model_fields["root"].annotation:
            raise DefinitionError(
                definition.type,
                edge.name,
                f"it takes {edge.on!r} with another payload type than a transition before it",
                "give all handlers of one event the same annotation",
            )
    return payloads


def payload_of(cls: type[BaseModel], edge: Edge, handler: Callable[..., Any]) -> PayloadModel:
    """Return the model of an event's payload, by the annotation of the handler's third parameter.

    Raises:
        DefinitionError: there is no such parameter, or no use in its annotation.

    """

    def wrong(problem: str) -> DefinitionError:
        return DefinitionError(
            _type_name(cls),
            edge.name,
            problem,
            f"write def {edge.name}(self, ctx: Context, payload: Payload), with None for an event without payload",
        )

    parameters = _parameters(_type_name(cls), edge, handler)
    if len(parameters) != 1:
        raise wrong(f"the handler of an event takes its payload and nothing more, this one takes {len(parameters)}")
    if parameters[0].kind not in _BY_POSITION:
        raise wrong("the payload is given by position, and this handler does not take it so")
    annotation = parameters[0].annotation
    if annotation is inspect.Parameter.empty:
        raise wrong("the payload has no type")
    try:
        declared = _resolve(cls, handler, annotation)
        return create_model(f"{_type_name(cls)}.{edge.on}", __base__=_Payload, root=(declared, ...))
    except (NameError, AttributeError, SyntaxError, TypeError, PydanticSchemaGenerationError) as error:
        raise wrong(f"the payload's type cannot be used ({str(error).splitlines()[0]})") from None


class _Payload(RootModel[Any]):
    """The base of all payload models; NaN is kept, for the canonical form to refuse."""

    model_config = ConfigDict(ser_json_inf_nan="constants")


def _type_name(cls: type[BaseModel]) -> str:
    definition: Definition = cls.definition  # type: ignore[attr-defined]  # set by now, see Workflow
    return definition.type


def _resolve(cls: type[BaseModel], handler: Callable[..., Any], annotation: object) -> Any:
    """Return what an annotation names, also where ``from __future__ import annotations`` made it text."""
    if not isinstance(annotation, str):
        return annotation
    # A class made inside a function sees that function's names; of several frames, the innermost first.
    frames = [found.frame for found in inspect.stack(context=0)[1:] if found.frame.f_globals is handler.__globals__]
    names = ChainMap(dict(vars(cls)), *(frame.f_locals for frame in frames), vars(sys.modules[cls.__module__]))
    return eval(annotation, handler.__globals__, names)  # noqa: S307 - the user's own, as typing.get_type_hints does
