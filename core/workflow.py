"""What a user writes: a workflow is a class with a typed ``state``, its edges are methods.

The definition is checked when the class is made. There is no replay and no determinism rule:
handlers are ordinary code, and each runs on the data of the checkpoint before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .approval import Approval
from .canonical import Json, pointer_step
from .declare import MARK, PayloadModel, define, handlers_of, payloads_of
from .errors import DefinitionError, InvalidData, InvalidHandlerResult, UnknownEvent, UnknownWorkflowType
from .machine import Definition, Edge
from .retry import Retry
from .rules import check
from .shown import shown
from .untyped import misread, unwritable
from .upgrade import Upgrade, declared_upgrades, upgraded, upgrades_of

F = TypeVar("F", bound=Callable[..., Any])
W = TypeVar("W", bound="Workflow")


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

    @property
    def approvals(self) -> tuple[Approval, ...]:
        """Who sent the event, and why, in a transition with ``approvals=`` or ``four_eyes=``: the last one last."""

    def send(
        self,
        id: str,  # noqa: A002 - what it is
        event: str,
        payload: object = None,
        *,
        key: str | None = None,
        reason: str = "",
    ) -> None:
        """Send an event to another workflow, or to this one: it goes out if, and only if, this transition is recorded.

        Raises:
            AegisError: it would not be accepted, see ``DurableWorkflowEngine.send``; let it pass, or do otherwise.

        """

    def set_attributes(self, attributes: Mapping[str, str | int | float | bool]) -> None:
        """Be found by these attributes, instead of those before, from when this transition is recorded on.

        Raises:
            InvalidHandlerResult: they are no attributes.

        """

    def effect(
        self,
        name: str,
        fn: Callable[..., object],
        /,
        *args: Any,
        check: Callable[[str], object] | None = None,
        repeat: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Do something outside, ``fn(*args, **kwargs)``, at least once; return what was recorded of it, as plain JSON.

        Once it is recorded, no attempt at this transition does it again: it is given the record. Where a worker died
        before it could be recorded, ``check(key)`` is asked what happened: it returns ``Happened(result)`` or
        ``DidNotHappen``. Without ``check``, it is done again under the same key (see ``effect_key``), unless
        ``repeat=False``: then the workflow is stopped, for a person to find out. So it is where the database was put
        back to an earlier point, and does not know any more whether it was begun.

        Raises:
            InvalidHandlerResult: the name was used before, the result is no JSON, or the transition is transactional.
            EffectInDoubt: nobody here knows whether it happened; let it pass.
            ClaimLost: somebody else owns the transition by now; let it pass.

        """

    def effect_key(self, name: str) -> str:
        """Return the idempotency key of the effect of that name: for whoever does it, to notice a repetition."""

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
    deadline: bool = False,
    buffer: bool = True,
    guard: Callable[..., bool] | None = None,
    approvals: int = 1,
    four_eyes: bool = False,
    give_up: Enum | None = None,
) -> Callable[[F], F]:
    """Declare a method as the handler of an edge from ``source`` to ``target``.

    With neither ``on`` nor ``after`` it runs as soon as the state is entered. ``on`` names the
    event it waits for, whose payload is the handler's third parameter, by its annotation;
    ``after`` is a durable timer from the moment that the state is entered. With several
    targets the handler returns the one it chose. ``timeout`` is in seconds, for one attempt.
    ``transactional`` runs the handler inside the checkpoint's own database transaction.
    ``deadline`` makes it what is run when the workflow's own deadline passes in one of its
    sources; where a state has none, the workflow fails then.

    An event that comes before a state that takes it is kept, unless ``buffer=False``, which refuses
    it. ``guard(workflow)``, or ``guard(workflow, payload)`` for an event, says whether the edge may be
    taken: of several, the first that may is. ``approvals`` is how many different senders have to send
    the event; with ``four_eyes`` none of them may be who moved the workflow on before. ``give_up`` is
    the state that it leads to where its handler failed for good, instead of the status ``failed``.

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
        "deadline": deadline,
        "buffer": buffer,
        "guard": guard,
        "approvals": approvals,
        "four_eyes": four_eyes,
        "give_up": give_up,
    }

    def mark(handler: F) -> F:
        setattr(handler, MARK, declared)
        return handler

    return mark


class Workflow(BaseModel):
    """A durable workflow: typed data, one field ``state``, and a ``@transition`` for each edge.

    Class arguments: ``version`` (of the data and the machine, 1 by default) and ``name`` (the
    type's name in the database; the class's own by default).
    """

    # NaN is kept, for the canonical form to refuse: pydantic would write null in its place.
    model_config = ConfigDict(extra="forbid", validate_assignment=True, ser_json_inf_nan="constants")

    definition: ClassVar[Definition]
    _upgrades: ClassVar[Mapping[int, Upgrade]]
    _handlers: ClassVar[Mapping[str, Callable[..., Any]]]
    _payloads: ClassVar[Mapping[str, PayloadModel]]

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
        type_name = cls.__name__ if name is None else name
        handlers = handlers_of(cls, type_name)
        if "state" not in cls.model_fields and not handlers:
            return  # a base class for others
        for attribute in [*cls.model_fields, *handlers, *declared_upgrades(cls)]:
            if attribute in Workflow.__class_vars__ or hasattr(Workflow, attribute):
                raise DefinitionError(
                    type_name, attribute, "a workflow has this attribute already", "call it otherwise"
                )
        cls._handlers = MappingProxyType(handlers)
        defined = define(cls, type_name, version, handlers)
        upgrades = upgrades_of(cls, type_name, version)
        cls.definition = replace(defined, upgrades=tuple(upgrades))
        check(cls.definition)
        cls._upgrades = MappingProxyType(upgrades)
        cls._payloads = MappingProxyType(payloads_of(cls, handlers))
        registry.add(cls)

    def to_dict(self) -> dict[str, Any]:
        """Return the workflow's data as plain JSON values; ``from_dict`` reads it back.

        Raises:
            InvalidData: a value that cannot be written as JSON.

        """
        data: dict[str, Any] = _dumped(self, f"the data of {self.definition.type}")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a workflow from what ``to_dict`` gave, or from input of the same shape.

        Raises:
            InvalidData: names each member at fault by a JSON pointer.

        """
        try:
            return cls.model_validate(data, by_alias=True, by_name=True)
        except ValidationError as error:
            raise InvalidData(f"the data of {cls.definition.type}", problems_of(error)) from None


