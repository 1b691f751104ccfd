"""``aegis health``: what works, what does not, and what to do."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from ..config.settings import settings
from ..tasks.check import Check, State
from ..tasks.health import health, worst
from .output import EXIT_ERROR, EXIT_NO, EXIT_OK, Output, json_option, status_text, table

_EXIT = {State.OK: EXIT_OK, State.WARNING: EXIT_OK, State.DEGRADED: EXIT_NO, State.DOWN: EXIT_ERROR}


@click.command("health")
@json_option
def health_command(out: Output) -> int:
    """Say how everything is, without waiting for what does not answer: AEGIS_HEALTH_TIMEOUT, 0.7 s by default.

    Exit status: 0 healthy, also with warnings, which are for a person to decide; 1 degraded (work is accepted,
    but something needs a look); 2 down. That is of the whole deployment: an alert, and no reason to restart a
    process, which may hold what it has done until the database is back.
    """
    checks = health(settings())
    state = worst(checks)

    def render(console: Console) -> None:
        console.print(table(("", "", ""), map(_line, checks)))
        console.print(Text.assemble("AEGIS is ", status_text(state.value)))

    out.show({"status": state, "checks": checks}, render)
    return _EXIT[state]


def _line(check: Check) -> tuple[object, ...]:
    says = Text(check.says)
    if check.remedy:
        says.append(f"\n-> {check.remedy}", style="dim")
    return check.name, status_text(check.state.value), says
