"""``aegis verify``: whether the history is what was committed, against itself and what is kept outside."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..config.settings import settings
from ..core.finding import Finding, Report, Severity
from ..persistence import log as logs
from ..persistence import span
from ..persistence.audit import Progress as Told
from ..persistence.audit import Tally
from ..persistence.auditor import Auditor
from ..persistence.database import Database
from ..tasks.scrub import sources
from .connect import database, stale_option
from .output import EXIT_ERROR, EXIT_NO, EXIT_OK, Output, json_option

# Of fewer, the time is that of the connections.
_WORTH_A_RATE: Final = 1000


@click.command("verify")
@click.argument("workflow_id", metavar="ID", required=False)
@click.option("--all", "everything", is_flag=True, help="Every workflow, and the whole log beside its anchors.")
@stale_option
@json_option
def verify_command(out: Output, workflow_id: str | None, stale_ok: float | None, *, everything: bool) -> int:
    """Verify that nobody edited the history: of workflow ID, or of all.

    What was anchored is compared with the anchors, at the places that AEGIS_ANCHORS names, as far as keys
    that AEGIS_TRUSTED_KEYS names signed them.

    Exit status: 0 as it was committed, 1 tampered with, 2 could not be verified.
    """
    if (workflow_id is None) != everything:
        raise click.UsageError("give the ID of a workflow, or --all")
    used = database(stale_ok)
    known = sources(settings())
    auditor = Auditor(used, known)
    if workflow_id is not None:
        report = auditor.one(workflow_id)
    else:
        with _bar(out, used, max(len(known.sinks), 1)) as progress:
            report = auditor.everything(progress)
    out.show(_plain(report), lambda console: _render(console, report))
    return EXIT_NO if report.tampered else EXIT_OK if report.complete else EXIT_ERROR


def _plain(report: Report) -> dict[str, Any]:
    return {
        "valid": report.valid,
        "tampered": report.tampered,
        "complete": report.complete,
        "verified": report.workflows,
        "transitions": report.transitions,
        "seconds": round(report.seconds, 3),
        "transitions_per_second": _rate(report),
        "counts": report.counts,
        "findings": [_finding(finding) for finding in report.findings],
        "anchors": report.witnesses,
        "problems": report.problems,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "workflow_id": finding.workflow_id,
        "seq": finding.seq,
        "code": finding.code,
        "severity": finding.severity,
        "expected": finding.expected,
        "actual": finding.actual,
        "log_index": finding.log_index,
    }


def _rate(report: Report) -> int:
    return round(report.transitions / report.seconds) if report.seconds else 0


# --- for people -----------------------------------------------------------------------------


def _render(console: Console, report: Report) -> None:
    for finding in report.findings:
        console.print(Text(str(finding), style="red" if finding.severity is Severity.FAILURE else "dim"))
    told = len(report.findings)
    if (found := sum(report.counts.values())) > told:
        console.print(f"... and {found - told:,} more")
    for problem in report.problems:
        console.print(Text(f"not verified: {problem}", style="yellow"))
    console.print(_verdict(report))
    for line in _how(report):
        console.print(Text(line, style="dim"))


def _verdict(report: Report) -> Text:
    histories = f"{report.workflows:,} {'history' if report.workflows == 1 else 'histories'}"
    what = f"{histories}, {report.transitions:,} transition{'s' * (report.transitions != 1)}"
    if report.tampered:
        broken = {finding.workflow_id for finding in report.failures}
        names = ", ".join(sorted(str(each) for each in broken if each is not None)[:3]) or "the log"
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""  # noqa: PLR2004 - as many as are named
        return Text(f"TAMPERED WITH: {names}{more} (of {what})", style="bold red")
    if not report.complete:
        return Text(f"could not be verified in full: {what}, nothing wrong in what was", style="yellow")
    return Text(f"{what}: as committed", style="green")


def _how(report: Report) -> Iterator[str]:
    for witness in report.witnesses:
        yield (
            f"  {witness.entries:,} entries of the log compared with {witness.place}, "
            f"whose newest anchor is of {witness.anchored_at}"
        )
        if witness.stamped:
            yield f"  {witness.stamped:,} timestamps there verified"
        if witness.unchecked:
            yield f"  {witness.unchecked:,} timestamps there not checked: AEGIS_TIMESTAMP_ROOTS names no certificates"
    if not report.witnesses and not report.problems:
        why = "there are none yet" if settings().anchor_places else "AEGIS_ANCHORS is none"
        yield f"  compared with no anchors: {why}"
    if report.transitions >= _WORTH_A_RATE:
        yield f"  {report.seconds:.2f} s, {_rate(report):,} transitions/s"


@contextmanager
def _bar(out: Output, used: Database, places: int) -> Iterator[Told]:
    """Show how far it is, where somebody watches; the log is compared with so many places of anchors."""
    if out.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    with used.statement() as connection:
        total = max(span.transitions(connection) + logs.state(connection).size * places, 1)
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn()),
        *(TaskProgressColumn(), TextColumn("{task.fields[count]:,} transitions"), TimeElapsedColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("chains", total=total, count=0)

        def told(tally: Tally) -> None:
            name = "the log and its anchors" if tally.entries else "chains"
            done = tally.transitions + tally.entries
            # At each hundredth, however fast that is; a page may be too little to draw anything for.
            moved = done * 100 // total > bar.tasks[task].completed * 100 // total
            bar.update(task, completed=done, description=name, count=tally.transitions, refresh=moved)

        yield told
