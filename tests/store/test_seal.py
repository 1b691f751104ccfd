"""A checkpoint inside a handler, and the code without which no worker goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from store_workbench import RecordingRing, make_due, row, sql
from store_workflows import Act, Parcel
from tampering import make_mac_key

from aegis.config.settings import Settings
from aegis.core.canonical import canonical
from aegis.core.chain import MacKey, checkpoint_commitment
from aegis.core.seal import flaw, inside_hash
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

SALT = b"\x07" * 32


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_mac_key(tmp_path)
    return tmp_path


def at_work(database: Database, keys: Path) -> Bench:
    return Bench(Settings(home=keys, keys=keys), database, RecordingRing(), "w@test")


def started(database: Database, keys: Path) -> DurableWorkflowEngine:
    """A parcel, accepted by whoever has the keys."""
    bench = at_work(database, keys)
    terms: Terms = bench.terms
    engine = DurableWorkflowEngine(database, RecordingRing(), replace(terms, actor="user:ada"))
    engine.start(Parcel(), id="p")
    return engine


@pytest.fixture
def cut_off(database: Database, keys: Path, script: dict[str, Act]) -> DurableWorkflowEngine:
    """A parcel whose handler saved its progress twice, and was then cut off."""
    engine = started(database, keys)

    def pack(parcel: Any, ctx: Any) -> None:
        for weight in (1, 2):
            parcel.weight = weight
            ctx.checkpoint()
        raise KeyboardInterrupt

    script["pack"] = pack
    with pytest.raises(KeyboardInterrupt):
        run_transition(at_work(database, keys), "p", 0)
    make_due(database, "p")

    def go_on(parcel: Any, _ctx: Any) -> None:
        parcel.done.append(f"from {parcel.weight}")

    script["pack"] = go_on
    return engine


def forge(database: Database) -> None:
    body = canonical({"seq": 0, "state": {"state": "new", "weight": 1000}, "workflow_id": "p"})
    digest = checkpoint_commitment(SALT, body)
    change = "body = :body, salt = :salt, commitment = :digest WHERE number = 2"
    assert sql(database, f"UPDATE aegis_checkpoint SET {change}", body=body, salt=SALT, digest=digest)  # noqa: S608


def test_a_handler_goes_on_from_what_carries_its_code(
    cut_off: DurableWorkflowEngine, database: Database, keys: Path
) -> None:
    assert sql(database, "UPDATE aegis_checkpoint SET mac = mac WHERE number > 0 AND mac IS NOT NULL") == 2
    assert sql(database, "UPDATE aegis_checkpoint SET mac = mac WHERE number = 0 AND mac IS NOT NULL") == 0
    assert run_transition(at_work(database, keys), "p", 0) is Ended.COMMITTED
    assert cut_off.get("p").to_dict()["done"] == ["from 2"]
    assert cut_off.verify_integrity("p") == (True, None)


EDITS: dict[str, Callable[[Database], object]] = {
    "other data": forge,
    "no code": lambda db: sql(db, "UPDATE aegis_checkpoint SET mac = NULL, mac_key = NULL WHERE number = 2"),
    "another code": lambda db: sql(db, "UPDATE aegis_checkpoint SET mac = :other WHERE number = 2", other=SALT),
    "the code of the one before": lambda db: sql(
        db, "UPDATE aegis_checkpoint SET mac = (SELECT mac FROM aegis_checkpoint WHERE number = 1) WHERE number = 2"
    ),
    "an unknown key": lambda db: sql(db, "UPDATE aegis_checkpoint SET mac_key = 'no-such' WHERE number = 2"),
    "the first as the third": lambda db: [
        sql(db, "UPDATE aegis_checkpoint SET number = 3 WHERE number = 1"),
        sql(db, "UPDATE aegis_workflow SET checkpoint_number = 3"),
    ],
    "other data, and the transition of long ago": lambda db: [
        forge(db),
        sql(db, "UPDATE aegis_checkpoint SET mac = NULL, mac_key = NULL WHERE number = 2"),
        sql(db, "UPDATE aegis_transition SET at = at - interval '1 year'"),
    ],
}


@pytest.mark.parametrize("edit", EDITS)
def test_no_worker_goes_on_from_what_somebody_else_put_there(
    cut_off: DurableWorkflowEngine, database: Database, keys: Path, edit: str
) -> None:
    EDITS[edit](database)
    assert run_transition(at_work(database, keys), "p", 0) is Ended.LEFT
    found = row(database, "p")
    assert (found.seq, found.attempt, found.owner) == (0, 0, None)
    assert "its checkpoint is not the one that was committed" in found.error["message"]


def test_a_worker_without_keys_asks_for_no_code(
    cut_off: DurableWorkflowEngine, database: Database, tmp_path: Path
) -> None:
    forge(database)
    assert run_transition(at_work(database, tmp_path / "none"), "p", 0) is Ended.COMMITTED


def test_after_a_new_key_the_code_of_the_old_one_holds(
    cut_off: DurableWorkflowEngine, database: Database, keys: Path
) -> None:
    make_mac_key(keys)
    bench = at_work(database, keys)
    assert len(bench.mac_keys) == 2
    assert run_transition(bench, "p", 0) is Ended.COMMITTED


def test_what_follows_a_transition_of_before_the_key_needs_no_code(
    database: Database, tmp_path: Path, script: dict[str, Act]
) -> None:
    engine = started(database, tmp_path / "none")
    assert engine.checkpoint("p") is not None
    make_mac_key(tmp_path)
    assert run_transition(at_work(database, tmp_path), "p", 0) is Ended.COMMITTED


def test_a_code_is_of_one_place_alone() -> None:
    moment = datetime(2026, 11, 24, tzinfo=UTC)
    key = MacKey(id="k", secret=b"s" * 32, required_from=moment + timedelta(days=1))
    places = [("p", 1, 1, SALT), ("q", 1, 1, SALT), ("p", 2, 1, SALT), ("p", 1, 2, SALT), ("p", 1, 1, b"\x08" * 32)]
    hashes = [inside_hash(*place) for place in places]
    assert len(set(hashes)) == len(places)
    code = key.code(hashes[0])
    assert [flaw(code, "k", hash_, {"k": key}, needed=True) is None for hash_ in hashes] == [True, *[False] * 4]
    assert flaw(None, None, hashes[0], {"k": key}, needed=False) is None
    assert flaw(None, None, hashes[0], {"k": key}, needed=True) == ("a code, as there is a key", None)
    assert flaw(code, "j", hashes[0], {"k": key}, needed=False) == ("a key that is known here", "the key 'j'")
