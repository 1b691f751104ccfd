"""Transfer: one workflow's history out of this deployment, or into it from another, whole or not at all.

What comes in was verified before anything is written. Its transitions keep their hashes, and one more
says that they were imported. What is to come next is taken from them and the class that is loaded
here, not from what the bundle says beside them: nothing vouches for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from sqlalchemy import Connection, and_, insert, or_, select
from sqlalchemy.orm import Session

from ..core.anchor import Anchor
from ..core.approval import APPROVED, DISREGARDED
from ..core.bundle import Bundle, BundledCheckpoint, BundledTransition, BundleHead, verify
from ..core.canonical import Json, canonical, load
from ..core.chain import ENGINE_EVENTS, checkpoint_commitment, genesis, timestamp
from ..core.errors import BundleRefused, EffectsOpen, HistoryBroken, LogBroken, WorkflowPurged
from ..core.finding import failures
from ..core.machine import Definition
from ..core.merkle import inclusion_proof
from ..core.names import check_name, check_new_id
from ..core.note import VerifierKey
from ..core.starting import Conditions, conditions_in
from ..core.workflow import registry, state_of
from . import database as databases
from . import moves, sql, system
from .absent import Records
from .database import in_transaction
from .effects import open_effects
from .history import is_purged, not_found
from .log import Tree, places
from .models import (
    CHECKPOINT_KINDS,
    ENDED,
    AnchorRow,
    CheckpointRow,
    EventRow,
    LogRow,
    PayloadRow,
    TransitionRow,
    WorkflowRow,
)
from .operations import Terms, lock, newest
from .records import Following
from .repository import commit, progress_of
from .schema import deployment_name
from .span import Span
from .system import Removal

_T: Final = TransitionRow.__table__.c
_P: Final = PayloadRow.__table__.c
_C: Final = CheckpointRow.__table__.c
_ANY_SIZE: Final = 2**30
_LARGEST_INTEGER: Final = 2**31 - 1
# What cannot go on by itself, and stays as it is.
_OVER: Final = (*ENDED, "failed", "quarantined")
_STOPPED: Final = ("failed", "quarantined")


# --- out ------------------------------------------------------------------------------------


def export(connection: Connection, workflow_id: str, *, without_effects: bool = False) -> Bundle:
    """Return a workflow's history, with the proofs that it stands in the log as that was anchored last.

    What handlers did outside and no transition tells of yet is not in a bundle, and whoever imports it would do
    it again: such a workflow is refused, or, for reading alone, goes out ``without_effects``.

    The connection has to see one moment. Nothing is verified here: what was tampered with goes out as
    it is, for others to see.

    Raises:
        WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.
        HistoryBroken: it is not even text.
        LogBroken: the log is not what was anchored.
        EffectsOpen: it has not ended, and has effects that no transition tells of yet.

    """
    check_name("workflow id", workflow_id)
    row = connection.execute(select(WorkflowRow.__table__).where(WorkflowRow.id == workflow_id)).one_or_none()
    if row is None:
        raise not_found(connection, workflow_id)
    if row.status not in ENDED and not without_effects and (names := open_effects(connection, workflow_id)):
        raise EffectsOpen(workflow_id, names)
    transitions = [_exported(one) for one in connection.execute(_stored(workflow_id))]
    checkpoints = tuple(_between(one) for one in connection.execute(_stored_between(workflow_id)))
    anchor = _Anchor.newest(connection, workflow_id)
    own = deployment_name(connection)
    length = anchor.length(transitions)
    head = BundleHead(
        workflow_id=workflow_id,
        deployment=_began_in(own, workflow_id, transitions),
        exported_by=own,
        exported_at=timestamp(databases.now(connection)),
        type=row.type,
        version=row.version,
        definition=row.definition,
        state=row.state,
        status=row.status,
        seq=row.seq,
        head=bytes(row.head),
        anchored_length=length,
        log_size=anchor.size,
        note=anchor.note,
        pruned_through=_pruned_through(connection, workflow_id),
        checkpoints=tuple((one.seq, one.number) for one in checkpoints),
    )
    proven = [anchor.proven(one) if place < length else one for place, one in enumerate(transitions)]
    return Bundle(head=head, transitions=tuple(proven), checkpoints=checkpoints)


def _stored(workflow_id: str) -> Any:
    own = and_(_C.workflow_id == _T.workflow_id, _C.seq == _T.seq, _C.number == 0)
    return (
        select(
            *(_T.workflow_id, _T.seq, _T.envelope, _T.hash),
            *(_P.body.label("payload"), _P.salt.label("payload_salt")),
            *(_C.body.label("checkpoint"), _C.salt.label("checkpoint_salt")),
        )
        .select_from(TransitionRow)
        .outerjoin(PayloadRow, and_(_P.workflow_id == _T.workflow_id, _P.seq == _T.seq))
        .outerjoin(CheckpointRow, own)
        .where(_T.workflow_id == workflow_id)
        .order_by(_T.seq)
    )


def _stored_between(workflow_id: str) -> Any:
    return (
        select(_C.workflow_id, _C.seq, _C.number, _C.kind, _C.at, _C.body, _C.salt)
        .where(_C.workflow_id == workflow_id, _C.number > 0)
        .order_by(_C.seq, _C.number)
    )


def _exported(row: Any) -> BundledTransition:
    return BundledTransition(
        seq=row.seq,
        envelope=_text(row, "envelope", row.envelope),
        hash=bytes(row.hash),
        payload=None if row.payload is None else _text(row, "payload", row.payload),
        payload_salt=None if row.payload_salt is None else bytes(row.payload_salt),
        checkpoint=None if row.checkpoint is None else _text(row, "checkpoint", row.checkpoint),
        checkpoint_salt=None if row.checkpoint_salt is None else bytes(row.checkpoint_salt),
    )


def _between(row: Any) -> BundledCheckpoint:
    return BundledCheckpoint(
        seq=row.seq,
        number=row.number,
        kind=row.kind,
        at=timestamp(row.at),
        checkpoint=_text(row, "checkpoint", row.body),
        checkpoint_salt=bytes(row.salt),
    )


def _text(row: Any, what: str, stored: Any) -> bytes:
    body = bytes(stored)
    try:
        if "\0" not in body.decode():
            return body
    except UnicodeDecodeError:
        pass
    raise HistoryBroken(row.workflow_id, row.seq, f"its {what} is no text; `aegis verify` tells more")


def _began_in(own: str, workflow_id: str, transitions: Sequence[BundledTransition]) -> str:
    """Return the deployment that a chain began in: this one, or the one that it says it was imported from."""
    if not transitions:
        return own
    begun = transitions[0].members.get("prev")
    told = [one.said.get("deployment") for one in transitions if one.members.get("event") == "imported"]
    named = [deployment for deployment in [own, *told] if isinstance(deployment, str)]
    return next((one for one in named if genesis(one, workflow_id).hex() == begun), own)


def _pruned_through(connection: Connection, workflow_id: str) -> int | None:
    removed = Records().removed(connection, Span(only=workflow_id)).get(workflow_id)
    return None if removed is None or removed.pruned_through < 0 else removed.pruned_through


@dataclass(frozen=True, kw_only=True)
class _Anchor:
    """What was last signed of the log, and where a workflow's transitions stand in it."""

    workflow_id: str
    size: int
    note: str | None
    places: Mapping[int, int]
    tree: Tree

    @classmethod
    def newest(cls, connection: Connection, workflow_id: str) -> _Anchor:
        """Return the anchor over the longest log.

        Raises:
            LogBroken: the log no longer leads to what was signed.

        """
        found = connection.execute(
            select(AnchorRow.size, AnchorRow.root, AnchorRow.note)
            .order_by(AnchorRow.size.desc(), AnchorRow.id.desc())
            .limit(1)
        ).one_or_none()
        tree = Tree(connection)
        if found is not None and tree.root(found.size) != bytes(found.root):
            problem = "it is not what was anchored"
            raise LogBroken(found.size, problem)
        size = 0 if found is None else found.size
        logged = {seq: index for seq, (index, _) in places(connection, workflow_id).items() if index < size}
        note = None if found is None else found.note
        return cls(workflow_id=workflow_id, size=size, note=note, places=logged, tree=tree)

    def length(self, transitions: Sequence[BundledTransition]) -> int:
        """Return how many transitions, from the first on, it covers."""
        return next((count for count, one in enumerate(transitions) if one.seq not in self.places), len(transitions))

    def proven(self, one: BundledTransition) -> BundledTransition:
        """Return a transition with the proof that it stands in the log."""
        index = self.places[one.seq]
        return replace(one, log_index=index, proof=tuple(inclusion_proof(index, self.size, self.tree.mth)))


