"""The documentation, held against what it tells of: where one of the two changes, a test fails."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from deployment import Deployment
from sqlalchemy import BigInteger, Boolean, DateTime, Integer, LargeBinary, SmallInteger, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

from aegis import AegisError, Context, Retry, Workflow, transition
from aegis.cli.main import aegis
from aegis.config.settings import Settings, read
from aegis.core import errors
from aegis.core.canonical import load
from aegis.core.verify import Code
from aegis.persistence import models
from aegis.persistence.statements import DIALECT
from aegis.sync import DurableWorkflowEngine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of code, and where it stands."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    return [
        Block(str(page.relative_to(ROOT)), text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for page, text in ((page, page.read_text()) for page in PAGES)
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        if found[1] in languages
    ]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next one of any depth."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", prose(page), re.DOTALL | re.MULTILINE)
    assert found, f"{page.name} has no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of a section's tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [number for number, row in enumerate(cells) if all(re.fullmatch(r"-+", cell) for cell in row)]
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# --- links ------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    for link in links(page):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs") and "adr" not in page.parts}
    # The reports of drills have a page of their own that leads to them.
    reports = {page for page in pages if page.parent.name == "drills" and page.name != "README.md"}
    assert reports <= {
        (ROOT / "docs" / "drills" / link).resolve() for link in links(ROOT / "docs" / "drills" / "README.md")
    }
    pages -= reports
    assert pages <= linked


# --- code -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_is_python_and_what_it_imports_of_aegis_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "aegis":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"there is no {node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] == "aegis":
                    importlib.import_module(name.name)


@pytest.mark.parametrize("block", [b for b in blocks("python") if "(Workflow" in b.text], ids=str)
def test_every_workflow_is_one(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("workflow_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block.text, str(block), "exec"), vars(module))  # noqa: S102 - the repository's own pages
    made = [member for member in vars(module).values() if isinstance(member, type) and issubclass(member, Workflow)]
    assert [member for member in made if member is not Workflow]


def calls() -> Iterator[tuple[str, list[str]]]:
    """Each call of ``aegis`` in a console, with its arguments."""
    for block in blocks("console", "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*aegis (?!is )([^;|&>]*)", line)
            if found:
                yield f"{block}: {found[0]}", shlex.split(found[1], comments=True)


def test_every_call_of_the_command_is_understood() -> None:
    given = list(calls())
    assert len(given) > 20
    for line, arguments in given:
        command: click.Command = aegis
        while isinstance(command, click.Group) and not arguments[0].startswith("-"):
            found = command.get_command(click.Context(command), arguments.pop(0))
            assert found, line
            command = found
        if isinstance(command, click.Group):  # an option of its own does something, and ends
            assert arguments[0] in options_of(command), line
            continue
        command.make_context(line, arguments)  # parses, and runs nothing


# --- reference: command line ------------------------------------------------------------


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for each in command.list_commands(context):
        found = command.get_command(context, each)
        assert found is not None
        yield from commands(found, f"{name} {each}")


def options_of(command: click.Command) -> dict[str, click.Option]:
    found = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {name: option for option in found for name in (*option.opts, *option.secondary_opts)}


COMMANDS = dict(commands(aegis, "aegis"))


def test_commands_names_every_command_and_no_other() -> None:
    page = (REFERENCE / "commands.md").read_text()
    assert sorted(re.findall(r"^### (.+)$", page, re.MULTILINE)) == sorted(COMMANDS)
    beginning = section(REFERENCE / "commands.md", "Command line")
    assert set(re.findall(r"`(--?[\w-]+)`", beginning)) == {"--help", "-h", "--json"} | set(options_of(aegis))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_names_every_option_of_a_command_and_no_other(name: str) -> None:
    text = section(REFERENCE / "commands.md", name)
    options = options_of(COMMANDS[name])
    assert set(re.findall(r"`(--?[a-zA-Z][\w-]*)`", text)) == set(options)
    for cells in rows(text):
        default = options[quoted(cells[0])[0]].default
        if re.fullmatch(r"[\d.]+", cells[1]):
            assert float(cells[1]) == default, cells
        elif cells[1].startswith("`") and not cells[1].startswith("`AEGIS_"):
            assert quoted(cells[1]) == [default], cells


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_names_the_arguments_of_a_command(name: str) -> None:
    text = section(REFERENCE / "commands.md", name)
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Argument) and parameter.name != "celery_options":
            assert (parameter.metavar or str(parameter.name).upper()) in text


# --- reference: settings ----------------------------------------------------------------


def test_settings_is_the_table_of_all_settings_with_their_defaults() -> None:
    table = rows(section(REFERENCE / "settings.md", "Settings"))
    assert [quoted(cells[0]) for cells in table] == [[f"AEGIS_{name.upper()}"] for name in Settings.model_fields]
    written = {quoted(cells[0])[0]: cells[1] for cells in table}
    for name, field in Settings.model_fields.items():
        default = written[f"AEGIS_{name.upper()}"]
        if name == "home":  # is worked out at run time: by user
            place = "/var/lib/aegis" if os.geteuid() == 0 else "~/.local/share/aegis"
            assert place in quoted(default)
        elif name in BELOW_HOME:
            assert default == BELOW_HOME[name], name
        else:
            nothing = not field.default or field.default == Path()
            assert default == ("-" if nothing else f"`{field.default}`"), name


# What is worked out from other settings, as the page has it.
BELOW_HOME = {
    "keys": "`<AEGIS_HOME>/keys`",
    "trusted_keys": "the folder `AEGIS_KEYS`",
    "anchors": "`<AEGIS_HOME>/anchors/anchors.jsonl`",
    "backup_repository": "`<AEGIS_HOME>/backup`",
}


def test_what_the_settings_work_out_from_others_is_what_the_page_says() -> None:
    settings = read({"AEGIS_HOME": "/h", "AEGIS_KEYS": ""})
    assert (settings.key_folder, settings.trusted) == (Path("/h/keys"), settings.key_folder)
    assert settings.anchor_places == ("/h/anchors/anchors.jsonl",)
    assert settings.backups == Path("/h/backup")
    assert read({"AEGIS_HOME": "/h", "AEGIS_KEYS": "/k"}).trusted == Path("/k")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_variable_that_is_named_is_a_setting(page: Path) -> None:
    known = {f"AEGIS_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bAEGIS_[A-Z_]*[A-Z]\b", page.read_text()))
    assert {name for name in named if not name.startswith("AEGIS_TEST")} <= known


def test_the_readme_tells_how_the_published_vectors_are_run() -> None:
    """With every folder that a test looks for, by its name."""
    text = section(ROOT / "README.md", "Developing")
    assert "AEGIS_TEST_VECTORS" in text
    tests = (ROOT / "tests" / "unit" / "test_vectors.py").read_text()
    kinds = re.findall(r'^        "((?:merkle|rfc8785|wycheproof)/[\w.]+)",$', tests, re.MULTILINE)
    assert len(kinds) > 8
    for kind in kinds:
        folder, _, name = kind.partition("/")
        (row,) = (cells for cells in rows(text) if cells[0] == f"`{folder}/`")
        assert name in {one.rstrip("/") for one in quoted(row[1])}, kind


def test_the_limits_of_settings_are_those_that_are_checked() -> None:
    for name, _, meaning in rows(section(REFERENCE / "settings.md", "Settings")):
        field = Settings.model_fields[quoted(name)[0].removeprefix("AEGIS_").lower()]
        limits = {kind: getattr(each, kind) for each in field.metadata for kind in ("ge", "le") if hasattr(each, kind)}
        found = re.search(r"; ([\d.]+) to ([\d.]+)", meaning)
        given = {} if found is None else {"ge": float(found[1]), "le": float(found[2])}
        assert given == limits, name


# --- how to operate ---------------------------------------------------------------------


def names_of_checks() -> set[str]:
    """Every line that `aegis health` may have: the first argument of what makes one."""
    found = set()
    for file in (ROOT / "tasks").glob("*.py"):
        tree = ast.parse(file.read_text())
        constants = {
            node.target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
            if isinstance(call.func, ast.Name) and call.func.id in {"ok", "warning", "degraded", "down"}:
                (name, *_) = call.args
                value = name.value if isinstance(name, ast.Constant) else constants.get(ast.unparse(name))
                found |= {value} if isinstance(value, str) else set()
    return found


def test_operate_tells_of_every_line_of_health_and_no_other() -> None:
    table = rows(section(ROOT / "docs" / "how-to" / "operate.md", "aegis health"))
    assert {cells[0] for cells in table} == names_of_checks()


def test_the_index_of_the_runbook_tells_of_every_line_that_may_wake_somebody() -> None:
    """Those that are left out say themselves what to do, and can wait."""
    table = rows(section(ROOT / "docs" / "runbook.md", "What do you see?"))
    named = {name for cells in table for name in quoted(cells[0])}
    assert names_of_checks() - {"figures", "mac", "append-only", "drills"} <= named


def test_the_parts_that_alerts_name_are_lines_of_health() -> None:
    """The figures are held against what is printed where there is a database: tests/store/test_metrics.py."""
    text = (ROOT / "deploy" / "alerts.yml").read_text()
    parts = {part for found in re.findall(r'part=~?"([^"]+)"', text) for part in found.split("|")}
    assert parts
    assert parts <= {name.replace(" ", "_") for name in names_of_checks()}


# --- reference: objectives --------------------------------------------------------------


def test_objectives_is_the_table_of_what_is_declared_by_default() -> None:
    table = rows(section(REFERENCE / "objectives.md", "Objectives"))
    declared = read({}).declared
    assert table == [[f"`{o.name}`", o.lost, f"{o.rpo:g}", f"{o.rto:g}", o.counts] for o in declared]


# --- reference: tables ------------------------------------------------------------------

TYPES: list[tuple[type[TypeEngine[Any]], str]] = [
    (SmallInteger, "smallint"),
    (BigInteger, "bigint"),
    (Integer, "integer"),
    (LargeBinary, "bytea"),
    (DateTime, "timestamptz"),
    (Boolean, "boolean"),
    (JSONB, "jsonb"),
    (Text, "text"),
]


def test_tables_names_every_table_and_no_other() -> None:
    page = (REFERENCE / "tables.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(models.Base.metadata.tables)


def in_postgresql(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    found = type_.dialect_impl(DIALECT)
    return found.impl_instance if isinstance(found, TypeDecorator) else found


@pytest.mark.parametrize("name", models.Base.metadata.tables)
def test_tables_names_every_column_with_its_type(name: str) -> None:
    written = [(quoted(cells[0])[0], cells[1]) for cells in rows(section(REFERENCE / "tables.md", name))]
    columns = models.Base.metadata.tables[name].columns
    there = []
    for column in columns:
        kind = next(word for base, word in TYPES if isinstance(in_postgresql(column.type), base))
        there.append((column.name, f"{kind}, null" if column.nullable else kind))
    assert written == there


# --- reference: workflows ---------------------------------------------------------------

WORKFLOWS = REFERENCE / "workflows.md"


def methods(cls: type) -> dict[str, Callable[..., Any]]:
    return {name: member for name, member in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def written_as(function: Callable[..., Any]) -> str:
    """Return a function's parameters as one writes them, without their types and without ``self``."""
    given = inspect.signature(function).parameters.values()
    bare = inspect.Signature([p.replace(annotation=p.empty) for p in given if p.name != "self"])
    return str(bare).strip("()").replace("'", '"')


