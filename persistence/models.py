"""The tables. PostgreSQL is the truth: the workflow's row is the outbox, the transitions its proof.

``aegis_workflow``    one row a workflow: where it is, who has it, when to look at it again
``aegis_transition``  one row a transition: the hashed envelope, and columns to search by
``aegis_payload``     what went into a transition beside the state (event, error, reason)
``aegis_checkpoint``  the workflow's data after a transition (number 0), or inside a handler (1, 2, ...)
``aegis_event``       what was sent to a workflow, consumed in the transition that took it
``aegis_effect``      what handlers did to the outside world: begun, done, not done, or in doubt
``aegis_worker``      one row a living worker
``aegis_sweep``       one row: when the recovery sweep last ran
``aegis_deployment``  one row: the name that is hashed into every chain's beginning
``aegis_log``         all transitions of all workflows in one order: the leaves of a Merkle tree
``aegis_log_node``    the tree's nodes over 256, 65,536, ... leaves
``aegis_log_state``   one row: how far the log is
``aegis_anchor``      the signed statements about the log, as they were written to the places outside
``aegis_removal``     what was pruned or purged: why something that was committed is not there
``aegis_scrub``       one row: how far the verification of everything in turn is

The hot tables have no foreign keys: their rows are only ever written by the statement that moves
the workflow, history outlives the row that it tells of, and each key would cost a look and a
lock per transition.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    column,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..core.names import MAX_ID
from . import sql

STATUSES: Final = ("pending", "waiting", "paused", "completed", "failed", "cancelled", "quarantined")
EFFECT_STATUSES: Final = ("begun", "done", "not done", "in doubt")
ENDED: Final = ("completed", "cancelled")
CHECKPOINT_KINDS: Final = ("transition", "manual", "periodic")
REMOVAL_KINDS: Final = ("pruned", "purged")
HASH_BYTES: Final = 32


class Base(DeclarativeBase):
    """The tables' common ground."""

    metadata = MetaData(naming_convention={"pk": "%(table_name)s_pkey"})
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way to say it
        str: Text,
        bytes: LargeBinary,
        datetime: sql.MOMENT,
        dict[str, Any]: sql.document(none_as_null=True),
        list[str]: sql.document(),
        list[int]: sql.document(),
    }


def _hash(column_: str, name: str) -> CheckConstraint:
    return CheckConstraint(sql.bytes_in(column(column_)) == HASH_BYTES, name=name)


