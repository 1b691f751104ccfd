"""Erasing, pruning and purging at the command line, for people and for programs."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta

import pytest
from command_line import PROGRAM, CommandLine, Said
from deployment import Deployment
from fingerprint import fingerprint
from local_engine import eventually

from aegis.core.names import SYSTEM
from aegis.persistence import log

WHO = "Ada Lovelace"


@pytest.fixture
def untouched(living: Deployment) -> Iterator[None]:
    """What workers and beat write by themselves set aside, not one row changes."""
    before = contents(living)
    yield
    assert contents(living) == before


def contents(deployment: Deployment) -> list[str]:
    """Every row of every table in which removals leave anything."""
    busy = ("worker", "sweep", "log", "log_node", "log_state", "anchor", "scrub")
    found = fingerprint(deployment.environment["AEGIS_DATABASE_URL"], but=[f"aegis_{name}" for name in busy])
    return [f"{table} {row}" for table, rows in found.items() for row in rows]


def the_line(said: Said) -> str:
    """The one line that a command printed."""
    assert said.status == 0, said
    assert not said.stderr, said
    assert said.stdout.count("\n") == 1, said
    return said.stdout.strip()


def published(aegis: CommandLine, deployment: Deployment, workflow_id: str) -> str:
    """Lead a paper to its end, at seq 3."""
    assert aegis("start", "Paper", "--id", workflow_id, "--data", f'{{"title": "{WHO}"}}').status == 0
    deployment.await_status(workflow_id, "waiting")
    answer = f'{{"yes": true, "comment": "dear {WHO}"}}'
    assert aegis("send", workflow_id, "decide", answer).status == 0
    deployment.await_status(workflow_id, "completed")
    return workflow_id


def logged(deployment: Deployment, workflow_id: str) -> None:
    """Wait until a workflow is wholly in the log; beat may do it, and nobody minds if we do."""
    length = deployment.engine.describe(workflow_id).seq + 1

    def there() -> bool:
        with deployment.database.transaction() as session:
            connection = session.connection()
            if log.lock(connection):
                log.take_up(connection, 10_000)
            return len(log.places(connection, workflow_id)) == length

    eventually(f"{workflow_id} is in the log", there)


# --- erase ------------------------------------------------------------------------------------


def test_erase_leaves_a_history_without_data(aegis: CommandLine, living: Deployment) -> None:
    published(aegis, living, "erased")
    assert WHO in aegis("show", "erased").stdout
    assert WHO in aegis("history", "erased").stdout

    assert the_line(aegis("erase", "erased", "--reason", "request 17")) == "the data of erased is erased"
    assert the_line(aegis("erase", "erased", "--reason", "again")) == "the data of erased was erased before"
    assert aegis("erase", "erased", "--reason", "again", "--json").document() == {"id": "erased", "erased": False}

    plain, as_json = aegis.both("show", "erased")
    assert (plain.status, as_json.status) == (0, 0)
    assert "state   published  completed" in plain.stdout
    assert re.search(r"^4 .* erased +published +1 +user:", plain.stdout, re.MULTILINE)
    assert plain.stdout.splitlines()[-1] == "data erased: `aegis history` says why"
    told = as_json.document()
    assert set(told) == {"workflow", "timeline", "seq", "data"}
    assert (told["data"], told["seq"], len(told["timeline"])) == (None, 4, 5)
    at_seq_0 = aegis("show", "erased", "--at", "0")
    assert at_seq_0.status == 0
    assert re.fullmatch(
        r"data at seq 0: state draft, since .* by created; erased: `aegis history` says why",
        at_seq_0.stdout.splitlines()[-1],
    )
    links = aegis("history", "erased", "--json").document()
    assert [link["payload"] for link in links] == [
        *[None] * 4,
        {"reason": "request 17", "status": "completed", "through": 3},
    ]
    assert [line for line in contents(living) if "erased" in line and WHO.encode().hex() in line] == []
    assert aegis("verify", "erased").status == 0
    assert "its data was erased" in aegis("start", "Paper", "--id", "erased", "--data", '{"title": "x"}').complaint()


def test_erase_as_json(aegis: CommandLine, living: Deployment) -> None:
    published(aegis, living, "erased-json")
    said = aegis("erase", "erased-json", "--reason", "request 18", "--json")
    assert said.status == 0
    assert said.document() == {"id": "erased-json", "erased": True}


# --- prune ------------------------------------------------------------------------------------


def test_prune_removes_old_checkpoints_and_says_how_many(aegis: CommandLine, living: Deployment) -> None:
    published(aegis, living, "pruned")
    living.engine.prune(keep=1, older_than=timedelta(0))
    published(aegis, living, "pruned-2")

    assert the_line(aegis("prune", "--keep", "1", "--older-than", "1d")) == "0 checkpoints removed"
    assert (
        the_line(aegis("prune", "--keep", "2", "--older-than", "0s", "--reason", "policy 4")) == "1 checkpoint removed"
    )
    said = aegis("prune", "--keep", "1", "--older-than", "0m", "--json")
    assert (said.status, said.document()) == (0, {"checkpoints": 1})

    assert aegis("show", "pruned-2").status == 0
    assert "transition 1 was pruned" in aegis("show", "pruned-2", "--at", "1").complaint()
    assert aegis("verify", "pruned-2").status == 0
    assert aegis("verify", SYSTEM).status == 0
    links = aegis("history", SYSTEM, "--json").document()
    rules = [link["payload"]["reason"] for link in links[-2:]]
    assert rules == [
        "policy 4 (all but the newest 2 of a workflow, older than 0s)",
        "all but the newest 1 of a workflow, older than 0s",
    ]
    assert SYSTEM not in aegis("list").stdout


# --- purge ------------------------------------------------------------------------------------


def test_purge_removes_one_and_its_id_stays_taken(aegis: CommandLine, living: Deployment) -> None:
    logged(living, published(aegis, living, "purged"))
    assert the_line(aegis("purge", "purged")) == "purged is purged"
    for command in (("show",), ("history",), ("cancel",), ("purge",)):
        assert "'purged' was purged, and its id is never used again" in aegis(*command, "purged").complaint()
    again = aegis("start", "Paper", "--id", "purged", "--data", '{"title": "x"}', "--json")
    assert again.complaint_as_json()["type"] == "WorkflowPurged"
    assert aegis("verify", "purged").status == 0
    logged(living, published(aegis, living, "purged-json"))
    said = aegis("purge", "purged-json", "--json")
    assert (said.status, said.document()) == (0, {"workflows": 1})


def test_purge_of_all_that_is_old_wants_to_be_told_so(aegis: CommandLine, living: Deployment) -> None:
    for name in ("old-1", "old-2"):
        logged(living, published(aegis, living, name))
    plain, as_json = aegis.both("purge", "--older-than", "0s")
    assert "--yes" in plain.complaint()
    assert "--yes" in as_json.complaint_as_json()["error"]
    assert living.status("old-1") == living.status("old-2") == "completed"
    assert the_line(aegis("purge", "--older-than", "36500d", "--yes")) == "0 workflows purged"
    said = aegis("purge", "--older-than", "0s", "--yes", "--json")
    assert (said.status, said.document()["workflows"] >= 2) == (0, True)
    assert "was purged" in aegis("show", "old-1").complaint()


@pytest.mark.parametrize(("answer", "status", "purged"), [("n", 130, False), ("y", 0, True)])
def test_purge_of_all_that_is_old_asks_whoever_is_there(
    aegis: CommandLine, living: Deployment, answer: str, status: int, *, purged: bool
) -> None:
    logged(living, published(aegis, living, name := f"asked-{answer}"))
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*PROGRAM, "purge", "--older-than", "0s"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=aegis.folder,
            env=aegis.environment(),
        )
        os.write(ours, f"{answer}\n".encode())
        said = CommandLine.end(process)
    finally:
        os.close(ours)
        os.close(theirs)
    assert said.status == status, said
    assert "Purge every workflow that ended and did not change for 0s, for good?" in said.stdout + said.stderr
    assert (aegis("show", name).status != 0) == purged


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (("erase", "nobody", "--reason", "x"), ("there is no workflow 'nobody'",)),
        (("erase", "open"), ("--reason",)),
        (("erase", "open", "--reason", " "), ("say why it is erased",)),
        (("erase", "open", "--reason", "x"), ("is waiting", "aegis cancel")),
        (("erase", "a b", "--reason", "x"), ("is not a workflow id",)),
        (("erase", SYSTEM, "--reason", "x"), ("is the system's own",)),
        (("prune",), ("--keep",)),
        (("prune", "--keep", "1"), ("say how old", "--older-than")),
        (("prune", "--keep", "0", "--older-than", "1d"), ("--keep", "0")),
        (("prune", "--keep", "many", "--older-than", "1d"), ("--keep", "many")),
        *(
            (("prune", "--keep", "1", "--older-than", span), ("--older-than", "is no span such as 90d, 12h"))
            for span in ("", "-1d", "1.5d", "1w", "٣d", "9999999999d")
        ),
        (("prune", "--keep", "1", "--older-than", "36501d"), ("/older_than", "36500 days")),
        (("prune", "--keep", "1", "--older-than", "999999999d"), ("/older_than", "36500 days")),
        (("purge",), ("the ID of a workflow, or --older-than",)),
        (("purge", "--yes"), ("the ID of a workflow, or --older-than",)),
        (("purge", "nobody"), ("there is no workflow 'nobody'",)),
        (("purge", "open"), ("is waiting", "aegis cancel")),
        (("purge", "young", "--older-than", "1d"), ("is cancelled", "unchanged for 1d")),
        (("purge", SYSTEM), ("is the system's own",)),
        (("purge", "--older-than", "soon", "--yes"), ("is no span",)),
        (("start", "Paper", "--id", SYSTEM, "--data", '{"title": "x"}'), ("is the system's own",)),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else None,
)
@pytest.mark.usefixtures("there", "untouched")
def test_bad_input_is_told_in_one_line_and_changes_nothing(
    aegis: CommandLine, given: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    plain, as_json = aegis.both(*given)
    for told in (plain.complaint(), as_json.complaint_as_json()["error"]):
        for part in parts:
            assert part in told


@pytest.fixture(scope="module")
def there(living: Deployment) -> None:
    """A paper that waits, and one that was given up just now."""
    aegis = CommandLine(living.environment, living.folder)
    for name in ("open", "young"):
        assert aegis("start", "Paper", "--id", name, "--data", '{"title": "x"}').status == 0
        living.await_status(name, "waiting")
    living.engine.cancel("young")
