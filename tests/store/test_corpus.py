"""One corpus of bad input through every door: a typed error that says where, and not one row of any table changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
from corpus import NO_JSON, TEXTS, VALUES, Bad, BadText
from store_workbench import RecordingRing, everything
from store_workflows import Once

from aegis import Context, Retry, Workflow, transition
from aegis.cli import main as command_line
from aegis.core.errors import AegisError, InvalidData, InvalidHandlerResult, NotCanonical
from aegis.core.starting import Start
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

ALL: Final = (*VALUES, *NO_JSON)
Doing: TypeAlias = Callable[["Box", Context], object]
# What the handler does; the test's own.
DOING: list[Doing] = []


class Lid(StrEnum):
    OPEN = "open"
    FULL = "full"
    SHUT = "shut"


class Box(Workflow, name="corpus.Box"):
    """Takes anything, as its fields have no types: what is let in is decided by nothing else."""

    state: Lid = Lid.OPEN
    extra: Any = None

    @transition(Lid.OPEN, Lid.FULL, on="put")
    def put(self, ctx: Context, thing: Any) -> None:
        self.extra = thing

    @transition(Lid.FULL, Lid.SHUT, retry=Retry(max_attempts=1))
    def shut(self, ctx: Context) -> Any:
        return DOING[0](self, ctx) if DOING else None


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    DOING.clear()


def assert_says(error: AegisError, bad: Bad, before: str, where: str) -> None:
    """The error names what is wrong, and where: ``where`` in the data, ``before`` that in the document it goes into."""
    assert bad.says in str(error)
    assert str(error).isprintable()
    found = error.problems[0][0] if isinstance(error, InvalidData) else error.pointer  # type: ignore[attr-defined]
    if bad.at_the_top:
        assert found == ""
        return
    expected = (before if isinstance(error, NotCanonical) else "") + where + bad.inside
    assert found == expected or ("deep" in bad.name and found.startswith(expected)), found


def refused(database: Database, bad: Bad, act: Callable[[], object], *, before: str = "", where: str = "/0") -> None:
    """What is done raises one of ours, and nothing at all is written."""
    rows = everything(database)
    with pytest.raises((NotCanonical, InvalidData)) as caught:
        act()
    assert_says(caught.value, bad, before, where)
    assert everything(database) == rows


# --- the engine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ALL, ids=str)
def test_as_the_data_of_a_start(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, bad: Bad
) -> None:
    refused(database, bad, lambda: engine.start(Box(extra=[bad.value]), id="b"), before="/state", where="/extra/0")
    assert ring.calls == 0


@pytest.mark.parametrize("bad", ALL, ids=str)
def test_as_the_data_of_one_of_many(engine: DurableWorkflowEngine, database: Database, bad: Bad) -> None:
    many = [Start(Once(), id="good"), Start(Box(extra=[bad.value]), id="b"), Start(Once(), id="good-2")]
    refused(database, bad, lambda: engine.start_many(many), before="/state", where="/extra/0")


@pytest.mark.parametrize("bad", ALL, ids=str)
def test_as_the_payload_of_an_event(engine: DurableWorkflowEngine, database: Database, bad: Bad) -> None:
    engine.start(Box(), id="b")
    refused(database, bad, lambda: engine.send("b", "put", [bad.value], key="k"))
    assert engine.describe("b").status == "waiting"


# --- a handler ----------------------------------------------------------------------------------------


@pytest.fixture
def full(engine: DurableWorkflowEngine, bench: Bench) -> str:
    """A box whose next handler does what the test says."""
    engine.start(Box(), id="b")
    engine.send("b", "put", "x", key="k")
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    return "b"


@pytest.mark.parametrize("bad", ALL, ids=str)
def test_as_what_a_handler_leaves_behind(engine: DurableWorkflowEngine, bench: Bench, full: str, bad: Bad) -> None:
    """It is no attempt that could go otherwise another time: it has failed, the error says why, the worker goes on."""

    def leave(box: Box, _: Context) -> None:
        box.extra = [bad.value]

    DOING.append(leave)
    assert run_transition(bench, full, 1) is Ended.COMMITTED
    found = engine.describe(full)
    assert (found.status, found.state) == ("failed", "full")
    assert found.error is not None
    assert bad.says in found.error["message"]
    assert found.error["type"] in {f"aegis.core.errors.{kind.__name__}" for kind in (NotCanonical, InvalidData)}
    assert [link.event for link in engine.history(full)] == ["created", "put", "failed"]
    assert engine.get(full) == Box(state=Lid.FULL, extra="x")
    assert engine.verify_integrity(full) == (True, None)


@pytest.mark.parametrize("bad", ALL, ids=str)
def test_as_what_a_handler_returns(engine: DurableWorkflowEngine, bench: Bench, full: str, bad: Bad) -> None:
    DOING.append(lambda *_: bad.value)
    assert run_transition(bench, full, 1) is Ended.COMMITTED
    found = engine.describe(full)
    assert (found.status, found.state) == ("failed", "full")
    assert found.error is not None
    assert found.error["type"] == "aegis.core.errors.InvalidHandlerResult"
    assert "it must return one of: shut" in found.error["message"]
    assert engine.get(full) == Box(state=Lid.FULL, extra="x")
    assert engine.verify_integrity(full) == (True, None)


@pytest.mark.parametrize("bad", ALL, ids=str)
def test_as_what_a_handler_saves_sets_or_sends(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, full: str, bad: Bad
) -> None:
    """It is raised where it is done; a handler that goes on without it commits as if nothing had been."""
    engine.start(Box(), id="other")
    reached = []

    def attempt(box: Box, ctx: Context) -> None:
        def save() -> None:
            box.extra = [bad.value]
            ctx.checkpoint()

        refused(database, bad, save, before="/state", where="/extra/0")
        box.extra = "good"
        refused(database, bad, lambda: ctx.send("other", "put", [bad.value]))
        reached.append(box)

    DOING.append(attempt)
    assert run_transition(bench, full, 1) is Ended.COMMITTED
    assert reached, engine.describe(full).error
    assert engine.describe(full).state == "shut"
    assert engine.get(full) == Box(state=Lid.SHUT, extra="good")
    assert engine.describe("other").seq == 0
    assert engine.verify_integrity(full) == (True, None)


@pytest.mark.parametrize("bad", ALL, ids=str)
def test_as_an_attribute(engine: DurableWorkflowEngine, bench: Bench, database: Database, full: str, bad: Bad) -> None:
    def attempt(_: Box, ctx: Context) -> None:
        rows = everything(database)
        with pytest.raises(InvalidHandlerResult, match=r"/attributes/a|bytes, more than"):
            ctx.set_attributes({"a": bad.value})
        assert everything(database) == rows
        ctx.set_attributes({"a": 1})

    DOING.append(attempt)
    rows = everything(database)
    with pytest.raises((NotCanonical, InvalidData), match=r"/attributes/a|bytes, more than"):
        engine.start(Once(), attributes={"a": bad.value})
    assert everything(database) == rows
    run_transition(bench, full, 1)
    assert engine.describe(full).attributes == {"a": 1}, engine.describe(full).error


# --- the command line ---------------------------------------------------------------------------------


@pytest.fixture
def aegis(
    engine: DurableWorkflowEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Run a command to its end; return its one line of complaint. Its status has to be 2."""
    for module in ("steering", "transfer"):
        monkeypatch.setattr(f"aegis.cli.{module}.engine", lambda: engine)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            command_line.main(list(arguments))
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        assert said.err.startswith("aegis: ")
        assert said.err.count("\n") == 1
        assert "a fault of AEGIS" not in said.err
        return said.err

    return run


