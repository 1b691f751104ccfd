"""The auditor: everything that is known of the histories, from inside and from outside, put together.

What is anchored is compared with the anchors; what is not yet, with its codes; and all of it with
itself. What could not be looked at is said, and never taken for intact.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, func, select

from ..core.anchor import Anchor, Entry, Judge, Replay, Sink, log_name
from ..core.chain import MacKey, timestamp
from ..core.errors import NotANote, SinkUnavailable, WorkflowNotFound
from ..core.finding import Code, Finding, Findings, Report, Witness, failures
from ..core.names import SYSTEM, check_name
from ..core.note import LogHead, VerifierKey, open_note
from ..core.seal import HELD_BACK, earliest
from ..core.verify import Evidence
from . import database as databases
from . import log, witness
from .absent import Records
from .audit import Progress, Tally, chains
from .database import Database
from .models import AnchorRow, WorkflowRow
from .schema import deployment_name
from .span import Span, next_page
from .witness import Place

# A transition need not be anchored before so many of the intervals have passed, and never sooner than that.
_INTERVALS: Final = 10
_GRACE: Final = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is known outside of the database, and where: keys, and places of anchors."""

    mac_keys: Sequence[MacKey] = ()
    sinks: Sequence[Sink] = ()
    trusted: Sequence[VerifierKey] = ()
    anchor_interval: timedelta = timedelta(minutes=1)
    judge: Judge | None = None
    """What verifies the anchors' timestamps."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What stands fixed before anything is verified."""

    evidence: Evidence
    records: Records
    horizon: int | None
    witnesses: Sequence[tuple[Sink, LogHead]]
    problems: list[str]


