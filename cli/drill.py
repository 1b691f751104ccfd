"""``aegis drill``: break something on purpose, on a sandbox, and measure what was lost and how long it took."""

from __future__ import annotations

import logging
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from ..config.keys import signing_key, trusted_keys
from ..config.settings import Settings, settings
from ..core.errors import NotANote
from ..recovery.drill.drill import Terms
from ..recovery.drill.keep import keep
from ..recovery.drill.report import Report
from ..recovery.drill.scenario import Scenario
from ..recovery.drill.scenarios import ALL, BY_NAME, QUICK, SCENARIOS
from ..recovery.drill.seal import check_seal
from ..recovery.drill.session import Session, Skipped
from ..recovery.drill.staging import Orders, rehearse
from ..recovery.drill.system import Tell
from ..tasks.drilled import measured
from .output import EXIT_ERROR, EXIT_NO, EXIT_OK, Output, json_option, table

_SETS: Final = {"quick": QUICK, "all": ALL}
_ANY: Final = "SCENARIO"
_VERIFY: Final = "verify"
_MOST_SEED: Final = 2**32


class Drills(click.Group):
    """One command for each scenario, listed as one; and the one that checks a report."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return what the help lists."""
        return [_ANY, _VERIFY]

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Return the command for a scenario, or for several that have a name of their own."""
        if name == _VERIFY:
            return verify_command
        if name == _ANY:
            return _command(name, ())
        names = _SETS.get(name, (name,))
        if any(each not in BY_NAME for each in names):
            return None
        return _command(name, [BY_NAME[each] for each in names])

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the scenario that is meant, or say which there are."""
        if args and not args[0].startswith("-") and (args[0] == _ANY or self.get_command(context, args[0]) is None):
            raise click.UsageError(f"there is no scenario {args[0]!r}; there are: {', '.join([*BY_NAME, *_SETS])}")
        return super().resolve_command(context, args)


def _list(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    found = {each.scenario: each for each in measured(settings().places.drills)[0]}
    declared = {objective.name: objective for objective in settings().declared}
    rows = []
    for scenario in SCENARIOS:
        objective, last = declared[scenario.objective], found.get(scenario.name)
        when = "never" if last is None else f"{last.at.astimezone():%Y-%m-%d %H:%M}"
        took = "" if last is None else "no end" if last.rto is None else f"{last.rto:.2f} s"
        rows.append((scenario.name, scenario.title, f"{objective.rto:g} s", took, when, scenario.skipped()))
    columns = ("scenario", "", "RTO", "measured", "drilled", "not here, because")
    Output(as_json=False).console.print(table(columns, rows))
    context.exit()


@click.group("drill", cls=Drills)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the scenarios, and end."
)
def drill_command() -> None:
    """Break something on purpose, on a sandbox, and measure: `aegis drill worker`, `quick`, or `all`.

    Each drill makes a deployment of its own, with private servers in a temporary folder, loads it, does what its
    scenario says, types what the runbook says, waits until everything moves again, and verifies all of it. It
    touches nothing of the deployment whose settings it takes. With --staging NAME it drills that very deployment.
    """


def _command(name: str, scenarios: Sequence[Scenario]) -> click.Command:
    @click.command(name, short_help="Run one of the scenarios that --list names, `quick`, or `all`.")
    @click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 100), help="So many times each.")
    @click.option(
        "--load", default=8.0, show_default=True, type=click.FloatRange(1, 200), help="New workflows a second."
    )
    @click.option("--seed", type=click.IntRange(1, _MOST_SEED), help="Draws what is left to chance; a random one.")
    @click.option("--report", type=click.Path(path_type=Path), help="Also keep the reports in this folder.")
    @click.option(
        "--staging",
        metavar="NAME",
        help="On the deployment of this shell's settings, which has to have this name; not on a sandbox.",
    )
    @click.option("--inject", metavar="COMMAND", help="With --staging: what breaks it. Needed.")
    @click.option("--heal", metavar="COMMAND", help="With --staging: what a person does then; else nothing is done.")
    @click.option("--undo", metavar="COMMAND", help="With --staging: what brings back what is still away in the end.")
    @json_option
    def command(
        out: Output,
        repeat: int,
        load: float,
        seed: int | None,
        report: Path | None,
        staging: str | None,
        **commands: str | None,
    ) -> int:
        """Carry out a scenario, and keep its report below AEGIS_HOME/drills.

        Exit status: 0 every objective was met, 1 one was missed, or something was lost; 2 it could not be run.
        """
        terms = Terms(load=load, seed=seed or 1 + secrets.randbelow(_MOST_SEED))
        orders = _orders(staging, scenarios, commands)
        if staging is None or orders is None:
            return _run(out, report, lambda tell: _on_sandboxes(scenarios, terms, repeat, tell))
        (scenario,) = scenarios
        return _run(
            out,
            report,
            lambda tell: iter((rehearse(settings(), staging, scenario, orders, terms, repeat, tell),)),
        )

    made: click.Command = command
    return made


