"""The engine that applications call: each verb is one transaction, and a bell after it."""

from __future__ import annotations

import time
import uuid
from builtins import list as list_of  # the engine has a verb of that name
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from sqlalchemy.orm import Session

from ..core.anchor import Anchor
from ..core.bell import Bell, Ring
from ..core.bundle import Bundle, render
from ..core.effect import Happened
from ..core.errors import DidNotHappen, InvalidData, WaitTimeout, WorkflowNotCompleted
from ..core.finding import Report
from ..core.starting import Attribute, Moment, Start
from ..core.workflow import Workflow, read_data, registry
from . import effects, history, inbox, operations, removal, resolution, retrying, standbys, starting, transfer
from .auditor import Auditor, Sources
from .database import Database, in_one_transaction
from .guest import Guest, guest_of, savepoint
from .inbox import Message
from .operations import Terms
from .records import Checkpoint, Effect, WorkflowSummary, WorkflowTransition
from .retrying import Batch, Wanted
from .transfer import Scrutiny
from .walk import Piece, Place, walk

W = TypeVar("W", bound=Workflow)
T = TypeVar("T")

_OVER: Final = frozenset({"completed", "failed", "cancelled", "quarantined"})
# How often ``wait`` looks, in seconds: soon at first, then seldom enough to cost nothing.
_FIRST_LOOK: Final = 0.02
_LONGEST_LOOK: Final = 0.5
_AT_ONCE: Final = 1000


@dataclass(frozen=True)
class Handle(Generic[W]):
    """One started workflow.

    ``rung`` is False if the broker was away, or the caller has yet to commit: then the sweep rings it.
    ``new`` is False if it was there before.
    """

    engine: DurableWorkflowEngine
    id: str
    rung: bool = True
    new: bool = False

    def send(
        self,
        event: str,
        payload: object = None,
        *,
        key: str | None = None,
        reason: str = "",
        session: object = None,
    ) -> bool:
        """Send it an event; see ``DurableWorkflowEngine.send``."""
        return self.engine.send(self.id, event, payload, key=key, reason=reason, session=session)

    def ring(self) -> bool:
        """Ring for it, after a commit that nobody told AEGIS of; see ``DurableWorkflowEngine.ring``."""
        return self.engine.ring(self.id)

    def get(self) -> Workflow:
        """Return its data as it is now."""
        return self.engine.get(self.id)

    def describe(self) -> WorkflowSummary:
        """Return its row: state, status, what it waits for."""
        return self.engine.describe(self.id)

    def at(self, seq: int | datetime) -> Workflow:
        """Return its data as transition ``seq`` left it, or as it was at a moment."""
        if isinstance(seq, datetime):
            return self.engine.load(self.id, at=seq)
        return self.engine.load(self.id, seq=seq)

    def history(self) -> list_of[WorkflowTransition]:
        """Return its audit chain."""
        return self.engine.history(self.id)

    def wait(self, timeout: float | None = None) -> Workflow:
        """Wait until it has completed; return its data. See ``DurableWorkflowEngine.wait``."""
        return self.engine.wait(self.id, timeout=timeout)

    def verify_integrity(self) -> tuple[bool, str | None]:
        """Return whether its history is intact, and if not, where it is not."""
        return self.engine.verify_integrity(self.id)