class Auditor:
    """Verifies the histories of one deployment."""

    def __init__(self, database: Database, sources: Sources, *, most_told: int | None = None) -> None:
        """Take what is known; of each code ``most_told`` findings are told one by one (None: what people read)."""
        self._database = database
        self._sources = sources
        self._most_told = most_told

    def _nothing_yet(self) -> Findings:
        return Findings() if self._most_told is None else Findings(most=self._most_told)

    # --- one workflow -------------------------------------------------------------------

    def one(self, workflow_id: str) -> Report:
        """Verify one workflow's history, also against what was anchored of it.

        Raises:
            WorkflowNotFound: there never was such a workflow.
            ConfigurationError: the deployment has no name any more: no chain can be checked.

        """
        check_name("workflow id", workflow_id)
        began, tally, found = time.monotonic(), Tally(), self._nothing_yet()
        known = self._known(found)
        there, witnesses = self._history(workflow_id, known, tally, found)
        if not there:
            raise WorkflowNotFound(workflow_id)
        if known.records.excused and workflow_id != SYSTEM:
            # What a record excuses is as good as the chain that the record stands in.
            of_the_records = self._nothing_yet()
            self._history(SYSTEM, known, Tally(), of_the_records)
            found.extend(failures(of_the_records.told))
        return _report(tally, found, witnesses, known.problems, began)

    def _history(self, workflow_id: str, known: _Known, tally: Tally, found: Findings) -> tuple[bool, list[Witness]]:
        """Verify one history; return whether anything is known of such a workflow, and what it was compared with."""
        witnesses = []
        for sink, head in known.witnesses:
            with _noted(known.problems):
                witnesses.append(self._about(workflow_id, known, sink, head, found))
            self._covered(sink, known, found)
        with self._database.snapshot() as connection:
            span = Span(only=workflow_id)
            found.extend(chains(connection, span, known.evidence, known.records, tally, known.horizon))
            places = _logged(connection, workflow_id)
            beyond = [place for place in places if place.index >= (known.evidence.anchored or 0)]
            found.extend(witness.judge(connection, beyond, known.records))
            there = tally.transitions or places or _is_row(connection, workflow_id)
        return bool(there) or any(one.entries for one in witnesses), witnesses

    def _about(self, workflow_id: str, known: _Known, sink: Sink, head: LogHead, found: Findings) -> Witness:
        """Compare a workflow with what a place has of it."""
        compared: set[tuple[int, int]] = set()
        for anchor in sink.about(workflow_id):
            places = [
                Place(index=anchor.first + offset, anchored=entry, logged=None)
                for offset, entry in enumerate(anchor.entries)
                if entry.workflow_id == workflow_id
            ]
            if not places:
                continue
            try:
                open_note(anchor.note, self._sources.trusted)
            except NotANote as error:
                found.add(_unsigned(sink, anchor.first, str(error)))
                continue
            compared |= {(place.index, place.anchored.seq) for place in places if place.anchored is not None}
            with self._database.snapshot() as connection:
                inside = [replace(place, logged=_at(connection, place.index)) for place in places]
                found.extend(witness.judge(connection, inside, known.records))
        with self._database.snapshot() as connection:
            for seq, (index, digest) in log.places(connection, workflow_id).items():
                if index < head.size and (index, seq) not in compared:
                    found.add(_unknown_outside(workflow_id, seq, index, digest))
        return _witness(sink, head, len(compared))

    # --- all of them ----------------------------------------------------------------------

    def everything(self, progress: Progress = lambda _: None) -> Report:
        """Verify the histories of all workflows, and the whole log beside all that was anchored of it.

        Raises:
            ConfigurationError: the deployment has no name any more: no chain can be checked.

        """
        began, tally, found = time.monotonic(), Tally(), self._nothing_yet()
        known = self._known(found)
        for _ in self._pages(known, tally, found):
            progress(tally)
        witnesses = self._compare(known, tally, found, progress)
        return _report(tally, found, witnesses, known.problems, began)

    def some(self, after: str, most: int) -> tuple[str, Report]:
        """Verify the histories of some workflows, from an id on, until so many transitions were seen.

        Return the id to go on from (empty: those were the last), and what was seen; with anchors only ``log`` compares.
        """
        began, tally, found = time.monotonic(), Tally(), self._nothing_yet()
        known = self._known(found)
        for place in self._pages(known, tally, found, after=after):
            if tally.transitions >= most:
                return place, _report(tally, found, [], known.problems, began)
        return "", _report(tally, found, [], known.problems, began)

    def log(self, progress: Progress = lambda _: None) -> Report:
        """Verify the log beside all that was anchored of it."""
        began, tally, found = time.monotonic(), Tally(), self._nothing_yet()
        known = self._known(found)
        witnesses = self._compare(known, tally, found, progress)
        return _report(tally, found, witnesses, known.problems, began)

    def _pages(self, known: _Known, tally: Tally, found: Findings, *, after: str = "") -> Iterator[str]:
        """Verify page by page; yield the id with which each ends."""
        span: Span | None = None
        while span is None or span.last is not None:
            with self._database.snapshot() as connection:
                span = next_page(connection, after if span is None or span.last is None else span.last)
                found.extend(chains(connection, span, known.evidence, known.records, tally, known.horizon))
            yield span.last or ""

    def _compare(self, known: _Known, tally: Tally, found: Findings, progress: Progress) -> list[Witness]:
        witnesses = []
        for sink, head in known.witnesses:
            replay = Replay(self._sources.trusted, log_name(known.evidence.deployment))
            stamps = _Stamps(self._sources.judge)
            entries = replay.entries(stamps.seen(sink.anchors()))
            with _noted(known.problems):
                for finding in witness.compare(self._database, entries, known.records, tally, progress):
                    found.add(finding)
            for index, problem in replay.problems:
                found.add(_unsigned(sink, index, problem))
            for index, problem in stamps.problems:
                found.add(_badly_stamped(sink, index, problem))
            self._covered(sink, known, found)
            witness_ = _witness(sink, replay.head or head, replay.size)
            witnesses.append(replace(witness_, stamped=stamps.verified, unchecked=stamps.unchecked))
        if not known.witnesses:
            found.extend(witness.compare(self._database, iter(()), known.records, tally, progress))
        return witnesses

    @staticmethod
    def _covered(sink: Sink, known: _Known, found: Findings) -> None:
        """Tell where somebody tried to hide an anchor; it was compared all the same, as far as it is still there."""
        with _noted(known.problems):
            for line in sink.covered():
                found.add(_hidden(sink, line))

    # --- what is known ------------------------------------------------------------------------

    def _known(self, found: Findings) -> _Known:
        """Return what is known; what is wrong with that already goes into ``found``."""
        with self._database.snapshot() as connection:
            deployment = deployment_name(connection)
            now = databases.now(connection)
            state = log.state(connection)
            if log.is_kept(connection):
                found.extend(witness.of_its_state(connection, state))
            anchored_before: datetime | None = connection.execute(select(func.max(AnchorRow.at))).scalar_one()
            horizon = state.horizon if log.is_kept(connection) and not log.is_elsewhere(connection, state) else None
        witnesses, problems = self._witnesses(log_name(deployment), found)
        if not witnesses and not problems and anchored_before is not None and self._sources.sinks:
            names = ", ".join(sink.name for sink in self._sources.sinks)
            problems = [f"anchors were written until {anchored_before:%Y-%m-%d %H:%M:%S} UTC, and {names} has none"]
        mac_keys = {key.id: key for key in self._sources.mac_keys}
        grace = max(_GRACE, self._sources.anchor_interval * _INTERVALS)
        evidence = Evidence(
            deployment=deployment,
            mac_keys=mac_keys,
            coded_from=self._coded_from(mac_keys, witnesses, problems),
            anchored=max((head.size for _, head in witnesses), default=None),
            fresh_from=timestamp(now - grace),
        )
        return _Known(evidence=evidence, records=Records(), horizon=horizon, witnesses=witnesses, problems=problems)

    def _coded_from(
        self, mac_keys: Mapping[str, MacKey], witnesses: Sequence[tuple[Sink, LogHead]], problems: list[str]
    ) -> int | None:
        """Return from which place in the log on everything needs a code: where an anchor ended that late."""
        required = earliest(mac_keys)
        if required is None:
            return None
        sizes = []
        for sink, newest in witnesses:
            with _noted(problems), suppress(NotANote):  # one that nobody signed is told of where all are compared
                anchor = sink.since(required + HELD_BACK)
                head = None if anchor is None else open_note(anchor.note, self._sources.trusted)
                if head is not None and head.origin == newest.origin:
                    sizes.append(head.size)
        return min(sizes, default=None)

    def _witnesses(self, name: str, found: Findings) -> tuple[list[tuple[Sink, LogHead]], list[str]]:
        """Return the places that have anchors of ours, each with its newest; and what hinders the others."""
        witnesses, problems = [], []
        for sink in self._sources.sinks:
            try:
                last = sink.last()
                if last is None:
                    continue
                if not self._sources.trusted:
                    problems.append(f"no key is trusted here: nothing is compared with the anchors at {sink.name}")
                    continue
                head = open_note(last.note, self._sources.trusted)
            except SinkUnavailable as error:
                problems.append(str(error))
            except NotANote as error:
                found.add(_unsigned(sink, None, str(error)))
            else:
                if head.origin == name:
                    witnesses.append((sink, head))
                else:
                    problems.append(f"the anchors at {sink.name} are of the log {head.origin!r}, not of {name!r}")
        return witnesses, problems


