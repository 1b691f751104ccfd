"""Measuring: what the client's ledger says, held against what is in the database, and when things moved again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ...core.objective import Objective
from ...persistence.observe import Sight
from ...testing.ledger import EFFECT, Entry
from .ledger import EVENT, START, Request
from .movement import Fall, Move, Place, moved_at, still_met
from .report import Check, Timeline
from .scenario import Scenario
from .scene import Fault
from .workload import TRANSITIONS, Turn

_BIN: Final = 0.25
# What is lost and was acknowledged only after the fault was lost all the same.
_LEAST: Final = 0.001
_SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True)
class Count:
    """What was promised, and what became of it."""

    acknowledged: int
    refused: int
    ambiguous: int
    lost: Sequence[Request]
    doubled: int
    unfinished: Mapping[str, str]
    """The workflows that did not end, and their status."""


def count(
    requests: Sequence[Request],
    sights: Mapping[str, Sight],
    received: set[tuple[str, str]],
    fault: Fault | None = None,
) -> Count:
    """Hold the client's ledger against the database; what was given up on purpose was not promised."""
    acknowledged = promised(requests, fault)
    made = {request.workflow_id: request.answered_at for request in requests if request.kind == START and request.new}
    lost = [
        request
        for request in acknowledged
        if (request.kind == START and request.workflow_id not in sights)
        # Somebody had to start it once more.
        or (request.kind == START and request.answered_at < made.get(request.workflow_id, 0.0))
        or (request.kind == EVENT and (request.workflow_id, request.key) not in received)
    ]
    started = {request.workflow_id for request in acknowledged if request.kind == START}
    there = [sights[each] for each in sorted(started & sights.keys())]
    return Count(
        acknowledged=len(acknowledged),
        refused=len(requests) - len(acknowledged),
        ambiguous=_ambiguous(requests, sights),
        lost=lost,
        doubled=sum(max(0, sight.seq - TRANSITIONS[sight.type]) for sight in there),
        unfinished={sight.workflow_id: sight.status for sight in there if not has_ended(sight, fault)},
    )


def promised(requests: Sequence[Request], fault: Fault | None) -> list[Request]:
    """Return what was acknowledged, without what somebody gave up on purpose by going back to before it was."""
    return [each for each in requests if each.acknowledged and not _is_given_up(each, fault)]


def _is_given_up(request: Request, fault: Fault | None) -> bool:
    if fault is None or fault.until is None:
        return False
    return fault.until < request.answered_at <= (fault.at if fault.stopped is None else fault.stopped)


def events_given_up(requests: Sequence[Request], fault: Fault, until: float) -> int:
    """Count the events that were acknowledged after the point that one goes back to, and before ``until``."""
    events = [each for each in requests if each.kind == EVENT and each.acknowledged and each.answered_at < until]
    return sum(_is_given_up(each, fault) for each in events)


def has_ended(sight: Sight, fault: Fault | None) -> bool:
    """Whether a workflow goes no further; what waits for an event that is lost does not either."""
    return sight.status == "completed" or (fault is not None and fault.goes_back and sight.status == "waiting")


def _ambiguous(requests: Iterable[Request], sights: Mapping[str, Sight]) -> int:
    """Count the workflows that are there although the first answer was an error."""
    found: dict[str, bool] = {}
    for request in requests:
        if request.kind != START:
            continue
        if request.acknowledged:
            found[request.workflow_id] = not request.new
        elif request.workflow_id not in found:
            found[request.workflow_id] = request.workflow_id in sights
    return sum(found.values())


def loss(lost: Sequence[Request], at: float) -> float:
    """Return of how long a time acknowledged work was lost (seconds); 0 if nothing was.

    From the first of it until the fault, or until the last of it: who was cut off may go on for a while.
    """
    if not lost:
        return 0.0
    times = [request.answered_at for request in lost]
    return max(_LEAST, max(at, *times) - min(times))


def work_lost(turns: Sequence[Turn], fault: Fault) -> float | None:
    """Return how much of a long handler's work had to be done again (seconds); None if it never ran again."""
    own = [turn for turn in turns if turn.workflow_id == fault.victim]
    again = [turn.number for turn in own if turn.at > fault.at and turn.attempt > 1]
    if not again:
        return None
    kept = [turn.at for turn in own if turn.at <= fault.at and turn.number < min(again)]
    began = min(turn.at for turn in own)
    return fault.at - max(kept, default=began)


def left_behind(fault: Fault, moves: list[Move], sights: Mapping[str, Sight], since: float) -> dict[str, str]:
    """Return those that were met and did not move again, and their status."""
    met = still_waiting(fault, moves, since)
    gone = met.keys() - moved_at(moves, met, since).keys()
    return {each: sights[each].status if each in sights else "gone" for each in sorted(gone)}


def still_waiting(fault: Fault, moves: list[Move], since: float) -> Mapping[str, Place]:
    """Return where those that were met were when the time began to count.

    What was seen of a primary that is lost with its commits is gone: those are where they were met.
    """
    return fault.met if fault.goes_back else still_met(moves, fault.met, since)


def recovered(fault: Fault, moves: list[Move], since: float) -> tuple[float | None, float | None]:
    """Return when the first and the last of those that were met moved again, after ``since``."""
    met = still_waiting(fault, moves, since)
    found = sorted(at - since for at in moved_at(moves, met, since).values())
    enough = len(met) if fault.enough is None else fault.enough
    last = found[enough - 1] if found and len(found) >= enough else None
    return (found[0] if found else None), last


def repeated(entries: Iterable[Entry]) -> int:
    """Return how many transitions had their effect more than once."""
    tried = Counter((entry.workflow_id, entry.seq) for entry in entries if entry.kind == EFFECT)
    return sum(times > 1 for times in tried.values())