# --- in -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scrutiny:
    """What a bundle is judged by: keys that are trusted here, and the exporter's anchors where they are at hand."""

    trusted: Sequence[VerifierKey]
    anchors: Iterable[Anchor] | None = None
    accept_unanchored: bool = False
    source: str = "the bundle"


_NO_KEY: Final = (
    "no key is trusted here, so nobody can vouch for it: put the exporter's .vkey where AEGIS_TRUSTED_KEYS says"
)


def import_(session: Session, bundle: Bundle | bytes, terms: Terms, scrutiny: Scrutiny) -> str:
    """Take a workflow over from another deployment, paused if it has not ended; return its id.

    Raises:
        BundleRefused: it cannot be verified, is not what was committed, or cannot be what it says here.
        InvalidName, WorkflowPurged: its id cannot be used here.
        UnknownWorkflowType, InvalidData: its type is not loaded here, or its data does not fit it.

    """
    incoming = _Incoming.of(_verified(bundle, scrutiny), scrutiny.source)
    pruned = incoming.bundle.head.pruned_through
    # Before anything else is locked, as by those who remove.
    chain = None if pruned is None else system.hold(session, terms)
    _take_id(session, incoming)
    _write_history(session, incoming)
    if chain is not None and pruned is not None:
        removal = Removal(workflow_id=incoming.workflow_id, through_seq=pruned)
        system.record(session, chain, "pruned", [removal], "it was imported without them", terms)
    _append_imported(session, incoming, terms)
    return incoming.workflow_id


