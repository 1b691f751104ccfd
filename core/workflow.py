"""What a user writes: a workflow is a class with a typed ``state``, its edges are methods.

The definition is checked when the class is made. There is no replay and no determinism rule:
handlers are ordinary code, and each runs on the data of the checkpoint before it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from .canonical import Json
from .errors import DefinitionError, InvalidData, InvalidHandlerResult, UnknownEvent, UnknownWorkflowType
from .machine import Definition, Edge, check
from .retry import Retry

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__aegis_transition__"
_MAX_TYPE_NAME: Final = 128
_RESERVED: Final = frozenset({"definition", "to_dict", "from_dict"})


class Context(Protocol):
    """What a handler is given beside its workflow."""

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""

    @property
    def key(self) -> str:
        """An idempotency key for the outside world: the same at every attempt of this transition."""

    @property
    def attempt(self) -> int:
        """Which attempt of this transition it is: 1, 2, ..."""

    @property
    def session(self) -> Any:
        """The checkpoint's own SQLAlchemy session, in a transition with ``transactional=True``.

        Rows written with it commit with the checkpoint, exactly once. Never commit it yourself.

        Raises:
            InvalidHandlerResult: the transition is not transactional.

        """

    @property
    def log(self) -> Any:
        """A structured logger that names the workflow, the transition and the attempt."""

    def checkpoint(self) -> None:
        """Save the workflow's data as it is now; the next attempt goes on from there.

        Raises:
            ClaimLost: somebody else owns the transition by now; let it pass.

        """

    def progress(self) -> None:
        """Save the workflow's data if a checkpoint is due; cheap enough for every turn of a loop.

        Raises:
            ClaimLost: the workflow was cancelled, or somebody else owns it; let it pass.

        """


def transition(
    source: Enum | tuple[Enum, ...],
    target: Enum | tuple[Enum, ...],
    *,
    on: str | None = None,
    after: timedelta | None = None,
    retry: Retry | None = None,
    timeout: float | None = None,
    queue: str | None = None,
    transactional: bool = False,
) -> Callable[[F], F]:
    """Declare a method as the handler of an edge from ``source`` to ``target``.

    With neither ``on`` nor ``after`` it runs as soon as the state is entered. ``on`` names the
    event it waits for, whose payload is the handler's third parameter, by its annotation;
    ``after`` is a durable timer from the moment that the state is entered. With several
    targets the handler returns the one it chose. ``timeout`` is in seconds, for one attempt.
    ``transactional`` runs the handler inside the checkpoint's own database transaction.

    What is wrong with a declaration is said when the class is made.
    """
    declared = {
        "sources": source,
        "targets": target,
        "on": on,
        "after": after,
        "retry": Retry() if retry is None else retry,
        "timeout": timeout,
        "queue": queue,
        "transactional": transactional,
    }

    def mark(handler: F) -> F:
        setattr(handler, _MARK, declared)
        return handler

    return mark


class Workflow(BaseModel):
    """A durable workflow: typed data, one field ``state``, and a ``@transition`` for each edge.

    Class arguments: ``version`` (of the data and the machine, 1 by default) and ``name`` (the
    type's name in the database; the class's own by default).
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    definition: ClassVar[Definition]
    _handlers: ClassVar[Mapping[str, Callable[..., Any]]]
    _payloads: ClassVar[Mapping[str, TypeAdapter[Any]]]

    def __init_subclass__(cls, *, version: int = 1, name: str | None = None, **options: Any) -> None:
        """Hand pydantic its own class arguments only."""
        super().__init_subclass__(**options)

    @classmethod
    def __pydantic_init_subclass__(cls, *, version: int = 1, name: str | None = None, **options: Any) -> None:
        """Read the class's declarations, check them, and make the type known.

        Raises:
            DefinitionError: names the class, the method and the remedy.

        """
        super().__pydantic_init_subclass__(**options)
        handlers = dict(_declared(cls))
        if "state" not in cls.model_fields and not handlers:
            return  # a base class for others
        type_name = cls.__name__ if name is None else name
        for field in _RESERVED.intersection(cls.model_fields):
            raise DefinitionError(type_name, field, "a workflow has this attribute already", "call the field otherwise")
        cls._handlers = MappingProxyType(handlers)
        cls.definition = _define(cls, type_name, version, _states_of(cls, type_name))
        check(cls.definition)
        cls._payloads = MappingProxyType(
            {edge.on: _payload_of(cls, edge) for edge in cls.definition.edges if edge.on is not None}
        )
        for edge in cls.definition.edges:
            if edge.on is None:
                _check_signature(cls, edge)
        registry.add(cls)

    def to_dict(self) -> dict[str, Any]:
        """Return the workflow's data as plain JSON values; ``from_dict`` reads it back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a workflow from what ``to_dict`` gave, or from input of the same shape.

        Raises:
            InvalidData: names each member at fault by a JSON pointer.

        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InvalidData(f"the data of {cls.definition.type}", problems_of(error)) from None


def snapshot(workflow: Workflow) -> dict[str, Any]:
    """Return the data as it goes into a checkpoint, known to be readable again.

    Raises:
        InvalidData: the data no longer fits its declaration.

    """
    data = workflow.to_dict()
    workflow.from_dict(data)
    return data


def state_of(workflow: Workflow) -> str:
    """Return the value of the state that the workflow is in."""
    state: Enum = workflow.state  # type: ignore[attr-defined]  # every concrete workflow declares it
    return str(state.value)


def handle(workflow: Workflow, edge: Edge, context: Context, payload: object) -> str:
    """Run the handler of ``edge`` on the workflow; return the state that it leads to, now set.

    Raises:
        InvalidHandlerResult: it returned, or set, what it may not.

    """
    cls = type(workflow)
    before = state_of(workflow)
    arguments = (context,) if edge.on is None else (context, payload)
    result = cls._handlers[edge.name](workflow, *arguments)
    name = f"{cls.definition.type}.{edge.name}"
    if state_of(workflow) != before:
        raise InvalidHandlerResult(name, "it set self.state; it must return the target instead")
    target = _target(name, edge, result)
    workflow.state = target  # type: ignore[attr-defined]  # validated on assignment: the value becomes the member
    return target


def _target(name: str, edge: Edge, result: object) -> str:
    if result is None and len(edge.targets) == 1:
        return edge.targets[0]
    value = result.value if isinstance(result, Enum) else result
    if not isinstance(value, str) or value not in edge.targets:
        raise InvalidHandlerResult(name, f"it returned {result!r}; it must return one of: {', '.join(edge.targets)}")
    return value


def read_payload(workflow: type[Workflow], event: str, payload: object) -> tuple[Any, Json]:
    """Validate an event's payload: as the handler sees it, and as the JSON that is stored.

    Raises:
        UnknownEvent: no state accepts the event.
        InvalidData: the payload does not fit the handler's annotation.

    """
    adapter = workflow._payloads.get(event)  # noqa: SLF001 - this module's own class
    if adapter is None:
        raise UnknownEvent(workflow.definition.type, event, workflow.definition.events())
    try:
        value = adapter.validate_python(payload)
        return value, adapter.dump_python(value, mode="json")
    except ValidationError as error:
        raise InvalidData(f"the payload of {event!r}", problems_of(error)) from None


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """Return pydantic's findings as pairs of JSON pointer and problem."""
    return [
        ("".join(f"/{step}" for step in detail["loc"]), detail["msg"])
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]