def test_workflows_names_every_parameter_of_transition() -> None:
    text = section(WORKFLOWS, "@transition")
    parameters = inspect.signature(transition).parameters
    assert [quoted(cells[0])[0] for cells in rows(text)] == list(parameters)
    assert f"transition({written_as(transition)})" in quoted(text)


def test_workflows_has_the_defaults_of_retry() -> None:
    assert repr(Retry()) in quoted(section(WORKFLOWS, "Retry"))


def test_workflows_names_every_member_of_the_context() -> None:
    named = {
        quoted(cells[0])[0].removeprefix("ctx.").partition("(")[0] for cells in rows(section(WORKFLOWS, "Context"))
    }
    assert named == {name for name in vars(Context) if not name.startswith("_")}


def test_workflows_names_every_method_of_the_engine_as_it_is_called() -> None:
    table = rows(section(WORKFLOWS, "DurableWorkflowEngine"))
    written = dict(quoted(cells[0])[0].removesuffix(")").split("(", 1) for cells in table)
    there = methods(DurableWorkflowEngine)
    assert written.keys() == there.keys()
    for name, method in there.items():
        assert written[name].replace("workflow_class", "workflow") == written_as(method), name


def test_workflows_names_every_status_and_every_error() -> None:
    assert {quoted(cells[0])[0] for cells in rows(section(WORKFLOWS, "Statuses"))} == set(models.STATUSES)
    there = [
        name
        for name, member in vars(errors).items()
        if isinstance(member, type) and member.__module__ == errors.__name__
    ]
    assert [quoted(cells[0])[0] for cells in rows(section(WORKFLOWS, "Errors"))] == [
        n for n in there if n != AegisError.__name__
    ]


