"""A report of many pages, written by one handler that saves its progress."""

from __future__ import annotations

import os
import time
from enum import StrEnum

from pydantic import Field

from aegis import Context, Retry, Workflow, transition


class Stage(StrEnum):
    """How far a report has come."""

    ASKED = "asked"
    WRITTEN = "written"


class Report(Workflow, name="example.Report"):
    """A report; ``page`` seconds for each page."""

    state: Stage = Stage.ASKED
    pages: int
    page: float = 0.1
    outline: str = ""
    written: int = 0
    began_at: list[int] = Field(default_factory=list)
    """The page that each attempt began with."""
    pid: int = 0
    """The process that writes it, for the app to kill."""

    @transition(Stage.ASKED, Stage.WRITTEN, retry=Retry(max_attempts=10, delay=0.5), timeout=3600)
    def write(self, ctx: Context) -> None:
        """Go on from whatever is there: nothing at first, later what the last checkpoint holds."""
        self.pid = os.getpid()
        self.began_at.append(self.written)
        if not self.outline:
            self.outline = draw_up(self.pages)
            ctx.checkpoint()  # dear, so it is saved now, and never done again
        while self.written < self.pages:
            time.sleep(self.page)
            self.written += 1
            ctx.progress()  # cheap: saved when beat has asked for it
        ctx.log.info("written", pages=self.pages)


def draw_up(pages: int) -> str:
    """Do what takes long, and should not be done twice."""
    time.sleep(0.5)
    return ", ".join(f"chapter {number}" for number in range(1, pages // 10 + 1))