class Registry:
    """The workflow types that this process knows, by name."""

    def __init__(self) -> None:
        self._types: dict[str, type[Workflow]] = {}

    def add(self, workflow: type[Workflow]) -> None:
        """Make a type known.

        Raises:
            DefinitionError: another class has the name.

        """
        name = workflow.definition.type
        known = self._types.get(name)
        if known is not None and _place(known) != _place(workflow):
            raise DefinitionError(
                name,
                None,
                f"{_place(known)} already has this name",
                'tell them apart with name="..." in the class line',
            )
        self._types[name] = workflow

    def get(self, type_name: str) -> type[Workflow]:
        """Return the class of that name.

        Raises:
            UnknownWorkflowType: lists those that are known.

        """
        try:
            return self._types[type_name]
        except KeyError:
            raise UnknownWorkflowType(type_name, self._types) from None

    def find(self, type_name: str, version: int) -> type[Workflow] | None:
        """Return the class of that name and version, if this process has it."""
        workflow = self._types.get(type_name)
        return workflow if workflow is not None and workflow.definition.version == version else None

    def known(self) -> list[str]:
        """Return ``type/version`` for each type, sorted."""
        return sorted(f"{name}/{cls.definition.version}" for name, cls in self._types.items())

    def __iter__(self) -> Iterator[type[Workflow]]:
        """Go through the classes, by name."""
        return iter([self._types[name] for name in sorted(self._types)])


registry: Final = Registry()


def _place(workflow: type) -> str:
    return f"{workflow.__module__}.{workflow.__qualname__}"


