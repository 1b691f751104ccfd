"""The examples, run as their pages say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command_line import CommandLine
from deployment import Deployment
from local_engine import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"


Call = Callable[..., dict[str, Any]]


@contextmanager
def proposals(deploy: Callable[..., Deployment], review_seconds: str) -> Iterator[Call]:
    """The example's app in a process of its own, beside a worker and beat; gives a way to call it."""
    deployment = deploy(
        PYTHONPATH=str(EXAMPLES), AEGIS_WORKFLOWS="proposal.workflow", PROPOSAL_REVIEW_SECONDS=review_seconds
    )
    deployment.beat()
    deployment.worker()
    app = subprocess.Popen(
        [sys.executable, "-m", "proposal.app", "0"],
        env={**os.environ, **deployment.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert app.stdout is not None
    base = app.stdout.readline().strip().removesuffix("/proposals/ID")

    def call(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(base + path, data=data, timeout=10) as answer:  # noqa: S310 - the app's own
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                found = json.load(error)
        return found

    try:
        yield call
    finally:
        app.terminate()
        app.wait(10)
        app.stdout.close()


def test_a_proposal_is_decided_by_an_event(deploy: Callable[..., Deployment]) -> None:
    with proposals(deploy, "3600") as call:
        for name in ("p-1", "p-2"):
            assert call(f"/proposals/{name}", {"title": "Plant trees"}) == {"id": name}
        assert call("/proposals/p-1", {"title": "Plant trees"}) == {"id": "p-1"}, "a repeated request is the same"
        eventually("p-1 is in review", lambda: call("/proposals/p-1")["state"] == "review")
        call("/proposals/p-1/decision", {"yes": True, "comment": "ok"})
        call("/proposals/p-2/decision", {"yes": False})
        eventually("p-1 is approved", lambda: call("/proposals/p-1")["state"] == "approved")
        eventually("p-2 is rejected", lambda: call("/proposals/p-2")["state"] == "rejected")
        assert call("/proposals/p-1")["comment"] == "ok"


def test_a_proposal_that_nobody_decides_expires(deploy: Callable[..., Deployment]) -> None:
    with proposals(deploy, "0.5") as call:
        call("/proposals/p-1", {"title": "Plant trees"})
        eventually("p-1 has expired", lambda: call("/proposals/p-1")["state"] == "expired")


def test_a_bad_request_is_told_what_is_wrong(deploy: Callable[..., Deployment]) -> None:
    with proposals(deploy, "3600") as call:
        assert "/title: Field required" in call("/proposals/p-1", {})["error"]
        assert "there is no workflow 'p-9'" in call("/proposals/p-9")["error"]
        call("/proposals/p-1", {"title": "a"})
        assert '/title: "a" then, "b" now' in call("/proposals/p-1", {"title": "b"})["error"]
        assert "yes" in call("/proposals/p-1/decision", {"yes": "perhaps"})["error"]


def test_a_payment_whose_answer_got_lost_is_charged_once(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    book = tmp_path / "payments.jsonl"
    deployment = deploy(PYTHONPATH=str(EXAMPLES), AEGIS_WORKFLOWS="payment.workflow", PAYMENT_BOOK=str(book))
    deployment.beat()
    deployment.worker()
    said = subprocess.run(
        [sys.executable, "-m", "payment.app"],
        env={**os.environ, **deployment.environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    page = (EXAMPLES / "README.md").read_text()
    assert said.splitlines() == [line for line in page.splitlines() if line.startswith("order ")]
    assert len(book.read_text().splitlines()) == 2


def test_an_order_and_its_workflow_are_both_there_or_neither(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(PYTHONPATH=str(EXAMPLES), AEGIS_WORKFLOWS="shop.workflow")
    deployment.beat()
    deployment.worker()
    said = subprocess.run(
        [sys.executable, "-m", "shop.app"],
        env={**os.environ, **deployment.environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    assert said in (EXAMPLES / "README.md").read_text()
    assert [row.id for row in deployment.engine.list(attributes={"customer": "edsger"})] == []
    for name in ("order-1-ada", "order-2-grace"):
        assert deployment.engine.verify_integrity(name) == (True, None)
    events = [transition.event for transition in deployment.engine.history("order-2-grace")]
    assert events == ["created", "pack", "give_back"]


# --- the budget -------------------------------------------------------------------------------


def desk(deployment: Deployment, *given: str) -> tuple[int, str]:
    """Do something at the desk; return its exit status, and what it complained of."""
    done = subprocess.run(
        [sys.executable, "-m", "budget.desk", *given],
        env={**os.environ, **deployment.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.strip()


def test_a_budget_is_approved_by_two_who_did_not_ask_for_it(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(PYTHONPATH=str(EXAMPLES), AEGIS_WORKFLOWS="budget.workflow")
    deployment.beat()
    deployment.worker()

    def state(name: str) -> str:
        return deployment.engine.describe(name).state

    assert desk(deployment, "ada", "ask", "small", "a pen", "3") == (0, "")
    assert desk(deployment, "ada", "ask", "b-1", "new chairs", "700") == (0, "")
    eventually("so little is waved through", lambda: state("small") == "approved")
    eventually("b-1 is in review", lambda: state("b-1") == "review")
    status, said = desk(deployment, "ada", "approve", "b-1", "I want them")
    assert (status, "moved on by user:ada before" in said) == (1, True)
    assert desk(deployment, "grace", "approve", "b-1", "the old ones are broken") == (0, "")
    assert desk(deployment, "grace", "approve", "b-1", "the old ones are broken") == (0, ""), "a second click"
    eventually("it counts", lambda: deployment.engine.describe("b-1").seq == 2)
    assert state("b-1") == "review"
    assert desk(deployment, "edsger", "approve", "b-1", "indeed") == (0, "")
    deployment.await_status("b-1", "completed")
    history = deployment.engine.history("b-1")
    assert [transition.event for transition in history] == ["created", "ask", "approved", "approve"]
    told = [transition.payload for transition in history[2:]]
    assert [(payload["sender"], payload["reason"]) for payload in told if isinstance(payload, dict)] == [
        ("user:grace", "the old ones are broken"),
        ("user:edsger", "indeed"),
    ]
    assert deployment.engine.verify_integrity("b-1") == (True, None)


def test_one_who_says_no_is_enough_and_what_comes_too_late_is_refused(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(PYTHONPATH=str(EXAMPLES), AEGIS_WORKFLOWS="budget.workflow")
    deployment.beat()
    deployment.worker()
    assert desk(deployment, "ada", "ask", "b-2", "a yacht", "700000") == (0, "")
    eventually("b-2 is in review", lambda: deployment.engine.describe("b-2").state == "review")
    assert desk(deployment, "grace", "approve", "b-2", "why not") == (0, "")
    assert desk(deployment, "edsger", "reject", "b-2", "no") == (0, "")
    deployment.await_status("b-2", "completed")
    assert deployment.engine.describe("b-2").state == "turned down"
    status, said = desk(deployment, "max", "approve", "b-2", "yes")
    assert (status, "is completed" in said) == (1, True)


# --- the subscription -------------------------------------------------------------------------


def test_a_subscription_goes_on_with_the_next_version(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    old = deploy(PYTHONPATH=str(EXAMPLES), AEGIS_WORKFLOWS="upgrade.v1")
    aegis = CommandLine(old.environment, tmp_path)
    new = {"AEGIS_WORKFLOWS": "upgrade.v2"}
    page = (EXAMPLES / "README.md").read_text()
    old.beat()
    worker = old.worker()
    said = aegis("start", "example.Subscription", "--id", "s-1", "--data", '{"name": "Ada", "euros": 9}')
    assert said.stdout.strip() in page
    old.await_status("s-1", "waiting")
    worker.kill()
    assert aegis("check", **new).stdout.strip() in page.replace("# while", "")
    old.worker(**new)
    assert aegis("send", "s-1", "reprice", "1250", **new).stdout.strip() in page
    eventually("s-1 has its price", lambda: old.engine.describe("s-1").seq == 3)
    events = [link.event for link in old.engine.history("s-1")]
    assert ", ".join(events) in page
    shown = aegis("show", "s-1", "--json", **new).document()
    assert shown["data"] == {"state": "active", "name": "Ada", "cents": 1250}
    assert old.engine.verify_integrity("s-1")[0]


def test_proposals_without_any_servers(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}
    environment |= {"PYTHONPATH": str(EXAMPLES), "AEGIS_HOME": str(tmp_path / "nothing")}
    # In memory, and twice on one file: the second time all of it is there already.
    for address in ("sqlite://", f"sqlite:///{tmp_path / 'x.db'}", f"sqlite:///{tmp_path / 'x.db'}"):
        done = subprocess.run(
            [sys.executable, "-m", "local.app", address],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        told = [line for line in done.stdout.splitlines() if line.endswith("intact")]
        assert told == [
            "plant-trees: created, submit, decide; intact",
            "pave-the-garden: created, submit, decide; intact",
        ]
