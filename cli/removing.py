"""Commands that remove on purpose, and leave a record of it: erase, prune, purge."""

from __future__ import annotations

import sys
from datetime import timedelta

import click

from ..persistence.removal import span_text
from .connect import engine
from .output import Output, json_option
from .span import older_than as _older_than

_why = click.option("--reason", default="", help="Why; kept for ever, as in erase.")


@click.command("erase")
@click.argument("workflow_id", metavar="ID")
@click.option("--reason", required=True, help="Why; kept for ever, so without personal data.")
@json_option
def erase_command(out: Output, workflow_id: str, reason: str) -> None:
    """Erase the data of workflow ID, which has ended; its history stays, and can be verified as before.

    Payloads, events, checkpoints and their salts are deleted; hashes, times and actors stay. The
    reason stays as well: it must hold no personal data.
    """
    erased = engine().erase(workflow_id, reason=reason)
    line = f"the data of {workflow_id} is erased" if erased else f"the data of {workflow_id} was erased before"
    out.say({"id": workflow_id, "erased": erased}, line)


@click.command("prune")
@click.option("--keep", type=click.IntRange(1, 1_000_000), required=True, metavar="N", help="Of so many transitions.")
@_older_than
@_why
@json_option
def prune_command(out: Output, keep: int, older_than: timedelta | None, reason: str) -> None:
    """Remove old checkpoints, of all workflows but those of their newest N transitions, and of their first.

    Only those older than SPAN. What a workflow is now, and its history, stay as they are.
    """
    if older_than is None:
        raise click.UsageError("say how old, with --older-than SPAN")
    removed = engine().prune(keep=keep, older_than=older_than, reason=reason)
    out.say({"checkpoints": removed}, f"{removed} checkpoint{'' if removed == 1 else 's'} removed")


@click.command("purge")
@click.argument("workflow_id", metavar="ID", required=False)
@_older_than
@_why
@click.option("--yes", is_flag=True, help="Do not ask, where no ID is given.")
@json_option
def purge_command(
    out: Output, workflow_id: str | None, older_than: timedelta | None, reason: str, *, yes: bool
) -> None:
    """Remove workflow ID for good, or all that ended and did not change for SPAN.

    What is left of each is its id, which is never used again, its length and its last hash. Without an
    ID it asks first; where there is nobody to ask, it needs --yes.
    """
    if workflow_id is None and older_than is None:
        raise click.UsageError("give the ID of a workflow, or --older-than SPAN")
    if workflow_id is None and older_than is not None and not yes:
        _ask(out, older_than)
    removed = engine().purge(workflow_id, older_than=older_than, reason=reason)
    line = (
        f"{removed} workflow{'' if removed == 1 else 's'} purged" if workflow_id is None else f"{workflow_id} is purged"
    )
    out.say({"workflows": removed}, line)


def _ask(out: Output, older_than: timedelta) -> None:
    if out.as_json or not sys.stdin.isatty():
        raise click.UsageError("this purges all that is old enough, for good: say so with --yes")
    question = f"Purge every workflow that ended and did not change for {span_text(older_than)}, for good?"
    click.confirm(question, abort=True)
