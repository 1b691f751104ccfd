"""`aegis effects`, `aegis effect` and `aegis check`, as processes, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine
from deployment import Deployment

DOUBTFUL = """
from enum import StrEnum
from pathlib import Path
from aegis import Context, Workflow, transition

class Step(StrEnum):
    NEW, DONE = "new", "done"

class Doubtful(Workflow, name="cli.Doubtful"):
    state: Step = Step.NEW
    told: str = ""

    @transition(Step.NEW, Step.DONE)
    def act(self, ctx: Context) -> None:
        self.told = ctx.effect("mail", self.mail, repeat=False)

    def mail(self) -> str:
        raise TimeoutError("no answer")
"""
OTHER = """
from enum import StrEnum
from aegis import Context, Workflow, transition

class Step(StrEnum):
    FRESH, DONE = "fresh", "done"

class Doubtful(Workflow, name="cli.Doubtful"):
    state: Step = Step.FRESH
    told: str = ""

    @transition(Step.FRESH, Step.DONE)
    def act(self, ctx: Context) -> None: ...
"""


@pytest.fixture(scope="module")
def doubtful(idle: Deployment) -> Deployment:
    """A deployment with two workflows that were stopped over an effect."""
    (idle.folder / "doubtful.py").write_text(DOUBTFUL)
    (idle.folder / "other").mkdir()
    (idle.folder / "other" / "doubtful.py").write_text(OTHER)
    idle.environment["PYTHONPATH"] = f"{idle.folder}:{idle.environment['PYTHONPATH']}"
    idle.environment["AEGIS_WORKFLOWS"] = "doubtful"
    idle.beat()
    idle.worker()
    aegis = CommandLine(idle.environment, idle.folder)
    for name in ("d-1", "d-2"):
        assert aegis("start", "cli.Doubtful", "--id", name).status == 0
    for name in ("d-1", "d-2"):
        idle.await_status(name, "failed", within=60)
    return idle


@pytest.fixture
def aegis(doubtful: Deployment) -> CommandLine:
    return CommandLine(doubtful.environment, doubtful.folder)


def test_effects_are_listed(aegis: CommandLine) -> None:
    plain, as_json = aegis.both("effects", "--in-doubt")
    assert plain.status == 0
    assert [line.split()[0] for line in plain.stdout.splitlines()] == ["workflow", "d-1", "d-2"]
    for part in ("in doubt", "d-1:1:mail", "is not known"):
        assert part in plain.stdout
    listed = as_json.document()
    assert [(one["workflow_id"], one["name"], one["status"]) for one in listed] == [
        ("d-1", "mail", "in doubt"),
        ("d-2", "mail", "in doubt"),
    ]
    assert [one["workflow_id"] for one in aegis("effects", "d-2", "--json").document()] == ["d-2"]
    assert "there is no workflow 'nobody'" in aegis("effects", "nobody").complaint()


def test_a_doubt_is_resolved_and_the_workflow_goes_on(aegis: CommandLine, doubtful: Deployment) -> None:
    plain = aegis("effect", "d-1", "mail", "--done", '"sent"', "--reason", "seen in the log", "--retry")
    assert (plain.status, plain.stderr) == (0, "")
    assert plain.stdout.startswith("the effect mail of d-1 is done; the workflow is pending")
    doubtful.await_status("d-1", "completed")
    assert aegis("show", "d-1", "--json").document()["data"]["told"] == "sent"
    assert "(said by user:" in aegis("effects", "d-1").stdout
    said = aegis("effect", "d-2", "mail", "--redo", "--reason", "not in the log", "--json").document()
    assert said == {"id": "d-2", "effect": "mail", "effect_status": "not done", "status": "failed", "seq": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("d-2", "mail", "--reason", "r"), "say either --done JSON"),
        (("d-2", "mail", "--done", "1", "--redo", "--reason", "r"), "say either --done JSON"),
        (("d-2", "mail", "--redo"), "--reason"),
        (("d-2", "mail", "--redo", "--reason", " "), "say how it is known"),
        (("d-2", "mail", "--done", "{", "--reason", "r"), "column"),
        (("d-2", "fax", "--redo", "--reason", "r"), "has no effect 'fax'"),
        (("d-9", "mail", "--redo", "--reason", "r"), "there is no workflow 'd-9'"),
    ],
)
def test_a_resolution_that_cannot_be_is_refused_in_one_line(
    aegis: CommandLine, arguments: tuple[str, ...], says: str
) -> None:
    assert says in aegis("effect", *arguments).complaint()


def test_an_export_of_open_effects_is_refused_but_for_reading(aegis: CommandLine, tmp_path: Path) -> None:
    file = str(tmp_path / "d-2.json")
    assert "--without-effects" in aegis("export", "d-2", "-o", file).complaint()
    assert not Path(file).exists()
    assert aegis("export", "d-2", "-o", file, "--without-effects").status == 0


def test_code_that_can_go_on_is_let_through_the_gate(aegis: CommandLine) -> None:
    plain, as_json = aegis.both("check")
    assert (plain.status, as_json.status) == (0, 0)
    assert plain.stdout.startswith("the code can go on with all of them: 1 workflows that have not ended")
    assert as_json.document() == {"ok": True, "problems": [], "workflows": 1, "data": 1, "events": 0}


def test_code_that_cannot_go_on_is_stopped_at_the_gate(aegis: CommandLine, doubtful: Deployment) -> None:
    path = f"{doubtful.folder}/other:{doubtful.environment['PYTHONPATH']}"
    plain = aegis("check", "--sample", "10", PYTHONPATH=path)
    assert plain.status == 1
    for part in ("state vanished", "cli.Doubtful/1", "they are in state 'new'", "for example d-2", "@upgrade(1)"):
        assert part in plain.stdout
    document = aegis("check", "--json", PYTHONPATH=path).document()
    assert not document["ok"]
    assert {one["kind"] for one in document["problems"]} == {"state vanished", "data does not fit"}
    accepted = [option for kind in ("state vanished", "data does not fit") for option in ("--accept", kind)]
    assert aegis("check", *accepted[:2], PYTHONPATH=path).status == 1, "there is another"
    passed = aegis("check", *accepted, PYTHONPATH=path)
    assert (passed.status, "state vanished" in passed.stdout, "problems, accepted:" in passed.stdout) == (0, True, True)
    assert aegis("check", *accepted, "--json", PYTHONPATH=path).document() == {**document, "ok": True}
    assert set(document["problems"][0]) == {"kind", "type", "version", "what", "count", "examples", "remedy"}


def test_a_kind_that_there_is_not_cannot_be_accepted(aegis: CommandLine) -> None:
    assert "'no such kind' is not one of 'unknown type'" in aegis("check", "--accept", "no such kind").stderr


def test_a_check_without_code_is_refused(aegis: CommandLine) -> None:
    assert "names no module" in aegis("check", AEGIS_WORKFLOWS="").complaint()
