"""Compatibility: whether the definitions in the code can go on with what is stored. Pure: rows in, problems out.

What is found is kept by kind, not by row: a million workflows with the same trouble are one problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from .canonical import is_canonical, load
from .chain import checkpoint_commitment
from .errors import AegisError, InvalidData, UnknownEvent, UpgradeFailed
from .machine import Definition
from .workflow import Registry, Workflow, read_data, read_payload, snapshot

# How many workflows are named as examples, and how many different problems of one type are told apart.
EXAMPLES: Final = 3
_MOST_OF_A_TYPE: Final = 50
_LONGEST: Final = 300

KINDS: Final = (
    *("unknown type", "no upgrade", "newer than the code", "state vanished", "transition vanished", "timer earlier"),
    *(
        "no wait any more",
        "event vanished",
        "payload does not fit",
        "upgrade fails",
        "data does not fit",
        "data broken",
    ),
)
"""Every kind of trouble there is."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One kind of trouble, and how many workflows have it; ``examples`` are ids of some of them."""

    kind: str
    """In one or two words, such as ``unknown type``."""
    type: str
    version: int
    what: str
    count: int
    examples: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Live workflows that are in the same place: their rows differ in nothing that the code decides."""

    type: str
    version: int
    definition: str
    state: str
    status: str
    following: str | None
    accepts: tuple[str, ...]
    timer: timedelta | None
    """Of those that wait: how long after they entered the state their timer runs out; None: they have none."""
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """A live workflow's newest checkpoint; ``body`` None: there is none."""

    workflow_id: str
    type: str
    version: int
    state: str
    body: bytes | None
    salt: bytes
    commitment: bytes


@dataclass(frozen=True, kw_only=True)
class StoredEvent:
    """An event that waits for a live workflow to take it."""

    workflow_id: str
    type: str
    version: int
    name: str
    payload: bytes


@dataclass(kw_only=True)
class _Found:
    count: int
    examples: list[str]


@dataclass
class Problems:
    """What was found so far."""

    known: Registry
    _found: dict[tuple[str, str, int, str, str], _Found] = field(default_factory=dict)
    _of_type: dict[tuple[str, int], int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Problem]:
        """Go through the problems, by type and version."""
        for key, found in sorted(self._found.items(), key=lambda item: (item[0][1], item[0][2], item[0])):
            kind, type_name, version, what, remedy = key
            examples = tuple(sorted(found.examples))
            yield Problem(
                kind=kind,
                type=type_name,
                version=version,
                what=what,
                count=found.count,
                examples=examples,
                remedy=remedy,
            )

    # --- places ----------------------------------------------------------------------------

    def group(self, group: Group) -> None:
        """Judge where some workflows are."""
        for kind, what, remedy in self._of(group):
            self._add((kind, group.type, group.version, what, remedy), group.count, group.examples)

    def _of(self, group: Group) -> Iterator[tuple[str, str, str]]:
        try:
            workflow = self.known.get(group.type)
        except AegisError:
            yield "unknown type", f"no class {group.type} is loaded", "name its module in AEGIS_WORKFLOWS, or keep it"
            return
        definition = workflow.definition
        if group.version > definition.version:
            what = f"rows are of version {group.version}, the code is of version {definition.version}"
            yield "newer than the code", what, "do not deploy this code: it is older than what has run"
        elif not definition.reads(group.version):
            yield (
                "no upgrade",
                f"the code is of version {definition.version} and has no way from {group.version}",
                f"add @upgrade({group.version}), or let these end first",
            )
        elif group.version == definition.version and group.definition != definition.fingerprint:
            yield from _changes(group, definition)

    # --- data ------------------------------------------------------------------------------

    def data(self, stored: StoredData) -> None:
        """Judge whether the newest data of a workflow can be read, upgraded if it has to be."""
        workflow = self.known.reader(stored.type, stored.version)
        if workflow is None:
            return  # told of with its group
        if (problem := _data_problem(workflow, stored)) is not None:
            kind, what, remedy = problem
            self._add((kind, stored.type, stored.version, what, remedy), 1, (stored.workflow_id,))

    # --- events ----------------------------------------------------------------------------

    def event(self, event: StoredEvent) -> None:
        """Judge whether an event that waits can still be taken by anything."""
        workflow = self.known.reader(event.type, event.version)
        if workflow is None:
            return
        try:
            read_payload(workflow, event.name, load(event.payload) if is_canonical(event.payload) else None)
        except UnknownEvent:
            what = f"the event {event.name!r} waits, and no state takes it any more"
            remedy = "keep a transition on it, or cancel these workflows"
            self._add(("event vanished", event.type, event.version, what, remedy), 1, (event.workflow_id,))
        except InvalidData as error:
            remedy = "let the payload's type take what the old one took"
            key = ("payload does not fit", event.type, event.version, _cut(str(error)), remedy)
            self._add(key, 1, (event.workflow_id,))

    def _add(self, key: tuple[str, str, int, str, str], count: int, examples: Iterable[str]) -> None:
        found = self._found.get(key)
        if found is None:
            kind, type_name, version, _, remedy = key
            told_apart = self._of_type.get((type_name, version), 0)
            if told_apart >= _MOST_OF_A_TYPE:
                key = (kind, type_name, version, "more of this kind, each in other words", remedy)
            self._of_type[type_name, version] = told_apart + 1
            found = self._found.setdefault(key, _Found(count=0, examples=[]))
        found.count += count
        found.examples += [one for one in examples if len(found.examples) < EXAMPLES and one not in found.examples]
        del found.examples[EXAMPLES:]


