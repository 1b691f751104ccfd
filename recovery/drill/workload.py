"""What the system under test works at while it is hurt: transitions of some milliseconds, events, long handlers.

Each handler leaves a line in a file outside of the system: that it ran, and in a long one each
turn. What the database says later is held against that. On other machines than the drill's there is
no such file (``outside`` is empty): there the history alone speaks.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ...core.retry import Retry
from ...core.workflow import Context, Workflow, transition
from ...testing.ledger import Ledger

# Kills count as attempts; what is to survive a drill gets enough of them.
_STURDY: Final = Retry(max_attempts=20, delay=0.2)
MAX_ATTEMPTS: Final = dict.fromkeys(("one", "two", "three", "four", "open", "decide", "close", "work"), 20)
TRANSITIONS: Final = {"DrillSteps": 4, "DrillApproval": 3, "DrillLong": 1}
"""How many each makes until it is completed, beside the one that began it."""


def _note(ctx: Context, outside: str, name: str) -> None:
    if not outside:
        return
    # The key counts as the transitions do: nothing pauses these workflows, unless they had passed a point that one
    # goes back to, and no drill lets them.
    seq = int(ctx.key.rpartition(":")[2])
    Ledger(Path(outside) / "effects.jsonl").effect(ctx.workflow_id, seq, name, ctx.attempt)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a long handler; ``at`` is the machine's monotonic clock, which all its processes share."""

    workflow_id: str
    attempt: int
    number: int
    at: float


def turns(outside: Path) -> list[Turn]:
    """Return what the long handlers did, in order."""
    path = outside / "turns.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [Turn(**json.loads(line)) for line in lines]


def _note_turn(ctx: Context, outside: str, number: int) -> None:
    if not outside:
        return
    line = {"workflow_id": ctx.workflow_id, "attempt": ctx.attempt, "number": number, "at": time.monotonic()}
    descriptor = os.open(Path(outside) / "turns.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


class Step(StrEnum):
    """The states of ``DrillSteps``."""

    ZERO, ONE, TWO, THREE, FOUR = "zero", "one", "two", "three", "four"


class DrillSteps(Workflow):
    """Four automatic transitions, each of ``pause`` seconds; ``outside`` is the folder of the ledgers."""

    state: Step = Step.ZERO
    outside: str
    pause: float = 0.02
    done: int = 0

    def _do(self, ctx: Context, name: str) -> None:
        _note(ctx, self.outside, name)
        time.sleep(self.pause)
        self.done += 1

    @transition(Step.ZERO, Step.ONE, retry=_STURDY)
    def one(self, ctx: Context) -> None:
        """Make the first step."""
        self._do(ctx, "one")

    @transition(Step.ONE, Step.TWO, retry=_STURDY)
    def two(self, ctx: Context) -> None:
        """Make the second step."""
        self._do(ctx, "two")

    @transition(Step.TWO, Step.THREE, retry=_STURDY)
    def three(self, ctx: Context) -> None:
        """Make the third step."""
        self._do(ctx, "three")

    @transition(Step.THREE, Step.FOUR, retry=_STURDY)
    def four(self, ctx: Context) -> None:
        """Make the last step."""
        self._do(ctx, "four")


class Desk(StrEnum):
    """The states of ``DrillApproval``."""

    DRAFT, OPEN, DECIDED, CLOSED = "draft", "open", "decided", "closed"


class DrillApproval(Workflow):
    """Two transitions around an event, which a client sends."""

    state: Desk = Desk.DRAFT
    outside: str
    answer: str = ""

    @transition(Desk.DRAFT, Desk.OPEN, retry=_STURDY)
    def open(self, ctx: Context) -> None:
        """Wait for the client from here on."""
        _note(ctx, self.outside, "open")

    @transition(Desk.OPEN, Desk.DECIDED, on="decide", retry=_STURDY)
    def decide(self, ctx: Context, answer: str) -> None:
        """Take what the client decided."""
        _note(ctx, self.outside, "decide")
        self.answer = answer

    @transition(Desk.DECIDED, Desk.CLOSED, retry=_STURDY)
    def close(self, ctx: Context) -> None:
        """Be done."""
        _note(ctx, self.outside, "close")


class Shift(StrEnum):
    """The states of ``DrillLong``."""

    BEGUN, ENDED = "begun", "ended"


class DrillLong(Workflow):
    """One handler of ``goal`` turns, which saves its progress when it is asked to."""

    state: Shift = Shift.BEGUN
    outside: str
    goal: int = 40
    turn: float = 0.05
    done: int = 0

    @transition(Shift.BEGUN, Shift.ENDED, retry=_STURDY)
    def work(self, ctx: Context) -> None:
        """Work on from where the last checkpoint is."""
        _note(ctx, self.outside, "work")
        while self.done < self.goal:
            time.sleep(self.turn)
            self.done += 1
            _note_turn(ctx, self.outside, self.done)
            ctx.progress()
