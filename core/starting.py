"""Starting: the conditions that a workflow is accepted on, checked before anything is written.

What is relative, such as ``delay``, becomes a moment of the database's time; what was given is kept
in the payload of transition 0, for the history to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeAlias, TypeVar

from .canonical import Json, canonical, load
from .chain import ENGINE_EVENTS, timestamp
from .errors import InvalidData, InvalidName
from .names import MAX_NAME, check_name, check_new_id, is_queue_name
from .rules import LONGEST_TIMER
from .shown import shown
from .workflow import Workflow

W = TypeVar("W", bound=Workflow)

HIGHEST_PRIORITY: Final = 9
MOST_ATTRIBUTES: Final = 32
# Of all attributes together: they are for searching, not for keeping.
_MOST_BYTES: Final = 16 * 1024
_WHAT: Final = "the start"

Moment: TypeAlias = timedelta | datetime
"""A span from now, or a moment with a time zone."""
Attribute: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class Start(Generic[W]):
    """A workflow to be started, and on which conditions; what ``start_many`` takes.

    ``delay`` is how long it is not to begin, or until when; timers count from then. ``priority`` is 0
    to 9, the most urgent. ``queue`` is where its transitions run that name none of their own.
    ``attributes`` are what it can be found by. ``deadline`` is when it has to have ended.
    ``singleton`` is a key that one workflow of its type can have until it has ended; with ``attach``
    a second start gives the handle of the first.
    """

    workflow: W
    id: str | None = field(default=None, kw_only=True)
    delay: Moment | None = field(default=None, kw_only=True)
    priority: int = field(default=0, kw_only=True)
    queue: str | None = field(default=None, kw_only=True)
    attributes: Mapping[str, Attribute] | None = field(default=None, kw_only=True)
    deadline: Moment | None = field(default=None, kw_only=True)
    singleton: str | None = field(default=None, kw_only=True)
    attach: bool = field(default=False, kw_only=True)

    def check(self) -> None:
        """Refuse what could never be.

        Raises:
            InvalidName, InvalidData, NotCanonical: say which condition, and what it must look like.

        """
        _check_workflow(self.workflow)
        if self.id is not None:
            check_new_id(self.id)
        check_moment("/delay", self.delay)
        check_moment("/deadline", self.deadline)
        _check_priority(self.priority)
        _check_queue(self.queue)
        if self.singleton is not None:
            check_name("singleton key", self.singleton)
        _check_attach(self.attach, self.singleton)
        check_attributes(self.attributes)

    def conditions(self, now: datetime) -> Conditions:
        """Return the conditions as moments, seen from ``now``.

        Raises:
            InvalidData: they contradict each other, or are over already.

        """
        begins_at, deadline = moment_of("/delay", self.delay, now), moment_of("/deadline", self.deadline, now)
        if begins_at is not None and begins_at <= now:
            begins_at = None  # a moment that has come is no reason to wait
        if deadline is not None and deadline <= (begins_at or now):
            problem = f"{timestamp(deadline)} is not after {timestamp(begins_at or now)}, when it begins"
            raise _invalid("/deadline", problem)
        return Conditions(
            begins_at=begins_at,
            priority=self.priority,
            queue=self.queue,
            attributes=check_attributes(self.attributes),
            deadline=deadline,
            singleton=self.singleton,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """The conditions of a start as they are kept; ``begins_at`` None: at once."""

    begins_at: datetime | None = None
    priority: int = 0
    queue: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    deadline: datetime | None = None
    singleton: str | None = None

    def said(self) -> dict[str, Json]:
        """Return what transition 0 says of them: only what was given."""
        return self._lasting() | {
            name: timestamp(moment)
            for name, moment in (("begins_at", self.begins_at), ("deadline", self.deadline))
            if moment is not None
        }

    def compared(self) -> dict[str, Json]:
        """Return what has to be the same where a start is repeated; moments are not: ``delay`` moves with the clock."""
        return self._lasting()

    def _lasting(self) -> dict[str, Json]:
        given: dict[str, Json] = {
            "attributes": dict(self.attributes),
            "priority": self.priority,
            "queue": self.queue,
            "singleton": self.singleton,
        }
        return {name: value for name, value in given.items() if value}


def conditions_in(history: Iterable[tuple[str, Mapping[str, Json]]]) -> Conditions:
    """Return the conditions as a history leaves them: of each transition its event, and what it says.

    Raises:
        InvalidData, InvalidName, NotCanonical: it says what no start could have.

    """
    known: dict[str, Any] = {}
    for event, said in history:
        if event == "created":
            known = {name: said[name] for name in _SAID if name in said}
        elif event == "retried" and "deadline" in said:
            known["deadline"] = said["deadline"]
        elif event not in ENGINE_EVENTS:
            # A transition that says it was made at the deadline: that is done with.
            known |= {"deadline": None} if "deadline" in said else {}
            known |= {"attributes": said["attributes"]} if "attributes" in said else {}
    _check_priority(known.get("priority", 0))
    _check_queue(known.get("queue"))
    if known.get("singleton") is not None:
        check_name("singleton key", known["singleton"])
    attributes = check_attributes(known.get("attributes"))
    moments = {name: _moment_in(f"/{name}", known.get(name)) for name in ("begins_at", "deadline")}
    return Conditions(**known | moments | {"attributes": attributes})


_SAID: Final = ("begins_at", "priority", "queue", "attributes", "deadline", "singleton")


def _moment_in(pointer: str, text: object) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        raise _invalid(pointer, f"{shown(text)} is no time") from None


def compared(said: object) -> dict[str, Json]:
    """Return, of what a transition 0 says, what has to be the same where a start is repeated."""
    members = said if isinstance(said, dict) else {}
    return {name: members[name] for name in ("attributes", "priority", "queue", "singleton") if name in members}


def check_attributes(given: object) -> dict[str, Attribute]:
    """Return attributes as they are stored: flat, few, of the canonical domain.

    Raises:
        InvalidData, NotCanonical: name the attribute, and say what it must look like.

    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _invalid("/attributes", f'{shown(given)} is no mapping, such as {{"customer": 7}}')
    if len(given) > MOST_ATTRIBUTES:
        raise _invalid("/attributes", f"they are {len(given)}; give at most {MOST_ATTRIBUTES}")
    for name, value in given.items():
        if not isinstance(name, str) or not (name.isascii() and name.isidentifier() and len(name) <= MAX_NAME):
            rule = f"use 1 to {MAX_NAME} letters, digits and underscores, no digit first"
            raise InvalidName("name for an attribute", str(name), rule)
        if not isinstance(value, str | int | float | bool):
            raise _invalid(f"/attributes/{name}", f"{shown(value)} is no string, number or boolean")
    stored: Any = load(canonical({"attributes": dict(given)}, max_bytes=_MOST_BYTES))
    read: dict[str, Attribute] = stored["attributes"]
    return read