def _changes(group: Group, definition: Definition) -> Iterator[tuple[str, str, str]]:
    """Yield what is not there any more of that which some workflows wait for."""
    bump = f"keep it, or give the class version={definition.version + 1} and an @upgrade({definition.version})"
    if group.state not in definition.states:
        yield "state vanished", f"they are in state {group.state!r}, which the code has not", bump
        return
    leaving = definition.leaving(group.state)
    if group.following is not None and group.following not in {edge.name for edge in leaving}:
        what = f"{group.following} was to run from state {group.state!r}, and does not start there any more"
        yield "transition vanished", what, bump
    taken = {edge.on for edge in leaving}
    for event in sorted(set(group.accepts) - taken - {None}):
        what = f"they wait for {event!r} in state {group.state!r}, which does not take it any more"
        yield "transition vanished", what, bump
    if group.status == "waiting":
        yield from _sooner(group, definition)


def _sooner(group: Group, definition: Definition) -> Iterator[tuple[str, str, str]]:
    """Yield what would have some workflows run sooner that wait already: they were told otherwise, and go by that."""
    remedy = (
        f"once the new workers run, `aegis resume --all {definition.type}` tells them; "
        "`aegis check --accept '{kind}'` lets it pass"
    )
    if definition.runs_at_once(group.state):
        what = f"they wait in state {group.state!r}, which is now left at once"
        yield "no wait any more", what, remedy.format(kind="no wait any more")
        return
    timer = definition.timer_of(group.state)
    if timer is None or timer.after is None or (group.timer is not None and group.timer <= timer.after):
        return  # those that wake too early are looked at, and wait on
    before = "no timer" if group.timer is None else f"a timer of {group.timer}"
    what = f"they wait in state {group.state!r} with {before}; {timer.name} is after {timer.after}"
    yield "timer earlier", what, remedy.format(kind="timer earlier")


def _data_problem(workflow: type[Workflow], stored: StoredData) -> tuple[str, str, str] | None:
    if stored.body is None or checkpoint_commitment(stored.salt, stored.body) != stored.commitment:
        return "data broken", "the newest checkpoint is not the one that was committed", "see `aegis verify`"
    members: Any = load(stored.body) if is_canonical(stored.body) else None
    data = members.get("state") if isinstance(members, dict) else None
    if not isinstance(data, dict):
        return "data broken", "the newest checkpoint holds no data", "see `aegis verify`"
    try:
        snapshot(read_data(workflow, data, stored.version))
    except UpgradeFailed as error:
        return "upgrade fails", _cut(str(error)), f"mend @upgrade({error.version})"
    except InvalidData as error:
        upgraded = stored.version != workflow.definition.version
        remedy = "mend the upgrade" if upgraded else "give new fields a default, or raise the version with an @upgrade"
        return "data does not fit", _cut(str(error)), remedy
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