class DurableWorkflowEngine:
    """Start workflows, send them events, read and steer them. Blocking; safe for many threads.

    ``actor`` is who the history says acted: ``user:alice``, ``app:shop``.
    """

    def __init__(self, database: Database, ring: Ring, terms: Terms, sources: Sources = Sources()) -> None:  # noqa: B008 - frozen
        self.database = database
        self.sources = sources
        self.terms = terms
        self.writes = 0
        """How often something may have been committed: who reads from a standby waits for what that may have been."""
        self._auditor = Auditor(database, sources)
        self._trusted = tuple(sources.trusted)
        self._ring = ring
        self._terms = terms

    # --- verbs that write -------------------------------------------------------------

    def start(
        self,
        workflow: W,
        *,
        id: str | None = None,  # noqa: A002 - what it is
        delay: Moment | None = None,
        priority: int = 0,
        queue: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        deadline: Moment | None = None,
        singleton: str | None = None,
        attach: bool = False,
        session: object = None,
    ) -> Handle[W]:
        """Accept a workflow; the same id with the same input gives the same handle.

        Once this returns, the workflow is in the database and will run, whatever happens to the
        broker. Without an ``id`` it gets a random one.

        ``delay`` is how long it is not to begin, or until when; timers count from then. ``priority`` is
        0 to 9, the most urgent. ``queue`` is where its transitions run that name none of their own.
        ``attributes`` are what ``list`` finds it by. ``deadline`` is when it has to have ended: then its
        transition with ``deadline=True`` runs, or it fails. ``singleton`` is a key that one workflow of
        its type can have until it has ended; with ``attach`` a second start gives the first's handle.

        With ``session``, a session or connection of the caller's, the workflow is started if, and only
        if, the caller's transaction commits. It is rung after that: ``rung`` is False until then.

        Raises:
            InvalidName, InvalidData, NotCanonical: nothing was written.
            StartConflict: the id was taken with other input; likewise.
            SingletonConflict: another workflow has the key; likewise.
            WorkflowPurged: the id was taken once; likewise.
            ForeignSession: AEGIS cannot be part of that session; likewise.
            DatabaseUnavailable: it may or may not have been accepted; the same id may be used again.

        """
        start = Start(
            workflow,
            id=id,
            delay=delay,
            priority=priority,
            queue=queue,
            attributes=attributes,
            deadline=deadline,
            singleton=singleton,
            attach=attach,
        )
        return self.start_many([start], session=session)[0]

    def start_many(self, items: Iterable[W | Start[W]], *, session: object = None) -> list_of[Handle[W]]:
        """Accept many workflows: all of them, or none; return their handles, in the same order.

        Each is a workflow, or a ``Start``: a workflow with its id and conditions, as ``start`` takes
        them. A few statements write all of them, and they are rung in one go. ``session`` is as in
        ``start``.

        Raises:
            InvalidName, InvalidData, NotCanonical: nothing was written.
            StartConflict, SingletonConflict, WorkflowPurged: one could not be accepted; likewise.
            ForeignSession: AEGIS cannot be part of that session; likewise.
            DatabaseUnavailable: they may or may not have been accepted; the same ids may be used again.

        """
        starts = [item if isinstance(item, Start) else Start(item) for item in items]
        named = [(str(uuid.uuid4()) if start.id is None else start.id, start) for start in starts]
        if session is None:
            started = self._write(lambda own: starting.start_all(own, named, self._terms))
            rung = self._rung(*(one.bell for one in started))
        else:
            guest = guest_of(session, self.database)
            with savepoint(guest, self.database) as inner:
                started = starting.start_all(inner, named, self._terms, rung=guest.hears)
            rung = self._ring_later(guest, [one.bell for one in started])
        return [Handle(self, one.id, rung or one.bell is None, one.new) for one in started]

    def send(
        self,
        id: str,  # noqa: A002
        event: str,
        payload: object = None,
        *,
        key: str | None = None,
        reason: str = "",
        session: object = None,
    ) -> bool:
        """Accept an event; it is kept until a state takes it. The same ``key`` is received once.

        The history keeps who sent it, and the ``reason``. With ``session`` it is received if, and only
        if, the caller's transaction commits: see ``start``. Returns whether the broker was reached, where
        there was something to ring; if it was not, or not yet, the sweep rings.

        Raises:
            WorkflowNotFound, WrongStatus, EventConflict, ForeignSession: nothing was written.
            UnknownWorkflowType, UnknownEvent, InvalidData, NotCanonical, InvalidName: nothing was written.
            EventRefused: it is not kept, and the state does not accept it; nothing was written.
            AlreadyApproved, FourEyes: somebody else has to send it; nothing was written.
            DatabaseUnavailable: it may or may not have been received; the same key may be used again.

        """
        message = Message(
            workflow_id=id,
            event=event,
            payload=payload,
            key=str(uuid.uuid4()) if key is None else key,
            sender=self._terms.actor,
            reason=reason,
        )
        if session is None:
            return self._rung(self._write(lambda own: inbox.send(own, message, self._terms)))
        guest = guest_of(session, self.database)
        with savepoint(guest, self.database) as inner:
            bell = inbox.send(inner, message, self._terms, rung=guest.hears)
        return self._ring_later(guest, [bell])

    def ring(self, *ids: str) -> bool:
        """Ring workflows that were started, or sent an event, in a transaction that has committed since.

        Only where nobody does it anyway: for a bare connection of psycopg or psycopg2. The sweep would,
        within ``AEGIS_RING_GRACE``. Returns whether the broker was reached, where there was something to ring.

        Raises:
            InvalidName: one of them is no id; nothing was rung.

        """
        return self._rung(*self._write(lambda session: operations.ring(session, ids, self._terms)))

    def pause(self, id: str, *, reason: str = "") -> None:  # noqa: A002
        """Let nothing more begin; a handler that runs now may finish."""
        self._write(lambda session: operations.pause(session, id, reason, self._terms))

    def resume(self, id: str, *, reason: str = "") -> bool:  # noqa: A002
        """Go on after a pause; a workflow that is merely pending is rung again."""
        return self._rung(self._write(lambda session: operations.resume(session, id, reason, self._terms)))

    def retry(self, id: str, *, reason: str = "", deadline: Moment | None = None) -> bool:  # noqa: A002
        """Try again what a workflow failed at, or was quarantined for; ``deadline`` is a new one for the whole.

        Raises:
            WorkflowNotFound, WorkflowPurged, WrongStatus, InvalidData: nothing was written.
            DeadlineExceeded: its deadline has passed, and no other was given; likewise.

        """
        return self._rung(
            self._write(lambda session: operations.retry(session, id, reason, self._terms, deadline=deadline))
        )

    def retry_all(
        self,
        *,
        type: type[Workflow] | str | None = None,  # noqa: A002
        state: str | None = None,
        status: str | None = None,
        error: str | None = None,
        older_than: timedelta | None = None,
        limit: int | None = None,
        reason: str = "",
        dry_run: bool = False,
    ) -> int:
        """Try again all that are failed or quarantined, or those of them that everything given is true of.

        ``error`` is a part of the error's type or message. They are retried in batches, each in a
        transaction of its own; what cannot be retried is logged, and left as it is. Returns how many
        were retried; with ``dry_run``, how many would be.

        Raises:
            InvalidData, InvalidName, NotCanonical: nothing was retried.

        """
        wanted = Wanted(type=_type_name(type), state=state, status=status, error=error, older_than=older_than)
        wanted.check()
        operations.check_reason(reason)
        if limit is not None and limit < 1:
            raise InvalidData("the filter", [("/limit", f"{limit} is not 1 or more")])
        if dry_run:
            there = self._write(lambda session: retrying.count(session, wanted))
            return there if limit is None else min(there, limit)
        return self._retry_all(wanted, limit, reason)

    def _retry_all(self, wanted: Wanted, limit: int | None, reason: str) -> int:
        retried, after = 0, ""
        while limit is None or retried < limit:
            most = None if limit is None else limit - retried

            def verb(session: Session, after: str = after, most: int | None = most) -> Batch:
                return retrying.retry_batch(session, wanted, after=after, most=most, reason=reason, terms=self._terms)

            batch = self._write(verb)
            if batch.bells:
                self._ring(batch.bells)
            retried += batch.retried
            if batch.last is None:
                break
            after = batch.last
        return retried

    def cancel(self, id: str, *, reason: str = "") -> None:  # noqa: A002
        """End a workflow here; a handler that runs now is not recorded."""
        self._write(lambda session: operations.cancel(session, id, reason, self._terms))

    def checkpoint(self, id: str) -> Checkpoint | None:  # noqa: A002
        """Keep one more checkpoint; None means that a running handler was asked for it."""
        return self._write(lambda session: operations.checkpoint(session, id, self._terms))

    def resolve_effect(
        self,
        id: str,  # noqa: A002
        name: str,
        answer: Happened[Any] | DidNotHappen,
        *,
        reason: str,
        seq: int | None = None,
        retry: bool = False,
    ) -> bool:
        """Say how an effect went that nobody here knows of: ``Happened(result)``, or ``DidNotHappen()``: do it again.

        Who said so, and why, is recorded. ``seq`` is the one in its key, where that is not the transition that the
        workflow is at. Of a workflow that a recovery paused, it may be an effect that the database does not know.
        With ``retry``, the workflow that was stopped for it goes on at once.

        Raises:
            InvalidName, InvalidData, NotCanonical: a name, a reason or a result that cannot be; nothing was written.
            WorkflowNotFound, WorkflowPurged, EffectNotFound: there is nothing to resolve.
            WrongStatus: a handler runs at this moment, the effect is done, or there is nothing to retry.

        """
        return self._rung(
            self._write(
                lambda session: resolution.resolve(session, id, name, answer, reason, self._terms, seq=seq, retry=retry)
            )
        )

    def erase(self, id: str, *, reason: str) -> bool:  # noqa: A002
        """Erase the data of a workflow that has ended; its history stays, and verifies as before.

        ``reason`` stays for ever, and must hold no personal data. Returns False if it was erased before.

        Raises:
            InvalidName, NotCanonical: the id, or the reason, which must not be empty.
            WorkflowNotFound, WorkflowPurged, WrongStatus: nothing was erased.

        """
        return self._write(lambda session: removal.erase(session, id, reason, self._terms))

    def prune(self, *, keep: int, older_than: timedelta, reason: str = "") -> int:
        """Remove old checkpoints, but not those of a workflow's newest ``keep`` transitions, and of its first.

        Returns how many; each piece is committed by itself, and what is left is for the next call.

        Raises:
            InvalidData, InvalidName, NotCanonical: nothing was removed.

        """

        def piece(place: Place) -> Piece:
            return self._write(
                lambda session: removal.prune(
                    session, place, self._terms, keep=keep, older_than=older_than, reason=reason
                )
            )

        return walk(piece)[0]

    def purge(
        self,
        id: str | None = None,  # noqa: A002
        *,
        older_than: timedelta | None = None,
        reason: str = "",
    ) -> int:
        """Remove a workflow that has ended, or all of which nothing was heard for ``older_than``, for good.

        What stays is a stub - id, length, head - and the places in the log. Of all, those are left for the
        next time that are not wholly in the log yet. Returns how many workflows were removed.

        Raises:
            InvalidData, InvalidName, NotCanonical: nothing was removed; it needs an id, or an age.
            WorkflowNotFound, WorkflowPurged, WrongStatus, HistoryBroken: nothing was removed of that one.

        """
        if id is not None:
            self._write(
                lambda session: removal.purge_one(session, id, self._terms, older_than=older_than, reason=reason)
            )
            return 1
        if older_than is None:
            raise InvalidData("the limits", [("/older_than", "say how old, or give the id of a workflow")])

        def piece(place: Place) -> Piece:
            return self._write(
                lambda session: removal.purge(session, place, self._terms, older_than=older_than, reason=reason)
            )

        return walk(piece)[0]

    def import_bundle(
        self,
        bundle: Bundle | Mapping[str, Any] | bytes,
        *,
        accept_unanchored: bool = False,
        anchors: Iterable[Anchor] | None = None,
        source: str = "the bundle",
    ) -> Handle[Workflow]:
        """Take a workflow over from another deployment; one that has not ended is paused, until ``resume``.

        The bundle is a ``Bundle``, its document (``Bundle.to_dict``), or its bytes. A key that is trusted
        here must have signed it. With ``anchors``, those of the exporter, it is also found where it was
        cut off. ``source`` is what messages call it.

        Raises:
            NotABundle, BundleRefused: it is none, or not what was committed; not one row was written.
            InvalidName, WorkflowPurged: its id cannot be used here; likewise.
            UnknownWorkflowType, InvalidData: its type is not loaded, or its data does not fit it; likewise.

        """
        data = bundle if isinstance(bundle, Bundle | bytes) else render(bundle)
        known = None if anchors is None else list(anchors)
        scrutiny = Scrutiny(trusted=self._trusted, anchors=known, accept_unanchored=accept_unanchored, source=source)
        return Handle(
            self, self._write(lambda session: transfer.import_(session, data, self._terms, scrutiny)), new=True
        )

    def resume_all_pending(self, workflow: type[W]) -> list_of[Handle[W]]:
        """Ring every workflow of a type that could run now and is in nobody's hands; return them.

        Also those that wait while there are events for them: a new deployment may take these. Those of older
        versions that the class can read: they are upgraded, instead of when something next happens to them. And
        those that wait by the timer of an older definition, or by none, where the class has an earlier one.
        """
        handles: list_of[Handle[W]] = []
        after = ""
        while bells := self._write(
            lambda session, after=after: operations.ring_pending(  # type: ignore[misc]
                session, workflow.definition, self._terms, after=after, limit=_AT_ONCE
            )
        ):
            rung = self._ring(bells)
            handles += [Handle(self, bell.workflow_id, rung) for bell in bells]
            after = bells[-1].workflow_id
        return handles

    # --- verbs that read --------------------------------------------------------------

    def handle(self, id: str) -> Handle[Workflow]:  # noqa: A002
        """Return a handle on a workflow that was started before.

        Raises:
            WorkflowNotFound: there is no such workflow.

        """
        self.describe(id)
        return Handle(self, id)

    def describe(self, id: str) -> WorkflowSummary:  # noqa: A002
        """Return a workflow's row: state, status, what it waits for."""
        with self.database.statement() as connection:
            return history.summary(connection, id)

    def get(self, id: str) -> Workflow:  # noqa: A002
        """Return a workflow's data as it is now, with what its handler has saved so far."""
        return self.load(id)

    def load(self, id: str, *, seq: int | None = None, at: datetime | None = None) -> Workflow:  # noqa: A002
        """Return a workflow's data as transition ``seq`` left it, or as it was ``at`` a moment; the newest by default.

        What is returned was checked against its hash, and that against the transition's.

        Raises:
            InvalidData: both ``seq`` and ``at`` are given, ``at`` has no zone, or is before the workflow began.
            WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more, or no checkpoint at ``seq``.
            DataErased, CheckpointPruned: it was removed on purpose.
            HistoryBroken: the checkpoint is not the one that was committed.
            UnknownWorkflowType, UnknownVersion: its class is not loaded in this process, or cannot read that version.
            UpgradeFailed, InvalidData: an upgrade failed, or the data does not fit the class that is loaded.

        """
        if at is not None and (seq is not None or at.tzinfo is None):
            problem = "give seq or at, not both" if seq is not None else f"{at.isoformat()} has no time zone"
            raise InvalidData("the moment", [("/at", problem)])
        with self.database.snapshot() as connection:
            found = seq if at is None else history.seq_at(connection, id, at)
            stored = history.data_at(connection, id, found)
        return read_data(registry.get(stored.type), stored.data, stored.version)

    def list(
        self,
        *,
        type: type[Workflow] | str | None = None,  # noqa: A002
        status: str | None = None,
        state: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list_of[WorkflowSummary]:
        """Return workflows, the newest first; ``before`` is ``(created_at, id)`` of the last one seen.

        Only those of which all is true that is given; of the ``attributes``, that they have all of these.

        Raises:
            InvalidData, InvalidName, NotCanonical: nothing could ever match.

        """
        wanted = history.Filter(
            type=_type_name(type),
            status=status,
            state=state,
            attributes=attributes or {},
            created_after=created_after,
            created_before=created_before,
        )
        with self.database.statement() as connection:
            return history.summaries(connection, wanted, before=before, limit=limit)

    def effects(
        self,
        id: str | None = None,  # noqa: A002
        *,
        in_doubt: bool = False,
        limit: int = 100,
    ) -> list_of[Effect]:
        """Return what handlers did outside, of one workflow or of all, the first first; ``in_doubt``: those alone.

        Raises:
            WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.

        """
        with self.database.statement() as connection:
            found = effects.listed(connection, id, in_doubt=in_doubt, limit=limit)
            if id is not None and not found:  # a recovery may have left them of a workflow that is gone
                history.summary(connection, id)
            return found

    def export_bundle(self, id: str, *, without_effects: bool = False) -> Bundle:  # noqa: A002
        """Return a workflow's whole history, with what it takes to verify it elsewhere.

        Events that were received and not taken yet are no history: they are not in it. Nor are effects that no
        transition tells of yet: a workflow that has such goes out only ``without_effects``, for reading alone.

        Raises:
            WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.
            HistoryBroken: it cannot even be read, or the log is not what was anchored.
            EffectsOpen: it has done things outside that whoever imports it would do again.

        """
        with self.database.snapshot() as connection:
            return transfer.export(connection, id, without_effects=without_effects)

    def history(self, id: str) -> list_of[WorkflowTransition]:  # noqa: A002
        """Return a workflow's audit chain, the first transition first."""
        with self.database.statement() as connection:
            return history.transitions(connection, id)

    def token(self) -> str:
        """Return what stands for everything that was committed until now: for readers of a standby elsewhere.

        Raises:
            NotOnSQLite: it has no standbys.

        """
        with self.database.statement() as connection:
            return standbys.token(connection)

    def verify_integrity(self, id: str) -> tuple[bool, str | None]:  # noqa: A002
        """Return whether a workflow's history is intact, and if not, the first thing that is not.

        Where it could not be verified against what should be there, it does not count as intact.

        Raises:
            WorkflowNotFound: there never was such a workflow.

        """
        report = self.verify_audit_chain(id)
        wrong = [str(finding) for finding in report.failures] + list(report.problems)
        return (True, None) if report.valid else (False, wrong[0])

    def verify_audit_chain(self, id: str) -> Report:  # noqa: A002
        """Verify a workflow's history, also against what was anchored of it; return everything that was found.

        Raises:
            WorkflowNotFound: there never was such a workflow.

        """
        return self._auditor.one(id)

    def wait(self, id: str, *, timeout: float | None = None) -> Workflow:  # noqa: A002
        """Wait until a workflow has completed; return its data. ``timeout`` is in seconds.

        Raises:
            WorkflowNotCompleted: it failed, was cancelled, or quarantined.
            WaitTimeout: it had not ended by then.

        """
        row = self.wait_for_end(id, timeout=timeout)
        if row.status != "completed":
            raise WorkflowNotCompleted(id, row.status, None if row.error is None else row.error.get("message"))
        return self.get(id)

    def wait_for_end(self, id: str, *, timeout: float | None = None) -> WorkflowSummary:  # noqa: A002
        """Wait until a workflow has ended, however it did; return its row. ``timeout`` is in seconds.

        Raises:
            WaitTimeout: it had not ended by then.

        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        while (row := self.describe(id)).status not in _OVER:
            left = _LONGEST_LOOK if deadline is None else deadline - time.monotonic()
            if timeout is not None and left <= 0:
                raise WaitTimeout(id, timeout, row.status, row.state)
            self.database.pause(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_LOOK)
        return row

    # --- how ----------------------------------------------------------------------------

    def _write(self, verb: Callable[[Session], T]) -> T:
        try:
            return in_one_transaction(self.database, verb)
        finally:
            self._count()  # also where the outcome is unknown

    def _count(self) -> None:
        self.writes += 1

    def _rung(self, *bells: Bell | None) -> bool:
        # After the commit, never before: a worker that answered a bell for a row it cannot see yet
        # would throw the bell away.
        given = [bell for bell in bells if bell is not None]
        return not given or self._ring(given)

    def _ring_later(self, guest: Guest, bells: Iterable[Bell | None]) -> bool:
        """Count the caller's commit, and ring once it is done; return whether there is nothing to ring."""
        guest.count_commit(self._count)
        given = [bell for bell in bells if bell is not None]
        if given:
            guest.after_commit(lambda: self._ring(given))
        return not given


def _type_name(given: type[Workflow] | str | None) -> str | None:
    return given if isinstance(given, str) or given is None else given.definition.type