def gap(requests: Sequence[Request], since: float, until: float) -> float:
    """Return the longest time without an acknowledgement."""
    return _longest((request.answered_at for request in requests if request.acknowledged), since, until)


def stood_still(requests: Sequence[Request], moves: Sequence[Move], since: float, until: float) -> float:
    """Return the longest time in which nothing was acknowledged, or no workflow made a transition."""
    made = (move.at for move in moves if move.transitions)
    return max(gap(requests, since, until), _longest(made, since, until))


def is_served(requests: Sequence[Request], moves: Sequence[Move], since: float) -> bool:
    """Whether something that was asked for after ``since`` was acknowledged, and a transition made."""
    asked = any(request.acknowledged and request.asked_at > since for request in requests)
    return asked and any(move.transitions and move.happened > since for move in moves)


def _longest(times: Iterable[float], since: float, until: float) -> float:
    inside = [since, *sorted(at for at in times if since < at < until), until]
    return max(later - earlier for earlier, later in pairwise(inside))


def timeline(
    requests: Sequence[Request], moves: Sequence[Move], fault: Fault, healed: float | None, times: tuple[float, float]
) -> Timeline:
    """Return what happened when, in bins, from the first to the second of the times."""
    start, end = times
    bins = max(1, int((end - start) / _BIN) + 1)

    def binned(events: Iterable[tuple[float, int]]) -> list[int]:
        made = [0] * bins
        for at, number in events:
            if start <= at <= end:
                made[min(bins - 1, int((at - start) / _BIN))] += number
        return made

    first, last = recovered(fault, list(moves), fault.at if healed is None else healed)
    base = 0.0 if healed is None else healed - fault.at
    return Timeline(
        start=round(start - fault.at, 3),
        width=_BIN,
        acknowledged=binned((request.answered_at, 1) for request in requests if request.acknowledged),
        refused=binned((request.answered_at, 1) for request in requests if not request.acknowledged),
        transitions=binned((move.at, move.transitions) for move in moves),
        healed=None if healed is None else round(base, 3),
        first=None if first is None else round(base + first, 3),
        last=None if last is None else round(base + last, 3),
    )


# --- the verdict --------------------------------------------------------------------------------


def of_the_counts(counted: Count, scenario: Scenario, declared: Objective, rpo: float | None) -> Iterator[Check]:
    """Judge what was lost, what was done twice, and what did not end."""
    allowed = 0.0 if scenario.loses_progress else declared.rpo
    lost = len(counted.lost)
    yield Check(
        name="acknowledged and lost",
        declared="none" if not allowed else f"none older than {allowed:g} s",
        measured=f"{lost} of {counted.acknowledged}",
        passed=counted.acknowledged > 0 and (not lost or (allowed > 0 and rpo is not None and rpo <= allowed)),
    )
    yield Check(
        name="work lost" if scenario.loses_progress else "RPO",
        declared=f"{declared.rpo:g} s",
        measured="it never ran again" if rpo is None else f"{rpo:.2f} s",
        passed=rpo is not None and rpo <= declared.rpo,
    )
    doubled = counted.doubled
    yield Check(name="recorded twice", declared="none", measured=str(doubled), passed=not doubled)
    yield Check(
        name="completed",
        declared="all that was accepted",
        measured="all" if not counted.unfinished else _some("not completed", counted.unfinished),
        passed=not counted.unfinished,
    )


def of_the_service(requests: Sequence[Request], since: float, refused: int) -> Check:
    """Judge whether clients are served again; ``refused`` is how many of them still ask for something in vain."""
    served = sum(request.acknowledged and request.asked_at > since for request in requests)
    measured = f"{served} requests" if not refused else f"{refused} still ask in vain, after {served} requests"
    return Check(
        name="served again", declared="every client, in the end", measured=measured, passed=served > 0 and not refused
    )


def of_what_was_seen(falls: Sequence[Fall]) -> Check:
    """Judge whether a committed transition that was seen is there still."""
    found = ", ".join(f"{fall.workflow_id} from {fall.was} back to {fall.found}" for fall in falls[:_SHOWN])
    return Check(name="seen and lost", declared="no transition", measured=found or "none", passed=not falls)


def of_the_events(counted: int, listed: int) -> Check:
    """Judge whether the events that going back gives up are listed for their senders."""
    return Check(
        name="events to be sent again",
        declared=f"the {counted} that were acknowledged after that point",
        measured=f"{listed} listed",
        passed=listed >= counted,
    )


def of_what_is_listed(counted: Count, listed: set[str], anchored: Collection[str]) -> Check:
    """Judge whether what the anchors know of, and is lost, is listed."""
    gone = {each.workflow_id for each in counted.lost if each.kind == START and each.workflow_id in anchored}
    return Check(
        name="lost and listed",
        declared="all that is lost and was anchored",
        measured=f"{len(gone & listed)} of {len(gone)}",
        passed=bool(gone) and gone <= listed,
    )


def of_the_time(declared: Objective, rto: float | None, waited: float, left: Mapping[str, str]) -> Check:
    """Judge how long it took; ``left`` are those that were waited for in vain."""
    return Check(
        name="RTO",
        declared=f"{declared.rto:g} s",
        measured=_some(f"not within {waited:.0f} s", left) if rto is None else f"{rto:.2f} s",
        passed=rto is not None and rto <= declared.rto,
    )


def _some(what: str, workflows: Mapping[str, str]) -> str:
    """Say how many there are, and of the first of them how they are."""
    if not workflows:
        return what
    named = ", ".join(f"{workflow_id} is {status}" for workflow_id, status in list(workflows.items())[:_SHOWN])
    return f"{what}: {len(workflows)}, {named}{' ...' if len(workflows) > _SHOWN else ''}"
