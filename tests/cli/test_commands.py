"""Every command that starts, reads and steers workflows, as a process, for people and for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from command_line import CommandLine, Said
from deployment import Deployment
from fault_workflows import Failing
from local_engine import eventually
from private_servers import PrivatePostgres

from aegis.persistence import schema

SUMMARY = {
    *("id", "type", "version", "state", "status", "seq", "following", "accepts", "attempt", "worker"),
    *("inbox", "pausing", "timer_at", "ready_at", "due_at", "error", "created_at", "updated_at"),
    *("priority", "queue", "attributes", "deadline", "singleton", "entered_at"),
}
LINK = {
    *("workflow_id", "seq", "event", "from_state", "to_state", "actor", "attempt", "at", "hash", "prev", "payload"),
}
CHECKS = ["database", "schema", "workers", "beat", "backlog", "due", "RPO now", "failures", "chains"]
CHECKS += ["append-only", "mac", "replication", "broker", "anchors", "backup", "drills"]


def start(aegis: CommandLine, type_name: str, workflow_id: str, data: str = "{}", *conditions: str) -> None:
    said = aegis("start", type_name, "--id", workflow_id, "--data", data, *conditions)
    assert said.status == 0, said


def paper(aegis: CommandLine, deployment: Deployment, workflow_id: str, *conditions: str) -> None:
    """Start a paper, and wait until it waits for its decision."""
    start(aegis, "Paper", workflow_id, '{"title": "On rivers"}', *conditions)
    deployment.await_status(workflow_id, "waiting")


def gate(aegis: CommandLine, deployment: Deployment, workflow_id: str) -> Path:
    """Start a gate, and wait until its handler runs; return the key that lets it end."""
    key = deployment.folder / f"{workflow_id}.key"
    start(aegis, "Gate", workflow_id, f'{{"key": "{key}"}}')
    eventually("the handler runs", lambda: deployment.engine.describe(workflow_id).running)
    return key


def fragile(aegis: CommandLine, deployment: Deployment, workflow_id: str, message: str = "it is broken") -> Path:
    """Start what fails, and wait until it has; return the file without which it would not."""
    trouble = deployment.folder / f"{workflow_id}.trouble"
    trouble.touch()
    start(aegis, "Fragile", workflow_id, f'{{"while_there": "{trouble}", "message": "{message}"}}')
    deployment.await_status(workflow_id, "failed")
    return trouble


def the_line(said: Said) -> str:
    """The one line that a command printed."""
    assert not said.stderr, said
    assert said.stdout.count("\n") == 1, said
    return said.stdout.strip()


def sql(deployment: Deployment, statement: str) -> list[tuple[Any, ...]]:
    """Go to the database past AEGIS and past all triggers, as its superuser can."""
    connection = psycopg2.connect(deployment.environment["AEGIS_DATABASE_URL"])
    connection.autocommit = True
    try:
        cursor = connection.cursor()
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


# --- the whole way --------------------------------------------------------------------------


def test_a_workflow_is_led_through_its_whole_life(aegis: CommandLine, living: Deployment) -> None:
    said = aegis("start", "Paper", "--id", "life", "--data", '{"title": "On rivers"}')
    assert (said.status, the_line(said)) == (0, "life accepted")
    living.await_status("life", "waiting")
    said = aegis("pause", "life", "--reason", "holidays")
    assert (said.status, the_line(said)) == (0, "life is paused in state review")
    said = aegis("send", "life", "decide", '{"yes": true, "comment": "fine"}')
    assert (said.status, the_line(said)) == (0, "decide accepted for life")
    said = aegis("wait", "life", "--timeout", "0")
    assert (said.status, the_line(said)) == (
        1,
        "workflow 'life' has not ended after 0 s: it is paused in state 'review'",
    )
    assert aegis("resume", "life").status == 0
    said = aegis("wait", "life", "--timeout", "30")
    assert (said.status, the_line(said)) == (0, "life is completed in state published")
    told = aegis("history", "life", "--json").document()
    assert [link["event"] for link in told] == ["created", "submit", "paused", "resumed", "decide", "publish"]
    assert aegis("verify", "life").stdout.startswith("1 history, 6 transitions: as committed\n")


# --- start ------------------------------------------------------------------------------------


def test_start_says_the_id_and_that_the_bell_rang(aegis: CommandLine) -> None:
    said = aegis("start", "Steps", "--id", "started", "--json")
    assert said.status == 0
    assert said.document() == {"id": "started", "new": True, "rung": True}


def test_the_same_start_again_changes_nothing(aegis: CommandLine, living: Deployment) -> None:
    for says in ("twice accepted", "twice was accepted before, with the same data"):
        assert the_line(aegis("start", "Steps", "--id", "twice", "--data", '{"pause": 0}')) == says
    living.await_status("twice", "completed")
    assert living.effects("twice") == 3


def test_without_an_id_a_workflow_gets_one(aegis: CommandLine) -> None:
    given = aegis("start", "Steps", "--json").document()["id"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", given)
    assert aegis("wait", given, "--timeout", "30").status == 0


@pytest.mark.parametrize("way", ["argument", "file", "standard input"])
def test_data_comes_from_an_argument_a_file_or_standard_input(aegis: CommandLine, living: Deployment, way: str) -> None:
    data, name = '{"title": "Œuvre", "pages": 7}', f"data-{way.partition(' ')[0]}"
    file = living.folder / "data.json"
    file.write_text(data)
    given = {"argument": data, "file": f"@{file}", "standard input": "-"}[way]
    said = aegis("start", "Paper", "--id", name, "--data", given, stdin=data if way == "standard input" else None)
    assert said.status == 0, said
    found = aegis("show", name, "--at", "0", "--json").document()["data"]
    assert found == {"state": "draft", "title": "Œuvre", "pages": 7, "comment": ""}


def test_an_id_is_printed_as_it_is(aegis: CommandLine) -> None:
    # Rich, left to itself, takes ":x:" for the name of a picture.
    said = aegis("start", "Steps", "--id", "order:x:1")
    assert the_line(said) == "order:x:1 accepted"


def test_start_takes_every_condition_and_show_tells_of_each(aegis: CommandLine) -> None:
    given = ("--delay", "1h", "--priority", "7", "--queue", "night", "--deadline", "2h", "--singleton", "only")
    named = (
        "--attribute",
        "customer=7",
        "--attribute",
        "city=Graz",
        "--attribute",
        "vip=true",
        "--attribute",
        'zip="01"',
    )
    start(aegis, "Steps", "conditions", "{}", *given, *named)
    plain, as_json = aegis.both("show", "conditions")
    row = as_json.document()["workflow"]
    assert row["attributes"] == {"customer": 7, "city": "Graz", "vip": True, "zip": "01"}
    assert (row["priority"], row["queue"], row["singleton"], row["status"]) == (7, "night", "only", "pending")
    assert row["ready_at"] == row["entered_at"] < row["deadline"]
    for line in (
        r"^begins  \d{4}-",
        r"^until   \d{4}-.*, its deadline$",
        r"^goes    on queue night, with priority 7$",
        r"^alone   with the key only$",
        r'^found   by city="Graz", customer=7, vip=true, zip="01"$',
    ):
        assert re.search(line, plain.stdout, re.MULTILINE), line
    again = ("start", "Steps", "--id", "other", "--singleton", "only")
    assert "'conditions'" in aegis(*again).complaint()
    attached = aegis(*again, "--attach", "--json").document()
    assert attached == {"id": "conditions", "new": False, "rung": True}
    assert [one["id"] for one in aegis("list", "--where", "customer=7", "--json").document()] == ["conditions"]
    assert aegis("list", "--where", 'customer="7"', "--json").document() == []
    assert aegis("list", "--where", "zip=01", "--json").document()[0]["id"] == "conditions"
    assert aegis("cancel", "conditions").status == 0


def test_a_deadline_that_passed_is_told_and_another_one_given(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "late", "--deadline", "3s")
    living.await_status("late", "failed")
    shown = aegis("show", "late").stdout
    assert "the deadline of workflow 'late' passed at" in shown
    assert "--deadline 2h" in aegis("retry", "late").complaint()
    assert aegis("retry", "late", "--deadline", "2h").status == 0
    assert living.status("late") == "waiting"
    assert aegis("cancel", "late").status == 0


# --- list -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(living: Deployment) -> Iterator[CommandLine]:
    """Three workflows, of which the last is a paper under review."""
    aegis = CommandLine(living.environment, living.folder)
    for name in ("listed-1", "listed-2"):
        start(aegis, "Steps", name)
        living.await_status(name, "completed")
    paper(aegis, living, "listed-3")
    yield aegis
    assert aegis("cancel", "listed-3").status == 0


@pytest.mark.parametrize(
    ("filters", "there", "absent"),
    [
        ((), {"listed-1", "listed-2", "listed-3"}, set()),
        (("--type", "Steps"), {"listed-1", "listed-2"}, {"listed-3"}),
        (("--status", "waiting"), {"listed-3"}, {"listed-1", "listed-2"}),
        (("--state", "three"), {"listed-1", "listed-2"}, {"listed-3"}),
        (("--type", "Paper", "--status", "completed", "--state", "review"), set(), {"listed-1", "listed-3"}),
    ],
)
def test_list_shows_what_the_filters_ask_for(
    listed: CommandLine, filters: tuple[str, ...], there: set[str], absent: set[str]
) -> None:
    plain, as_json = listed.both("list", *filters)
    assert (plain.status, as_json.status) == (0, 0)
    ids = {row["id"] for row in as_json.document()}
    assert there <= ids
    assert not absent & ids
    for name in there:
        assert re.search(rf"^{name} ", plain.stdout, re.MULTILINE)
    for name in absent:
        assert name not in plain.stdout


def test_list_has_the_newest_first_and_no_more_than_the_limit(listed: CommandLine) -> None:
    rows = listed("list", "--limit", "2", "--json").document()
    assert [row["id"] for row in rows] == ["listed-3", "listed-2"]
    assert all(set(row) == SUMMARY for row in rows)
    assert rows[0]["accepts"] == ["decide"]
    lines = listed("list", "--limit", "2").stdout.splitlines()
    assert lines[0].split() == ["id", "type", "state", "status", "seq", "updated", "next"]
    assert lines[1].split()[:5] == ["listed-3", "Paper", "review", "waiting", "1"]
    assert lines[1].rstrip().endswith("on decide")
    assert len(lines) == 3


def test_list_goes_through_pages_and_times(listed: CommandLine) -> None:
    first = listed("list", "--limit", "1", "--json").document()[0]
    assert first["id"] == "listed-3"
    second = listed("list", "--limit", "1", "--after", "listed-3", "--json").document()[0]
    assert second["id"] == "listed-2"
    older = listed("list", "--created-before", second["created_at"], "--json").document()
    assert older[0]["id"] == "listed-1"
    newer = listed("list", "--created-after", second["created_at"], "--json").document()
    assert [row["id"] for row in newer] == ["listed-3"]


def test_list_says_when_there_is_nothing(listed: CommandLine) -> None:
    plain, as_json = listed.both("list", "--type", "Nothing")
    assert (plain.status, the_line(plain)) == (0, "no workflows")
    assert (as_json.status, as_json.document()) == (0, [])


# --- show and history -----------------------------------------------------------------------------


def test_show_tells_where_a_workflow_is_its_timeline_and_its_data(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "shown")
    plain, as_json = aegis.both("show", "shown")
    assert (plain.status, as_json.status) == (0, 0)
    told = as_json.document()
    assert set(told) == {"workflow", "timeline", "seq", "data"}
    assert set(told["workflow"]) == SUMMARY
    assert [(link["seq"], link["event"], link["to_state"]) for link in told["timeline"]] == [
        (0, "created", "draft"),
        (1, "submit", "review"),
    ]
    assert told["data"] == {"state": "review", "title": "On rivers", "pages": 2, "comment": ""}
    for part in ("shown  Paper v1", "state   review  waiting", "next    on decide", '"title": "On rivers"'):
        assert part in plain.stdout
    assert re.search(r"^1 .* submit +review +1 +worker:", plain.stdout, re.MULTILINE)


def test_show_has_the_data_as_a_transition_left_it(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "shown-at")
    plain, as_json = aegis.both("show", "shown-at", "--at", "0")
    assert as_json.document()["data"] == {"state": "draft", "title": "On rivers", "pages": 1, "comment": ""}
    assert "data at seq 0" in plain.stdout
    assert '"pages": 1' in plain.stdout


def test_show_names_who_runs_a_handler_now(aegis: CommandLine, living: Deployment) -> None:
    key = gate(aegis, living, "shown-running")
    plain, as_json = aegis.both("show", "shown-running")
    worker = as_json.document()["workflow"]["worker"]
    assert worker.startswith("w")
    assert f"worker  {worker}, attempt 1" in plain.stdout
    assert "state   shut  running" in plain.stdout
    key.touch()
    living.await_status("shown-running", "completed")


def test_history_is_a_chain_with_its_payloads(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "told")
    aegis("send", "told", "decide", '{"yes": false, "comment": "too long"}', "--key", "k-1")
    living.await_status("told", "completed")
    plain, as_json = aegis.both("history", "told")
    assert (plain.status, as_json.status) == (0, 0)
    links = as_json.document()
    assert [link["seq"] for link in links] == [0, 1, 2]
    assert all(set(link) == LINK for link in links)
    assert [link["prev"] for link in links[1:]] == [link["hash"] for link in links[:-1]]
    assert (links[2]["from_state"], links[2]["to_state"]) == ("review", "rejected")
    assert links[2]["payload"].items() >= {"data": {"yes": False, "comment": "too long"}, "key": "k-1"}.items()
    assert all(datetime.fromisoformat(link["at"]).tzinfo for link in links)
    lines = plain.stdout.splitlines()
    assert lines[0].split() == ["seq", "at", "event", "states", "actor", "hash", "payload"]
    assert "review -> rejected" in lines[3]
    assert links[2]["hash"][:12] in lines[3]
    assert "too long" in lines[3]


# --- send -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["argument", "file", "standard input"])
def test_an_event_is_sent_with_its_payload(aegis: CommandLine, living: Deployment, way: str) -> None:
    name, payload = f"sent-{way.partition(' ')[0]}", '{"yes": true, "comment": "ja"}'
    paper(aegis, living, name)
    file = living.folder / "payload.json"
    file.write_text(payload)
    given = {"argument": payload, "file": f"@{file}", "standard input": "-"}[way]
    said = aegis("send", name, "decide", given, "--json", stdin=payload if way == "standard input" else None)
    assert said.status == 0, said
    assert said.document() == {"id": name, "event": "decide", "rung": True}
    living.await_status(name, "completed")
    assert aegis("show", name, "--json").document()["data"]["comment"] == "ja"


def test_an_event_with_a_key_is_received_once(aegis: CommandLine, living: Deployment) -> None:
    start(aegis, "Paper", "keyed", '{"title": "On keys"}')
    for _ in range(2):
        said = aegis("send", "keyed", "decide", '{"yes": true}', "--key", "mail-77")
        assert (said.status, the_line(said)) == (0, "decide accepted for keyed")
    assert sql(living, "SELECT count(*) FROM aegis_event WHERE workflow_id = 'keyed'") == [(1,)]


# --- retry, many at once --------------------------------------------------------------------------


def test_many_are_retried_at_once(aegis: CommandLine, living: Deployment) -> None:
    broken = living.folder / "broken-many"
    broken.touch()
    for number in range(3):
        message = "the line is dead" if number else "something else"
        start(aegis, "Fragile", f"many-{number}", json.dumps({"while_there": str(broken), "message": message}))
    for number in range(3):
        living.await_status(f"many-{number}", "failed")
    chosen = ("--all", "--type", "Fragile", "--state", "ill", "--status", "failed", "--error", "LINE is dead")
    said = aegis("retry", *chosen, "--dry-run")
    assert (said.status, the_line(said)) == (0, "2 workflows would be retried")
    assert aegis("retry", *chosen, "--older-than", "9d", "--json").document() == {"retried": 0}
    broken.unlink()
    said = aegis("retry", *chosen, "--reason", "mended", "--json")
    assert (said.status, said.document()) == (0, {"retried": 2})
    for number in (1, 2):
        living.await_status(f"many-{number}", "completed")
    assert living.status("many-0") == "failed"
    told = aegis("history", "many-1", "--json").document()
    assert "mended" in json.dumps(told)
    assert the_line(aegis("retry", "--all", "--type", "Fragile", "--limit", "1")) == "1 workflow retried"
    living.await_status("many-0", "completed")


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("an-id", "--all"),
        ("an-id", "--type", "Fragile"),
        ("an-id", "--dry-run"),
        ("an-id", "--older-than", "1d"),
        ("an-id", "--limit", "1"),
        ("--all", "--limit", "0"),
        ("--all", "--status", "completed"),
        ("--all", "--older-than", "soon"),
        ("--type", "Fragile"),
    ],
)
def test_a_retry_that_makes_no_sense_is_refused(aegis: CommandLine, given: tuple[str, ...]) -> None:
    said = aegis("retry", *given)
    assert said.status == 2
    assert len(said.stderr.splitlines()) == 1


def test_an_event_is_sent_with_a_reason(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "reasoned")
    assert aegis("send", "reasoned", "decide", '{"yes": false}', "--reason", "too long").status == 0
    living.await_status("reasoned", "completed")
    assert "too long" in json.dumps(aegis("history", "reasoned", "--json").document())


# --- wait -----------------------------------------------------------------------------------------


def test_wait_is_0_for_what_completes(aegis: CommandLine) -> None:
    start(aegis, "Steps", "awaited", '{"pause": 0.2}')
    said = aegis("wait", "awaited", "--timeout", "30", "--json")
    assert said.status == 0
    assert said.document() == {"id": "awaited", "status": "completed", "state": "three", "seq": 3, "ended": True}


def test_wait_is_1_for_what_does_not_end_in_time(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "awaited-long")
    said = aegis("wait", "awaited-long", "--timeout", "0.1", "--json")
    assert said.status == 1
    assert said.document() == {"id": "awaited-long", "status": "waiting", "state": "review", "ended": False}


def test_wait_is_1_for_what_fails(aegis: CommandLine, living: Deployment) -> None:
    fragile(aegis, living, "awaited-failure")
    plain, as_json = aegis.both("wait", "awaited-failure")
    assert (plain.status, as_json.status) == (1, 1)
    assert the_line(plain) == "awaited-failure is failed in state ill: it is broken"
    assert as_json.document()["status"] == "failed"
    assert aegis("cancel", "awaited-failure").status == 0


@pytest.mark.parametrize("message", ["no column [name]", "closing [/name]"])
def test_what_a_handler_raised_is_printed_as_it_is(aegis: CommandLine, living: Deployment, message: str) -> None:
    # Rich, left to itself, takes brackets for its own markup: it swallows them, or raises.
    name = f"brackets-{len(message)}"
    fragile(aegis, living, name, message)
    said = aegis("wait", name)
    assert (said.status, said.stdout, said.stderr) == (1, f"{name} is failed in state ill: {message}\n", "")
    assert message in aegis("list", "--status", "failed").stdout
    assert aegis("cancel", name).status == 0


# --- pause, resume, retry, cancel ---------------------------------------------------------------------


def test_pause_and_resume_keep_their_reasons(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "paused")
    said = aegis("pause", "paused", "--reason", "audit", "--json")
    assert said.status == 0
    assert said.document() == {"id": "paused", "status": "paused", "state": "review", "seq": 2}
    said = aegis("resume", "paused", "--reason", "audit passed", "--json")
    assert said.status == 0
    assert said.document() == {"id": "paused", "status": "waiting", "state": "review", "seq": 3}
    links = aegis("history", "paused", "--json").document()
    assert [(link["event"], link["payload"]["reason"]) for link in links[2:]] == [
        ("paused", "audit"),
        ("resumed", "audit passed"),
    ]
    assert all(link["actor"].startswith("user:") for link in links[2:])


def test_show_tells_of_a_pause_and_of_events_that_wait(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "paused-shown")
    assert aegis("pause", "paused-shown", "--reason", "audit").status == 0
    assert aegis("send", "paused-shown", "decide", '{"yes": true}').status == 0
    lines = aegis("show", "paused-shown").stdout.splitlines()
    assert "next    on decide, (1 event received)" in lines
    assert any(re.fullmatch(r"paused  by user:\S+: audit", line) for line in lines)
    assert aegis("cancel", "paused-shown").status == 0


def test_a_failure_is_one_line_in_a_list_and_show_says_what_to_do(aegis: CommandLine, living: Deployment) -> None:
    fragile(aegis, living, "wordy", r"first line\nsecond line of many")
    assert "second line" in aegis("show", "wordy", "--json").document()["workflow"]["error"]["message"]
    listed = aegis("list", "--status", "failed").stdout
    assert "first line" in listed
    assert "second line" not in listed
    lines = aegis("show", "wordy").stdout.splitlines()
    assert "error   first line" in lines
    assert "next    `aegis retry`, once the cause is mended; or `aegis cancel`" in lines
    assert aegis("cancel", "wordy").status == 0


def test_a_pause_waits_for_the_handler_that_runs(aegis: CommandLine, living: Deployment) -> None:
    key = gate(aegis, living, "paused-running")
    said = aegis("pause", "paused-running")
    assert (said.status, the_line(said)) == (0, "paused-running pauses as soon as its handler has finished")
    assert "then a pause" in aegis("show", "paused-running").stdout
    key.touch()
    living.await_status("paused-running", "paused")
    assert aegis("show", "paused-running", "--json").document()["workflow"]["state"] == "open"
    assert the_line(aegis("resume", "paused-running")).startswith("paused-running is ")
    assert aegis("wait", "paused-running", "--timeout", "30").status == 0


def test_resume_rings_all_of_a_type(aegis: CommandLine, idle: Deployment) -> None:
    later = {f"rung-{number}" for number in range(2)}
    for name in later:
        start(aegis, "Fragile", name, f'{{"while_there": "{idle.folder}"}}')
    for name in later:
        idle.await_status(name, "failed")
    plain, as_json = aegis.both("resume", "--all", "Fragile")
    assert (plain.status, the_line(plain)) == (0, "0 resumed"), "what failed waits for a person"
    assert (as_json.status, as_json.document()) == (0, {"resumed": []})
    for name in later:
        assert aegis("cancel", name).status == 0


def test_resume_rings_what_is_pending(deploy: Callable[..., Deployment], tmp_path: Path, idle: Deployment) -> None:
    quiet = deploy(**{name: idle.environment[name] for name in ("PYTHONPATH", "AEGIS_WORKFLOWS")})
    aegis = CommandLine(quiet.environment, tmp_path)
    for name in ("ready-1", "ready-2"):
        start(aegis, "Steps", name)
    start(aegis, "Paper", "other", '{"title": "no step"}')
    plain, as_json = aegis.both("resume", "--all", "Steps")
    assert (plain.status, the_line(plain)) == (0, "2 resumed")
    assert as_json.status == 0
    assert sorted(as_json.document()["resumed"]) == ["ready-1", "ready-2"]


def test_retry_tries_again_what_failed(aegis: CommandLine, living: Deployment) -> None:
    trouble = fragile(aegis, living, "retried")
    trouble.unlink()
    said = aegis("retry", "retried", "--reason", "mended", "--json")
    assert said.status == 0
    assert set(said.document()) == {"id", "status", "state", "seq"}
    assert aegis("wait", "retried", "--timeout", "30").status == 0
    links = aegis("history", "retried", "--json").document()
    assert [link["event"] for link in links] == ["created", "failed", "retried", "mend"]
    assert links[2]["payload"] == {"reason": "mended"}


def test_cancel_ends_a_workflow_where_it_is(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "cancelled-1")
    said = aegis("cancel", "cancelled-1", "--reason", "withdrawn")
    assert (said.status, the_line(said)) == (0, "cancelled-1 is cancelled in state review")
    said = aegis("cancel", "cancelled-1", "--json")
    assert said.document() == {"id": "cancelled-1", "status": "cancelled", "state": "review", "seq": 2}
    said = aegis("wait", "cancelled-1")
    assert (said.status, the_line(said)) == (1, "cancelled-1 is cancelled in state review")


def test_what_a_cancelled_handler_does_is_not_recorded(aegis: CommandLine, living: Deployment) -> None:
    key = gate(aegis, living, "cancelled-2")
    assert aegis("cancel", "cancelled-2").status == 0
    key.touch()
    links = aegis("history", "cancelled-2", "--json").document()
    assert [link["event"] for link in links] == ["created", "cancelled"]
    assert aegis("verify", "cancelled-2").stdout.startswith("1 history, 2 transitions: as committed\n")


# --- checkpoint -----------------------------------------------------------------------------------------


def test_checkpoint_keeps_one_more(aegis: CommandLine, living: Deployment) -> None:
    paper(aegis, living, "kept")
    said = aegis("checkpoint", "kept", "--json")
    assert said.status == 0
    made = said.document()
    assert made["id"] == "kept"
    assert set(made["checkpoint"]) == {"workflow_id", "seq", "number", "kind", "commitment", "at"}
    assert (made["checkpoint"]["seq"], made["checkpoint"]["number"], made["checkpoint"]["kind"]) == (1, 1, "manual")
    assert re.fullmatch("[0-9a-f]{64}", made["checkpoint"]["commitment"])
    assert re.fullmatch("kept saved, [0-9a-f]{64}", the_line(aegis("checkpoint", "kept")))
    rows = sql(living, "SELECT number FROM aegis_checkpoint WHERE workflow_id = 'kept' AND seq = 1 ORDER BY number")
    assert rows == [(0,), (1,), (2,)]


def test_checkpoint_asks_a_handler_that_runs(aegis: CommandLine, living: Deployment) -> None:
    key = gate(aegis, living, "asked")
    plain, as_json = aegis.both("checkpoint", "asked")
    assert (plain.status, the_line(plain)) == (0, "asked was asked for a checkpoint")
    assert (as_json.status, as_json.document()) == (0, {"id": "asked", "checkpoint": None})
    kept = "SELECT count(*) FROM aegis_checkpoint WHERE workflow_id = 'asked' AND kind <> 'transition'"
    eventually("the handler gave it", lambda: sql(living, kept)[0][0] > 0)
    key.touch()
    living.await_status("asked", "completed")


# --- verify ---------------------------------------------------------------------------------------------


VERIFIED = {
    *("valid", "tampered", "complete", "verified", "transitions", "seconds", "transitions_per_second"),
    *("counts", "findings", "anchors", "problems"),
}


def test_verify_counts_what_is_intact(aegis: CommandLine, living: Deployment) -> None:
    start(aegis, "Steps", "intact")
    living.await_status("intact", "completed")
    plain, as_json = aegis.both("verify", "--all")
    assert (plain.status, as_json.status) == (0, 0), plain
    told = as_json.document()
    assert set(told) == VERIFIED
    assert (told["valid"], told["tampered"], told["complete"], told["findings"]) == (True, False, True, [])
    assert told["verified"] == sql(living, "SELECT count(*) FROM aegis_workflow")[0][0]
    assert told["transitions"] == sql(living, "SELECT count(*) FROM aegis_transition")[0][0]
    histories = "1 history" if told["verified"] == 1 else f"{told['verified']} histories"
    assert f"{histories}, {told['transitions']} transitions: as committed" in plain.stdout
    one = aegis("verify", "intact", "--json").document()
    assert (one["valid"], one["verified"], one["findings"]) == (True, 1, [])


@pytest.mark.parametrize(
    ("edit", "undo", "seq"),
    [
        ("UPDATE aegis_transition SET actor = 'user:nobody'", "SET actor = kept.actor", 2),
        ("UPDATE aegis_transition SET envelope = envelope || ' '::bytea", "SET envelope = kept.envelope", 1),
        ("UPDATE aegis_checkpoint SET body = replace(encode(body, 'escape'), 'count', 'cuont')::bytea", None, 3),
    ],
    ids=["a column", "the envelope", "a checkpoint"],
)
def test_verify_names_the_transition_that_somebody_edited(
    deploy: Callable[..., Deployment], tmp_path: Path, edit: str, undo: str | None, seq: int
) -> None:
    deployment = deploy()
    aegis = CommandLine(deployment.environment, tmp_path)
    deployment.worker()
    for name in ("edited", "untouched"):
        start(aegis, "Steps", name)
        deployment.await_status(name, "completed")
    sql(deployment, f"{edit} WHERE workflow_id = 'edited' AND seq = {seq}")
    for asked in (("edited",), ("--all",)):
        plain, as_json = aegis.both("verify", *asked)
        assert (plain.status, as_json.status) == (1, 1)
        told = as_json.document()
        assert told["valid"] is False
        assert {(finding["workflow_id"], finding["seq"]) for finding in told["findings"]} == {("edited", seq)}
        named = {"workflow_id", "seq", "code", "severity", "expected", "actual", "log_index"}
        assert set(told["findings"][0]) == named
        assert f"workflow 'edited', transition {seq}: " in plain.stdout
        of = told["verified"]
        histories = "1 history" if of == 1 else f"{of} histories"
        assert f"TAMPERED WITH: edited (of {histories}, {told['transitions']} transitions)" in plain.stdout
    assert aegis("verify", "untouched").status == 0
    health = aegis("health", "--json")
    assert health.status == 2
    chains = next(check for check in health.document()["checks"] if check["name"] == "chains")
    assert chains["state"] == "down"
    assert f"'edited', transition {seq}" in chains["says"]


def test_reading_a_history_that_somebody_broke_says_so(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy()
    aegis = CommandLine(deployment.environment, tmp_path)
    start(aegis, "Steps", "broken")
    sql(deployment, "UPDATE aegis_transition SET envelope = 'nothing'::bytea WHERE workflow_id = 'broken'")
    for command in ("show", "history"):
        line = aegis(command, "broken").complaint()
        assert "broken" in line
        assert "fault of AEGIS" not in line
    assert aegis("verify", "broken").status == 1


# --- health ---------------------------------------------------------------------------------------------


def test_health_is_0_where_everything_works_and_1_where_nobody_works(
    deploy: Callable[..., Deployment], tmp_path: Path
) -> None:
    deployment = deploy()
    aegis = CommandLine(deployment.environment, tmp_path)
    plain, as_json = aegis.both("health")
    assert (plain.status, as_json.status) == (1, 1)
    told = as_json.document()
    assert set(told) == {"status", "checks"}
    assert told["status"] == "degraded"
    assert [check["name"] for check in told["checks"]] == CHECKS
    assert all(set(check) == {"name", "state", "says", "remedy"} for check in told["checks"])
    workers = told["checks"][CHECKS.index("workers")]
    assert (workers["state"], workers["says"]) == ("degraded", "none alive")
    assert "aegis worker" in workers["remedy"]
    assert "AEGIS is degraded" in plain.stdout
    deployment.beat()
    deployment.worker()
    # The sweep has to have run before it is believed to.
    eventually("all is well", lambda: aegis("health").status == 0)
    plain, as_json = aegis.both("health")
    assert (plain.status, as_json.status) == (0, 0)
    assert plain.stdout.splitlines()[-1] == "AEGIS is warning"
    # No keys, no backups, no drills, and a user that owns the tables: that is said, and for a person to decide.
    warned = {check["name"] for check in as_json.document()["checks"] if check["state"] != "ok"}
    assert warned == {"append-only", "mac", "anchors", "backup", "drills"}


@pytest.mark.parametrize(
    ("variable", "address", "part", "status", "state"),
    [
        ("AEGIS_DATABASE_URL", "postgresql://aegis@/postgres?host=/nonexistent", "database", 2, "down"),
        ("AEGIS_BROKER_URL", "redis+socket:///nonexistent/valkey.sock", "broker", 1, "degraded"),
    ],
)
def test_health_says_which_server_is_away(
    idle: Deployment, variable: str, address: str, part: str, status: int, state: str
) -> None:
    aegis = CommandLine(idle.environment, idle.folder)
    plain, as_json = aegis.both("health", **{variable: address})
    assert (plain.status, as_json.status) == (status, status)
    told = as_json.document()
    assert told["status"] == state
    found = next(check for check in told["checks"] if check["name"] == part)
    assert found["state"] == state
    assert "/nonexistent" in found["says"] + found["remedy"]
    assert variable in found["remedy"]
    assert f"AEGIS is {state}" in plain.stdout


# --- db -------------------------------------------------------------------------------------------------


def test_db_brings_an_empty_database_to_the_schema(postgres: PrivatePostgres, idle: Deployment) -> None:
    wanted = schema.wanted()
    with postgres.database() as url:
        aegis = CommandLine({**idle.environment, "AEGIS_DATABASE_URL": url}, idle.folder)
        plain, as_json = aegis.both("db", "current")
        assert (plain.status, the_line(plain)) == (0, "no AEGIS schema: run `aegis db upgrade`")
        assert (as_json.status, as_json.document()) == (0, {"version": None, "wanted": wanted})
        plain, as_json = aegis.both("db", "check")
        assert plain.status == 1
        assert "run `aegis db upgrade`" in the_line(plain)
        assert as_json.status == 1
        assert as_json.document() == {"version": None, "wanted": wanted, "fits": False}
        # Both at once, as in a deployment of several hosts: one does it, the other finds it done.
        plain, as_json = aegis.both("db", "upgrade")
        assert (plain.status, the_line(plain)) == (0, f"the schema is at {wanted}")
        assert (as_json.status, as_json.document()) == (0, {"version": wanted})
        plain, as_json = aegis.both("db", "current")
        assert (plain.status, the_line(plain)) == (0, wanted)
        assert as_json.document() == {"version": wanted, "wanted": wanted}
        plain, as_json = aegis.both("db", "check")
        assert (plain.status, the_line(plain)) == (0, f"the schema is at {wanted}, as needed")
        assert (as_json.status, as_json.document()) == (0, {"version": wanted, "wanted": wanted, "fits": True})
        assert aegis("start", "Steps").status == 0


# --- worker and beat --------------------------------------------------------------------------------------


def test_worker_and_beat_log_json_where_they_are_asked_to(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(PYTHONWARNINGS="ignore")
    aegis = CommandLine(deployment.environment, tmp_path)
    running = [aegis.begin("worker", "--json", "-c", "1"), aegis.begin("beat", "--json")]
    try:
        deployment.engine.start(Failing(times=1), id="once")
        deployment.await_status("once", "completed", within=60)
    finally:
        for process in running:
            process.terminate()
    worker, beat = (CommandLine.end(process) for process in running)
    events = [json.loads(line) for line in worker.stderr.splitlines()]
    assert [event["workflow_id"] for event in events if event["event"] == "attempt failed"] == ["once"]
    assert all(json.loads(line)["timestamp"] for line in beat.stderr.splitlines())
