"""What a scenario is: what is broken, what is declared for it, and what its page of the runbook says and types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .sandbox import Needs
from .scene import Fault, Scene

WORKFLOW: Final = "ID"
"""Stands in a command for the workflow that was met."""
MOMENT: Final = "TIME"
"""Stands in a command for the point in time to go back to."""
WHY: Final = "WHY"
"""Stands in a command for the reason that goes on record."""
FILE: Final = "FILE"
"""Stands in a command for the file that is in the way."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Something to type; the drill types it, too.

    It has to end with one of ``expects``, and to print ``says``. One that ``runs_on`` does not end.
    """

    argv: Sequence[str]
    why: str
    expects: tuple[int, ...] = (0,)
    says: str = ""
    runs_on: bool = False
    given: bool = False
    """It was given for this drill, and is carried out as it stands, where and as whoever called it."""
    waits: bool = False
    """It is typed again until it does, as somebody does who waits for what was started before."""

    def __str__(self) -> str:
        """Return the line that is typed."""
        return " ".join(self.argv)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One loss, and the way out of it."""

    name: str
    title: str
    objective: str
    fault: Callable[[Scene], Fault]
    injects: str
    """What the drill does."""
    shows: str
    """How it shows, to whoever has to do with it."""
    check: Sequence[Command]
    heal: Sequence[Command]
    expect: str
    """What happens then, and how long it takes."""
    over: Sequence[Command]
    """How to know that it is over."""
    advice: str = ""
    """What to do that is not typed here."""
    planned: bool = False
    """It begins with somebody who wants it, and looks before; what counts is for how long everything stood still."""
    control: bool = False
    """It loses something on purpose, and proves that a drill would see it: it passes nowhere, and is not in `all`."""
    from_healing: bool = False
    """The time counts from the healing commands on: how long it takes until somebody types them is not ours."""
    loses_progress: bool = False
    """The RPO is of work inside a handler; of what was acknowledged nothing may be lost in any case."""
    needs: Needs = field(default_factory=Needs)
    """What the sandbox has to be; settings that make it possible to see within a minute what is declared for longer."""
    spends: bool = False
    """The sandbox is no good for another drill."""
    sandboxed: bool = False
    """What it does, or what it measures, can be done on a sandbox alone."""
    skipped: Callable[[], str] = lambda: ""
    """Why it cannot be run here; empty if it can."""
