"""Objectives: the table of defaults, and what a deployment declares otherwise."""

from __future__ import annotations

import pytest

from aegis.config.settings import read
from aegis.core.objective import DEFAULTS, objectives


def test_what_is_not_named_stays_as_it_is_by_default() -> None:
    declared = {each.name: each for each in read({"AEGIS_OBJECTIVES": "broker=1.5/2.25, region=60/1200"}).declared}
    assert list(declared) == [each.name for each in DEFAULTS]
    assert (declared["broker"].rpo, declared["broker"].rto) == (1.5, 2.25)
    assert (declared["region"].rpo, declared["region"].rto) == (60, 1200)
    others = [each for each in DEFAULTS if each.name not in {"broker", "region"}]
    assert [declared[each.name] for each in others] == others


def test_an_objective_is_written_as_it_is_read() -> None:
    assert objectives(map(str, DEFAULTS)) == DEFAULTS
    assert str(objectives(["process=0/0.25"])[0]) == "process=0/0.25"


@pytest.mark.parametrize("written", ["", "=0/5", "process=0/5/6", "process=a/b", "process=nan/5", "process=0/1e3"])
def test_what_cannot_be_read_is_quoted(written: str) -> None:
    with pytest.raises(ValueError, match="is not an objective: name=RPO/RTO in seconds") as refused:
        objectives([written])
    assert repr(written) in str(refused.value)


def test_of_acknowledged_work_nothing_is_lost_by_default_but_in_a_long_handler() -> None:
    assert {each.name for each in DEFAULTS if each.rpo} == {"long-handler"}
    assert all(each.rto > 0 for each in DEFAULTS)
