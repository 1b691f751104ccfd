"""F1-F6: a child, a worker, a host killed before, in and after everything that one transition does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from deployment import Deployment
from fault_workflows import Steps

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("who", ["child", "worker", "host"])
@pytest.mark.parametrize(
    "point",
    ["before claim", "after claim", "in handler", "after handler", "after commit", "before ring", "after ring"],
)
def test_killed_at_every_point_nothing_is_lost_or_doubled(
    deploy: Callable[..., Deployment], tmp_path: Path, point: str, who: str
) -> None:
    once = tmp_path / "once"
    deployment = deploy(AEGIS_TEST_FAULT=f"{point}:{who}", AEGIS_TEST_FAULT_ONCE=str(once))
    deployment.beat()
    deployment.workers(2)
    for number in range(3):
        handle = deployment.engine.start(Steps(), id=f"steps-{number}")
        deployment.ledger.accepted(handle.id)
    deployment.await_all("completed", 3)
    assert once.exists(), "the fault did not happen: the test shows nothing"
    deployment.assert_sound()
    assert all(row.seq == 3 for row in deployment.engine.list())
