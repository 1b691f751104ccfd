"""``aegis check``: whether the code that is about to be deployed can go on with what is stored."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from ..config.settings import settings
from ..core.compatibility import KINDS, Problem
from ..core.errors import ConfigurationError
from ..core.workflow import registry
from ..persistence import compatibility
from ..workers.load import load_workflows
from .connect import database
from .output import EXIT_NO, EXIT_OK, Output, json_option, table


@click.command("check")
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(1, 1_000_000),
    help="Read the data of at most N workflows of each type, version and state, the oldest and the newest.",
)
@click.option(
    "--accept",
    metavar="KIND",
    multiple=True,
    type=click.Choice(KINDS),
    help="A kind of problem, such as 'timer earlier', that is told and is no reason to stop. May be repeated.",
)
@json_option
def check_command(out: Output, sample: int | None, accept: tuple[str, ...]) -> int:
    """Compare the workflows in the code with those in the database, before a deployment.

    Exit status: 0 the code can go on with all of them, but for what was accepted; 1 it cannot, with each problem and
    its remedy; 2 it could not be found out.
    """
    modules = settings().workflows
    if not modules:
        problem = "it names no module, so there is no code to compare with"
        raise ConfigurationError("AEGIS_WORKFLOWS", problem, "set it as for the workers of the new deployment")
    load_workflows(modules)
    found = compatibility.check(database(), registry, sample=sample)

    stops = any(problem.kind not in accept for problem in found.problems)

    def render(console: Console) -> None:
        if found.problems:
            console.print(table(("problem", "workflow", "count", ""), map(_line, found.problems)))
        console.print(_summary(found, stops=stops))

    out.show({"ok": not stops, **vars(found)}, render)
    return EXIT_NO if stops else EXIT_OK


def _line(problem: Problem) -> tuple[object, ...]:
    says = Text(problem.what)
    says.append(f"\nfor example {', '.join(problem.examples)}\n-> {problem.remedy}", style="dim")
    return Text(problem.kind, style="red"), f"{problem.type}/{problem.version}", problem.count, says


def _summary(found: compatibility.Compatibility, *, stops: bool) -> Text:
    looked = f"{found.workflows} workflows that have not ended; the data of {found.data} and {found.events} events read"
    if not found.problems:
        return Text(f"the code can go on with all of them: {looked}", style="green")
    problems = f"{len(found.problems)} problem{'s' * (len(found.problems) > 1)}"
    return (
        Text(f"{problems}: {looked}", style="red") if stops else Text(f"{problems}, accepted: {looked}", style="yellow")
    )
