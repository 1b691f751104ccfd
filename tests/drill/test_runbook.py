"""The runbook and the scenarios are one table: what the page says is what a drill types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aegis.cli.health import _EXIT
from aegis.config.settings import read
from aegis.recovery.drill.runbook import runbook
from aegis.recovery.drill.scenario import Scenario
from aegis.recovery.drill.scenarios import BY_NAME, QUICK, SCENARIOS
from aegis.recovery.drill.symptoms import SYMPTOMS
from aegis.tasks.check import State

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_one_that_the_scenarios_make() -> None:
    """If this fails: ``python -m aegis.recovery.drill.runbook >docs/runbook.md``."""
    assert (ROOT / "docs" / "runbook.md").read_text() == runbook()


def typed(section: str) -> list[str]:
    """The commands of a section, without their comments."""
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ").partition("#")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_every_command_of_a_section_is_typed_by_its_drill(scenario: Scenario) -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    (section,) = [part for part in page.split("\n## ")[1:] if part.startswith(f"{scenario.title}\n")]
    commands = [str(command) for command in (*scenario.check, *scenario.heal, *scenario.over)]
    assert typed(section) == commands
    assert commands[-1] == "aegis verify --all", "it is over when every history is as committed"


def test_the_index_leads_to_every_section() -> None:
    assert {name for symptom in SYMPTOMS for name in symptom.sections} == BY_NAME.keys()
    assert all(symptom.sections or symptom.pages for symptom in SYMPTOMS)
    signs = [symptom.sign for symptom in SYMPTOMS]
    assert len(set(signs)) == len(signs)


def test_the_page_says_what_the_exit_status_of_health_means() -> None:
    looks = [
        line for line in (ROOT / "docs" / "runbook.md").read_text().splitlines() if line.startswith("$ aegis health")
    ]
    assert any(line.endswith("; 0: ok, 1: degraded, 2: down") for line in looks)
    assert not any("exit status" in line for line in looks)
    means = {status: state.value for state, status in _EXIT.items() if state is not State.WARNING}
    assert means == {0: "ok", 1: "degraded", 2: "down"}


def test_every_scenario_measures_an_objective_that_is_declared() -> None:
    declared = {objective.name for objective in read({}).declared}
    assert {scenario.objective for scenario in SCENARIOS} <= declared
    assert len(BY_NAME) == len(SCENARIOS)
    assert set(QUICK) <= set(BY_NAME)


def test_a_command_that_may_end_in_any_way_has_to_say_something() -> None:
    """A command line that is not understood ends with 2, too."""
    for scenario in SCENARIOS:
        for command in (*scenario.check, *scenario.heal, *scenario.over):
            assert command.runs_on or 2 not in command.expects or command.says, command
