"""What ``aegis metrics`` and ``aegis health`` say of the proof: how much was verified, and how old the anchors are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url
from store_workbench import sql
from tampering import Scenes, Stage, anchor_now, signing_key

from aegis.config.settings import Settings
from aegis.persistence import span as spans
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks import scrub as scrubber
from aegis.tasks.check import Check, State
from aegis.tasks.health import health
from aegis.tasks.metrics import metrics

TRANSITIONS: Final = 12
ALERTS: Final = Path(__file__).parents[2] / "deploy" / "alerts.yml"


@pytest.fixture
def configured(shared_url: str, scenes: Scenes, tmp_path: Path) -> Settings:
    """What a beat would be told, whose broker is away."""
    trusted = tmp_path / "trusted.vkey"
    trusted.write_text(f"{signing_key().verifier}\n")
    return Settings(
        home=tmp_path,
        database_url=make_url(shared_url).set(drivername="postgresql").render_as_string(hide_password=False),
        broker_url="redis://127.0.0.1:1/0",
        keys=scenes.file.path.with_name("keys"),
        trusted_keys=trusted,
        anchors=(scenes.file.name,),
        health_timeout=10,
    )


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scrubber does one workflow at a time."""
    monkeypatch.setattr(spans, "_TRANSITIONS", 1)
    monkeypatch.setattr(scrubber, "_LEAST", 1)


def figures(settings: Settings) -> dict[str, float]:
    """Every figure without labels, by its name."""
    families = text_string_to_metric_families(metrics(settings))
    return {one.name: one.value for family in families for one in family.samples if not one.labels}


def check(settings: Settings, name: str) -> Check:
    return next(one for one in health(settings) if one.name == name)


# --- how much was verified ----------------------------------------------------------------------------


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("analysed", [False, True])
def test_the_coverage_rises_with_each_slice_and_is_whole_only_after_the_last(
    scenes: Scenes, database: Database, configured: Settings, *, analysed: bool
) -> None:
    """Also where the database has no statistics yet, or those of a time when there was less."""
    scenes.put_up(database, Stage.ANCHORED)
    sql(database, "UPDATE pg_class SET reltuples = -1 WHERE relname = 'aegis_transition'")
    if analysed:
        sql(database, "ANALYZE aegis_transition")
    seen = [figures(configured)["aegis_scrub_coverage_ratio"]]
    for _ in range(4):
        says = check(configured, "chains").says
        assert f"{seen[-1]:.0%} verified in the last 24 h" in says
        assert "100%" not in says
        scrubber.scrub(configured, database)
        seen.append(figures(configured)["aegis_scrub_coverage_ratio"])
    assert seen == pytest.approx([0, 5 / TRANSITIONS, 10 / TRANSITIONS, 0.99, 1])
    assert "100% verified in the last 24 h" in check(configured, "chains").says
    assert check(configured, "chains").state is State.OK


@pytest.mark.usefixtures("slices")
def test_old_statistics_do_not_make_it_whole(scenes: Scenes, database: Database, configured: Settings) -> None:
    scenes.put_up(database, Stage.FRESH)  # nothing is in the log: the estimate is all that there is
    sql(database, "UPDATE pg_class SET reltuples = 2 WHERE relname = 'aegis_transition'")
    scrubber.scrub(configured.model_copy(update={"anchors": ("none",)}), database)
    assert figures(configured)["aegis_scrub_coverage_ratio"] == 0.99
    assert "99% verified" in check(configured, "chains").says
    sql(database, "ANALYZE aegis_transition")


@pytest.mark.usefixtures("slices")
def test_a_round_that_is_late_is_below_whole_in_the_figures_and_a_warning_in_health(
    scenes: Scenes, database: Database, configured: Settings
) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    sql(database, "ANALYZE aegis_transition")
    for _ in range(4):
        scrubber.scrub(configured, database)
    assert figures(configured)["aegis_scrub_coverage_ratio"] == 1
    sql(database, "UPDATE aegis_scrub SET took_from = took_from - interval '25 h', started_at = now()")
    scrubber.scrub(configured, database)
    assert figures(configured)["aegis_scrub_coverage_ratio"] == pytest.approx(5 / TRANSITIONS)
    found = check(configured, "chains")
    assert found.state is State.WARNING
    assert "42% verified in the last 24 h" in found.says
    assert "aegis verify --all" in found.remedy
    assert figures(configured)["aegis_scrub_findings"] == 0


