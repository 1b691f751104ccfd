"""The workflow that is measured: ten automatic transitions, about 1 KB of data, handlers that do next to nothing."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from aegis import Context, Workflow, transition

STEPS = 10


class Place(StrEnum):
    """Eleven states in a row."""

    S0 = "s0"
    S1 = "s1"
    S2 = "s2"
    S3 = "s3"
    S4 = "s4"
    S5 = "s5"
    S6 = "s6"
    S7 = "s7"
    S8 = "s8"
    S9 = "s9"
    S10 = "s10"


class TenSteps(Workflow):
    """Ten transitions."""

    state: Place = Place.S0
    text: str
    count: int = 0

    @transition(Place.S0, Place.S1)
    def t1(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S1, Place.S2)
    def t2(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S2, Place.S3)
    def t3(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S3, Place.S4)
    def t4(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S4, Place.S5)
    def t5(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S5, Place.S6)
    def t6(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S6, Place.S7)
    def t7(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S7, Place.S8)
    def t8(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S8, Place.S9)
    def t9(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1

    @transition(Place.S9, Place.S10)
    def t10(self, ctx: Context) -> None:  # noqa: ARG002
        """Count."""
        self.count += 1


class Bed(StrEnum):
    """Asleep, or not any more."""

    ASLEEP = "asleep"
    AWAKE = "awake"


class Nap(Workflow):
    """It waits for a timer and nothing else."""

    state: Bed = Bed.ASLEEP

    @transition(Bed.ASLEEP, Bed.AWAKE, after=timedelta(days=1))
    def wake(self, ctx: Context) -> None:
        """Do nothing."""
