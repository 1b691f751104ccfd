"""What the tests of verification work with: a history worth attacking, and somebody who knows the format.

Whoever attacks is a superuser, past all triggers, and can compute every hash; he has no key, and cannot
write to the places outside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from log_workbench import take_up_all
from private_servers import DEPLOYMENT
from sqlalchemy import text
from store_workbench import GRACE, MAX_BYTES, RecordingRing, run_where_it_is_sent, sql
from store_workflows import SCRIPT, Decision, Letter, Parcel

from aegis.config.keys import mac_keys, new_mac_key
from aegis.config.settings import Settings
from aegis.core.anchor import Sink, log_name
from aegis.core.canonical import canonical
from aegis.core.chain import (
    MacKey,
    checkpoint_commitment,
    genesis,
    payload_commitment,
    timestamp,
    transition_hash,
)
from aegis.core.finding import Code, Report
from aegis.core.note import SigningKey
from aegis.persistence.auditor import Auditor, Sources
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.models import Base
from aegis.persistence.operations import Terms
from aegis.tasks.anchor import Anchored, Notary, Policy, anchor
from aegis.tasks.bench import Bench
from aegis.tasks.sinks import AnchorFile
from aegis.tasks.transition import Ended, run_transition

Found: TypeAlias = set[tuple[str | None, int | None, Code]]

NAME: Final = log_name(DEPLOYMENT)
OTHER: Final = b"\x07" * 32
HISTORY: Final = ("aegis_transition", "aegis_payload", "aegis_checkpoint")
LAST: Final = 4
"""The last transition of a parcel of ``told``."""


def signing_key(seed: int = 1) -> SigningKey:
    return SigningKey(name=NAME, private=Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def anchor_now(database: Database, *sinks: Sink, seed: int = 1) -> Anchored:
    """Take up and anchor everything, as beat does, but at once."""
    policy = Policy(interval=timedelta(hours=1), every=1000)
    return anchor(database, sinks, Notary(key=signing_key(seed), trusted=()), policy, now=True)


# --- a history ----------------------------------------------------------------------------------


def make_mac_key(folder: Path) -> MacKey:
    new_mac_key(folder, grace=timedelta(0))
    return mac_keys(folder)[-1]


def told(database: Database, keys: Path) -> None:
    """Tell the histories that are attacked, with a code on every transition.

    ``p`` and ``q`` are parcels of five transitions: created, packed with two checkpoints on the way,
    paused, resumed, decided by an event. ``w`` is a letter that waits, with a checkpoint that nothing lists yet.
    """
    ring = RecordingRing()
    key = mac_keys(keys)[-1]
    engine = DurableWorkflowEngine(
        database, ring, Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES, mac_key=key)
    )
    bench = Bench(Settings(home=keys, keys=keys), database, ring, "w@test")

    def pack(parcel: Any, ctx: Any) -> None:
        for done in ("weighed", "wrapped"):
            parcel.done.append(done)
            ctx.checkpoint()

    SCRIPT["pack"] = pack
    try:
        for workflow_id in ("p", "q"):
            engine.start(Parcel(address=f"{workflow_id} street 1", weight=1), id=workflow_id)
            assert run_transition(bench, workflow_id, 0) is Ended.COMMITTED
            engine.pause(workflow_id, reason="holiday")
            engine.resume(workflow_id)
            engine.send(workflow_id, "decide", Decision(send=True, comment="now"), key="mail-1")
            assert run_where_it_is_sent(bench, workflow_id, 3) is Ended.COMMITTED
        engine.start(Letter(words=["a", "bc"]), id="w")
        engine.send("w", "finish", "end", key="mail-2")
        assert run_where_it_is_sent(bench, "w", 0) is Ended.COMMITTED
        engine.checkpoint("w")
    finally:
        SCRIPT.clear()


_TABLES: Final = [table.name for table in Base.metadata.sorted_tables]


def keep(database: Database, name: str) -> None:
    """Keep all rows of all tables as they are now: a backup, beside them."""
    copies = "; ".join(f"CREATE TABLE {name}.{table} AS TABLE {table}" for table in _TABLES)
    _past_all_triggers(database, f"CREATE SCHEMA {name}; {copies}")


def put_back(database: Database, name: str) -> None:
    """Have the database hold these rows and no others."""
    _past_all_triggers(
        database,
        "; ".join(
            f"DELETE FROM {table}; INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE {name}.{table}"  # noqa: S608
            for table in _TABLES
        ),
    )


def _past_all_triggers(database: Database, statements: str) -> None:
    # As one text: to put up a scene must not take longer than to verify it.
    with database.transaction() as session:
        session.connection().exec_driver_sql(f"SET LOCAL session_replication_role = replica; {statements}")


class Stage(Enum):
    """How far the histories have come when they are attacked."""

    FRESH = "fresh"
    """Committed, and nothing more."""
    LOGGED = "logged"
    """In the log, which is not anchored yet."""
    ANCHORED = "anchored"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The histories, as they are at one stage, and what an auditor knows of them from outside."""

    database: Database
    stage: Stage
    key: MacKey
    sinks: Sequence[Sink]

    def auditor(self, *, keyed: bool = True) -> Auditor:
        trusted = [signing_key().verifier]
        return Auditor(
            self.database,
            Sources(mac_keys=[self.key] if keyed else [], sinks=self.sinks, trusted=trusted),
        )

    def all(self, *, keyed: bool = True) -> Report:
        return self.auditor(keyed=keyed).everything()

    def one(self, workflow_id: str, *, keyed: bool = True) -> Report:
        return self.auditor(keyed=keyed).one(workflow_id)

    def engine(self) -> DurableWorkflowEngine:
        """An engine that has the key."""
        terms = Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES, mac_key=self.key)
        return DurableWorkflowEngine(self.database, RecordingRing(), terms)

    def sql(self, statement: str, **parameters: Any) -> int:
        return sql(self.database, statement, **parameters)

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        with self.database.snapshot() as connection:
            return [_plain(row._mapping) for row in connection.execute(text(query), parameters)]


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """The histories once told, to be put up at any stage as often as it takes."""

    key: MacKey
    file: AnchorFile

    @classmethod
    def prepare(cls, database: Database, folder: Path) -> Scenes:
        """Tell them, in an empty database."""
        key = make_mac_key(folder / "keys")
        told(database, folder / "keys")
        keep(database, Stage.FRESH.value)
        take_up_all(database)
        keep(database, Stage.LOGGED.value)
        file = AnchorFile(folder / "anchors.jsonl")
        assert anchor_now(database, file).written == 1
        keep(database, Stage.ANCHORED.value)
        return cls(key=key, file=file)

    def put_up(self, database: Database, stage: Stage, own: Path | None = None) -> Scene:
        """Put them up; with anchors of one's own in the folder ``own``, where there are to be more of them."""
        put_back(database, stage.value)
        file = self.file
        if own is not None:
            file = AnchorFile(Path(shutil.copy(self.file.path, own)))
        sinks = [file] if stage is Stage.ANCHORED else []
        return Scene(database=database, stage=stage, key=self.key, sinks=sinks)