def assert_told(line: str, bad: BadText, pointer: str) -> None:
    assert bad.says in line
    if not bad.whole and "deep" not in bad.name and bad.name != "too large":
        assert f"at {pointer}{bad.inside}".replace("\0", "\\x00") in line


@pytest.mark.parametrize("bad", TEXTS, ids=str)
def test_as_a_file_for_start_and_for_send(
    aegis: Callable[..., str], engine: DurableWorkflowEngine, database: Database, tmp_path: Path, bad: BadText
) -> None:
    engine.start(Box(), id="b")
    before = everything(database)
    (tmp_path / "bad.json").write_bytes(bad.within('{"extra": [', "]}"))
    line = aegis("start", "corpus.Box", "--id", "new", "--data", "@bad.json")
    assert_told(line, bad, "/extra/0")
    (tmp_path / "bad.json").write_bytes(bad.within("[", "]"))
    assert_told(aegis("send", "b", "put", "@bad.json"), bad, "/0")
    assert everything(database) == before


@pytest.mark.parametrize("bad", [bad for bad in TEXTS if isinstance(bad.text, str)], ids=str)
def test_as_an_argument_of_start_and_send(
    aegis: Callable[..., str], engine: DurableWorkflowEngine, database: Database, bad: BadText
) -> None:
    engine.start(Box(), id="b")
    before = everything(database)
    assert_told(aegis("start", "corpus.Box", "--data", f'{{"extra": [{bad.text!s}]}}'), bad, "/extra/0")
    assert_told(aegis("send", "b", "put", f"[{bad.text!s}]"), bad, "/0")
    assert everything(database) == before