def _verified(bundle: Bundle | bytes, scrutiny: Scrutiny) -> Bundle:
    data = bundle if isinstance(bundle, bytes) else bundle.to_bytes()
    problems = [str(one) for one in failures(verify(data, scrutiny.trusted, anchors=scrutiny.anchors))]
    if problems and not scrutiny.trusted:
        problems.insert(0, _NO_KEY)
    if problems:
        raise BundleRefused(scrutiny.source, problems)
    read = Bundle.from_bytes(data)
    # Of one that no anchor was ever made of, nobody vouches anyway: that is for the importer to accept.
    if not scrutiny.trusted and not (read.head.note is None and scrutiny.accept_unanchored):
        raise BundleRefused(scrutiny.source, [_NO_KEY])
    count, anchored = len(read.transitions), read.head.anchored_length
    if anchored < count and not scrutiny.accept_unanchored:
        remedy = "export it again after the next anchor, or import it with --accept-unanchored"
        raise BundleRefused(scrutiny.source, [f"{count - anchored} of {count} transitions are not anchored: {remedy}"])
    return read


@dataclass(frozen=True, kw_only=True)
class _Incoming:
    """A verified history, and what it is here; ``moments`` are the times of its transitions."""

    bundle: Bundle
    definition: Definition
    moments: Sequence[datetime]
    status: str
    """What it is once it was imported."""
    source: str

    @classmethod
    def of(cls, bundle: Bundle, source: str) -> _Incoming:
        """Judge whether a history can be one here.

        Raises:
            BundleRefused, InvalidName, UnknownWorkflowType, InvalidData: it cannot.

        """
        head = bundle.head
        check_new_id(head.workflow_id)
        workflow = registry.get(head.type)
        problems = list(_beyond_bounds(bundle))
        if registry.find(head.type, head.version) is None:
            loaded = workflow.definition.version
            problems.append(f"it is of version {head.version} of {head.type}, and version {loaded} is loaded here")
        if problems:
            raise BundleRefused(source, problems)
        moments = [_moment(one.members["at"]) for one in bundle.transitions]
        status = head.status if head.status in _OVER else "paused"
        made = cls(bundle=bundle, definition=workflow.definition, moments=moments, status=status, source=source)
        if made.data:  # erased data is none that could fit
            made.check(state_of(workflow.from_dict(made.data)))
        return made

    @property
    def workflow_id(self) -> str:
        """Whose history it is."""
        return self.bundle.head.workflow_id

    @property
    def data(self) -> dict[str, Any]:
        """The workflow's data, as its newest checkpoint has it."""
        last = self.bundle.transitions[-1]
        between = [one.checkpoint for one in self.bundle.checkpoints if one.seq == last.seq]
        members: Any = load((between or [last.checkpoint or b"{}"])[-1])
        data: dict[str, Any] = members["state"]
        return data

    def check(self, state: str) -> None:
        """Check what the chain leaves open: whether the workflow is where its data is, and whether that is an end."""
        head, last = self.bundle.head, self.bundle.transitions[-1]
        problems = []
        if state != head.state:
            problems.append(f"its data is of the state {state!r}, and its last transition led to {head.state!r}")
        said = ENGINE_EVENTS.get(str(last.members["event"])) or last.said.get("status")
        if said is None and self.following.ended is not (head.status == "completed"):
            what = "an end" if self.following.ended else "no end"
            problems.append(f"it is said to be {head.status}, and its state {head.state!r} is {what} here")
        if problems:
            raise BundleRefused(self.source, problems)

    @property
    def entered_seq(self) -> int:
        """The transition that entered the state: the last one that is not the engine's own."""
        own = [one.seq for one in self.bundle.transitions if one.members["event"] not in ENGINE_EVENTS]
        return own[-1] if own else 0

    @property
    def steered_by(self) -> str:
        """Who moved it on from outside: who sent the event that was last taken, or who started it."""
        own = [one for one in self.bundle.transitions if one.members["event"] not in ENGINE_EVENTS]
        senders = [one.said["sender"] for one in own if isinstance(one.said.get("sender"), str)]
        return str(senders[-1] if senders else self.bundle.transitions[0].members["actor"])

    @property
    def following(self) -> Following:
        """What the state waits for, by the class that is loaded here."""
        return Following.of(self.definition.pending(self.bundle.head.state, entered_at=self.entered_at))

    @property
    def entered_at(self) -> datetime:
        """When the state was entered; a delayed start enters its first one when it begins."""
        begins_at = None if self.entered_seq else self.conditions.begins_at
        return begins_at or self.moments[self.entered_seq]

    @cached_property
    def conditions(self) -> Conditions:
        """On what conditions it was started, and what became of them."""
        return conditions_in((str(one.members["event"]), one.said) for one in self.bundle.transitions)

    @property
    def error(self) -> dict[str, Any] | None:
        """What it failed at, as far as the history tells."""
        stopped = [one for one in self.bundle.transitions if one.members["event"] in _STOPPED]
        if self.status not in _STOPPED or not stopped:
            return None
        told = stopped[-1].said.get("error")
        return {**told, "attempt": stopped[-1].members["attempt"]} if isinstance(told, dict) else None