def _plain(row: Mapping[str, Any]) -> Any:
    # Where a statement is text, the driver's own type for bytes comes through.
    return SimpleNamespace(**{name: bytes(one) if isinstance(one, memoryview) else one for name, one in row.items()})


def failures(report: Report) -> Found:
    return {(one.workflow_id, one.seq, one.code) for one in report.failures}


def at(workflow_id: str, seqs: Iterable[int], *codes: Code) -> Found:
    return {(workflow_id, seq, code) for seq in seqs for code in codes}


# --- somebody who knows the format ----------------------------------------------------------------


class Reach(Enum):
    """How far whoever edits a row mends what depends on it."""

    NONE = "as it is"
    ROW = "its row rehashed"
    CHAIN = "the chain rehashed"
    LOG = "chain and log rehashed"


def rehash(scene: Scene, workflow_id: str, seq: int, reach: Reach = Reach.CHAIN, *, prev: bytes | None = None) -> None:
    """Make transition ``seq`` fit its columns, its payload, its checkpoint and ``prev``, and what follows fit it."""
    if reach is Reach.NONE:
        return
    for row in _stored(scene, workflow_id, seq):
        members = json.loads(row.envelope) | _members(row)
        if prev is not None:
            members["prev"] = prev.hex()
        prev = write_envelope(scene, workflow_id, row.seq, canonical(members))
        if reach is Reach.ROW:
            return
        if reach is Reach.LOG:
            changed = "UPDATE aegis_log SET hash = :hash WHERE workflow_id = :id AND seq = :seq"
            scene.sql(changed, hash=prev, id=workflow_id, seq=row.seq)
    mend_row(scene, workflow_id)


