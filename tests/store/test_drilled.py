"""What health makes of the reports of drills: met, missed, old, unreadable, and none at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aegis.config.settings import Settings, read
from aegis.tasks.check import Check, State
from aegis.tasks.drilled import drills

SERVERS = {"AEGIS_DATABASE_URL": "postgresql://db/a", "AEGIS_BROKER_URL": "redis://b"}


def keep(home: Path, scenario: str, objective: str, **changes: object) -> None:
    """Keep a report as `aegis drill` does, as far as health reads it."""
    body = {
        "scenario": scenario,
        "objective": {"name": objective},
        "verdict": "PASS",
        "finished_at": datetime.now(UTC).isoformat(),
        "measured": {"rpo": 0.0, "rto": 1.25},
    }
    (home / "drills").mkdir(exist_ok=True)
    (home / "drills" / f"{scenario}.json").write_text(json.dumps(body | changes))


def look(home: Path, **variables: str) -> Check:
    return drills(read({"AEGIS_HOME": str(home), **variables}))


def test_nothing_measured_is_a_warning_where_somebody_relies_on_it(tmp_path: Path) -> None:
    assert look(tmp_path).state is State.OK
    assert "no objective was measured yet" in look(tmp_path).says
    relied_on = look(tmp_path, **SERVERS)
    assert (relied_on.state, relied_on.says) == (State.WARNING, "no objective was ever measured")
    assert "`aegis drill quick`" in relied_on.remedy


def test_what_was_measured_stands_beside_what_is_declared(tmp_path: Path) -> None:
    keep(tmp_path, "worker", "process")
    keep(tmp_path, "child", "process", measured={"rpo": 0, "rto": 2.34})
    keep(tmp_path, "broker-wiped", "broker")
    found = look(tmp_path, **SERVERS)
    assert found.state is State.OK
    assert found.says.startswith("process 2.3 s of 5 s; broker 1.2 s of 5 s; the oldest 0.")
    assert found.says.endswith(
        "never: host, long-handler, broker-failover, database, machine, disk, tampering, database-disk, database-node,"
        " switch-over, region, operator"
    )


def test_what_was_missed_is_said_also_where_the_objective_became_stricter_since(tmp_path: Path) -> None:
    keep(tmp_path, "worker", "process")
    assert look(tmp_path).state is State.OK
    stricter = look(tmp_path, AEGIS_OBJECTIVES="process=0/1")
    assert (stricter.state, stricter.says) == (State.WARNING, "worker took 1.2 s of 1 s")
    keep(tmp_path, "worker", "process", verdict="FAIL")
    assert look(tmp_path).says == "worker failed"
    keep(tmp_path, "worker", "process", measured={"rpo": 0.75, "rto": 1})
    assert look(tmp_path).says == "worker lost 0.8 s of 0 s"
    keep(tmp_path, "worker", "process", measured={"rpo": 0, "rto": None})
    assert look(tmp_path).says == "worker took no end of 5 s"


def test_what_is_old_is_said_with_its_age(tmp_path: Path) -> None:
    before = (datetime.now(UTC) - timedelta(days=31)).isoformat()
    keep(tmp_path, "worker", "process", finished_at=before)
    found = look(tmp_path)
    assert (found.state, found.says) == (State.WARNING, "worker was drilled 31 d ago")
    assert look(tmp_path, AEGIS_DRILL_WITHIN="5000000").state is State.OK


def test_what_is_no_report_is_named(tmp_path: Path) -> None:
    keep(tmp_path, "worker", "process")
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"measured": 1}'), ("d", "\x00" * (9 * 1024 * 1024))):
        (tmp_path / "drills" / f"{name}.json").write_text(text)
    found = look(tmp_path)
    assert found.state is State.WARNING
    assert found.says.startswith("a.json, b.json, c.json, d.json in ")


def test_the_reports_are_read_within_health(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.places.drills == tmp_path / "drills"