def _beyond_bounds(bundle: Bundle) -> Iterator[str]:
    """Yield what the tables could not hold: only a forger who has a trusted key writes such things."""
    for one in bundle.transitions:
        if _number(one.members["attempt"]) > _LARGEST_INTEGER:
            yield f"the attempt of transition {one.seq} is beyond all bounds"
        try:
            _moment(one.members["at"])
        except ValueError:
            yield f"the time of transition {one.seq} is no time"
    for kept in bundle.checkpoints:
        if kept.number > _LARGEST_INTEGER or kept.kind not in CHECKPOINT_KINDS[1:]:
            yield f"the checkpoint {kept.number} of transition {kept.seq} is none"
    if bundle.head.version > _LARGEST_INTEGER:
        yield "its version is beyond all bounds"


def _number(found: Json) -> int:
    return found if type(found) is int else 0


def _moment(text: Json) -> datetime:
    return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def _take_id(session: Session, incoming: _Incoming) -> None:
    """Write the workflow's row, as it was when it was exported, and at rest.

    Raises:
        BundleRefused: there is a workflow of that id, or was one that is not known to be purged.
        WorkflowPurged: there was one.

    """
    head, following, moments = incoming.bundle.head, incoming.following, incoming.moments
    conditions = incoming.conditions
    now = databases.now(session.connection())
    taken = session.execute(
        sql.upsert(WorkflowRow)
        .values(
            id=head.workflow_id,
            type=head.type,
            version=head.version,
            definition=head.definition,
            state=head.state,
            status=incoming.status,
            seq=head.seq,
            head=head.head,
            following=following.name,
            accepts=list(following.accepts),
            queue=following.queue or conditions.queue,
            home_queue=conditions.queue,
            priority=conditions.priority,
            attributes=dict(conditions.attributes),
            deadline=conditions.deadline,
            singleton=conditions.singleton,
            steered_by=incoming.steered_by,
            moved_at=moments[-1],
            entered_at=incoming.entered_at,
            entered_seq=incoming.entered_seq,
            timer_at=following.timer_at,
            checkpoint_number=max(
                (one.number for one in incoming.bundle.checkpoints if one.seq == head.seq), default=0
            ),
            checkpointed_at=now,
            created_at=moments[0],
            updated_at=now,
        )
        .on_conflict_do_nothing()
        .returning(WorkflowRow.id)
    ).one_or_none()
    if taken is None:
        raise BundleRefused(incoming.source, [_who_has_it(session, incoming)])
    # Asked where the id is ours already: whoever purged it has committed, and no other can.
    if session.execute(select(is_purged(head.workflow_id))).scalar_one():
        raise WorkflowPurged(head.workflow_id)
    logged = select(1).where(LogRow.workflow_id == head.workflow_id, LogRow.lost_seq.is_(None)).exists()
    left = select(1).where(_T.workflow_id == head.workflow_id).exists()
    if session.execute(select(or_(logged, left))).scalar_one():
        problem = "there was a workflow of that id here, and nothing says where it is: see `aegis verify`"
        raise BundleRefused(incoming.source, [problem])


