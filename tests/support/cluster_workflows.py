"""The workflow of the cluster tests: it needs nothing but AEGIS, so that a container can run it too."""

from __future__ import annotations

import time
from enum import StrEnum

from aegis import Context, Retry, Workflow, transition


class Place(StrEnum):
    FIRST = "first"
    SECOND = "second"
    THIRD = "third"


class Relay(Workflow):
    """Two transitions, each taking ``pause`` seconds; who ran them stands in the history."""

    state: Place = Place.FIRST
    pause: float = 0.0

    @transition(Place.FIRST, Place.SECOND, retry=Retry(delay=0.2))
    def run(self, _: Context) -> None:
        time.sleep(self.pause)

    @transition(Place.SECOND, Place.THIRD, retry=Retry(delay=0.2))
    def arrive(self, _: Context) -> None:
        time.sleep(self.pause)
