"""Commands that only read: list, show, history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from ..core.errors import DataErased
from ..persistence import history
from ..persistence.models import STATUSES
from ..persistence.records import WorkflowSummary, WorkflowTransition
from .connect import database, stale_option
from .given import attributes
from .given import moment as moment_given
from .output import Output, json_option, moment, status_text, table

_SHORT_HASH: Final = 12
_LONGEST_NUMBER: Final = 18
_LONGEST_LINE: Final = 120


@click.command("list")
@click.option("--type", "type_name", help="Only this type.")
@click.option("--status", type=click.Choice(STATUSES), help="Only this status.")
@click.option("--state", help="Only in this state.")
@click.option(
    "attributes",
    "--where",
    multiple=True,
    callback=attributes,
    metavar="K=V",
    help="Only with this attribute; repeatable.",
)
@click.option("--created-after", callback=moment_given, metavar="TIME", help="Only those started later.")
@click.option("--created-before", callback=moment_given, metavar="TIME", help="Only those started earlier.")
@click.option("--after", "last", metavar="ID", help="Go on after this one, the last of the page before.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@stale_option
@json_option
def list_command(
    out: Output, stale_ok: float | None, type_name: str | None, last: str | None, limit: int, **filters: Any
) -> None:
    """List workflows, the newest first.

    An attribute's value is a number or a boolean if it is one in JSON, and a string otherwise.
    """
    wanted = history.Filter(type=type_name, **filters)
    with database(stale_ok).statement() as connection:
        before = None if last is None else _place_of(history.summary(connection, last))
        rows = history.summaries(connection, wanted, before=before, limit=limit)

    def render(console: Console) -> None:
        if not rows:
            console.print("no workflows")
            return
        console.print(table(("id", "type", "state", "status", "seq", "updated", "next"), map(_line, rows)))

    out.show(rows, render)


def _place_of(row: WorkflowSummary) -> tuple[datetime, str]:
    return row.created_at, row.id


@click.command("show")
@click.argument("workflow_id", metavar="ID")
@click.option("--at", metavar="N|TIME", help="Its data as transition N left it, or as it was at a time (ISO 8601).")
@stale_option
@json_option
def show_command(out: Output, stale_ok: float | None, workflow_id: str, at: str | None) -> None:
    """Show a workflow: where it is, its timeline, its data.

    The data is checked against its hash, and that against its transition's, before it is shown.
    """
    asked = None if at is None else _moment_or_seq(at)
    with database(stale_ok).snapshot() as connection:
        row = history.summary(connection, workflow_id)
        links = history.transitions(connection, workflow_id)
        seq = history.seq_at(connection, workflow_id, asked) if isinstance(asked, datetime) else asked
        data: dict[str, Any] | None = None
        with suppress(DataErased):  # what happened is there to be shown all the same
            data = history.data_at(connection, workflow_id, seq).data

    def render(console: Console) -> None:
        _render_head(console, row, links[-1])
        console.print()
        console.print(table(("seq", "at", "event", "to", "attempt", "actor"), map(_step, links)))
        console.print()
        erased = f"{' ' if seq is None else '; '}erased: `aegis history` says why" if data is None else ""
        console.print(f"[bold]data[/bold]{'' if seq is None else _then(links, seq)}{erased}")
        if data is not None:
            console.print(Text(json.dumps(data, ensure_ascii=False, indent=2)))

    shown = row.seq if seq is None else seq
    out.show({"workflow": row, "timeline": links, "seq": shown, "data": data}, render)


def _moment_or_seq(given: str) -> datetime | int:
    """Return the transition's number, or the moment, in the zone of whoever asks if none is named."""
    if given.isascii() and given.isdigit():
        return int(given) if len(given) <= _LONGEST_NUMBER else 2**63 - 1
    try:
        return datetime.fromisoformat(given).astimezone()
    except (ValueError, OverflowError):
        problem = f"{given!r} is neither the number of a transition nor a time like 2026-11-24T10:30"
        raise click.BadParameter(problem, param_hint="--at") from None


def _then(links: Sequence[WorkflowTransition], seq: int) -> str:
    """Say where the workflow was then."""
    return "".join(
        f" at seq {seq}: state {link.to_state}, since {moment(link.at)} by {link.event}"
        for link in links
        if link.seq == seq
    )


@click.command("history")
@click.argument("workflow_id", metavar="ID")
@stale_option
@json_option
def history_command(out: Output, stale_ok: float | None, workflow_id: str) -> None:
    """Show a workflow's audit chain: each transition, its hash, what went into it."""
    with database(stale_ok).statement() as connection:
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
    for line in _conditions(row):
        console.print(Text(line))
    console.print(Text(f"started {moment(row.created_at)}, last change {moment(row.updated_at)}"))


def _conditions(row: WorkflowSummary) -> Iterator[str]:
    """Yield on what conditions it was started, as far as there are any."""
    if row.begins_at is not None:
        yield f"begins  {moment(row.begins_at)}"
    if row.deadline is not None:
        yield f"until   {moment(row.deadline)}, its deadline"
    if row.priority or row.queue is not None:
        yield f"goes    {f'on queue {row.queue}, ' if row.queue else ''}with priority {row.priority}"
    if row.singleton is not None:
        yield f"alone   with the key {row.singleton}"
    if row.attributes:
        yield "found   by " + ", ".join(
            f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sorted(row.attributes.items())
        )


def _step(link: WorkflowTransition) -> Sequence[object]:
    return (link.seq, moment(link.at), link.event, link.to_state, link.attempt, link.actor)