# --- reading a class ------------------------------------------------------------------


def _declared(cls: type[Workflow]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the handlers in the order of their declaration, those of base classes first."""
    seen: dict[str, Callable[..., Any]] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if callable(member) and hasattr(member, _MARK):
                seen[name] = member
            elif name in seen:
                del seen[name]  # overridden by something that is no transition
    yield from seen.items()


def _states_of(cls: type[Workflow], type_name: str) -> type[Enum]:
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


def _define(cls: type[Workflow], type_name: str, version: object, states: type[Enum]) -> Definition:
    if not type_name or len(type_name) > _MAX_TYPE_NAME or not type_name.replace(".", "_").isidentifier():
        raise DefinitionError(type_name, None, "this is not a name for a type", "use letters, digits, '_' and '.'")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DefinitionError(type_name, None, f"version={version!r}", "give a whole number from 1")
    return Definition(
        type=type_name,
        version=version,
        states=tuple(state.value for state in states),
        initial=cls.model_fields["state"].default.value,
        edges=tuple(_edge(type_name, states, name, handler) for name, handler in cls._handlers.items()),
    )


def _edge(type_name: str, states: type[Enum], name: str, handler: Callable[..., Any]) -> Edge:
    declared: dict[str, Any] = dict(getattr(handler, _MARK))

    def wrong(problem: str, remedy: str) -> DefinitionError:
        return DefinitionError(type_name, name, problem, remedy)

    def names(what: str, given: object) -> tuple[str, ...]:
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
    return Edge(
        name=name,
        **declared | {"sources": names("source", declared["sources"]), "targets": names("target", declared["targets"])},
    )


_OPTIONS: Final[tuple[tuple[str, Any, str], ...]] = (
    ("on", (str, type(None)), '"decide"'),
    ("after", (timedelta, type(None)), "timedelta(days=7)"),
    ("retry", Retry, "Retry(max_attempts=5)"),
    ("timeout", (int, float, type(None)), "30"),
    ("queue", (str, type(None)), '"slow"'),
    ("transactional", bool, "True"),
)
_OWN_PARAMETERS: Final = 2  # self and ctx


def _parameters(cls: type[Workflow], edge: Edge) -> list[inspect.Parameter]:
    """Return what the handler takes beside self and ctx."""
    handler = cls._handlers[edge.name]
    parameters = list(inspect.signature(handler).parameters.values())
    if len(parameters) < _OWN_PARAMETERS:
        raise DefinitionError(
            cls.definition.type, edge.name, "its handler takes no context", f"write def {edge.name}(self, ctx: Context)"
        )
    return parameters[_OWN_PARAMETERS:]


def _check_signature(cls: type[Workflow], edge: Edge) -> None:
    required = [
        p for p in _parameters(cls, edge) if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    if required:
        raise DefinitionError(
            cls.definition.type,
            edge.name,
            f"its handler takes {required[0].name!r}, but there is no event to give it",
            "add on=..., or remove the parameter",
        )


def _payload_of(cls: type[Workflow], edge: Edge) -> TypeAdapter[Any]:
    def wrong(problem: str) -> DefinitionError:
        return DefinitionError(
            cls.definition.type,
            edge.name,
            problem,
            f"write def {edge.name}(self, ctx: Context, payload: Payload), with None for an event without payload",
        )

    parameters = _parameters(cls, edge)
    if len(parameters) != 1:
        raise wrong(f"the handler of an event takes its payload and nothing more, this one takes {len(parameters)}")
    annotation = parameters[0].annotation
    if annotation is inspect.Parameter.empty:
        raise wrong("the payload has no type")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter[Any](_resolve(cls, edge, annotation))
    except (NameError, AttributeError, SyntaxError, TypeError, PydanticSchemaGenerationError) as error:
        raise wrong(f"the payload's type cannot be used ({str(error).splitlines()[0]})") from None
    return adapter


def _resolve(cls: type[Workflow], edge: Edge, annotation: object) -> Any:
    """Return what an annotation names, also where ``from __future__ import annotations`` made it text."""
    if not isinstance(annotation, str):
        return annotation
    handler = cls._handlers[edge.name]
    names = dict(vars(sys.modules[cls.__module__])) | dict(handler.__globals__) | dict(vars(cls))
    for frame in inspect.stack(context=0)[1:]:  # a class made inside a function sees that function's names
        if frame.frame.f_globals is handler.__globals__:
            names |= frame.frame.f_locals
    return eval(annotation, names)  # noqa: S307 - the user's own annotation, as typing.get_type_hints does