def test_what_verification_found_is_a_figure(scenes: Scenes, database: Database, configured: Settings) -> None:
    scene = scenes.put_up(database, Stage.ANCHORED)
    scene.sql("UPDATE aegis_transition SET actor = 'user:eve' WHERE workflow_id = 'p' AND seq = 2")
    scrubber.scrub(configured, database)
    assert figures(configured)["aegis_scrub_findings"] >= 1
    assert 'aegis_check{part="chains",state="down"} 1.0' in metrics(configured)


# --- how much is anchored -----------------------------------------------------------------------------


def test_entries_of_the_log_and_of_the_anchor_and_its_age(
    scenes: Scenes, database: Database, configured: Settings, tmp_path: Path
) -> None:
    scenes.put_up(database, Stage.FRESH)
    found = figures(configured)
    assert found["aegis_log_entries"] == 0
    assert not {name for name in found if name.startswith("aegis_anchor")}, "nothing is said of what never was"

    scenes.put_up(database, Stage.LOGGED)
    found = figures(configured)
    assert (found["aegis_log_entries"], "aegis_anchored_entries" in found) == (TRANSITIONS, False)

    scene = scenes.put_up(database, Stage.ANCHORED, tmp_path)
    sql(database, "UPDATE aegis_anchor SET at = clock_timestamp() - interval '100 s'")
    found = figures(configured)
    assert (found["aegis_log_entries"], found["aegis_anchored_entries"]) == (TRANSITIONS, TRANSITIONS)
    assert 100 <= found["aegis_anchor_age_seconds"] < 130

    engine: DurableWorkflowEngine = scene.engine()
    engine.pause("w")
    anchor_now(database, *scene.sinks)
    found = figures(configured)
    assert (found["aegis_log_entries"], found["aegis_anchored_entries"]) == (TRANSITIONS + 1, TRANSITIONS + 1)
    assert found["aegis_anchor_age_seconds"] < 30


def test_the_number_of_transitions_is_that_of_the_log_at_the_least(
    scenes: Scenes, database: Database, configured: Settings
) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    sql(database, "UPDATE pg_class SET reltuples = -1 WHERE relname = 'aegis_transition'")
    assert figures(configured)["aegis_transitions"] == TRANSITIONS


def test_every_figure_is_a_gauge_with_a_help_line(scenes: Scenes, database: Database, configured: Settings) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    told = metrics(configured)
    for name in figures(configured):
        assert re.search(rf"^# HELP {name} \S.+$", told, re.MULTILINE), name
        assert f"# TYPE {name} gauge" in told


# --- alerts -------------------------------------------------------------------------------------------


def test_every_figure_that_an_alert_is_about_is_one_that_is_printed(
    scenes: Scenes, database: Database, configured: Settings
) -> None:
    scenes.put_up(database, Stage.ANCHORED)
    printed = {one.name for one in text_string_to_metric_families(metrics(configured))}
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    assert len(group["rules"]) > 10
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    for rule in group["rules"]:
        named = set(re.findall(r"\b(?:aegis|node)_\w+", rule["expr"]))
        assert named, rule["alert"]
        assert named <= printed | {"node_textfile_mtime_seconds"}, rule["alert"]
        assert set(re.findall(r'state="(\w+)"', rule["expr"])) <= set(State)
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "description"}


# --- codes, before any statistics -----------------------------------------------------------------------


def test_a_newest_transition_without_a_code_is_told_before_any_statistics(
    scenes: Scenes, database: Database, configured: Settings
) -> None:
    scenes.put_up(database, Stage.FRESH)
    sql(database, "UPDATE pg_class SET reltuples = -1 WHERE relname = 'aegis_transition'")
    assert check(configured, "mac").state is State.OK
    changed = "UPDATE aegis_transition SET mac = NULL, mac_key = NULL WHERE workflow_id = 'w'"
    assert sql(database, changed) == 2
    found = check(configured, "mac")
    assert found.state is State.DEGRADED
    assert "the newest transition has no code" in found.says
    sql(database, "DELETE FROM aegis_transition")
    assert check(configured, "mac").state is State.OK, "where there is none, none lacks a code"