# --- reference: integrity ---------------------------------------------------------------


def test_integrity_names_every_finding() -> None:
    table = rows(section(REFERENCE / "integrity.md", "What `aegis verify` checks"))
    assert {code for cells in table for code in quoted(cells[0])} == {code.value for code in Code}


# --- the first workflow, as the README has it -------------------------------------------


@pytest.fixture
def greeting(deploy: Callable[..., Deployment], tmp_path: Path) -> Deployment:
    """A deployment with the README's workflow, a worker and beat."""
    (code,) = [block.text for block in blocks("python") if block.page == "README.md" and "greeting.py" in block.text]
    (tmp_path / "greeting.py").write_text(code)
    deployment = deploy(AEGIS_WORKFLOWS="greeting", PYTHONPATH=str(tmp_path))
    deployment.worker()
    deployment.beat()
    return deployment


def run_in(deployment: Deployment, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, *argv],
        env={**os.environ, **deployment.environment},
        cwd=deployment.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_first_workflow_runs_as_the_readme_says(greeting: Deployment) -> None:
    (code,) = [block.text for block in blocks("python") if block.page == "README.md" and "engine =" in block.text]
    promised = re.findall(r"^print\(.*\)\s+# (.+)$", code, re.MULTILINE)
    assert run_in(greeting, "-c", code).splitlines() == promised
    (console,) = [block for block in blocks("console") if block.page == "README.md" and "aegis verify" in block.text]
    for line, following in zip(lines := console.text.splitlines(), [*lines[1:], "$"], strict=True):
        if line.startswith("$ aegis"):
            said = run_in(greeting, "-c", "from aegis.cli.main import main; main()", *shlex.split(line)[2:])
            assert following.startswith("$") or following in said.splitlines()
            if " send " in line:  # the reader takes a moment, too
                greeting.await_status("g-1", "completed")

    # What integrity.md says of a history holds for these two.
    (query,) = [block.text for block in blocks("sql") if "lag(" in block.text]
    members = {name for cells in rows(section(REFERENCE / "integrity.md", "The chain")) for name in quoted(cells[0])}
    with greeting.database.statement() as connection:
        for workflow_id in ("g-1", "g-2"):
            checked = connection.exec_driver_sql(
                query.replace("%s", "%%s").replace("'g-1'", "%s"), (workflow_id,)
            ).all()
            assert [tuple(row) for row in checked] == [(seq, True, True, True, True) for seq in range(3)]
        for (envelope,) in connection.exec_driver_sql("SELECT envelope FROM aegis_transition").all():
            assert set(load(bytes(envelope))) == members