def _where(condition: str) -> dict[str, Any]:
    """Limit an index to some rows."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


class WorkflowRow(Base):
    """Where a workflow is, and what is to happen with it next."""

    __tablename__ = "aegis_workflow"

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    version: Mapped[int]
    definition: Mapped[str]
    state: Mapped[str]
    status: Mapped[str]
    seq: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[bytes]
    """The hash of transition ``seq``."""

    following: Mapped[str | None]
    """The handler that runs if no event comes: an automatic transition, or a timer's."""
    accepts: Mapped[list[str]]
    """The events that the state waits for."""
    inbox: Mapped[int] = mapped_column(server_default=text("0"))
    """How many events were received and not consumed."""
    queue: Mapped[str | None]
    home_queue: Mapped[str | None]
    """Where the transitions of this workflow run that name no queue; null: on the deployment's."""
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    """0 to 9: what has more goes first."""
    attributes: Mapped[dict[str, Any]] = mapped_column(sql.document(), server_default=text("'{}'"))
    """What people search by."""
    deadline: Mapped[datetime | None]
    """When it has to have ended."""
    singleton: Mapped[str | None]
    """Of one type, one workflow that has not ended may have this key."""
    steered_by: Mapped[str | None]
    """Who last moved it on from outside: whoever started it, or sent the event that was last taken."""
    checkpoint_on_transition: Mapped[bool] = mapped_column(server_default=text("true"))
    """Whether each transition is recorded by itself, or those that follow each other at once may be together."""
    moved_at: Mapped[datetime]
    """The ``at`` of the last transition; the next one is never earlier."""
    entered_at: Mapped[datetime]
    """When the state was entered; a timer counts from it."""
    timer_at: Mapped[datetime | None]

    ready_at: Mapped[datetime | None]
    """Not to be claimed before; null: only an event, or a person, makes it ready."""
    due_at: Mapped[datetime | None]
    """If nothing happened by then, the sweep looks; null: there is nothing to do."""
    rings: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    """How often it was rung since it last moved; 0: no bell is under way."""

    strayed: Mapped[int] = mapped_column(server_default=text("0"))
    """How often its bell was answered by a worker that does not know its type, since one last did."""

    claim: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The fencing token: higher at each claim, never lower again; a recovery adds a step of a length that is drawn."""
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """Attempts at the next transition so far, counted before the handler runs."""
    owner: Mapped[str | None]
    """The worker that has it in hand."""
    owner_pid: Mapped[int | None]
    owner_thread: Mapped[int | None] = mapped_column(BigInteger)
    claimed_at: Mapped[datetime | None]
    entered_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The transition that entered the state: what the engine itself records since then does not count."""
    checkpoint_number: Mapped[int] = mapped_column(server_default=text("0"))
    """The number of the newest checkpoint at ``seq``: what a claim that waited for it must see."""
    checkpointed_at: Mapped[datetime]
    checkpoint_asked_at: Mapped[datetime | None]
    """When the running handler was asked for a checkpoint that it has not given yet."""

    pausing: Mapped[dict[str, Any] | None]
    """Who asked for a pause, and why, while a handler was running."""
    error: Mapped[dict[str, Any] | None]
    """What went wrong at the last attempt; null after a success."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(f"length(id) BETWEEN 1 AND {MAX_ID}", name="aegis_workflow_id_length"),
        CheckConstraint(_one_of("status", STATUSES), name="aegis_workflow_status_known"),
        _hash("head", "aegis_workflow_head_is_a_hash"),
        CheckConstraint("seq >= 0 AND claim >= 0 AND attempt >= 0 AND inbox >= 0", name="aegis_workflow_counts"),
        CheckConstraint("(owner IS NULL) = (owner_pid IS NULL)", name="aegis_workflow_owner_has_pid"),
        CheckConstraint(
            "status IN ('pending', 'waiting') OR (due_at IS NULL AND ready_at IS NULL AND owner IS NULL)",
            name="aegis_workflow_at_rest",
        ),
        Index("aegis_workflow_due", "due_at", **_where("due_at IS NOT NULL")),
        Index("aegis_workflow_owned", "owner", **_where("owner IS NOT NULL")),
        Index("aegis_workflow_newest", "created_at", "id"),
        Index(
            "aegis_workflow_singleton",
            "type",
            "singleton",
            unique=True,
            **_where("singleton IS NOT NULL AND status NOT IN ('completed', 'cancelled')"),
        ),
        Index(
            "aegis_workflow_attributes",
            "attributes",
            postgresql_using="gin",
            postgresql_ops={"attributes": "jsonb_path_ops"},
            **_where("attributes <> '{}'"),
        ).ddl_if(dialect="postgresql"),
        # Few have a priority: the sweep finds them first, and the others pay nothing for it.
        Index("aegis_workflow_urgent", "priority", "due_at", **_where("due_at IS NOT NULL AND priority > 0")),
        CheckConstraint("priority BETWEEN 0 AND 9", name="aegis_workflow_priority_range"),
        # Those that people look for, and that are few.
        Index(
            "aegis_workflow_troubled",
            "status",
            "created_at",
            "id",
            **_where("status IN ('failed', 'quarantined', 'paused', 'cancelled')"),
        ),
    )


class TransitionRow(Base):
    """One link of the audit chain; never changed."""

    __tablename__ = "aegis_transition"

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    event: Mapped[str]
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    actor: Mapped[str]
    attempt: Mapped[int]
    at: Mapped[datetime]
    envelope: Mapped[bytes]
    hash: Mapped[bytes]
    mac: Mapped[bytes | None]
    """HMAC of the hash, where the deployment has a key."""
    mac_key: Mapped[str | None]
    """Which key."""
    xact: Mapped[int] = mapped_column(BigInteger, server_default=sql.this_transaction())
    """The database's transaction: what the log has not taken up yet is found by it."""

    __table_args__ = (
        _hash("hash", "aegis_transition_hash_is_a_hash"),
        CheckConstraint("(mac IS NULL) = (mac_key IS NULL)", name="aegis_transition_mac_has_key"),
        _hash("mac", "aegis_transition_mac_is_a_hash"),
        Index("aegis_transition_xact", "xact"),
    )


class PayloadRow(Base):
    """What a transition's envelope commits to beside the checkpoint, where there is anything."""

    __tablename__ = "aegis_payload"

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    body: Mapped[bytes]
    salt: Mapped[bytes]


