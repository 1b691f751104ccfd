"""An effect whose worker is killed before it, after it, and once it is recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment
from fault_workflows import Paying

from aegis import DidNotHappen, Happened
from aegis.core.errors import EffectInDoubt

pytestmark = pytest.mark.faults

# How often the provider has done it in the end, and whether a person had to say so.
CASES = {
    ("after intent", "repeat"): (1, False),
    ("after intent", "ask"): (1, False),
    ("after intent", "once"): (1, True),
    ("before record", "repeat"): (2, False),
    ("before record", "ask"): (1, False),
    ("before record", "once"): (1, True),
    ("after record", "repeat"): (1, False),
    ("after record", "ask"): (1, False),
    ("after record", "once"): (1, False),
}


@pytest.mark.parametrize("who", ["child", "host"])
@pytest.mark.parametrize(("point", "kind"), CASES, ids=str)
def test_killed_around_an_effect(
    deploy: Callable[..., Deployment], tmp_path: Path, point: str, kind: str, who: str
) -> None:
    once, provider = tmp_path / "once", tmp_path / "provider"
    deployment = deploy(
        AEGIS_TEST_FAULT=f"{point}:{who}", AEGIS_TEST_FAULT_ONCE=str(once), AEGIS_TEST_PROVIDER=str(provider)
    )
    times, person = CASES[point, kind]
    deployment.beat()
    deployment.workers(2)
    deployment.ledger.accepted(deployment.engine.start(Paying(kind=kind), id="pay").id)

    def done() -> list[str]:
        return provider.read_text().splitlines() if provider.exists() else []

    if person:
        deployment.await_status("pay", "failed")
        error = deployment.engine.describe("pay").error
        assert error is not None
        assert error["type"] == f"{EffectInDoubt.__module__}.{EffectInDoubt.__qualname__}"
        answer: Any = Happened(len(done())) if done() else DidNotHappen()
        deployment.engine.resolve_effect("pay", "charge", answer, reason="seen at the provider", retry=True)
    deployment.await_status("pay", "completed")

    assert once.exists(), "the fault did not happen: the test shows nothing"
    assert done() == ["pay:1:charge"] * times, "under one key, whoever does it"
    (effect,) = deployment.engine.effects("pay")
    assert (effect.status, effect.result) == ("done", times)
    assert deployment.engine.get("pay").to_dict()["told"] == times
    payload: Any = deployment.engine.history("pay")[-1].payload
    (told,) = payload["effects"]
    assert (told["key"], told["result"]) == ("pay:1:charge", hashlib.sha256(str(times).encode()).hexdigest())
    assert ("resolved_by" in told) is person
    deployment.assert_sound()
