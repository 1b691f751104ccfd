"""Commands that only read: list, show, history, verify."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from ..core.verify import Finding
from ..persistence import history
from ..persistence.database import Database
from ..persistence.models import STATUSES
from ..persistence.records import WorkflowSummary, WorkflowTransition
from .connect import database
from .output import EXIT_NO, EXIT_OK, Output, json_option, moment, status_text, table

_SHORT_HASH: Final = 12
_LONGEST_LINE: Final = 120
_PAGE: Final = 500


@click.command("list")
@click.option("--type", "type_name", help="Only this type.")
@click.option("--status", type=click.Choice(STATUSES), help="Only this status.")
@click.option("--state", help="Only in this state.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@json_option
def list_command(out: Output, type_name: str | None, status: str | None, state: str | None, limit: int) -> None:
    """List workflows, the newest first."""
    with database().statement() as connection:
        rows = history.summaries(connection, type_name=type_name, status=status, state=state, limit=limit)

    def render(console: Console) -> None:
        if not rows:
            console.print("no workflows")
            return
        console.print(table(("id", "type", "state", "status", "seq", "updated", "next"), map(_line, rows)))

    out.show(rows, render)


@click.command("show")
@click.argument("workflow_id", metavar="ID")
@click.option("--seq", type=click.IntRange(min=0), help="The data as this transition left it.")
@json_option
def show_command(out: Output, workflow_id: str, seq: int | None) -> None:
    """Show a workflow: where it is, its timeline, its data."""
    with database().snapshot() as connection:
        row = history.summary(connection, workflow_id)
        links = history.transitions(connection, workflow_id)
        _, data = history.data_at(connection, workflow_id, seq)

    def render(console: Console) -> None:
        _render_head(console, row, links[-1])
        console.print()
        console.print(table(("seq", "at", "event", "to", "attempt", "actor"), map(_step, links)))
        console.print()
        console.print(f"[bold]data[/bold]{'' if seq is None else f' at seq {seq}'}")
        console.print(Text(json.dumps(data, ensure_ascii=False, indent=2)))

    out.show({"workflow": row, "timeline": links, "data": data}, render)


@click.command("history")
@click.argument("workflow_id", metavar="ID")
@json_option
def history_command(out: Output, workflow_id: str) -> None:
    """Show a workflow's audit chain: each transition, its hash, what went into it."""
    with database().statement() as connection:
        links = history.transitions(connection, workflow_id)

    def render(console: Console) -> None:
        rows = [
            (
                link.seq,
                moment(link.at),
                link.event,
                f"{link.from_state or '-'} -> {link.to_state}",
                link.actor,
                link.hash[:_SHORT_HASH],
                "" if link.payload is None else json.dumps(link.payload, ensure_ascii=False),
            )
            for link in links
        ]
        console.print(table(("seq", "at", "event", "states", "actor", "hash", "payload"), rows))

    out.show(links, render)


@click.command("verify")
@click.argument("workflow_id", metavar="ID", required=False)
@click.option("--all", "everything", is_flag=True, help="Every workflow.")
@json_option
def verify_command(out: Output, workflow_id: str | None, *, everything: bool) -> int:
    """Verify that nobody edited the history: of workflow ID, or of all.

    Exit status: 0 intact, 1 tampered with, 2 could not be verified.
    """
    if (workflow_id is None) != everything:
        raise click.UsageError("give the ID of a workflow, or --all")
    found: list[Finding] = []
    verified = 0
    for findings in _verified(database(), workflow_id):
        found += findings
        verified += 1

    def render(console: Console) -> None:
        for finding in found:
            console.print(Text(str(finding), style="red"))
        broken = len({finding.workflow_id for finding in found})
        console.print(
            f"[red]{broken} of {verified} histories were tampered with[/red]"
            if found
            else f"[green]{verified} {'history is' if verified == 1 else 'histories are'} intact[/green]"
        )

    out.show({"valid": not found, "verified": verified, "findings": found}, render)
    return EXIT_NO if found else EXIT_OK


def _verified(used: Database, workflow_id: str | None) -> Iterator[list[Finding]]:
    """Go through one workflow, or all of them; yield what is wrong with each."""
    if workflow_id is not None:
        with used.snapshot() as connection:
            yield history.findings(connection, workflow_id)
        return
    after: str | None = ""
    while after is not None:
        # A moment for each page: one for all of it would keep the database from cleaning up meanwhile.
        with used.snapshot() as connection:
            page = history.page_of_ids(connection, after=after, limit=_PAGE)
            for each in page:
                yield history.findings(connection, each)
        after = page[-1] if page else None


def _line(row: WorkflowSummary) -> Sequence[object]:
    return (
        row.id,
        row.type,
        row.state,
        status_text(row.status, running=row.running),
        row.seq,
        moment(row.updated_at),
        _next(row),
    )


def _next(row: WorkflowSummary) -> str:
    if row.error is not None and row.status in {"failed", "quarantined"}:
        return _brief(row.error)
    if row.status in {"completed", "cancelled"}:
        return ""
    parts = [f"on {event}" for event in row.accepts]
    if row.timer_at is not None:
        parts.append(f"{row.following} at {moment(row.timer_at)}")
    elif row.following is not None:
        parts.append(row.following)
    if row.pausing is not None:
        parts.append("then a pause")
    if row.inbox:
        parts.append(f"({row.inbox} event{'s' * (row.inbox > 1)} received)")
    if row.error is not None:
        # Without an attempt: a worker left it alone, for instance as its data does not fit the code.
        attempt = row.error.get("attempt")
        what = "left alone" if attempt is None else f"attempt {attempt} failed"
        parts.append(f"({what}: {_brief(row.error)})")
    return ", ".join(parts)


def _brief(error: Mapping[str, Any]) -> str:
    """Return what an error says in one line; some say it with pages of SQL."""
    lines = str(error.get("message", "")).splitlines() or [""]
    return lines[0] if len(lines[0]) <= _LONGEST_LINE else lines[0][: _LONGEST_LINE - 3] + "..."


def _render_head(console: Console, row: WorkflowSummary, last: WorkflowTransition) -> None:
    console.print(Text.assemble((row.id, "bold"), f"  {row.type} v{row.version}"))
    console.print(Text.assemble("state   ", row.state, "  ", status_text(row.status, running=row.running)))
    if row.status in {"failed", "quarantined"}:
        console.print(Text(f"error   {_next(row)}"))
        console.print("next    `aegis retry`, once the cause is mended; or `aegis cancel`")
    elif following := _next(row):
        console.print(Text(f"next    {following}"))
    if row.status == "paused":
        reason = last.payload.get("reason") if isinstance(last.payload, dict) else None
        console.print(Text(f"paused  by {last.actor}{f': {reason}' if reason else ''}"))
    if row.running:
        console.print(Text(f"worker  {row.worker}, attempt {row.attempt}"))
    console.print(Text(f"started {moment(row.created_at)}, last change {moment(row.updated_at)}"))


def _step(link: WorkflowTransition) -> Sequence[object]:
    return (link.seq, moment(link.at), link.event, link.to_state, link.attempt, link.actor)