class _Stamps:
    """The timestamps of the anchors that come by."""

    def __init__(self, judge: Judge | None) -> None:
        self._judge = judge
        self.verified = 0
        self.unchecked = 0
        self.problems: list[tuple[int, str]] = []
        """Log index of an anchor, and what is wrong with its timestamp."""

    def seen(self, anchors: Iterable[Anchor]) -> Iterator[Anchor]:
        """Give each on, once its timestamp is looked at; one without is none the worse: the authority was away."""
        for anchor in anchors:
            if anchor.timestamp is None:
                pass
            elif self._judge is None:
                self.unchecked += 1
            elif (problem := self._judge(anchor.note, anchor.timestamp)) is not None:
                self.problems.append((anchor.first, problem))
            else:
                self.verified += 1
            yield anchor


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Note that a place of anchors broke off; what it was asked for could not be verified."""
    try:
        yield
    except SinkUnavailable as error:
        problems.append(str(error))


def _report(tally: Tally, found: Findings, witnesses: list[Witness], problems: Sequence[str], began: float) -> Report:
    return Report(
        workflows=tally.workflows,
        transitions=tally.transitions,
        findings=tuple(sorted(found.told, key=lambda finding: finding.severity)),
        counts=dict(found.counts),
        witnesses=tuple(witnesses),
        problems=tuple(dict.fromkeys(problems)),
        seconds=time.monotonic() - began,
    )


def _witness(sink: Sink, head: LogHead, entries: int) -> Witness:
    return Witness(place=sink.name, entries=entries, anchored=head.size, anchored_at=timestamp(head.at))


def _unsigned(sink: Sink, index: int | None, problem: str) -> Finding:
    return Finding(
        workflow_id=None,
        seq=None,
        code=Code.SIGNATURE_INVALID,
        expected=f"an anchor at {sink.name} that a trusted key signed, over the entries before it",
        actual=problem,
        log_index=index,
    )


def _badly_stamped(sink: Sink, index: int, problem: str) -> Finding:
    return Finding(
        workflow_id=None,
        seq=None,
        code=Code.SIGNATURE_INVALID,
        expected=f"a timestamp of a trusted authority over the anchor at {sink.name}",
        actual=problem,
        log_index=index,
    )


def _hidden(sink: Sink, line: str) -> Finding:
    return Finding(
        workflow_id=None,
        seq=None,
        code=Code.ANCHOR_COVERED,
        expected=f"each anchor at {sink.name} as it was written, once",
        actual=line,
    )


def _unknown_outside(workflow_id: str, seq: int, index: int, digest: bytes) -> Finding:
    return Finding(
        workflow_id=workflow_id,
        seq=seq,
        code=Code.LOG_INCONSISTENT,
        expected=f"what the anchors have at {index}",
        actual=digest.hex(),
        log_index=index,
    )


def _logged(connection: Connection, workflow_id: str) -> list[Place]:
    """Return what the log has of a workflow."""
    return [
        Place(index=index, anchored=None, logged=Entry(workflow_id=workflow_id, seq=seq, hash=digest))
        for seq, (index, digest) in log.places(connection, workflow_id).items()
    ]


def _at(connection: Connection, index: int) -> Entry | None:
    return witness.logged(connection, index, index + 1).get(index)


def _is_row(connection: Connection, workflow_id: str) -> bool:
    return connection.execute(select(select(1).where(WorkflowRow.id == workflow_id).exists())).scalar_one()
