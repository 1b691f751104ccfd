"""The command that tries again: one workflow, or all that have something in common."""

from __future__ import annotations

from datetime import timedelta

import click

from ..core.starting import Moment
from ..persistence.retrying import STOPPED
from .connect import engine
from .given import span_or_moment
from .output import Output, json_option
from .span import older_than as _older_than
from .steering import report


@click.command("retry")
@click.argument("workflow_id", metavar="ID", required=False)
@click.option("--all", "many", is_flag=True, help="All that the other options leave, instead of one ID.")
@click.option("--type", "type_name", metavar="TYPE", help="Those of a type.")
@click.option("--state", help="Those that stopped in a state.")
@click.option("--status", type=click.Choice(STOPPED), help="Those that are failed, or quarantined.")
@click.option("--error", metavar="TEXT", help="Those whose error's type or message holds a text.")
@_older_than
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--deadline", callback=span_or_moment, metavar="SPAN|TIME", help="Another deadline, for one ID.")
@click.option("--dry-run", is_flag=True, help="Only say how many they are.")
@click.option("--reason", default="", help="Why; kept in the history.")
@json_option
def retry_command(
    out: Output,
    workflow_id: str | None,
    many: bool,
    type_name: str | None,
    state: str | None,
    status: str | None,
    error: str | None,
    older_than: timedelta | None,
    limit: int | None,
    deadline: Moment | None,
    dry_run: bool,
    reason: str,
) -> None:
    """Try again what workflow ID failed at, or was quarantined for; or all of them, or some."""
    filters = (type_name, state, status, error, older_than, limit)
    if many is (workflow_id is not None):
        raise click.UsageError("give the ID of a workflow, or --all")
    if not many and (dry_run or any(given is not None for given in filters)):
        raise click.UsageError("what chooses among many is for --all")
    if many and deadline is not None:
        raise click.UsageError("--deadline is for the ID of one workflow")
    used = engine()
    if workflow_id is not None:
        used.retry(workflow_id, reason=reason, deadline=deadline)
        report(out, used, workflow_id)
        return
    count = used.retry_all(
        type=type_name,
        state=state,
        status=status,
        error=error,
        older_than=older_than,
        limit=limit,
        reason=reason,
        dry_run=dry_run,
    )
    out.say({"retried" if not dry_run else "would_be_retried": count}, _line(count, dry_run=dry_run))


def _line(count: int, *, dry_run: bool) -> str:
    what = f"{count} workflow{'' if count == 1 else 's'}"
    return f"{what} would be retried" if dry_run else f"{what} retried"
