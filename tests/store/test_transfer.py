"""Bundles between deployments: what moves goes on where it was, what does not verify moves nothing."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from corpus import TEXTS, BadText
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from event_workflows import Budget
from private_servers import DEPLOYMENT, TEMPLATE, PrivatePostgres
from store_workbench import (
    GRACE,
    MAX_BYTES,
    RecordingRing,
    everything,
    make_bench,
    make_engine,
    meanwhile,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act, Booking, Decision, Once, Parcel

from aegis.cli import verify_bundle as shipped
from aegis.cli.main import aegis, main
from aegis.core.bundle import Bundle, verify
from aegis.core.canonical import canonical
from aegis.core.chain import MacKey, transition_hash
from aegis.core.errors import (
    AegisError,
    AlreadyApproved,
    BundleRefused,
    FourEyes,
    HistoryBroken,
    InvalidData,
    InvalidName,
    LogBroken,
    NotABundle,
    SingletonConflict,
    UnknownWorkflowType,
    WorkflowNotFound,
    WorkflowPurged,
)
from aegis.core.finding import failures
from aegis.core.names import SYSTEM
from aegis.core.note import SigningKey
from aegis.core.workflow import registry
from aegis.persistence.auditor import Sources
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.tasks.anchor import Notary, Policy, anchor
from aegis.tasks.bench import Bench
from aegis.tasks.sinks import AnchorFile
from aegis.tasks.transition import Ended

POLICY: Final = Policy(interval=timedelta(minutes=1), every=1000)
ID: Final = "p-42"


def key_of(name: str, seed: int) -> SigningKey:
    return SigningKey(name=name, private=Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


@dataclass(frozen=True)
class Place:
    """A deployment: a database, an engine and a worker on it, its own key, and its file of anchors."""

    name: str
    database: Database
    engine: DurableWorkflowEngine
    bench: Bench
    key: SigningKey
    anchors: AnchorFile

    def anchor(self) -> None:
        done = anchor(self.database, [self.anchors], Notary(key=self.key, trusted=()), POLICY, now=True)
        assert (done.behind, done.alarms) == ((), ())

    def run(self, seq: int, workflow_id: str = ID) -> Ended:
        return run_where_it_is_sent(self.bench, workflow_id, seq)

    def verified(self, workflow_id: str = ID) -> list[str]:
        return [str(finding) for finding in self.engine.verify_audit_chain(workflow_id).failures]


HOME_KEY: Final = key_of(DEPLOYMENT, 1)
AWAY_KEY: Final = key_of("aegis.example/away", 2)
THIRD_KEY: Final = key_of("aegis.example/third", 3)
KEYS: Final = (HOME_KEY.verifier, AWAY_KEY.verifier, THIRD_KEY.verifier)


def make_place(database: Database, key: SigningKey, folder: Path, **terms: Any) -> Place:
    sink = AnchorFile(folder / f"{key.name.replace('/', '-')}.jsonl")
    mac_key: MacKey | None = terms.get("mac_key")
    known = Sources(trusted=KEYS, sinks=(sink,), mac_keys=() if mac_key is None else (mac_key,))
    ring = RecordingRing()
    made = Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES, **terms)
    engine = DurableWorkflowEngine(database, ring, made, known)
    return Place(key.name, database, engine, make_bench(database, ring), key, sink)


@pytest.fixture
def home(database: Database, tmp_path: Path) -> Place:
    return make_place(database, HOME_KEY, tmp_path)


@pytest.fixture
def another(postgres: PrivatePostgres) -> Iterator[Callable[[str], Database]]:
    """Make the database of another deployment, by its name."""
    made = []

    def make(name: str) -> Database:
        context = postgres.database(TEMPLATE)
        url = context.__enter__()
        database = Database(url.replace("postgresql://", "postgresql+psycopg2://"))
        made.append((database, context))
        assert sql(database, "UPDATE aegis_deployment SET name = :name", name=name) == 1
        return database

    yield make
    for database, context in made:
        database.close()
        context.__exit__(None, None, None)


@pytest.fixture
def away(another: Callable[[str], Database], tmp_path: Path) -> Place:
    return make_place(another(AWAY_KEY.name), AWAY_KEY, tmp_path)


@pytest.fixture
def third(another: Callable[[str], Database], tmp_path: Path) -> Place:
    return make_place(another(THIRD_KEY.name), THIRD_KEY, tmp_path)


def packed(place: Place, script: dict[str, Act], workflow_id: str = ID) -> None:
    """Bring a parcel half of its way: packed, with a checkpoint from inside the handler, and one after it."""

    def pack(parcel: Any, ctx: Any) -> None:
        parcel.weight = 1
        ctx.checkpoint()
        parcel.weight = 2
        parcel.extra = {"ratio": 0.1, "note": "päy €"}

    script["pack"] = pack
    place.engine.start(Parcel(address="Side Street 2"), id=workflow_id)
    assert place.run(0, workflow_id) is Ended.COMMITTED
    assert place.engine.checkpoint(workflow_id) is not None


def sent(place: Place, seq: int = 1, key: str = "mail-1") -> None:
    place.engine.send(ID, "decide", Decision(send=True, comment="go"), key=key)
    assert place.run(seq) is Ended.COMMITTED


def told(bundle: Bundle, *keys: SigningKey) -> tuple[list[str], list[str]]:
    """Return what both verifiers find wrong with a bundle."""
    own = [str(one) for one in failures(verify(bundle, [key.verifier for key in keys]))]
    trust = shipped.Trust([shipped.read_key(str(key.verifier)) for key in keys])
    found = shipped.Verification(bundle.to_bytes(), trust).findings
    return own, [str(one) for one in found if one.code not in shipped.INFORMATIVE]


# --- what moves --------------------------------------------------------------------------------------


def test_a_workflow_goes_on_in_another_deployment_where_it_was(
    home: Place, away: Place, script: dict[str, Act]
) -> None:
    packed(home, script)
    home.anchor()
    bundle = home.engine.export_bundle(ID)
    assert told(bundle, HOME_KEY) == ([], [])
    assert (bundle.head.anchored_length, len(bundle.transitions), len(bundle.checkpoints)) == (2, 2, 2)

    handle = away.engine.import_bundle(bundle)
    imported = away.engine.describe(ID)
    assert (handle.id, handle.new, imported.status, imported.state, imported.seq) == (ID, True, "paused", "packed", 2)
    assert (imported.accepts, imported.following) == (("decide",), "expire")
    assert imported.timer_at == home.engine.describe(ID).timer_at
    assert away.engine.get(ID) == home.engine.get(ID)
    assert away.verified() == []
    assert away.run(2) is Ended.STALE, "it is paused"

    assert away.engine.resume(ID)
    assert away.engine.describe(ID).status == "waiting"
    sent(away, seq=3)
    assert away.engine.describe(ID).status == "completed"
    links, before = away.engine.history(ID), home.engine.history(ID)
    assert [link.event for link in links] == ["created", "pack", "imported", "resumed", "decide"]
    assert links[:2] == before
    assert links[2].payload is not None
    assert links[2].payload == {
        "deployment": DEPLOYMENT,
        "progress": [away.engine.history(ID)[2].payload["progress"][0]],  # type: ignore[index,call-overload]
        "status": "paused",
    }
    assert away.verified() == []
    away.anchor()
    assert away.verified() == []


def test_approvals_go_on_in_another_deployment(home: Place, away: Place) -> None:
    home.engine.start(Budget(), id=ID)
    home.engine.send(ID, "submit", 500, key="s")
    assert home.run(0) is Ended.COMMITTED
    eve = make_engine(home.database, RecordingRing(), actor="user:eve")
    eve.send(ID, "approve", "fine", key="k", reason="as planned")
    assert home.run(1) is Ended.COMMITTED
    home.anchor()
    bundle = home.engine.export_bundle(ID)
    assert told(bundle, HOME_KEY) == ([], [])
    away.engine.import_bundle(bundle)
    away.engine.resume(ID)
    assert row(away.database, ID).steered_by == "user:ada"
    assert value(away.database, "SELECT reason FROM aegis_event WHERE name = 'approve'") == "as planned"
    with pytest.raises(FourEyes):
        away.engine.send(ID, "approve", None)
    with pytest.raises(AlreadyApproved):
        make_engine(away.database, RecordingRing(), actor="user:eve").send(ID, "approve", None)
    make_engine(away.database, RecordingRing(), actor="user:max").send(ID, "approve", None)
    assert away.run(4) is Ended.COMMITTED
    assert away.engine.get(ID).approved_by == ["user:eve", "user:max"]  # type: ignore[attr-defined]
    assert away.verified() == []
    away.anchor()
    assert told(away.engine.export_bundle(ID), AWAY_KEY) == ([], [])


def test_conditions_move_with_a_workflow(home: Place, away: Place, script: dict[str, Act]) -> None:
    script["pack"] = lambda _, ctx: ctx.set_attributes({"stage": "packed"})
    given: dict[str, Any] = {"priority": 7, "queue": "home", "attributes": {"customer": 7}, "singleton": "k"}
    home.engine.start(Parcel(), id=ID, deadline=timedelta(hours=1), **given)
    home.engine.start(Once(), id="later", delay=timedelta(hours=1))
    home.run(0)
    home.anchor()
    for name in (ID, "later"):
        before = home.engine.describe(name)
        away.engine.import_bundle(home.engine.export_bundle(name))
        after = away.engine.describe(name)
        for what in ("priority", "queue", "attributes", "deadline", "singleton", "entered_at"):
            assert getattr(after, what) == getattr(before, what), what
    assert away.engine.describe(ID).attributes == {"stage": "packed"}
    away.engine.resume("later")
    assert row(away.database, "later").ready_at == home.engine.describe("later").entered_at
    away.engine.resume(ID)
    assert row(away.database, ID).ready_at == home.engine.describe(ID).deadline
    with pytest.raises(SingletonConflict):
        away.engine.start(Parcel(), singleton="k")


def test_a_key_that_another_has_where_it_moves_to_is_said(home: Place, away: Place) -> None:
    home.engine.start(Once(), id=ID, singleton="k")
    home.anchor()
    away.engine.start(Once(), id="holder", singleton="k")
    before = everything(away.database)
    with pytest.raises(BundleRefused, match="singleton key 'k'"):
        away.engine.import_bundle(home.engine.export_bundle(ID))
    assert everything(away.database) == before


def test_what_was_imported_is_exported_again_and_verifies_everywhere(
    home: Place, away: Place, third: Place, script: dict[str, Act]
) -> None:
    packed(home, script)
    home.anchor()
    away.engine.import_bundle(home.engine.export_bundle(ID))
    away.engine.resume(ID)
    away.anchor()
    again = away.engine.export_bundle(ID)
    assert (again.head.deployment, again.head.exported_by) == (DEPLOYMENT, away.name)
    assert told(again, AWAY_KEY) == ([], [])
    third.engine.import_bundle(again.to_dict())
    assert third.verified() == []
    third.engine.resume(ID)
    sent(third, seq=5)
    third.anchor()
    last = third.engine.export_bundle(ID)
    assert last.head.deployment == DEPLOYMENT
    assert told(last, THIRD_KEY) == ([], [])
    assert [link.event for link in third.engine.history(ID)] == [
        *("created", "pack", "imported", "resumed", "imported", "resumed", "decide")
    ]
    assert third.verified() == []


def test_an_event_that_was_taken_is_not_taken_again_where_it_moved_to(
    home: Place, away: Place, script: dict[str, Act]
) -> None:
    packed(home, script)
    sent(home, key="mail-77")
    home.anchor()
    away.engine.import_bundle(home.engine.export_bundle(ID))
    events = "SELECT count(*) FROM aegis_event WHERE workflow_id = 'p-42'"
    assert value(away.database, events) == 1
    stored = "SELECT name || ' ' || key || ' ' || sender || ' ' || consumed_seq FROM aegis_event"
    assert value(away.database, stored) == value(home.database, stored)
    assert value(away.database, "SELECT payload FROM aegis_event") == value(
        home.database, "SELECT payload FROM aegis_event"
    )


@pytest.mark.parametrize("ending", ["completed", "cancelled", "failed", "paused"])
def test_what_has_ended_or_stopped_is_that_where_it_moved_to(
    home: Place, away: Place, script: dict[str, Act], ending: str
) -> None:
    def fail(_: Any, __: Any) -> None:
        raise ValueError("no money")

    if ending == "failed":
        script["act"] = fail
    home.engine.start(Once(), id=ID)
    if ending in {"completed", "failed"}:
        home.run(0)
    elif ending == "cancelled":
        home.engine.cancel(ID, reason="not wanted")
    else:
        home.engine.pause(ID, reason="later")
    before = home.engine.describe(ID)
    assert before.status == ending
    home.anchor()
    away.engine.import_bundle(home.engine.export_bundle(ID))
    after = away.engine.describe(ID)
    assert (after.status, after.state, after.created_at) == (ending, before.state, before.created_at)
    assert (after.error or {}).get("message") == (before.error or {}).get("message")
    assert away.verified() == []
    away.anchor()
    assert told(away.engine.export_bundle(ID), AWAY_KEY) == ([], [])


def test_what_failed_can_be_tried_again_where_it_moved_to(home: Place, away: Place, script: dict[str, Act]) -> None:
    def fail(_: Any, __: Any) -> None:
        raise ValueError("no money")

    script["act"] = fail
    home.engine.start(Once(), id=ID)
    home.run(0)
    home.anchor()
    away.engine.import_bundle(home.engine.export_bundle(ID))
    script.clear()
    away.engine.retry(ID)
    assert away.run(3) is Ended.COMMITTED
    assert away.engine.describe(ID).status == "completed"
    assert away.verified() == []


def test_a_timer_runs_out_where_it_moved_to_when_it_would_have(
    home: Place, away: Place, script: dict[str, Act]
) -> None:
    packed(home, script)
    home.anchor()
    away.engine.import_bundle(home.engine.export_bundle(ID))
    away.engine.resume(ID)
    assert row(away.database, ID).due_at == row(home.database, ID).timer_at


def test_erased_data_stays_erased_and_is_no_failure(home: Place, away: Place, script: dict[str, Act]) -> None:
    packed(home, script)
    sent(home)
    home.engine.erase(ID, reason="asked to")
    home.anchor()
    bundle = home.engine.export_bundle(ID)
    assert b"Side Street" not in bundle.to_bytes()
    assert told(bundle, HOME_KEY) == ([], [])
    away.engine.import_bundle(bundle)
    assert away.engine.describe(ID).status == "completed"
    assert away.verified() == []
    away.anchor()
    assert told(away.engine.export_bundle(ID), AWAY_KEY) == ([], [])


def test_pruned_checkpoints_are_recorded_as_pruned_where_it_moved_to(
    home: Place, away: Place, script: dict[str, Act]
) -> None:
    packed(home, script)
    sent(home)
    assert home.engine.prune(keep=1, older_than=timedelta(0)) > 0
    home.anchor()
    bundle = home.engine.export_bundle(ID)
    assert bundle.head.pruned_through == 1
    assert told(bundle, HOME_KEY) == ([], [])
    away.engine.import_bundle(bundle)
    assert away.verified() == []
    assert away.verified(SYSTEM) == []
    away.anchor()
    again = away.engine.export_bundle(ID)
    assert again.head.pruned_through == 1
    assert told(again, AWAY_KEY) == ([], [])


def test_codes_of_the_deployment_seal_what_is_its_own(
    home: Place, another: Callable[[str], Database], tmp_path: Path, script: dict[str, Act]
) -> None:
    mac_key = MacKey(id="m", secret=b"s" * 32, required_from=datetime(2020, 1, 1, tzinfo=UTC))
    away = make_place(another(AWAY_KEY.name), AWAY_KEY, tmp_path, mac_key=mac_key)
    packed(home, script)
    home.anchor()
    away.engine.import_bundle(home.engine.export_bundle(ID))
    assert away.verified() == []
    assert value(away.database, "SELECT count(*) FROM aegis_transition WHERE mac IS NOT NULL") == 1
    assert sql(away.database, "UPDATE aegis_transition SET mac = NULL, mac_key = NULL WHERE seq = 2") == 1
    assert any("MAC_INVALID" in line for line in away.verified())


def test_a_moved_workflow_may_take_part_in_the_log_of_before(home: Place, away: Place, script: dict[str, Act]) -> None:
    """Where its log had other entries, the proofs are of other places."""
    for number in range(5):
        away.engine.start(Booking(), id=f"b-{number}")
    away.anchor()
    packed(home, script)
    home.anchor()
    away.engine.import_bundle(home.engine.export_bundle(ID))
    away.anchor()
    again = away.engine.export_bundle(ID)
    assert [one.log_index for one in again.transitions] == [5, 6, 7]
    assert told(again, AWAY_KEY) == ([], [])


# --- what is exported -----------------------------------------------------------------------------------


def test_what_is_not_there_is_not_exported(home: Place, script: dict[str, Act]) -> None:
    with pytest.raises(WorkflowNotFound):
        home.engine.export_bundle("nowhere")
    packed(home, script)
    home.engine.cancel(ID)
    home.anchor()
    home.engine.purge(ID)
    with pytest.raises(WorkflowPurged):
        home.engine.export_bundle(ID)


def test_what_was_never_anchored_is_exported_without_proofs(home: Place, script: dict[str, Act]) -> None:
    packed(home, script)
    bundle = home.engine.export_bundle(ID)
    assert (bundle.head.note, bundle.head.log_size, bundle.head.anchored_length) == (None, 0, 0)
    assert told(bundle, HOME_KEY) == ([], [])


def test_what_was_committed_after_the_anchor_is_exported_without_proofs(home: Place, script: dict[str, Act]) -> None:
    packed(home, script)
    home.anchor()
    sent(home)
    bundle = home.engine.export_bundle(ID)
    assert (bundle.head.anchored_length, len(bundle.transitions)) == (2, 3)
    assert [one.proof is None for one in bundle.transitions] == [False, False, True]
    assert told(bundle, HOME_KEY) == ([], [])


def test_a_tampered_history_is_exported_as_it_is_and_does_not_verify(home: Place, script: dict[str, Act]) -> None:
    packed(home, script)
    home.anchor()
    envelope = json.loads(bytes(value(home.database, "SELECT envelope FROM aegis_transition WHERE seq = 1")))
    forged = canonical(envelope | {"actor": "user:mallory"})
    assert sql(
        home.database,
        "UPDATE aegis_transition SET envelope = :forged, hash = :hash, actor = 'user:mallory' WHERE seq = 1",
        forged=forged,
        hash=transition_hash(forged),
    )
    assert sql(home.database, "UPDATE aegis_workflow SET head = :hash", hash=transition_hash(forged))
    own, others = told(home.engine.export_bundle(ID), HOME_KEY)
    assert [line for line in own if "transition 1: ANCHOR_MISMATCH" in line]
    assert [line for line in others if "transition 1: ANCHOR_MISMATCH" in line]


@pytest.mark.parametrize("body", [b"\xff\xfe", b"a\0b"])
def test_what_is_not_even_text_is_said_to_be_broken(home: Place, script: dict[str, Act], body: bytes) -> None:
    packed(home, script)
    assert sql(home.database, "UPDATE aegis_checkpoint SET body = :body WHERE seq = 1 AND number = 0", body=body)
    with pytest.raises(HistoryBroken, match="transition 1: its checkpoint is no text"):
        home.engine.export_bundle(ID)


def test_a_log_that_does_not_lead_to_its_anchor_proves_nothing(home: Place, script: dict[str, Act]) -> None:
    packed(home, script)
    home.anchor()
    assert sql(home.database, "UPDATE aegis_log SET hash = :hash WHERE log_index = 0", hash=b"\0" * 32)
    with pytest.raises(LogBroken, match="not what was anchored"):
        home.engine.export_bundle(ID)


# --- what is refused -------------------------------------------------------------------------------------


def untouched(place: Place, bundle: Any, kind: type[AegisError], match: str, **options: Any) -> None:
    """Import, and see that it is refused, and not one row was written."""
    before = everything(place.database)
    with pytest.raises(kind, match=match):
        place.engine.import_bundle(bundle, **options)
    assert everything(place.database) == before


@pytest.fixture
def bundle(home: Place, script: dict[str, Act]) -> Bundle:
    packed(home, script)
    home.anchor()
    return home.engine.export_bundle(ID)


def test_damage_is_refused_with_every_line_named(away: Place, bundle: Bundle) -> None:
    damaged = bundle.to_bytes().replace(b"Side Street", b"Wide Street")
    untouched(away, damaged, BundleRefused, r"transition 0: NON_CANONICAL.*transition 1: NON_CANONICAL")
    untouched(away, b"not a bundle", BundleRefused, "NON_CANONICAL")
    document = bundle.to_dict()
    document["transitions"][1]["hash"] = "0" * 64
    untouched(away, document, BundleRefused, "transition 1: NON_CANONICAL")
    untouched(away, {"format": "aegis-bundle/v2"}, NotABundle, "aegis-bundle/v1")


@pytest.mark.parametrize("bad", TEXTS, ids=str)
def test_what_is_no_document_is_refused_as_a_bundle_and_inside_one(away: Place, bundle: Bundle, bad: BadText) -> None:
    """As the whole file, in the place of a transition, and in that of the head: by name, and nothing is written."""
    before = everything(away.database)
    lines = bundle.to_bytes().split(b"\n")
    text = bad.within("", "")
    for document in (text, b"\n".join([lines[0], text, *lines[2:]]), b"\n".join([text, *lines[1:]])):
        with pytest.raises((BundleRefused, NotABundle)) as caught:
            away.engine.import_bundle(document, source="the file")
        assert str(caught.value).startswith("the file ")
        assert str(caught.value).isprintable()
    assert everything(away.database) == before


def test_edits_with_new_digests_are_refused_by_what_stands_against_them(away: Place, bundle: Bundle) -> None:
    last = bundle.transitions[-1]
    edited = replace(last, checkpoint=(last.checkpoint or b"").replace(b"Side", b"Wide"))
    forged = replace(bundle, transitions=(*bundle.transitions[:-1], edited))
    untouched(away, forged, BundleRefused, "transition 1: CHECKPOINT_MISMATCH")
    untouched(away, replace(bundle, head=replace(bundle.head, deployment="x")), BundleRefused, "PREV_MISMATCH")
    untouched(away, replace(bundle, head=replace(bundle.head, status="cancelled")), BundleRefused, "ROW_STATE")


def test_what_nobody_trusted_signed_is_refused(away: Place, bundle: Bundle, tmp_path: Path) -> None:
    nobody = DurableWorkflowEngine(
        away.database, RecordingRing(), Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES)
    )
    untouched(replace(away, engine=nobody), bundle, BundleRefused, "no key is trusted here")
    stranger = Sources(trusted=(THIRD_KEY.verifier,))
    other = DurableWorkflowEngine(
        away.database, RecordingRing(), Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES), stranger
    )
    untouched(replace(away, engine=other), bundle, BundleRefused, "SIGNATURE_INVALID")


def test_what_is_not_anchored_is_refused_unless_that_is_accepted(
    home: Place, away: Place, bundle: Bundle, script: dict[str, Act]
) -> None:
    sent(home)
    later = home.engine.export_bundle(ID)
    untouched(away, later, BundleRefused, r"1 of 3 transitions are not anchored: .*--accept-unanchored")
    away.engine.import_bundle(later, accept_unanchored=True)
    assert away.engine.describe(ID).status == "completed"
    assert away.verified() == []


def test_a_history_that_was_cut_off_is_refused_with_the_exporters_anchors(
    home: Place, away: Place, bundle: Bundle, script: dict[str, Act]
) -> None:
    sent(home)
    home.anchor()
    # True, as far as it goes: only the anchors know that there was more.
    untouched(away, bundle, BundleRefused, "transition 2: TRUNCATED", anchors=home.anchors.anchors())
    away.engine.import_bundle(bundle, anchors=list(home.anchors.anchors())[:1])


def test_an_id_that_is_taken_is_refused(home: Place, away: Place, bundle: Bundle, script: dict[str, Act]) -> None:
    away.engine.import_bundle(bundle)
    untouched(away, bundle, BundleRefused, "this history is here already")
    sent(home)
    home.anchor()
    untouched(away, home.engine.export_bundle(ID), BundleRefused, "another workflow")
    untouched(home, bundle, BundleRefused, "this history is here already: workflow 'p-42' is at transition 2")


def test_another_workflow_under_the_id_is_refused(away: Place, bundle: Bundle) -> None:
    away.engine.start(Booking(), id=ID)
    untouched(away, bundle, BundleRefused, "another workflow 'p-42'")


def test_a_purged_id_is_refused(away: Place, bundle: Bundle) -> None:
    away.engine.start(Booking(), id=ID)
    away.engine.cancel(ID)
    away.anchor()
    away.engine.purge(ID)
    untouched(away, bundle, WorkflowPurged, "never used again")


def test_an_id_that_the_log_knows_of_is_refused(away: Place, bundle: Bundle) -> None:
    away.engine.start(Booking(), id=ID)
    away.anchor()
    for table in ("transition", "checkpoint"):
        sql(away.database, f"DELETE FROM aegis_{table} WHERE workflow_id = 'p-42'")  # noqa: S608
    sql(away.database, "DELETE FROM aegis_workflow WHERE id = 'p-42'")
    untouched(away, bundle, BundleRefused, "there was a workflow of that id here")


def test_the_systems_own_chain_is_exported_and_never_imported(
    home: Place, away: Place, bundle: Bundle, script: dict[str, Act]
) -> None:
    sent(home)
    home.engine.prune(keep=1, older_than=timedelta(0))
    home.anchor()
    own = home.engine.export_bundle(SYSTEM)
    assert told(own, HOME_KEY) == ([], [])
    untouched(away, own, InvalidName, "the system's own")


def test_a_type_that_is_not_loaded_is_refused(away: Place, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    types = {name: cls for name, cls in registry._types.items() if name != "store.Parcel"}
    monkeypatch.setattr(registry, "_types", types)
    untouched(away, bundle, UnknownWorkflowType, "store.Parcel")


def test_another_version_is_refused(away: Place, bundle: Bundle) -> None:
    later = replace(bundle, head=replace(bundle.head, version=2))
    untouched(away, later, BundleRefused, "it is of version 2 of store.Parcel, and version 1 is loaded here")


def test_data_that_does_not_fit_the_class_is_refused(
    away: Place, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._types, "store.Parcel", Booking)
    untouched(away, bundle, InvalidData, "/address")


def test_a_status_that_the_state_cannot_have_is_refused(away: Place, bundle: Bundle) -> None:
    """After a transition of its own, the chain leaves open whether it has ended: the class does not."""
    ended = replace(bundle, head=replace(bundle.head, status="completed"))
    untouched(away, ended, BundleRefused, "it is said to be completed, and its state 'packed' is no end here")


def test_of_two_imports_at_once_one_is_refused(away: Place, bundle: Bundle) -> None:
    outcomes: list[str] = []

    def take() -> None:
        try:
            outcomes.append(away.engine.import_bundle(bundle).id)
        except BundleRefused as error:
            outcomes.append(str(error.findings[0]))

    with meanwhile(take), meanwhile(take):
        pass
    refused, done = sorted(outcomes, key=lambda outcome: outcome == ID)
    assert done == ID
    assert "this history is here already" in refused
    assert away.verified() == []


def test_a_crash_in_the_middle_leaves_nothing(away: Place, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise WorkflowNotFound("died here")

    before = everything(away.database)
    monkeypatch.setattr("aegis.persistence.transfer.commit", die)
    with pytest.raises(WorkflowNotFound):
        away.engine.import_bundle(bundle)
    assert everything(away.database) == before


# --- as commands -----------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, home: Place, away: Place) -> Callable[..., Any]:
    """Run ``aegis export`` at home, and ``aegis import`` away."""
    monkeypatch.setattr("aegis.cli.transfer.database", lambda: home.database)
    monkeypatch.setattr("aegis.cli.transfer.engine", lambda: away.engine)
    return lambda *arguments: CliRunner().invoke(aegis, [str(one) for one in arguments])


def test_commands_move_a_workflow(
    home: Place, away: Place, bundle: Bundle, command: Callable[..., Any], tmp_path: Path
) -> None:
    file, verifier = tmp_path / "p-42.json", tmp_path / "verify_bundle.py"
    done = command("export", ID, "-o", file, "--with-verifier")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"p-42: 2 transitions, 2 of them anchored, in {file} and {verifier}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Bundle.from_bytes(file.read_bytes()).transitions == bundle.transitions
    alone = [sys.executable, "-I", "-S", verifier, file, "--key", str(HOME_KEY.verifier)]
    checked = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert checked.stdout.endswith("result       VERIFIED\n"), checked.stdout
    assert checked.returncode == 0

    done = command("import", file, "--anchors", home.anchors.path)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "p-42 imported: 2 transitions, it is paused in state packed; `aegis resume p-42` lets it go on\n"
    )
    assert away.engine.describe(ID).status == "paused"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bundle_that_was_tampered_with_is_refused_at_the_command_line_with_all_findings(
    away: Place,
    bundle: Bundle,
    command: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    *,
    as_json: bool,
) -> None:
    last = bundle.transitions[-1]
    forged = replace(
        bundle,
        head=replace(bundle.head, status="cancelled"),
        transitions=(
            replace(bundle.transitions[0], checkpoint=(bundle.transitions[0].checkpoint or b"").replace(b"Side", b"W")),
            *bundle.transitions[1:-1],
            replace(last, checkpoint=(last.checkpoint or b"").replace(b"Side", b"Wide")),
        ),
    )
    file = tmp_path / "forged.json"
    file.write_bytes(forged.to_bytes())
    expected = [str(one) for one in failures(verify(forged, KEYS))]
    assert len(expected) >= 3
    before = everything(away.database)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(file), *(["--json"] if as_json else [])])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    line = json.loads(said.err)["error"] if as_json else said.err
    assert "forged.json was not imported, nothing was written: " in line
    for finding in expected:
        assert finding in line
    if as_json:
        assert json.loads(said.err)["type"] == "BundleRefused"
    assert everything(away.database) == before


def test_a_file_that_is_there_is_left_alone_unless_told_otherwise(
    bundle: Bundle, command: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "p-42.json"
    file.write_text("mine")
    done = command("export", ID, "-o", file)
    assert (done.exit_code, file.read_text()) == (2, "mine")
    assert "--force writes over it" in done.stderr
    done = command("export", ID, "-o", file, "--force", "--json")
    assert json.loads(done.stdout) == {"id": ID, "transitions": 2, "anchored": 2, "files": [str(file)]}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "no temporary file is left"
    assert Bundle.from_bytes(file.read_bytes()).head.workflow_id == ID


def test_what_is_not_in_the_file_is_said(
    home: Place, bundle: Bundle, command: Callable[..., Any], tmp_path: Path
) -> None:
    home.engine.pause(ID)
    home.engine.send(ID, "decide", Decision(send=True))
    done = command("export", ID, "-o", tmp_path / "b.json")
    assert done.exit_code == 0
    assert "1 of its 3 transitions are not anchored: export it again after the next anchor" in done.stderr
    assert "1 event was received and not taken: not in the file" in done.stderr


def test_a_bundle_goes_through_standard_output_and_input(
    home: Place, away: Place, bundle: Bundle, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("export", ID, "-o", "-")
    assert Bundle.from_bytes(done.stdout_bytes).transitions == bundle.transitions
    assert command("export", ID, "-o", "-", "--with-verifier").exit_code == 2
    taken = CliRunner().invoke(aegis, ["import", "-", "--json"], input=done.stdout_bytes)
    assert json.loads(taken.stdout) == {"id": ID, "status": "paused", "state": "packed", "seq": 2}


@pytest.mark.parametrize("arguments", [["import", "/nonexistent"], ["export", ID, "-o", "/nonexistent/b.json"]])
def test_a_file_that_cannot_be_used_is_an_error_with_its_name(
    bundle: Bundle, command: Callable[..., Any], arguments: list[str]
) -> None:
    done = command(*arguments)
    assert isinstance(done.exception, InvalidData)
    assert arguments[-1] in str(done.exception)