def _who_has_it(session: Session, incoming: _Incoming) -> str:
    """Return what to say where the id is taken: by another workflow, or by this one."""
    rows = session.execute(select(_T.hash).where(_T.workflow_id == incoming.workflow_id).order_by(_T.seq)).scalars()
    there = [bytes(one) for one in rows]
    given = [one.hash for one in incoming.bundle.transitions]
    if not there:
        key = incoming.conditions.singleton
        return f"another workflow of its type has its singleton key {key!r}, and has not ended: cancel that one first"
    common = min(len(there), len(given))
    if there[:common] != given[:common]:
        return f"there is another workflow {incoming.workflow_id!r} here"
    if len(there) >= len(given):
        return f"this history is here already: workflow {incoming.workflow_id!r} is at transition {len(there) - 1}"
    return f"an earlier state of this history is here: workflow {incoming.workflow_id!r}, up to {len(there) - 1}"


def _write_history(session: Session, incoming: _Incoming) -> None:
    for table, rows in (
        (TransitionRow, [_transition_row(incoming, one) for one in incoming.bundle.transitions]),
        (PayloadRow, list(_payload_rows(incoming))),
        (CheckpointRow, list(_checkpoint_rows(incoming))),
    ):
        if rows:
            session.execute(insert(table), rows)
    if events := list(_event_rows(incoming)):
        session.execute(sql.upsert(EventRow).on_conflict_do_nothing(), events)