class CheckpointRow(Base):
    """A hashed snapshot of a workflow's data."""

    __tablename__ = "aegis_checkpoint"

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    body: Mapped[bytes]
    salt: Mapped[bytes]
    commitment: Mapped[bytes]
    at: Mapped[datetime]
    mac: Mapped[bytes | None]
    """Of a checkpoint inside a handler, that no transition has committed to yet: its code, where there is a key."""
    mac_key: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("(mac IS NULL) = (mac_key IS NULL)", name="aegis_checkpoint_mac_has_key"),
        CheckConstraint(_one_of("kind", CHECKPOINT_KINDS), name="aegis_checkpoint_kind_known"),
        CheckConstraint("(number = 0) = (kind = 'transition')", name="aegis_checkpoint_number_of_kind"),
        _hash("commitment", "aegis_checkpoint_commitment_is_a_hash"),
    )


class EventRow(Base):
    """Something that was sent to a workflow."""

    __tablename__ = "aegis_event"

    id: Mapped[int] = mapped_column(sql.COUNTER, Identity(always=True), primary_key=True)
    workflow_id: Mapped[str]
    name: Mapped[str]
    key: Mapped[str]
    sender: Mapped[str]
    reason: Mapped[str | None]
    """Why, in the sender's words."""
    payload: Mapped[bytes]
    received_at: Mapped[datetime]
    consumed_seq: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        UniqueConstraint("workflow_id", "key", name="aegis_event_once"),
        # A transition takes one event, and an event makes one transition.
        Index(
            "aegis_event_consumed",
            "workflow_id",
            "consumed_seq",
            unique=True,
            **_where("consumed_seq IS NOT NULL"),
        ),
        Index("aegis_event_waiting", "workflow_id", "id", **_where("consumed_seq IS NULL")),
    )


class EffectRow(Base):
    """Something that a handler does to the outside world, once for all attempts at its transition."""

    __tablename__ = "aegis_effect"

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """The one in the handler's ``ctx.key``: the same at every attempt."""
    name: Mapped[str] = mapped_column(primary_key=True)
    transition: Mapped[str | None]
    """The handler that asked for it; null: a person said how it went, and whoever asks is told."""
    status: Mapped[str]
    key: Mapped[str]
    """The idempotency key that the outside world was given."""
    claim: Mapped[int] = mapped_column(BigInteger)
    """The claim under which it was begun: two attempts may have one number, two claims never."""
    attempt: Mapped[int]
    actor: Mapped[str]
    """Who did it."""
    result: Mapped[bytes | None]
    """What came of it, as canonical bytes, once it is done."""
    error: Mapped[dict[str, Any] | None]
    """What went wrong with it."""
    resolved_by: Mapped[str | None]
    """The person who said how it went, where nobody else knew."""
    reason: Mapped[str | None]
    """Why, in that person's words."""
    begun_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("status", EFFECT_STATUSES), name="aegis_effect_status_known"),
        CheckConstraint("(status = 'done') = (result IS NOT NULL)", name="aegis_effect_done_has_result"),
        CheckConstraint("(reason IS NULL) = (resolved_by IS NULL)", name="aegis_effect_resolved_has_reason"),
        Index("aegis_effect_open", "status", "begun_at", **_where("status <> 'done'")),
    )


class WorkerRow(Base):
    """A worker that lives, by its own word."""

    __tablename__ = "aegis_worker"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    """Host, boot and process namespace: within one, a pid can be looked up."""
    pid: Mapped[int]
    pids: Mapped[list[int]]
    """The processes that run its handlers."""
    queues: Mapped[list[str]]
    types: Mapped[list[str]]
    """``type/version`` of every workflow that it knows."""
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    epoch: Mapped[int | None] = mapped_column(BigInteger)
    """The deployment's epoch that it began in."""
    broker: Mapped[str | None]
    """The address of the broker at which it listens, without its password."""


class SweepRow(Base):
    """When the recovery sweep last ran, and since when it has run without a gap."""

    __tablename__ = "aegis_sweep"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    ran_at: Mapped[datetime]
    since: Mapped[datetime]
    brokers: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """The brokers at which workers listened, each with since when none does (seconds since 1970); null: some do."""

    timeline: Mapped[str | None]
    """The server's, which is another one after each fail-over."""
    led_since: Mapped[datetime | None]
    """When a sweep first found it led by another server."""

    __table_args__ = (CheckConstraint("id = 1", name="aegis_sweep_is_one"),)