def _check_workflow(given: object) -> None:
    if not isinstance(given, Workflow):
        raise _invalid("/workflow", f"{shown(given)} is no workflow")


def _check_priority(given: object) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= HIGHEST_PRIORITY:
        raise _invalid("/priority", f"{shown(given)} is no whole number from 0 to {HIGHEST_PRIORITY}")


def _check_queue(given: object) -> None:
    if given is not None and not (isinstance(given, str) and is_queue_name(given)):
        raise InvalidName("queue", str(given), f"use 1 to {MAX_NAME} letters, digits, '.', '_' and '-'")


def _check_attach(given: object, singleton: str | None) -> None:
    if not isinstance(given, bool) or (given and singleton is None):
        raise _invalid("/attach", "it is True or False, and only for a start with singleton=")


def check_moment(pointer: str, given: object) -> None:
    """Refuse what is neither a span from now nor a moment.

    Raises:
        InvalidData: says what is wrong with it.

    """
    if given is None:
        return
    if isinstance(given, timedelta):
        if not timedelta(0) <= given <= LONGEST_TIMER:
            raise _invalid(pointer, f"{given} is not between 0 and {LONGEST_TIMER.days} days")
    elif not isinstance(given, datetime):
        raise _invalid(pointer, f"{shown(given)} is no timedelta, and no datetime with a time zone")
    elif given.utcoffset() is None:
        raise _invalid(pointer, f"{given.isoformat()} has no time zone")


def moment_of(pointer: str, given: Moment | None, now: datetime) -> datetime | None:
    """Return a moment that was checked; a span counts from ``now``.

    Raises:
        InvalidData: it is further away than a timer may be.

    """
    if given is None:
        return None
    moment = given if isinstance(given, datetime) else now + given
    if moment - now > LONGEST_TIMER:
        raise _invalid(pointer, f"{moment.isoformat()} is more than {LONGEST_TIMER.days} days away")
    return moment


def _invalid(pointer: str, problem: str) -> InvalidData:
    return InvalidData(_WHAT, [(pointer, problem)])
