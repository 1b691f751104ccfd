"""``aegis effects`` and ``aegis effect``: what handlers did outside, and how one went that nobody knows of."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from ..core.effect import Happened
from ..core.errors import DidNotHappen, WorkflowNotFound
from ..persistence import effects, history
from ..persistence.records import Effect
from .connect import database, engine
from .output import Output, json_option, moment, table
from .steering import json_of

_STYLE = {"done": "green", "begun": "cyan", "not done": "yellow", "in doubt": "red"}


@click.command("effects")
@click.argument("workflow_id", metavar="ID", required=False)
@click.option("--in-doubt", is_flag=True, help="Only those of which a person has to say how they went.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@json_option
def effects_command(out: Output, workflow_id: str | None, limit: int, *, in_doubt: bool) -> None:
    """List what handlers did outside, of workflow ID or of all, the first first."""
    with database().statement() as connection:
        rows = effects.listed(connection, workflow_id, in_doubt=in_doubt, limit=limit)
        if workflow_id is not None and not rows:  # a recovery may have left them of a workflow that is gone
            history.summary(connection, workflow_id)

    def render(console: Console) -> None:
        if not rows:
            console.print("no effects")
            return
        columns = ("workflow", "seq", "effect", "status", "begun", "key", "what came of it")
        console.print(table(columns, map(_line, rows)))

    out.show(rows, render)


@click.command("effect")
@click.argument("workflow_id", metavar="ID")
@click.argument("name")
@click.option("--done", metavar="JSON", help="It happened, and this came of it: JSON, @FILE, or - for standard input.")
@click.option("--redo", is_flag=True, help="It did not happen: the next attempt does it.")
@click.option("--reason", required=True, help="How that is known; kept in the history.")
@click.option("--seq", type=click.IntRange(1), help="The number in its key, if not that of the state it is in.")
@click.option("--retry", is_flag=True, help="Let the workflow go on at once.")
@json_option
def effect_command(
    out: Output,
    workflow_id: str,
    name: str,
    done: str | None,
    reason: str,
    seq: int | None,
    *,
    redo: bool,
    retry: bool,
) -> None:
    """Say how the effect NAME of workflow ID went, which nobody here knows of.

    Of a workflow that a recovery paused it may be one that the database has never heard of.
    """
    if (done is None) is not redo:
        raise click.UsageError("say either --done JSON, with what came of it, or --redo")
    answer: Happened[Any] | DidNotHappen = DidNotHappen() if done is None else Happened(json_of("the result", done))
    used = engine()
    used.resolve_effect(workflow_id, name, answer, reason=reason, seq=seq, retry=retry)
    try:
        row = used.describe(workflow_id)
    except WorkflowNotFound:  # a recovery has left nothing of it but this
        row = None
    told = "is done" if done is not None else "is to be done again"
    where = "the workflow is not there" if row is None else f"the workflow is {row.status} in state {row.state}"
    facts = {"status": None, "seq": None} if row is None else {"status": row.status, "seq": row.seq}
    status = "not done" if done is None else "done"
    out.say(
        {"id": workflow_id, "effect": name, "effect_status": status, **facts},
        f"the effect {name} of {workflow_id} {told}; {where}",
    )


def _line(effect: Effect) -> tuple[object, ...]:
    status = Text(effect.status, style=_STYLE.get(effect.status, ""))
    return (
        *(effect.workflow_id, effect.seq, effect.name, status, moment(effect.begun_at), effect.key),
        _outcome(effect),
    )


def _outcome(effect: Effect) -> str:
    """Return what came of it, or went wrong, and who said so."""
    parts = []
    if effect.status == "done":
        parts.append(json.dumps(effect.result, ensure_ascii=False))
    elif effect.error is not None:
        parts.append((str(effect.error.get("message", "")).splitlines() or [""])[0])
    if effect.resolved_by is not None:
        parts.append(f"(said by {effect.resolved_by}: {effect.reason})")
    return " ".join(parts)