def read_data(workflow: type[W], data: dict[str, Any], version: int) -> W:
    """Return a workflow from data that may be of an older version, which is upgraded first.

    Raises:
        UnknownVersion: it is newer, or no upgrades lead here from there.
        UpgradeFailed, InvalidData: an upgrade failed, or the data does not fit the class.

    """
    definition = workflow.definition
    upgrades = workflow._upgrades  # noqa: SLF001 - this module's own class
    return workflow.from_dict(upgraded(definition.type, upgrades, data, version=version, current=definition.version))


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
        raise InvalidHandlerResult(
            name, f"it returned {shown(result)}; it must return one of: {', '.join(edge.targets)}"
        )
    return value


def read_payload(workflow: type[Workflow], event: str, payload: object) -> tuple[Any, Json]:
    """Validate an event's payload: as the handler sees it, and as the JSON that is stored.

    Raises:
        UnknownEvent: no state accepts the event.
        InvalidData: the payload does not fit the handler's annotation.

    """
    model = workflow._payloads.get(event)  # noqa: SLF001 - this module's own class
    if model is None:
        definition = workflow.definition
        accepted = [(name, definition.accepting(name)) for name in definition.events()]
        raise UnknownEvent(definition.type, event, accepted)
    what = f"the payload of {event!r}"
    try:
        read = model.model_validate(payload, by_alias=True, by_name=True)
    except ValidationError as error:
        raise InvalidData(what, problems_of(error)) from None
    return read.root, _dumped(read, what)


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """Return pydantic's findings as pairs of JSON pointer and problem."""
    return [
        ("".join(pointer_step(str(step)) for step in detail["loc"]), detail["msg"])
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _dumped(model: BaseModel, what: str) -> Any:
    try:
        # What has another type than was declared is not for a warning: reading it back decides.
        data = model.model_dump(mode="json", warnings=False)
        wrong = misread(model, data)
    except (ValueError, RecursionError) as error:  # pydantic has no one error for what it cannot write
        raise InvalidData(what, [(unwritable(model), str(error))]) from None
    if wrong is not None:
        raise InvalidData(what, [wrong])
    return data


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

    def reader(self, type_name: str, version: int) -> type[Workflow] | None:
        """Return the class of that name, if this process has it and it can read data of that version."""
        workflow = self._types.get(type_name)
        return workflow if workflow is not None and workflow.definition.reads(version) else None

    def known(self) -> list[str]:
        """Return ``type/version`` for each type, and for each older version that it can read, sorted."""
        definitions = [cls.definition for cls in self._types.values()]
        return sorted(f"{one.type}/{version}" for one in definitions for version in (*one.upgrades, one.version))

    def __iter__(self) -> Iterator[type[Workflow]]:
        """Go through the classes, by name."""
        return iter([self._types[name] for name in sorted(self._types)])


registry: Final = Registry()


def _place(workflow: type) -> str:
    return f"{workflow.__module__}.{workflow.__qualname__}"