def write_envelope(scene: Scene, workflow_id: str, seq: int, body: bytes) -> bytes:
    """Put an envelope in the place of another, with its hash; return that."""
    digest = transition_hash(body)
    changed = "UPDATE aegis_transition SET envelope = :body, hash = :hash WHERE workflow_id = :id AND seq = :seq"
    assert scene.sql(changed, body=body, hash=digest, id=workflow_id, seq=seq) == 1
    return digest


def mend_row(scene: Scene, workflow_id: str) -> None:
    """Have the workflow's row say what the last transition says."""
    mended = """
        UPDATE aegis_workflow w SET seq = t.seq, head = t.hash, state = t.to_state,
            type = convert_from(t.envelope, 'UTF8')::jsonb ->> 'type',
            definition = convert_from(t.envelope, 'UTF8')::jsonb ->> 'def'
        FROM aegis_transition t
        WHERE t.workflow_id = w.id AND w.id = :id
            AND t.seq = (SELECT max(seq) FROM aegis_transition WHERE workflow_id = :id)
    """
    assert scene.sql(mended, id=workflow_id) == 1


def renumber(scene: Scene, workflow_id: str, old: int, new: int) -> None:
    """Have all that is at one place of a workflow's history stand at another, as it is."""
    for table in HISTORY:
        changed = f"UPDATE {table} SET seq = :new WHERE workflow_id = :id AND seq = :old"  # noqa: S608
        scene.sql(changed, id=workflow_id, old=old, new=new)


def restate(scene: Scene, workflow_id: str, seq: int, reach: Reach = Reach.CHAIN) -> None:
    """Make the checkpoints from ``seq`` on say where they stand, and the chain from there on fit, as far as it goes."""
    stored = _stored(scene, workflow_id, max(seq - 1, 0))
    for row in stored:
        if row.seq == seq or (row.seq > seq and reach is not Reach.ROW):
            said = {"seq": row.seq, "state": json.loads(row.checkpoint_body)["state"], "workflow_id": workflow_id}
            write_checkpoint(scene, workflow_id, row.seq, 0, canonical(said))
    prev = stored[0].hash if seq else genesis(DEPLOYMENT, workflow_id)
    rehash(scene, workflow_id, seq, reach, prev=prev)


def swap(scene: Scene, table: str, condition: str = "true") -> None:
    """Have ``p`` hold the rows of ``q``, and the other way round."""
    for old, new in (("p", "tmp"), ("q", "p"), ("tmp", "q")):
        scene.sql(f"UPDATE {table} SET workflow_id = :new WHERE workflow_id = :old AND {condition}", old=old, new=new)  # noqa: S608


