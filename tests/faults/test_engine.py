"""What the engine promises of queues, delays, events between workflows, rows and versions: with real workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from deployment import Deployment
from engine_workflows import Booker, Plain, Receiver, Routed, Sender, Told
from local_engine import eventually
from sqlalchemy import text

pytestmark = pytest.mark.faults

Deploy = Callable[..., Deployment]
WORKFLOWS = "engine_workflows,fault_points"
# What a machine that does other things as well may take on top (seconds).
SLACK = 20.0


def data(deployment: Deployment, workflow_id: str) -> dict[str, Any]:
    return deployment.engine.get(workflow_id).to_dict()


# --- queues -----------------------------------------------------------------------------------


def test_a_queue_is_served_by_the_worker_that_listens_there_and_no_other(deploy: Deploy, tmp_path: Path) -> None:
    deployment = deploy(AEGIS_WORKFLOWS=WORKFLOWS)
    aegis = CommandLine(deployment.environment, tmp_path)
    deployment.beat()
    usual = deployment.worker()
    deployment.engine.start(Plain(), id="night", queue="night")
    deployment.engine.start(Routed(), id="crane")
    deployment.engine.start(Plain(), id="day")
    deployment.await_status("day", "completed")
    eventually("the first half is done", lambda: deployment.engine.describe("crane").seq == 1)
    said = aegis("health", "--json").document()
    (backlog,) = [check for check in said["checks"] if check["name"] == "backlog"]
    assert "no worker listens to the queue of 1 on 'crane', 1 on 'night'" in backlog["says"]
    assert [deployment.status(name) for name in ("night", "crane")] == ["pending", "pending"]

    other = deployment.worker(options=["-Q", "night,crane"])
    for name in ("night", "crane"):
        deployment.await_status(name, "completed")
    deployment.engine.start(Plain(), id="day-2")
    deployment.await_status("day-2", "completed")
    ran_by = {name: data(deployment, name)["ran_by"] for name in ("day", "day-2", "night", "crane")}
    first, second = usual.name(), other.name()
    assert ran_by == {"day": [first], "day-2": [first], "night": [second], "crane": [first, second]}


# --- later --------------------------------------------------------------------------------------


def test_a_delayed_start_begins_when_its_time_has_come(deploy: Deploy) -> None:
    deployment = deploy(AEGIS_WORKFLOWS=WORKFLOWS)
    deployment.beat()
    deployment.worker()
    later = deployment.engine.start(Plain(), id="later", delay=timedelta(seconds=3))
    assert (later.describe().status, later.describe().begins_at is None) == ("pending", False)
    now = deployment.engine.start(Plain(), id="now")
    for name in ("now", "later"):
        deployment.await_status(name, "completed")
    created, gone = later.history()
    assert timedelta(seconds=3) <= gone.at - created.at < timedelta(seconds=3 + SLACK)
    assert now.history()[1].at < gone.at, "it was ready to work meanwhile"


@pytest.mark.parametrize("counts", [False, True])
def test_a_handler_that_was_told_when_comes_back_then(deploy: Deploy, counts: bool) -> None:
    deployment = deploy(AEGIS_WORKFLOWS=WORKFLOWS)
    deployment.beat()
    deployment.worker()
    handle = deployment.engine.start(Told(seconds=1.5, counts=counts), id="told")
    deployment.await_status("told", "completed")
    asked = [entry.at for entry in deployment.ledger.entries()]
    assert all(1.5 <= later - sooner < 1.5 + SLACK for sooner, later in pairwise(asked)), asked
    events = [link.event for link in handle.history()]
    # Of two attempts that count, the second was the last; of those that do not, there may be any number.
    assert (len(asked), events) == ((2, ["created", "ask", "give_up"]) if counts else (3, ["created", "ask"]))


# --- to another workflow, and to rows of one's own ------------------------------------------------


# Before anything of it is written, and when all of it is, but for the COMMIT.
@pytest.mark.parametrize(("point", "who"), [("after handler", "child"), ("after commit", "host")])
@pytest.mark.parametrize("inside", [False, True], ids=["plain", "transactional"])
def test_what_a_handler_sends_is_received_once(
    deploy: Deploy, tmp_path: Path, inside: bool, point: str, who: str
) -> None:
    once = tmp_path / "once"
    deployment = deploy(AEGIS_WORKFLOWS=WORKFLOWS, AEGIS_TEST_FAULT=f"{point}:{who}", AEGIS_TEST_FAULT_ONCE=str(once))
    deployment.beat()
    deployment.workers(2)
    deployment.engine.start(Receiver(), id="ear")
    deployment.engine.start(Sender(to="ear", inside=inside), id="mouth")
    deployment.await_status("mouth", "completed")
    eventually("it was heard", lambda: deployment.engine.describe("ear").seq == 1)
    assert once.exists(), "the fault did not happen: the test shows nothing"
    deployment.engine.send("ear", "enough")
    deployment.await_status("ear", "completed")
    assert data(deployment, "ear")["words"] == ["from mouth"]
    assert deployment.effects("mouth") == 2, "the handler was killed, and began again"
    heard: Any = deployment.engine.history("ear")[1].payload
    assert (heard["sender"], heard["reason"]) == ("workflow:mouth", "as agreed")
    spoken, listened = (deployment.engine.history(name)[1].at for name in ("mouth", "ear"))
    assert spoken <= listened, "nothing was heard of an attempt that was not recorded"
    for name in ("ear", "mouth"):
        assert deployment.engine.verify_integrity(name) == (True, None)


@pytest.mark.parametrize("who", ["child", "host"])
@pytest.mark.parametrize(("point", "ran"), [("before COMMIT inside", 2), ("after COMMIT inside", 1)])
def test_rows_of_a_handler_that_is_killed_around_its_commit_are_there_once(
    deploy: Deploy, tmp_path: Path, point: str, ran: int, who: str
) -> None:
    once = tmp_path / "once"
    deployment = deploy(AEGIS_WORKFLOWS=WORKFLOWS, AEGIS_TEST_FAULT=f"{point}:{who}", AEGIS_TEST_FAULT_ONCE=str(once))
    with deployment.database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookings (id TEXT, attempt INTEGER)"))
    deployment.beat()
    deployment.workers(2)
    for number in range(3):
        deployment.engine.start(Booker(), id=f"b-{number}")
    deployment.await_all("completed", 3)
    assert once.exists(), "the fault did not happen: the test shows nothing"
    with deployment.database.engine.connect() as connection:
        rows = connection.execute(text("SELECT id, attempt FROM bookings ORDER BY id")).all()
    assert [row.id for row in rows] == ["b-0", "b-1", "b-2"], "each once, and none without its transition"
    booked = {row.id: deployment.engine.history(row.id)[1] for row in deployment.engine.list()}
    assert {row.id: row.attempt for row in rows} == {name: link.attempt for name, link in booked.items()}
    # One was killed: before its commit it ran again, after it it did not.
    assert sorted(deployment.effects(name) for name in booked) == [1, 1, ran]


# --- versions that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistaken", "problem", "why"),
    [
        ("trip_detour", "state vanished", "road"),
        ("trip_broken", "upgrade fails", "miles"),
    ],
)
def test_a_row_that_the_code_does_not_fit_is_left_alone_and_told_of(
    deploy: Deploy, tmp_path: Path, mistaken: str, problem: str, why: str
) -> None:
    deployment = deploy(AEGIS_WORKFLOWS="trip_one")
    aegis = CommandLine(deployment.environment, tmp_path)
    deployment.beat()
    right = deployment.worker()
    assert not aegis("start", "test.Trip", "--id", "t", "--data", '{"km": 1}').status
    deployment.await_status("t", "waiting")
    assert aegis("check").status == 0
    right.kill()

    wrong = {"AEGIS_WORKFLOWS": mistaken}
    checked = aegis("check", "--json", **wrong)
    assert checked.status == 1
    (found,) = [one for one in checked.document()["problems"] if one["kind"] == problem]
    assert (found["count"], found["examples"]) == (1, ["t"])
    assert why in found["what"]

    before = deployment.engine.history("t")
    worker = deployment.worker(**wrong)
    assert not aegis("send", "t", "rest", "5").status  # by an application that still has the old code
    eventually("it was looked at", lambda: deployment.engine.describe("t").error is not None)
    row = deployment.engine.describe("t")
    assert (row.state, row.seq, row.version) == ("road", 1, 1)
    assert why in str(row.error)
    assert deployment.engine.history("t") == before, "nothing was written that it could be misread by"
    (failures,) = [c for c in aegis("health", "--json").document()["checks"] if c["name"] == "failures"]
    assert failures["says"] == "1 left alone, as the code does not fit them"
    assert "aegis check" in failures["remedy"]

    worker.kill()
    deployment.worker()
    assert not aegis("resume", "t").status  # or wait until it is looked at again
    deployment.await_status("t", "completed")
    assert [link.event for link in deployment.engine.history("t")] == ["created", "leave", "rest", "arrive"]
    assert deployment.engine.verify_integrity("t") == (True, None)
