"""Bad input at the command line: one line that says what, where and what to do; and not one row changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from command_line import CommandLine, Said
from deployment import Deployment
from fault_workflows import Steps
from fingerprint import fingerprint
from private_servers import PrivatePostgres, folder


@pytest.fixture
def aegis(idle: Deployment) -> CommandLine:
    """The command line, on a deployment in which nothing runs."""
    return CommandLine(idle.environment, idle.folder)


@pytest.fixture(scope="module", autouse=True)
def _given(idle: Deployment) -> None:
    """A workflow that waits at its beginning, one that was given up, a file that is no JSON, and a large one."""
    idle.engine.start(Steps(), id="there", singleton="taken")
    idle.engine.start(Steps(), id="gone")
    idle.engine.cancel("gone")
    (idle.folder / "broken.json").write_text('{"title": ')
    (idle.folder / "large.json").write_text(json.dumps({"title": "x" * 300_000}))


@pytest.fixture
def untouched(idle: Deployment) -> Iterator[None]:
    before = contents(idle)
    yield
    assert contents(idle) == before


def contents(deployment: Deployment) -> dict[str, list[str]]:
    """Every row of every table, whole."""
    return fingerprint(deployment.environment["AEGIS_DATABASE_URL"])


DEEP = "[" * 70 + "]" * 70
BAD: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    # a type, its data
    (("start", "Nonsense"), ("no workflow type 'Nonsense'", "known: ", "Paper", "AEGIS_WORKFLOWS")),
    (("start", "Paper"), ("the data of Paper", "/title", "required")),
    (("start", "Paper", "--data", '{"title": 7}'), ("/title", "string")),
    (("start", "Paper", "--data", '{"title": "x", "pages": "many"}'), ("/pages", "integer")),
    (("start", "Paper", "--data", '{"title": "x", "page": 1}'), ("/page", "not permitted")),
    (("start", "Paper", "--data", '{"title": "x", "state": "lost"}'), ("/state", "'draft'")),
    (("start", "Paper", "--data", "[]"), ("the data", "no JSON object")),
    (("start", "Paper", "--data", "{title: x}"), ("not JSON", "line 1, column 2")),
    (("start", "Paper", "--data", '{"title": "a", "title": "b"}'), ("stands twice", "/title")),
    (("start", "Paper", "--data", '{"title": "x", "pages": NaN}'), ("/pages",)),
    (("start", "Paper", "--data", '{"title": "x", "pages": 9007199254740993}'), ("2^53-1", "as a string", "/pages")),
    (("start", "Paper", "--data", '{"title": "\\u0000"}'), ("U+0000", "/title")),
    (("start", "Paper", "--data", '{"title": "\\ud800"}'), ("surrogate", "/title")),
    (("start", "Paper", "--data", '{"title": ' + DEEP + "}"), ("nested deeper than 64",)),
    (("start", "Paper", "--data", "@large.json"), ("300", "bytes, more than the 262144 allowed")),
    (("start", "Paper", "--data", "@nowhere.json"), ("nowhere.json cannot be read", "No such file")),
    (("start", "Paper", "--data", "@broken.json"), ("not JSON", "line 1")),
    # ids, keys and reasons
    (("start", "Steps", "--id", ""), ("'' is not a workflow id", "1 to 128")),
    (("start", "Steps", "--id", "a b"), ("'a b' is not a workflow id", "letters, digits")),
    (("start", "Steps", "--id", "-- drop"), ("is not a workflow id",)),
    (("start", "Steps", "--id", "x" * 129), ("is not a workflow id", "1 to 128")),
    (("start", "Steps", "--id", "ä"), ("is not a workflow id",)),
    (("start", "Steps", "--id", "there", "--data", '{"pause": 1.5}'), ("other input", "/pause: 0 then, 1.5 now")),
    (("start", "Long", "--id", "there"), ("other input", "type: Steps then, Long now")),
    (("cancel", "there", "--reason", "x" * 2001), ("reason", "2001 characters", "2000")),
    # on what conditions
    (("start", "Steps", "--delay", "soon"), ("'soon' is neither a span such as 90d", "--delay")),
    (("start", "Steps", "--delay", "99999d"), ("/delay", "36525 days")),
    (("start", "Steps", "--deadline", "0s"), ("/deadline", "is not after")),
    (("start", "Steps", "--deadline", "2020-01-01"), ("/deadline", "is not after")),
    (("start", "Steps", "--deadline", "10m", "--delay", "10m"), ("/deadline", "when it begins")),
    (("start", "Steps", "--priority", "10"), ("/priority", "from 0 to 9")),
    (("start", "Steps", "--priority", "high"), ("--priority", "'high'")),
    (("start", "Steps", "--queue", "a b"), ("'a b' is not a queue",)),
    (("start", "Steps", "--attribute", "customer"), ("'customer' is no name=value", "customer=7")),
    (("start", "Steps", "--attribute", "a b=1"), ("'a b' is not a name for an attribute",)),
    (("start", "Steps", "--attribute", "a=1", "--attribute", "a=2"), ("'a' is given twice",)),
    (("start", "Steps", "--attribute", "a=" + "x" * 20_000), ("16384",)),
    (("start", "Steps", "--singleton", "a b"), ("'a b' is not a singleton key",)),
    (("start", "Steps", "--attach"), ("/attach", "singleton")),
    (("start", "Steps", "--singleton", "taken"), ("'there'", "has the singleton key 'taken'", "attach=True")),
    (("start", "Steps", "--id", "there", "--singleton", "taken", "--priority", "3"), ("/priority: nothing then",)),
    (("retry", "there", "--deadline", "soon"), ("'soon' is neither a span",)),
    (("retry", "--all", "--deadline", "1h"), ("one workflow",)),
    (("list", "--where", "customer"), ("'customer' is no name=value",)),
    (("list", "--where", "a b=1"), ("'a b' is not a name for an attribute",)),
    (("list", "--created-after", "yesterday"), ("'yesterday' is no time such as",)),
    (("list", "--after", "nobody"), ("there is no workflow 'nobody'",)),
    # events
    (("send", "nobody", "decide"), ("there is no workflow 'nobody'", "aegis list")),
    (("send", "there", "shout"), ("Steps accepts no event 'shout'", "none at all")),
    (("send", "a b", "shout"), ("'a b' is not a workflow id",)),
    # what is not there, or not in that status
    (("show", "nobody"), ("there is no workflow 'nobody'",)),
    (("show", "there", "--at", "9"), ("no checkpoint at seq 9",)),
    (("history", "nobody"), ("there is no workflow 'nobody'",)),
    (("verify", "nobody"), ("there is no workflow 'nobody'",)),
    (("verify",), ("ID of a workflow, or --all",)),
    (("verify", "there", "--all"), ("ID of a workflow, or --all",)),
    (("wait", "nobody"), ("there is no workflow 'nobody'",)),
    (("checkpoint", "nobody"), ("there is no workflow 'nobody'",)),
    (("pause", "gone"), ("'gone' is cancelled", "pausing needs one that is pending or waiting")),
    (("resume", "gone"), ("'gone' is cancelled", "resuming needs")),
    (("resume", "--all", "Nonsense"), ("no workflow type 'Nonsense'",)),
    (("resume",), ("ID of a workflow, or --all TYPE",)),
    (("retry", "there"), ("'there' is pending", "failed or quarantined")),
    # the command line itself
    (("list", "--status", "asleep"), ("'asleep'", "pending")),
    (("list", "--limit", "0"), ("--limit",)),
    (("start",), ("TYPE",)),
    (("sing",), ("there is no command 'sing'", "aegis --help")),
    (("strat", "Steps"), ("there is no command 'strat'", "did you mean 'start'?")),
    (("list", "--sing"), ("--sing",)),
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("arguments", "says"), BAD, ids=[" ".join(arguments)[:60].replace("\0", "") for arguments, _ in BAD]
)
def test_is_refused_in_one_line(aegis: CommandLine, arguments: tuple[str, ...], says: tuple[str, ...]) -> None:
    plain, as_json = aegis.both(*arguments)
    line, told = plain.complaint(), as_json.complaint_as_json()
    for part in says:
        assert part in line
        assert part in told["error"]
    assert told["type"] != "Exception"


def test_an_event_for_what_has_ended_is_refused(aegis: CommandLine, idle: Deployment) -> None:
    assert aegis("start", "Paper", "--id", "over", "--data", '{"title": "x"}').status == 0
    assert aegis("send", "over", "decide", '{"yes": true}', "--key", "k").status == 0
    before = contents(idle)
    for arguments, part in (
        (("send", "over", "decide", '{"yes": "perhaps"}'), "/yes"),
        (("send", "over", "decide", "{}"), "/yes"),
        (("send", "over", "decide", '{"yes": false}', "--key", "k"), "already received an event under the key 'k'"),
        (("send", "over", "decide", '{"yes": true}', "--key", "a b"), "'a b' is not an event key"),
    ):
        assert part in aegis(*arguments).complaint()
    assert contents(idle) == before
    assert aegis("cancel", "over").status == 0
    assert "is cancelled" in aegis("send", "over", "decide", '{"yes": true}').complaint()


# --- the surroundings -------------------------------------------------------------------------


def every_command(aegis: CommandLine, **variables: str) -> Iterator[Said]:
    """One call of each command that needs the database."""
    for arguments in (
        ("start", "Steps", "--id", "new"),
        ("send", "there", "x"),
        *((verb, "there") for verb in ("pause", "resume", "retry", "cancel", "checkpoint", "wait", "show", "history")),
        ("verify", "there"),
        ("list",),
        ("worker",),
        ("beat",),
    ):
        yield aegis(*arguments, **variables)


def test_a_database_that_is_away_is_said_by_every_command(aegis: CommandLine) -> None:
    away = "postgresql://aegis:secret@/postgres?host=/nonexistent"
    for said in every_command(aegis, AEGIS_DATABASE_URL=away, AEGIS_WORKFLOWS="fault_workflows,no_such_module"):
        # Workers would wait for the database; they are refused for the module.
        line = said.complaint()
        assert "no_such_module" in line or "no answer from the database" in line
        assert "secret" not in line


@pytest.mark.usefixtures("untouched")
def test_a_wrong_schema_is_said_by_every_command(
    postgres: PrivatePostgres, idle: Deployment, aegis: CommandLine
) -> None:
    with postgres.database() as url:
        for said in every_command(aegis, AEGIS_DATABASE_URL=url):
            assert "run `aegis db upgrade`" in said.complaint()
        assert aegis("health", AEGIS_DATABASE_URL=url).status == 2
        assert "aegis db upgrade" in aegis("health", AEGIS_DATABASE_URL=url).stdout
        assert CommandLine({**idle.environment, "AEGIS_DATABASE_URL": url}, idle.folder)("db", "upgrade").status == 0
        connection = psycopg2.connect(url)
        connection.autocommit = True
        connection.cursor().execute("UPDATE aegis_schema SET version_num = '9999'")
        connection.close()
        for command in (("start", "Steps"), ("list",), ("worker",)):
            line = aegis(*command, AEGIS_DATABASE_URL=url).complaint()
            assert "the database's schema is at 9999, this AEGIS needs" in line
        assert "install the version of AEGIS that matches" in aegis("db", "upgrade", AEGIS_DATABASE_URL=url).complaint()


@pytest.mark.parametrize(
    ("module", "body", "says"),
    [
        ("nowhere_at_all", None, ("AEGIS_WORKFLOWS=nowhere_at_all", "no module 'nowhere_at_all'", "its folder")),
        ("mine.py", None, ("it is a file", "name the module: mine")),
        ("needs", "import not_installed_here", ("ModuleNotFoundError in ", "not_installed_here", "needs.py:1:")),
        ("wrong", "def f(:\n", ("SyntaxError in ", "wrong.py:1:")),
        ("raises", "x = 1\n1/0\n", ("ZeroDivisionError in ", "raises.py:2:")),
        (
            "defined",
            "from aegis import Workflow\nclass W(Workflow):\n    state: str = 'a'\n",
            ("DefinitionError in ", "defined.py:2: W: the type of `state` is not an enumeration"),
        ),
    ],
)
def test_workflows_that_cannot_be_loaded_are_named_with_their_line(
    aegis: CommandLine, tmp_path: Path, module: str, body: str | None, says: tuple[str, ...]
) -> None:
    if body is not None:
        (tmp_path / f"{module}.py").write_text(body)
    here = CommandLine({**aegis.variables, "AEGIS_WORKFLOWS": module}, tmp_path)
    assert says[0] in here("worker", "--json").complaint_as_json()["error"]
    for command in (("start", "W"), ("worker",)):
        line = here(*command).complaint()
        for part in says:
            assert part in line


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "AEGIS_DATABASE_URL",
            "mysql://root:hush@db/aegis",
            ("AEGIS_DATABASE_URL=mysql://root:***@db/aegis", "postgr"),
        ),
        ("AEGIS_BROKER_URL", "amqp://guest:hush@mq", ("AEGIS_BROKER_URL=amqp://guest:***@mq", "redis://")),
        ("AEGIS_DATABASE_URL", "", ("AEGIS_DATABASE_URL", "set both, or neither")),
        ("AEGIS_SWEEP_INTERVAL", "soon", ("AEGIS_SWEEP_INTERVAL=soon", "number")),
        ("AEGIS_HEARTBEAT_TIMEOUT", "0.5", ("AEGIS_HEARTBEAT_TIMEOUT", "twice")),
        ("AEGIS_WORKFLOW", "x", ("AEGIS_WORKFLOW", "did you mean AEGIS_WORKFLOWS?")),
        ("AEGIS_QUEUE", "a b", ("AEGIS_QUEUE=a b", "queue")),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    aegis: CommandLine, variable: str, value: str, says: tuple[str, ...]
) -> None:
    for command in (("list",), ("worker",)):
        line = aegis(*command, **{variable: value}).complaint()
        assert "hush" not in line
        for part in says:
            assert part in line


@pytest.mark.parametrize("command", ["health", "beat", "up", "demo", "start", "verify", "db"])
def test_a_setting_that_cannot_be_used_is_named_by_every_command(aegis: CommandLine, command: str) -> None:
    more = {"start": ["Steps"], "verify": ["--all"], "db": ["check"]}.get(command, [])
    assert "AEGIS_SWEEP_INTERVAL=soon" in aegis(command, *more, AEGIS_SWEEP_INTERVAL="soon").complaint()


def test_with_the_broker_away_start_and_send_accept_and_say_so(
    deploy: Callable[..., Deployment], idle: Deployment
) -> None:
    deployment = deploy(**{name: idle.environment[name] for name in ("PYTHONPATH", "AEGIS_WORKFLOWS")})
    aegis = CommandLine(deployment.environment, deployment.folder)
    away = {"AEGIS_BROKER_URL": "redis+socket:///nonexistent/valkey.sock"}
    unrung = "aegis: the broker does not answer: accepted all the same, and run as soon as it is back\n"
    said = aegis("start", "Paper", "--id", "p", "--data", '{"title": "x"}', **away)
    assert (said.status, said.stdout, said.stderr) == (0, "p accepted\n", unrung)
    as_json = aegis("start", "Paper", "--id", "q", "--data", '{"title": "x"}', "--json", **away)
    assert (as_json.status, json.loads(as_json.stdout)) == (0, {"id": "q", "new": True, "rung": False})
    deployment.beat()
    deployment.worker()
    deployment.await_all("waiting", 2)
    said = aegis("send", "p", "decide", '{"yes": true}', **away)
    assert (said.status, said.stdout, said.stderr) == (0, "decide accepted for p\n", unrung)
    deployment.await_status("p", "completed")


def test_two_users_of_one_home_are_told_of_each_other(aegis: CommandLine) -> None:
    with folder("home") as home:
        lock = home / "home"
        first = aegis.begin("demo", str(aegis.folder), "--no-chaos", AEGIS_HOME=str(lock), **UNSET)
        try:
            while not (lock / "demo" / "up.lock").exists() or not (lock / "demo" / "up.lock").read_text():
                assert first.poll() is None, aegis.end(first)
            said = aegis("demo", str(aegis.folder), AEGIS_HOME=str(lock), **UNSET)
            line = said.complaint()
            assert f"another `aegis up` (pid {first.pid}) runs there" in line
            assert "set AEGIS_HOME to another directory" in line
        finally:
            first.terminate()
            aegis.end(first)


UNSET = {"AEGIS_DATABASE_URL": "", "AEGIS_BROKER_URL": ""}
