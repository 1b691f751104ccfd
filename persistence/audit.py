"""The audit: stored histories read in turn, and verified.

It reads in pages of workflows, each in one moment of the database, and keeps no more than a page:
a million transitions take no more memory than a few thousand. ``auditor.py`` puts it together with
what is known from outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Select, and_, func, literal, or_, select

from ..core.errors import WorkflowNotFound
from ..core.finding import Code, Finding, failures
from ..core.names import SYSTEM
from ..core.verify import (
    NOTHING_REMOVED,
    Audit,
    Evidence,
    Leaf,
    Removed,
    StoredCheckpoint,
    StoredTransition,
    StoredWorkflow,
)
from . import bulk, sql
from .absent import Records
from .models import CheckpointRow, LogRow, PayloadRow, TransitionRow, WorkflowRow
from .schema import deployment_name
from .span import Span

# Only in these may a handler have left data that no transition tells of yet.
_MOVING: Final = frozenset({"pending", "waiting"})


_T: Final = TransitionRow.__table__.c
_P: Final = PayloadRow.__table__.c
_C: Final = CheckpointRow.__table__.c
_L: Final = LogRow.__table__.c
_W: Final = WorkflowRow.__table__.c


@dataclass
class Tally:
    """What an audit has been through so far, for those who wait for it."""

    workflows: int = 0
    transitions: int = 0
    entries: int = 0
    """Of the log."""


Progress: TypeAlias = Callable[[Tally], object]


@dataclass(kw_only=True)
class Page:
    """What is known of a page's workflows beside their transitions."""

    rows: dict[str, StoredWorkflow] = field(default_factory=dict)
    more: dict[str, list[StoredCheckpoint]] = field(default_factory=lambda: defaultdict(list))
    """Checkpoints that are no transition's own."""
    payloads: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """The seqs of payloads without a transition."""
    removed: dict[str, Removed] = field(default_factory=dict)
    broken: list[Finding] = field(default_factory=list)
    """The records of removals that do not fit, if the system's chain is on this page."""

    @classmethod
    def read(cls, connection: Connection, span: Span, records: Records) -> Page:
        """Read it, in one moment."""
        page = cls(removed=records.removed(connection, span))
        for row in connection.execute(
            select(_W.id, _W.type, _W.version, _W.definition, _W.state, _W.status, _W.seq, _W.head).where(
                span.holds(_W.id)
            )
        ):
            page.rows[row.id] = StoredWorkflow(
                workflow_id=row.id,
                type=row.type,
                version=row.version,
                definition=row.definition,
                state=row.state,
                status=row.status,
                seq=-1 if row.seq is None else row.seq,  # no history has that
                head=bytes(row.head or b""),
            )
        for row in connection.execute(_more_checkpoints(span)):
            page.more[row.workflow_id].append(
                StoredCheckpoint(
                    workflow_id=row.workflow_id,
                    seq=row.seq,
                    number=row.number,
                    body=bytes(row.body or b""),
                    salt=bytes(row.salt or b""),
                    commitment=bytes(row.commitment or b""),
                    mac=None if row.mac is None else bytes(row.mac),
                    mac_key=row.mac_key,
                )
            )
        for row in connection.execute(_more_payloads(span)):
            page.payloads[row.workflow_id].append(row.seq)
        # Also where there is no such chain: then no record says what these rows say.
        if span.only == SYSTEM or (span.only is None and connection.execute(_is_in(span)).scalar_one()):
            page.broken = list(records.broken(connection))
        return page

    def __iter__(self) -> Iterator[str]:
        """Go through the ids of all workflows that something is known of."""
        return iter({**self.rows, **self.more, **self.payloads})


def _is_in(span: Span) -> Select[Any]:
    return select(span.holds(literal(SYSTEM)))


def _more_checkpoints(span: Span) -> Select[Any]:
    own = select(1).where(_T.workflow_id == _C.workflow_id, _T.seq == _C.seq).exists()
    return (
        select(_C.workflow_id, _C.seq, _C.number, _C.body, _C.salt, _C.commitment, _C.mac, _C.mac_key)
        .where(span.holds(_C.workflow_id), or_(_C.number != 0, ~own))
        .order_by(_C.workflow_id, _C.seq, _C.number)
    )


def _more_payloads(span: Span) -> Select[Any]:
    own = select(1).where(_T.workflow_id == _P.workflow_id, _T.seq == _P.seq).exists()
    return select(_P.workflow_id, _P.seq).where(span.holds(_P.workflow_id), ~own)


def alone(connection: Connection, workflow_id: str) -> list[Finding]:
    """Verify one workflow's history by itself, with nothing from outside.

    Raises:
        WorkflowNotFound: there is no such workflow.

    """
    tally = Tally()
    known = Evidence(deployment=deployment_name(connection))
    found = chains(connection, Span(only=workflow_id), known, Records(), tally, None)
    if not tally.workflows:
        raise WorkflowNotFound(workflow_id)
    return failures(found)


# --- transitions ----------------------------------------------------------------------------