class DeploymentRow(Base):
    """The name of this deployment, which every chain begins with."""

    __tablename__ = "aegis_deployment"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime]
    epoch: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    """1, and a higher one, drawn anew, each time that it was put back: what was begun in another one is void."""
    recovered_at: Mapped[datetime | None]
    """When this epoch began; null: it is the first."""

    __table_args__ = (CheckConstraint("id = 1", name="aegis_deployment_is_one"),)


# --- the log -----------------------------------------------------------------------------------


class LogRow(Base):
    """One leaf of the log: a transition, at its place among all."""

    __tablename__ = "aegis_log"

    log_index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    workflow_id: Mapped[str]
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[bytes]
    """The transition's hash; the leaf is the hash of that."""
    lost_seq: Mapped[int | None] = mapped_column(BigInteger)
    """Of a transition that was anchored, and that a recovery lost: the record of the system's chain that says so."""

    __table_args__ = (
        Index("aegis_log_once", "workflow_id", "seq", unique=True, **_where("lost_seq IS NULL")),
        Index("aegis_log_lost", "log_index", **_where("lost_seq IS NOT NULL")),
        CheckConstraint("log_index >= 0", name="aegis_log_index_counts"),
        _hash("hash", "aegis_log_hash_is_a_hash"),
    )


class NodeRow(Base):
    """A node of the tree over the log: the root over ``256 ** level`` leaves from ``number * 256 ** level`` on."""

    __tablename__ = "aegis_log_node"

    level: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hash: Mapped[bytes]

    __table_args__ = (_hash("hash", "aegis_log_node_hash_is_a_hash"),)


class LogStateRow(Base):
    """How far the log is, and from which transaction on there may be more."""

    __tablename__ = "aegis_log_state"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    horizon: Mapped[int] = mapped_column(BigInteger)
    """Every transition of a transaction below this is in the log."""
    system: Mapped[str]
    """The database cluster whose transactions ``horizon`` counts."""

    __table_args__ = (CheckConstraint("id = 1", name="aegis_log_state_is_one"),)


class AnchorRow(Base):
    """A signed statement about the log. What counts is where else it was written."""

    __tablename__ = "aegis_anchor"

    id: Mapped[int] = mapped_column(sql.COUNTER, Identity(always=True), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    root: Mapped[bytes]
    at: Mapped[datetime]
    note: Mapped[str]

    __table_args__ = (_hash("root", "aegis_anchor_root_is_a_hash"),)


class RemovalRow(Base):
    """Something that was removed on purpose: up to which transition, and which record of the system's chain says so."""

    __tablename__ = "aegis_removal"

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    system_seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str]
    through_seq: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[bytes | None]
    """The hash of transition ``through_seq`` of a purged workflow."""

    __table_args__ = (
        CheckConstraint(_one_of("kind", REMOVAL_KINDS), name="aegis_removal_kind_known"),
        CheckConstraint("(kind = 'purged') = (head IS NOT NULL)", name="aegis_removal_purged_has_head"),
        Index("aegis_removal_record", "system_seq"),
    )


class ScrubRow(Base):
    """How far the verification of everything in turn is."""

    __tablename__ = "aegis_scrub"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    started_at: Mapped[datetime]
    """When this round began."""
    place: Mapped[str]
    """The workflow up to which this round has come."""
    verified: Mapped[int] = mapped_column(BigInteger)
    """How many transitions this round has verified so far."""
    finished_at: Mapped[datetime | None]
    """When the last whole round ended; null: there was none yet."""
    took_from: Mapped[datetime | None]
    """When that round had begun."""
    covered: Mapped[int] = mapped_column(BigInteger)
    """How many transitions it verified."""
    found: Mapped[list[str]]
    """What this round has found so far, as lines for people; not all of it if it is much."""
    findings: Mapped[list[str]]
    """What the last round found."""
    hindered: Mapped[list[str]] = mapped_column(server_default=text("'[]'"))
    """What this round could not look at so far, and why."""
    problems: Mapped[list[str]] = mapped_column(server_default=text("'[]'"))
    """What the last round could not look at: nothing of that counts as compared with the anchors."""
    compared: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """How many entries of the log the last round compared with anchors."""

    __table_args__ = (CheckConstraint("id = 1", name="aegis_scrub_is_one"),)
