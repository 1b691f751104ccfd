"""The engine that is awaited: each verb is that of ``durable.py``, handed on to it.

Not to be edited: edit ``durable.py``, and run ``python tests/support/awaited.py``.
"""

from __future__ import annotations

from builtins import list as list_of
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, overload

from ..core.anchor import Anchor
from ..core.bundle import Bundle
from ..core.effect import Happened
from ..core.errors import DidNotHappen
from ..core.finding import Report
from ..core.starting import Attribute, Moment, Start
from ..core.workflow import Workflow
from . import durable
from .records import Checkpoint, Effect, WorkflowSummary, WorkflowTransition
from .spawning import Spawning, blocking_side

W = TypeVar("W", bound=Workflow)


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

    async def send(
        self,
        event: str,
        payload: object = None,
        *,
        key: str | None = None,
        reason: str = "",
        session: object = None,
    ) -> bool:
        """Send it an event; see ``DurableWorkflowEngine.send``."""
        return await self.engine.send(self.id, event, payload, key=key, reason=reason, session=session)

    async def ring(self) -> bool:
        """Ring for it, after a commit that nobody told AEGIS of; see ``DurableWorkflowEngine.ring``."""
        return await self.engine.ring(self.id)

    async def get(self) -> Workflow:
        """Return its data as it is now."""
        return await self.engine.get(self.id)

    async def describe(self) -> WorkflowSummary:
        """Return its row: state, status, what it waits for."""
        return await self.engine.describe(self.id)

    async def at(self, seq: int | datetime) -> Workflow:
        """Return its data as transition ``seq`` left it, or as it was at a moment."""
        if isinstance(seq, datetime):
            return await self.engine.load(self.id, at=seq)
        return await self.engine.load(self.id, seq=seq)

    async def history(self) -> list_of[WorkflowTransition]:
        """Return its audit chain."""
        return await self.engine.history(self.id)

    async def wait(self, timeout: float | None = None) -> Workflow:
        """Wait until it has completed; return its data. See ``DurableWorkflowEngine.wait``."""
        return await self.engine.wait(self.id, timeout=timeout)

    async def verify_integrity(self) -> tuple[bool, str | None]:
        """Return whether its history is intact, and if not, where it is not."""
        return await self.engine.verify_integrity(self.id)


