"""Approvals: whether an event counts, and whether it is the last that was needed. Pure: rows in, a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from .canonical import Json
from .machine import Edge

APPROVED = "approved"
DISREGARDED = "disregarded"


@dataclass(frozen=True, kw_only=True)
class Approval:
    """One event that was sent for a transition: by whom, why, when it came, and its payload as JSON."""

    sender: str
    reason: str | None
    at: datetime
    data: Json


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What counts so far: who moved the workflow on before, and who approved since the state was entered."""

    steered_by: str | None
    approvals: tuple[Approval, ...]


class Verdict(StrEnum):
    """What is to be done with one more event; those that are not taken say which rule kept them."""

    TAKE = "take"
    COUNT = "count"
    SAME_SENDER = "already approved"
    FOUR_EYES = "four eyes"


def judge(edge: Edge, standing: Standing, sender: str) -> Verdict:
    """Return what an event of that sender is for the edge."""
    if edge.four_eyes and sender == standing.steered_by:
        return Verdict.FOUR_EYES
    if edge.approvals == 1:
        return Verdict.TAKE
    senders = senders_of(standing.approvals)
    if sender in senders:
        return Verdict.SAME_SENDER
    return Verdict.TAKE if len(senders) + 1 >= edge.approvals else Verdict.COUNT


def senders_of(approvals: Sequence[Approval]) -> set[str]:
    """Return who approved: each counts once."""
    return {approval.sender for approval in approvals}