def edit_envelope(
    scene: Scene, seq: int, change: Callable[[bytes], bytes], reach: Reach, *, workflow_id: str = "p"
) -> None:
    """Change the bytes of an envelope, and perhaps its hash, and what follows."""
    row = _stored(scene, workflow_id, seq)[0]
    body = change(row.envelope)
    if reach is Reach.NONE:
        scene.sql(
            "UPDATE aegis_transition SET envelope = :body WHERE workflow_id = :id AND seq = :seq",
            id=workflow_id,
            body=body,
            seq=seq,
        )
        return
    digest = write_envelope(scene, workflow_id, seq, body)
    if reach is Reach.CHAIN and seq < LAST:
        rehash(scene, workflow_id, seq + 1, prev=digest)
    elif reach is Reach.CHAIN:
        scene.sql("UPDATE aegis_workflow SET head = :head WHERE id = :id", id=workflow_id, head=digest)


def append(scene: Scene, workflow_id: str) -> int:
    """Add a transition like the last one, that fits it, and mend the row; return its seq."""
    last = _stored(scene, workflow_id, 0)[-1]
    seq = last.seq + 1
    place = {"id": workflow_id, "seq": seq, "last": last.seq}
    scene.sql(
        """
        INSERT INTO aegis_transition (workflow_id, seq, event, from_state, to_state, actor, attempt, at, envelope, hash)
        SELECT workflow_id, :seq, event, to_state, to_state, actor, attempt, at, envelope, hash
        FROM aegis_transition WHERE workflow_id = :id AND seq = :last
        """,
        **place,
    )
    body = canonical({"seq": seq, "state": json.loads(last.checkpoint_body)["state"], "workflow_id": workflow_id})
    write_checkpoint(scene, workflow_id, seq, 0, body, new=True)
    rehash(scene, workflow_id, seq, prev=last.hash)
    return seq


def write_checkpoint(
    scene: Scene, workflow_id: str, seq: int, number: int, body: bytes, *, new: bool = False, kind: str = "manual"
) -> bytes:
    """Put a checkpoint in the place of another, or beside them, with the commitment that it has."""
    digest = checkpoint_commitment(OTHER, body)
    if new:
        scene.sql(
            """
            INSERT INTO aegis_checkpoint (workflow_id, seq, number, kind, body, salt, commitment, at)
            VALUES (:id, :seq, :number, :kind, :body, :salt, :commitment, clock_timestamp())
            """,
            id=workflow_id,
            seq=seq,
            number=number,
            kind=kind if number else "transition",
            body=body,
            salt=OTHER,
            commitment=digest,
        )
        return digest
    changed = """
        UPDATE aegis_checkpoint SET body = :body, salt = :salt, commitment = :commitment
        WHERE workflow_id = :id AND seq = :seq AND number = :number
    """
    parameters = {"id": workflow_id, "seq": seq, "number": number}
    assert scene.sql(changed, body=body, salt=OTHER, commitment=digest, **parameters) == 1
    return digest


def _stored(scene: Scene, workflow_id: str, start: int) -> list[Any]:
    return scene.rows(
        """
        SELECT t.*, p.body AS payload_body, p.salt AS payload_salt, c.body AS checkpoint_body, c.commitment
        FROM aegis_transition t
        LEFT JOIN aegis_payload p USING (workflow_id, seq)
        LEFT JOIN aegis_checkpoint c ON c.workflow_id = t.workflow_id AND c.seq = t.seq AND c.number = 0
        WHERE t.workflow_id = :id AND t.seq >= :start ORDER BY t.seq
        """,
        id=workflow_id,
        start=start,
    )


def _members(row: Any) -> dict[str, Any]:
    payload = None if row.payload_body is None else payload_commitment(row.payload_salt, row.payload_body).hex()
    return {
        "seq": row.seq,
        "event": row.event,
        "from": row.from_state,
        "to": row.to_state,
        "actor": row.actor,
        "attempt": row.attempt,
        "at": timestamp(row.at),
        "payload": payload,
        "checkpoint": None if row.commitment is None else row.commitment.hex(),
    }
