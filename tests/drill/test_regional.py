"""Drills over three regions, for real: a cut loses nothing, and the control, which loses something, does not pass."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from aegis.config.keys import new_anchor_key
from aegis.recovery.drill.scenarios import ALL, BY_NAME
from aegis.recovery.regions.namespace import why_not

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        os.environ.get("AEGIS_TEST_REGIONS") != "1",
        reason="ten minutes of a machine that does nothing else: AEGIS_TEST_REGIONS=1 runs it",
    ),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

# How long it takes is another question on a machine that others work on, too.
PATIENT = {"AEGIS_OBJECTIVES": "region=0/90", "AEGIS_HEALTH_TIMEOUT": "10"}
WITHIN = 500.0


def drilled(home: Path, scenario: str) -> tuple[int, dict[str, Any]]:
    """Run a drill; return its exit status, and its report."""
    new_anchor_key(home / "keys", "aegis.example/drill")
    process = CommandLine({"AEGIS_HOME": str(home), **PATIENT}, home).begin("drill", scenario, "--json", "--load", "4")
    try:
        stdout, stderr = process.communicate(timeout=WITHIN)
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode in {0, 1}, stderr
    (report,) = json.loads(stdout)["reports"]
    return process.returncode, report


def checks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (outcome,) = report["outcomes"]
    return {check["name"]: check for check in outcome["checks"]}


@pytest.mark.parametrize("scenario", ["region-killed", "region-cut"])
def test_the_region_with_the_primary_goes_and_nothing_that_anybody_was_told_is_lost(home: Path, scenario: str) -> None:
    status, report = drilled(home, scenario)
    assert [check for check in checks(report).values() if not check["passed"]] == []
    (outcome,) = report["outcomes"]
    assert (status, report["verdict"], outcome["lost"], outcome["doubled"]) == (0, "PASS", 0, 0)
    assert outcome["met"] > 0
    assert outcome["acknowledged"] > 50
    assert outcome["refused"] > 0, "whoever is inside was told that it cannot be accepted now"
    page = BY_NAME[scenario]
    typed = [ran["command"] for ran in outcome["commands"]]
    assert typed == [str(command) for command in (*page.check, *page.heal, *page.over)]


def test_the_same_cut_where_nobody_waits_for_another_region_is_reported_as_a_failure(home: Path) -> None:
    assert "region-cut-asynchronous" not in ALL
    status, report = drilled(home, "region-cut-asynchronous")
    (outcome,) = report["outcomes"]
    assert (status, report["verdict"]) == (1, "FAIL")
    assert outcome["lost"] > 0
    found = checks(report)
    assert not found["acknowledged and lost"]["passed"]
    assert str(outcome["lost"]) in found["acknowledged and lost"]["measured"]
    assert found["lost and listed"]["passed"], "what was anchored inside, and is gone, is named"
    assert found["runbook"]["passed"], outcome["commands"]