class DurableWorkflowEngine(Spawning):
    """Start workflows, send them events, read and steer them. Awaited; for one event loop."""

    async def start(
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
        return self._own(
            await self._spawn(
                lambda engine: engine.start(
                    workflow,
                    id=id,
                    delay=delay,
                    priority=priority,
                    queue=queue,
                    attributes=attributes,
                    deadline=deadline,
                    singleton=singleton,
                    attach=attach,
                    session=blocking_side(session),
                )
            )
        )

    async def start_many(self, items: Iterable[W | Start[W]], *, session: object = None) -> list_of[Handle[W]]:
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
        return self._own(await self._spawn(lambda engine: engine.start_many(items, session=blocking_side(session))))

    async def send(
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
        return await self._spawn(
            lambda engine: engine.send(id, event, payload, key=key, reason=reason, session=blocking_side(session))
        )

    async def ring(self, *ids: str) -> bool:
        """Ring workflows that were started, or sent an event, in a transaction that has committed since.

        Only where nobody does it anyway: for a bare connection of psycopg or psycopg2. The sweep would,
        within ``AEGIS_RING_GRACE``. Returns whether the broker was reached, where there was something to ring.

        Raises:
            InvalidName: one of them is no id; nothing was rung.

        """
        return await self._spawn(lambda engine: engine.ring(*ids))

    async def pause(self, id: str, *, reason: str = "") -> None:  # noqa: A002
        """Let nothing more begin; a handler that runs now may finish."""
        await self._spawn(lambda engine: engine.pause(id, reason=reason))

    async def resume(self, id: str, *, reason: str = "") -> bool:  # noqa: A002
        """Go on after a pause; a workflow that is merely pending is rung again."""
        return await self._spawn(lambda engine: engine.resume(id, reason=reason))

    async def retry(self, id: str, *, reason: str = "", deadline: Moment | None = None) -> bool:  # noqa: A002
        """Try again what a workflow failed at, or was quarantined for; ``deadline`` is a new one for the whole.

        Raises:
            WorkflowNotFound, WorkflowPurged, WrongStatus, InvalidData: nothing was written.
            DeadlineExceeded: its deadline has passed, and no other was given; likewise.

        """
        return await self._spawn(lambda engine: engine.retry(id, reason=reason, deadline=deadline))

    async def retry_all(
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
        return await self._spawn(
            lambda engine: engine.retry_all(
                type=type,
                state=state,
                status=status,
                error=error,
                older_than=older_than,
                limit=limit,
                reason=reason,
                dry_run=dry_run,
            )
        )

    async def cancel(self, id: str, *, reason: str = "") -> None:  # noqa: A002
        """End a workflow here; a handler that runs now is not recorded."""
        await self._spawn(lambda engine: engine.cancel(id, reason=reason))

    async def checkpoint(self, id: str) -> Checkpoint | None:  # noqa: A002
        """Keep one more checkpoint; None means that a running handler was asked for it."""
        return await self._spawn(lambda engine: engine.checkpoint(id))

    async def resolve_effect(
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
        return await self._spawn(
            lambda engine: engine.resolve_effect(id, name, answer, reason=reason, seq=seq, retry=retry)
        )

    async def erase(self, id: str, *, reason: str) -> bool:  # noqa: A002
        """Erase the data of a workflow that has ended; its history stays, and verifies as before.

        ``reason`` stays for ever, and must hold no personal data. Returns False if it was erased before.

        Raises:
            InvalidName, NotCanonical: the id, or the reason, which must not be empty.
            WorkflowNotFound, WorkflowPurged, WrongStatus: nothing was erased.

        """
        return await self._spawn(lambda engine: engine.erase(id, reason=reason))

    async def prune(self, *, keep: int, older_than: timedelta, reason: str = "") -> int:
        """Remove old checkpoints, but not those of a workflow's newest ``keep`` transitions, and of its first.

        Returns how many; each piece is committed by itself, and what is left is for the next call.

        Raises:
            InvalidData, InvalidName, NotCanonical: nothing was removed.

        """
        return await self._spawn(lambda engine: engine.prune(keep=keep, older_than=older_than, reason=reason))

    async def purge(
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
        return await self._spawn(lambda engine: engine.purge(id, older_than=older_than, reason=reason))

    async def import_bundle(
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
        return self._own(
            await self._in_a_thread(
                lambda engine: engine.import_bundle(
                    bundle, accept_unanchored=accept_unanchored, anchors=anchors, source=source
                )
            )
        )

    async def resume_all_pending(self, workflow: type[W]) -> list_of[Handle[W]]:
        """Ring every workflow of a type that could run now and is in nobody's hands; return them.

        Also those that wait while there are events for them: a new deployment may take these. Those of older
        versions that the class can read: they are upgraded, instead of when something next happens to them. And
        those that wait by the timer of an older definition, or by none, where the class has an earlier one.
        """
        return self._own(await self._spawn(lambda engine: engine.resume_all_pending(workflow)))

    async def handle(self, id: str) -> Handle[Workflow]:  # noqa: A002
        """Return a handle on a workflow that was started before.

        Raises:
            WorkflowNotFound: there is no such workflow.

        """
        return self._own(await self._spawn(lambda engine: engine.handle(id)))

    async def describe(self, id: str) -> WorkflowSummary:  # noqa: A002
        """Return a workflow's row: state, status, what it waits for."""
        return await self._spawn(lambda engine: engine.describe(id))

    async def get(self, id: str) -> Workflow:  # noqa: A002
        """Return a workflow's data as it is now, with what its handler has saved so far."""
        return await self._spawn(lambda engine: engine.get(id))

    async def load(self, id: str, *, seq: int | None = None, at: datetime | None = None) -> Workflow:  # noqa: A002
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
        return await self._spawn(lambda engine: engine.load(id, seq=seq, at=at))

    async def list(
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
        return await self._spawn(
            lambda engine: engine.list(
                type=type,
                status=status,
                state=state,
                attributes=attributes,
                created_after=created_after,
                created_before=created_before,
                before=before,
                limit=limit,
            )
        )

    async def effects(
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
        return await self._spawn(lambda engine: engine.effects(id, in_doubt=in_doubt, limit=limit))

    async def export_bundle(self, id: str, *, without_effects: bool = False) -> Bundle:  # noqa: A002
        """Return a workflow's whole history, with what it takes to verify it elsewhere.

        Events that were received and not taken yet are no history: they are not in it. Nor are effects that no
        transition tells of yet: a workflow that has such goes out only ``without_effects``, for reading alone.

        Raises:
            WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.
            HistoryBroken: it cannot even be read, or the log is not what was anchored.
            EffectsOpen: it has done things outside that whoever imports it would do again.

        """
        return await self._in_a_thread(lambda engine: engine.export_bundle(id, without_effects=without_effects))

    async def history(self, id: str) -> list_of[WorkflowTransition]:  # noqa: A002
        """Return a workflow's audit chain, the first transition first."""
        return await self._spawn(lambda engine: engine.history(id))

    async def token(self) -> str:
        """Return what stands for everything that was committed until now: for readers of a standby elsewhere.

        Raises:
            NotOnSQLite: it has no standbys.

        """
        return await self._spawn(lambda engine: engine.token())

    async def verify_integrity(self, id: str) -> tuple[bool, str | None]:  # noqa: A002
        """Return whether a workflow's history is intact, and if not, the first thing that is not.

        Where it could not be verified against what should be there, it does not count as intact.

        Raises:
            WorkflowNotFound: there never was such a workflow.

        """
        return await self._in_a_thread(lambda engine: engine.verify_integrity(id))

    async def verify_audit_chain(self, id: str) -> Report:  # noqa: A002
        """Verify a workflow's history, also against what was anchored of it; return everything that was found.

        Raises:
            WorkflowNotFound: there never was such a workflow.

        """
        return await self._in_a_thread(lambda engine: engine.verify_audit_chain(id))

    async def wait(self, id: str, *, timeout: float | None = None) -> Workflow:  # noqa: A002
        """Wait until a workflow has completed; return its data. ``timeout`` is in seconds.

        Raises:
            WorkflowNotCompleted: it failed, was cancelled, or quarantined.
            WaitTimeout: it had not ended by then.

        """
        return await self._spawn(lambda engine: engine.wait(id, timeout=timeout))

    async def wait_for_end(self, id: str, *, timeout: float | None = None) -> WorkflowSummary:  # noqa: A002
        """Wait until a workflow has ended, however it did; return its row. ``timeout`` is in seconds.

        Raises:
            WaitTimeout: it had not ended by then.

        """
        return await self._spawn(lambda engine: engine.wait_for_end(id, timeout=timeout))

    @overload
    def _own(self, found: durable.Handle[W]) -> Handle[W]: ...

    @overload
    def _own(self, found: list_of[durable.Handle[W]]) -> list_of[Handle[W]]: ...

    def _own(self, found: durable.Handle[W] | list_of[durable.Handle[W]]) -> Handle[W] | list_of[Handle[W]]:
        if isinstance(found, durable.Handle):
            return Handle(self, found.id, found.rung, found.new)
        return [self._own(one) for one in found]
