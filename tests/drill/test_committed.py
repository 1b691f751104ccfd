"""The reports that are committed: sealed, told as they are, and without a trace of whose machine it was."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from statistics import median

import pytest

from aegis.config.keys import trusted_keys
from aegis.recovery.drill.scenarios import ALL, BY_NAME
from aegis.recovery.drill.seal import check_seal

DRILLS = Path(__file__).parents[2] / "docs" / "drills"
REPORTS = sorted(DRILLS.glob("*.json"))


# Of these the distribution is asked for, too.
OFTEN = ("database-failover", "region-killed", "region-cut")


@pytest.mark.parametrize("scenario", BY_NAME)
def test_there_is_a_report_of_each_scenario_sealed_and_of_three_runs_or_more(scenario: str) -> None:
    path = DRILLS / f"{scenario}.json"
    assert check_seal(path, trusted_keys(DRILLS / "keys.vkey"))
    report = json.loads(path.read_text())
    assert report["scenario"] == path.stem
    assert len(report["outcomes"]) >= (5 if path.stem in OFTEN else 3)
    assert report["verdict"] == ("PASS" if path.stem in ALL else "FAIL"), "a control has to fail"
    if path.stem in ALL:
        assert report["measured"]["lost"] == 0


def test_the_page_tells_of_each_report_as_it_is() -> None:
    rows = re.findall(
        r"^\| \[([\w-]+)\]\(\1\.md\) \| (\w+) \| (\d+) \| (.+) s \| (.+) s \| (.+) s \| (.+) \|$", _page(), re.MULTILINE
    )
    told = {name: figures for name, *figures in rows}
    assert set(told) == {path.stem for path in REPORTS} == set(BY_NAME)
    for path in REPORTS:
        report = json.loads(path.read_text())
        acknowledged = sum(outcome["acknowledged"] for outcome in report["outcomes"])
        assert told[path.stem] == [
            report["verdict"],
            str(len(report["outcomes"])),
            f"{report['objective']['rto']:g}",
            f"{report['measured']['rto']:.2f}",
            f"{median(outcome['rto'] for outcome in report['outcomes']):.2f}",
            f"{report['measured']['lost']} of {acknowledged}",
        ]


def test_each_promise_names_the_report_that_shows_it() -> None:
    promises = (DRILLS.parent / "why" / "guarantees.md").read_text()
    named = re.findall(r"\[`([\w-]+)`\]\(\.\./drills/\1\.md\)", promises)
    # To be tampered with loses nothing: what is promised of that is above.
    assert sorted(named) == sorted({path.stem for path in REPORTS} - {"tampering"})


def test_nothing_says_whose_machine_it_was() -> None:
    for path in DRILLS.iterdir():
        text = path.read_text()
        assert "/tmp/" not in text, path  # noqa: S108 - a place that must not be named
        assert f"@{socket.gethostname()}" not in text, path


def _page() -> str:
    return (DRILLS / "README.md").read_text()
