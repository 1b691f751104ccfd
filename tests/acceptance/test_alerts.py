"""The rules for Prometheus, by Prometheus's own tool: each of them fires when it should, and says what it should."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

RULES: Final = Path(__file__).parents[2] / "deploy" / "alerts.yml"
PROMTOOL: Final = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")

# What each figure of a deployment is that nobody needs to be woken for.
GOOD: Final = {
    'node_textfile_mtime_seconds{file="/var/lib/node_exporter/aegis.prom"}': "0+60x3000",
    'aegis_check{part="database",state="ok"}': "1x3000",
    'aegis_check{part="database",state="down"}': "0x3000",
    'aegis_check{part="archive",state="degraded"}': "0x3000",
    "aegis_scrub_findings": "0x3000",
    "aegis_scrub_coverage_ratio": "1x3000",
    "aegis_scrub_problems": "0x3000",
    "aegis_anchor_age_seconds": "60x3000",
    "aegis_log_entries": "0+1000x3000",
    "aegis_anchored_entries": "0+1000x3000",
    "aegis_sweep_age_seconds": "1x3000",
    "aegis_workers": "2x3000",
    "aegis_overdue_seconds": "0x3000",
    "aegis_workflows_ready": "12x3000",
    "aegis_workflows_troubled": "0x3000",
    "aegis_unsaved_seconds": "30x3000",
}


@dataclass(frozen=True)
class Case:
    """What goes wrong after five minutes, when a person hears of it (minutes), and what it says."""

    series: dict[str, str]
    minute: int
    summary: str
    labels: dict[str, str] = field(default_factory=dict)


CASES: Final = {
    # Its time is that of the fourth minute: more than five minutes old from the tenth on.
    "AegisFiguresStopped": Case(
        {'node_textfile_mtime_seconds{file="/var/lib/node_exporter/aegis.prom"}': "0+60x4 240x3000"},
        11,
        "No figures of AEGIS for five minutes",
        {"file": "/var/lib/node_exporter/aegis.prom"},
    ),
    "AegisFiguresMissing": Case(
        {each: "1x4 stale" for each in GOOD if each.startswith("aegis_check")},
        15,
        "There are no figures of AEGIS at all",
    ),
    "AegisDown": Case(
        {'aegis_check{part="database",state="down"}': "0x4 1x3000"},
        6,
        "database is down",
        {"part": "database", "state": "down"},
    ),
    "AegisDegraded": Case(
        {'aegis_check{part="backlog",state="degraded"}': "0x4 1x3000"},
        15,
        "backlog is degraded",
        {"part": "backlog", "state": "degraded"},
    ),
    "AegisWritesMayWait": Case(
        {'aegis_check{part="archive",state="degraded"}': "0x4 1x3000"},
        10,
        "archive is degraded: one more loss may stop writes",
        {"part": "archive", "state": "degraded"},
    ),
    "AegisHistoryChanged": Case({"aegis_scrub_findings": "0x4 1x3000"}, 5, "A history was changed"),
    "AegisNotVerified": Case(
        {"aegis_scrub_coverage_ratio": "1x4 0.5x3000"},
        5 + 2 * 24 * 60,
        "Only 50% of the history was verified in time",
    ),
    "AegisVerificationHindered": Case({"aegis_scrub_problems": "0x4 1x3000"}, 65, "Something could not be verified"),
    "AegisNotAnchored": Case({"aegis_anchor_age_seconds": "60x4 900x3000"}, 10, "No anchor for 15m 0s"),
    "AegisAnchorsBehind": Case(
        {"aegis_log_entries": "0x4 10001x3000", "aegis_anchored_entries": "0x3000"},
        15,
        "10001 transitions are in no anchor",
    ),
    "AegisNoSweep": Case({"aegis_sweep_age_seconds": "1x4 90x3000"}, 6, "No sweep for 1m 30s"),
    "AegisNoWorkers": Case({"aegis_workers": "2x4 0x3000"}, 7, "No worker gives a sign of life"),
    "AegisOverdue": Case({"aegis_overdue_seconds": "0x4 150x3000"}, 10, "A workflow has been due for 2m 30s"),
    "AegisBacklog": Case(
        {"aegis_workflows_ready": "12x4 1000x3000"},
        20,
        "1000 workflows or more could run, and nobody has them in hand",
    ),
    "AegisTroubled": Case({"aegis_workflows_troubled": "0x4 3x3000"}, 10, "3 workflows failed, or are quarantined"),
    "AegisHandlerWithoutCheckpoint": Case(
        {"aegis_unsaved_seconds": "30x4 1800x3000"}, 10, "A handler has run for 30m 0s without a checkpoint"
    ),
}


def rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expect(tmp_path: Path, series: dict[str, str], *alerts: dict[str, Any]) -> None:
    """Have the tool look at the rules while the figures are these."""
    told = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": list(alerts),
            }
        ],
    }
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(told))
    promtool("test", "rules", file)


def fires(name: str, case: Case) -> dict[str, Any]:
    rule = rules()[name]
    annotations = {"summary": case.summary, "description": rule["annotations"]["description"]}
    found = {"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": annotations}
    return {"eval_time": f"{case.minute}m", "alertname": name, "exp_alerts": [found]}


def silent(name: str, minute: int) -> dict[str, Any]:
    return {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", RULES)


def test_each_rule_is_tried() -> None:
    assert CASES.keys() == rules().keys()


def test_nobody_is_woken_while_all_is_well(tmp_path: Path) -> None:
    expect(tmp_path, GOOD, *(silent(name, minute) for name in CASES for minute in (1, 30, 2990)))


@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires_when_it_should_and_not_a_minute_before(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    expect(tmp_path, GOOD | case.series, silent(name, case.minute - 1), fires(name, case))
