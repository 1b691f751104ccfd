"""How-to pages whose code is run as it stands there, and what they claim of the code that nobody could run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from deployment import Deployment
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from aegis.core import compatibility

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
# The pages whose code is one program, each block going on from the one before.
PROGRAMS = ("starting", "events", "timers")


def code_of(page: Path, folder: Path) -> str:
    """Write the files that a page names in their first line, and return all other code of it as one program."""
    program = []
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        named = re.match(r"# (\w+\.py)\n", block)
        if named:
            (folder / named[1]).write_text(block)
        else:
            program.append(block)
    return "\n".join(program)


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_code_of_a_page_does_what_the_page_says(
    deploy: Callable[..., Deployment], tmp_path: Path, page: str
) -> None:
    program = code_of(HOW_TO / f"{page}.md", tmp_path)
    modules = [file.stem for file in tmp_path.glob("*.py")]
    deployment = deploy(AEGIS_WORKFLOWS=",".join(modules), PYTHONPATH=str(tmp_path))
    if "local_engine" not in program:
        deployment.worker()
        deployment.beat()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **deployment.environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert not done.returncode, done.stderr
    wanted = [one or other for one, other in re.findall(r"^ *print\(.*\)  # (.+)$|^# (.+)$", program, re.MULTILINE)]
    assert done.stdout.splitlines() == wanted
    assert len(wanted) >= 3, "the page shows little"


# --- what the pages claim of the code -----------------------------------------------------------


def text_of(page: str) -> str:
    return (HOW_TO / f"{page}.md").read_text()


def cells_below(text: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with that head."""
    lines = text[text.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readme_names_every_extra() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    table = cells_below((ROOT / "README.md").read_text(), "| extra | for |")
    assert {re.findall(r"\[(\w+)\]", name)[0] for name, _ in table} == set(extras) - {"dev"}


@pytest.mark.parametrize(
    ("engine", "sessions"),
    [
        ("awaited", [AsyncSession, async_scoped_session, AsyncConnection]),
        ("blocking", [Session, scoped_session, Connection]),
    ],
)
def test_web_applications_names_what_may_be_handed_over_to_which_engine(engine: str, sessions: list[type]) -> None:
    table = cells_below(text_of("web-applications"), "| `session=` | engine | rung |")
    named = {name for what, whose, _ in table if whose == engine for name in re.findall(r"`(\w+)`", what)}
    assert named >= {session.__name__ for session in sessions}
    others = {"AsyncSession", "async_scoped_session", "AsyncConnection", "Session", "scoped_session", "Connection"}
    assert named & others == {session.__name__ for session in sessions}


def test_fastapi_awaits_and_the_others_block() -> None:
    text = text_of("web-applications")
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    awaited = sections["FastAPI"]
    assert "from aegis import AegisError, DurableWorkflowEngine" in awaited
    assert not re.search(r"aegis\.sync|to_thread", awaited)
    calls = re.findall(r"(\S+) \S*engine\.(?:start|send|describe)\(", awaited)
    assert calls == ["await"] * len(calls)
    assert len(calls) == 4
    for name in ("Flask", "Django", "From a Celery task of your own"):
        assert not re.search(r"\bawait\b|async def", sections[name]), name


def test_deploy_tells_of_upgrades_and_of_the_gate_as_versions_does() -> None:
    text = text_of("deploy")
    change = text[text.index("## A new version of your code") : text.index("## A new version of AEGIS")]
    for named in ("`aegis check`", "`@upgrade`", "`@upgrade(1)`", "(versions.md)", "#a-gate-before-a-deployment"):
        assert named in change, named
    # The problem that it waits to be gone is one that the check knows by that name.
    assert "`no upgrade`" in change
    assert '"no upgrade"' in Path(compatibility.__file__).read_text()


def test_deploy_shows_the_schema_that_there_is() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "src" / "aegis" / "persistence" / "migrations"))
    head = ScriptDirectory.from_config(config).get_current_head()
    assert f"the schema is at {head}\n" in text_of("deploy")