def _transition_row(incoming: _Incoming, one: BundledTransition) -> dict[str, Any]:
    members = one.members
    return {
        "workflow_id": incoming.workflow_id,
        "seq": one.seq,
        "event": members["event"],
        "from_state": members["from"],
        "to_state": members["to"],
        "actor": members["actor"],
        "attempt": members["attempt"],
        "at": incoming.moments[one.seq],
        "envelope": one.envelope,
        "hash": one.hash,
    }


def _payload_rows(incoming: _Incoming) -> Iterator[dict[str, Any]]:
    for one in incoming.bundle.transitions:
        if one.payload is not None:
            salt = one.payload_salt
            yield {"workflow_id": incoming.workflow_id, "seq": one.seq, "body": one.payload, "salt": salt}


def _checkpoint_rows(incoming: _Incoming) -> Iterator[dict[str, Any]]:
    def row(seq: int, number: int, kind: str, at: datetime, body: bytes, salt: bytes) -> dict[str, Any]:
        commitment = checkpoint_commitment(salt, body)
        named = {"workflow_id": incoming.workflow_id, "seq": seq, "number": number, "kind": kind, "at": at}
        return named | {"body": body, "salt": salt, "commitment": commitment}

    for one in incoming.bundle.transitions:
        if one.checkpoint is not None and one.checkpoint_salt is not None:
            at = incoming.moments[one.seq]
            yield row(one.seq, 0, CHECKPOINT_KINDS[0], at, one.checkpoint, one.checkpoint_salt)
    for kept in incoming.bundle.checkpoints:
        at = _moment(kept.at)
        yield row(kept.seq, kept.number, kept.kind, at, kept.checkpoint, kept.checkpoint_salt)


def _event_rows(incoming: _Incoming) -> Iterator[dict[str, Any]]:
    """Yield the events that were taken: sent once more under their keys, they must not be taken again."""
    names = {edge.name: edge.on for edge in incoming.definition.edges if edge.on is not None}
    for one in incoming.bundle.transitions:
        event, said = str(one.members["event"]), one.said
        # What counted, or not, towards a transition names it.
        name = names.get(str(said.get("transition")) if event in {APPROVED, DISREGARDED} else event)
        match said.get("key"), said.get("sender"):
            case str(key), str(sender) if name is not None and "data" in said:
                yield {
                    "workflow_id": incoming.workflow_id,
                    "name": name,
                    "key": key,
                    "sender": sender,
                    "reason": said.get("reason"),
                    "payload": canonical(said["data"], max_bytes=_ANY_SIZE),
                    "received_at": incoming.moments[one.seq],
                    "consumed_seq": one.seq,
                }


def _append_imported(session: Session, incoming: _Incoming, terms: Terms) -> None:
    """Record that it was imported, from where it began: what its chain has to be verified by."""
    position, status, now = lock(session, incoming.workflow_id)
    move = moves.intervene(
        position,
        "imported",
        newest(session, position).data,
        status=status,
        payload={"deployment": incoming.bundle.head.deployment, "status": status},
        progress=progress_of(session.connection(), position.workflow_id, position.seq),
        actor=terms.actor,
        at=max(now, position.moved_at),
        error=incoming.error,
        mac_key=terms.mac_key,
    )
    moved = commit(in_transaction(session), move, grace=terms.grace)
    assert moved is not None, "the row is locked: nobody can have moved it"  # noqa: S101
