"""The workflow of the recovery tests: it saves its progress, waits for people and timers, fails where it is told to."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from aegis import Context, Retry, Workflow, transition


class Stage(StrEnum):
    DRAFT = "draft"
    WRITTEN = "written"
    CHECKED = "checked"
    APPROVED = "approved"
    PUBLISHED = "published"


class Report(Workflow, name="dr.Report"):
    """Written chapter by chapter, checked, approved by somebody, published.

    ``gated`` names the handler that goes on only once the gate is open, ``broken`` one that raises until then.
    """

    state: Stage = Stage.DRAFT
    title: str = "untitled"
    gated: str = ""
    broken: str = ""
    chapters: list[str] = Field(default_factory=list)
    began_with: list[int] = Field(default_factory=list)
    """With how many chapters each attempt at writing began."""
    approved_by: str = ""

    @transition(Stage.DRAFT, Stage.WRITTEN, retry=Retry(delay=0.2))
    def write(self, ctx: Context) -> None:
        self.began_with.append(len(self.chapters))
        for number in range(len(self.chapters), 4):
            self.chapters.append(f"{self.title}, chapter {number}")
            ctx.checkpoint()
            if number == 1:
                self._pass("write")

    @transition(Stage.WRITTEN, Stage.CHECKED, retry=Retry(max_attempts=2, delay=0.1))
    def check(self, _: Context) -> None:
        self._pass("check")

    @transition(Stage.CHECKED, Stage.APPROVED, on="approve")
    def approve(self, _: Context, name: str) -> None:
        self.approved_by = name

    @transition(Stage.APPROVED, Stage.PUBLISHED)
    def publish(self, _: Context) -> None: ...

    def _pass(self, handler: str) -> None:
        gate = Path(os.environ["AEGIS_TEST_GATE"])
        if self.broken == handler and not gate.exists():
            raise RuntimeError("broken until the gate is open")
        while self.gated == handler and not gate.exists():
            time.sleep(0.02)


class Reach(StrEnum):
    OPEN = "open"
    OVER = "over"


class Reminder(Workflow, name="dr.Reminder"):
    """It waits for its time."""

    state: Reach = Reach.OPEN

    @transition(Reach.OPEN, Reach.OVER, after=timedelta(seconds=4))
    def expire(self, _: Context) -> None: ...