def chains(
    connection: Connection, span: Span, known: Evidence, records: Records, tally: Tally, horizon: int | None
) -> list[Finding]:
    """Verify the histories of a page, in one moment; return what is wrong with them.

    Whatever was committed by a transaction below ``horizon`` has to be in the log.
    """
    chains_ = _Chains(known, Page.read(connection, span, records), tally)
    bulk.read(connection, _transitions(span, horizon), chains_.receive)
    return chains_.end()


class _Chains:
    """Takes the transitions of a page as they come, workflow by workflow."""

    def __init__(self, known: Evidence, page: Page, tally: Tally) -> None:
        self._known = known
        self._page = page
        self._tally = tally
        self._seen: set[str] = set()
        self._audit: Audit | None = None
        self._newest: tuple[int, StoredCheckpoint | None] = -1, None
        """The last transition so far, and its own checkpoint."""
        self._found: list[Finding] = []

    def receive(self, row: bulk.Row) -> None:
        """Verify the next transition."""
        transition = _transition(row)
        audit = self._audit
        if audit is None or audit.workflow_id != transition.workflow_id:
            audit = self._begin(transition.workflow_id)
        place = row[17]
        own = _own_checkpoint(row)
        audit.transition(transition, own, None if place is None else Leaf(bulk.number(place), transition.hash))
        self._newest = transition.seq, own
        self._tally.transitions += 1
        if row[18] == bulk.TRUE:
            expected = "a place in the log, which is past its transaction"
            self._found.append(_finding(transition.workflow_id, transition.seq, Code.LOG_INCONSISTENT, expected, None))

    def end(self) -> list[Finding]:
        """Return what was found, once all were received."""
        self._close()
        for workflow_id in self._page:
            if workflow_id not in self._seen:
                self._begin(workflow_id)
                self._close()
        return self._found + self._page.broken

    def _begin(self, workflow_id: str) -> Audit:
        self._close()
        self._seen.add(workflow_id)
        self._newest = -1, None
        self._audit = Audit(workflow_id, self._known)
        return self._audit

    def _close(self) -> None:
        if self._audit is None:
            return
        page, workflow_id = self._page, self._audit.workflow_id
        self._tally.workflows += 1
        self._found += self._audit.close(
            page.rows.get(workflow_id),
            page.more.get(workflow_id, ()),
            removed=page.removed.get(workflow_id, NOTHING_REMOVED),
        )
        for seq in page.payloads.get(workflow_id, ()):
            problem = "a payload without a transition"
            self._found.append(_finding(workflow_id, seq, Code.PAYLOAD_MISMATCH, None, problem))
        self._found += self._at_rest(workflow_id)
        self._audit = None

    def _at_rest(self, workflow_id: str) -> Iterator[Finding]:
        """Tell of data that nobody can have left: of a workflow at rest there are copies alone, until it moves on."""
        row, (own_seq, own) = self._page.rows.get(workflow_id), self._newest
        if row is None or own is None or row.status in _MOVING:
            return
        for stored in self._page.more.get(workflow_id, ()):
            if stored.number and stored.seq == own_seq and stored.body != own.body:
                expected = "a copy of the transition's own"
                yield _finding(workflow_id, own_seq, Code.CHECKPOINT_MISMATCH, expected, "other data")


def _finding(workflow_id: str, seq: int, code: Code, expected: str | None, actual: str | None) -> Finding:
    return Finding(workflow_id=workflow_id, seq=seq, code=code, expected=expected, actual=actual)


def _transitions(span: Span, horizon: int | None) -> Select[Any]:
    past = literal(False) if horizon is None else _T.xact < horizon
    left_out = and_(_L.log_index.is_(None), past)
    own = and_(_C.workflow_id == _T.workflow_id, _C.seq == _T.seq, _C.number == 0)
    return (
        select(
            *(_T.workflow_id, _T.seq, _T.event, _T.from_state, _T.to_state, _T.actor, _T.attempt),
            # Null for an infinite time, which no envelope has.
            func.coalesce(sql.iso(_T.at), ""),
            *(_T.envelope, _T.hash, _T.mac, _T.mac_key, _P.body, _P.salt, _C.body, _C.salt, _C.commitment),
            *(_L.log_index, left_out),
        )
        .select_from(TransitionRow)
        .outerjoin(PayloadRow, and_(_P.workflow_id == _T.workflow_id, _P.seq == _T.seq))
        .outerjoin(CheckpointRow, own)
        .outerjoin(LogRow, and_(_L.workflow_id == _T.workflow_id, _L.seq == _T.seq, _L.lost_seq.is_(None)))
        .where(span.holds(_T.workflow_id))
        .order_by(_T.workflow_id, _T.seq)
    )


def _transition(row: bulk.Row) -> StoredTransition:
    text, number = bulk.text, bulk.number
    return StoredTransition(
        *(text(row[0]) or "", number(row[1]), text(row[2]) or "", text(row[3]), text(row[4]) or ""),
        *(text(row[5]) or "", number(row[6]), text(row[7]) or "", row[8] or b"", row[9] or b""),
        *(row[10], text(row[11]), row[12], row[13]),
    )


def _own_checkpoint(row: bulk.Row) -> StoredCheckpoint | None:
    body = row[14]
    if body is None:
        return None
    return StoredCheckpoint(bulk.text(row[0]) or "", bulk.number(row[1]), 0, body, row[15] or b"", row[16] or b"")