def _orders(staging: str | None, scenarios: Sequence[Scenario], commands: Mapping[str, str | None]) -> Orders | None:
    """Return what is to be done to a staging system; None without one.

    Raises:
        UsageError: what was given does not go together, or is no command.

    """
    if staging is None:
        given = [f"--{name}" for name, command in commands.items() if command is not None]
        if given:
            raise click.UsageError(f"{given[0]} goes with --staging: a sandbox is broken, and mended, by the drill")
        return None
    if len(scenarios) != 1:
        raise click.UsageError("--staging goes with one scenario: each is broken in a way of its own")
    if commands["inject"] is None:
        raise click.UsageError("--staging needs --inject, the command that breaks the system")
    split = {}
    for name, command in commands.items():
        try:
            split[name] = shlex.split(command or "")
        except ValueError as error:
            raise click.UsageError(f"--{name} is no command: {error} in {command!r}") from None
        if command is not None and not split[name]:
            raise click.UsageError(f"--{name} is no command: it is empty")
    return Orders(**split)


def _on_sandboxes(scenarios: Sequence[Scenario], terms: Terms, repeat: int, tell: Tell) -> Iterator[Report | Skipped]:
    with Session(settings(), terms, tell) as session:
        yield from session.run(scenarios, repeat)


def _run(out: Output, folder: Path | None, drill: Callable[[Tell], Iterator[Report | Skipped]]) -> int:
    configured = settings()
    key = signing_key(configured.key_folder)
    began = time.monotonic()
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def tell(line: str) -> None:
        console.print(Text.assemble((f"{time.monotonic() - began:6.1f} s  ", "dim"), line))

    reports, skipped = [], []
    _end_on_signals()
    with _quiet():
        for found in drill(tell):
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            reports.append(found)
            for place in (configured.places.drills, *([] if folder is None else [folder])):
                keep(found, place, key)
    if key is None:
        out.warn("the reports are not sealed: there is no key; `aegis keys new anchor` makes one")
    out.show(_document(reports, skipped), lambda here: _render(here, configured, reports, skipped))
    if not reports:
        return EXIT_ERROR
    return EXIT_OK if all(each.passed for each in reports) else EXIT_NO


@contextmanager
def _quiet() -> Iterator[None]:
    """What is away on purpose is not worth a line each time."""
    logger = logging.getLogger("aegis")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _end_on_signals() -> None:
    """Have the sandbox removed also where a terminal is closed, or a scheduler ends us."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _document(reports: Sequence[Report], skipped: Sequence[Skipped]) -> dict[str, Any]:
    return {"reports": [report.document() for report in reports], "skipped": skipped}


def _render(console: Console, configured: Settings, reports: Sequence[Report], skipped: Sequence[Skipped]) -> None:
    rows: list[tuple[object, ...]] = []
    for report in reports:
        verdict = Text("PASS", style="green") if report.passed else Text("FAIL", style="red")
        rpo = "-" if report.rpo is None else f"{report.rpo:.1f} of {report.objective.rpo:.3g} s"
        rto = f"{'never' if report.rto is None else f'{report.rto:.2f}'} of {report.objective.rto:g} s"
        lost = sum(outcome.lost for outcome in report.outcomes)
        acknowledged = sum(outcome.acknowledged for outcome in report.outcomes)
        rows.append((report.scenario, verdict, rpo, rto, f"{lost} of {acknowledged}"))
    rows += [(each.scenario, Text("SKIPPED", style="yellow"), "", "", each.reason) for each in skipped]
    console.print(table(("", "", "RPO", "RTO", "acknowledged and lost"), rows))
    for line in _missed(reports):
        console.print(Text(line, style="red"))
    if reports:
        console.print(Text(f"reports: {configured.places.drills}", style="dim"))


def _missed(reports: Sequence[Report]) -> Iterator[str]:
    for report in reports:
        for outcome in report.outcomes:
            for check in outcome.checks:
                if not check.passed:
                    where = f"{report.scenario}, run {outcome.number}"
                    yield f"{where}: {check.name}: {check.measured}, declared {check.declared}"


@click.command(_VERIFY)
@click.argument("report", type=click.Path(path_type=Path))
@json_option
def verify_command(out: Output, report: Path) -> int:
    """Check that REPORT is what a trusted key sealed: a report's JSON, with its note beside it.

    Exit status: 0 it is, 1 it is not, 2 it cannot be read.
    """
    configured = settings()
    trusted = trusted_keys(configured.trusted) if configured.trusted.exists() else []
    try:
        signer = check_seal(report, trusted)
    except NotANote as error:
        out.say({"valid": False, "report": report, "problem": str(error)}, f"NOT SEALED: {error.problem}")
        return EXIT_NO
    out.say({"valid": True, "report": report, "signer": signer}, f"{report}: as {signer} sealed it")
    return EXIT_OK
