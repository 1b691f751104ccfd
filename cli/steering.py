"""Commands that change something: start, send, pause, resume, cancel, checkpoint - and wait."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from ..core.canonical import Json, parse
from ..core.errors import InvalidData, WaitTimeout
from ..core.workflow import Workflow, registry
from ..persistence.durable import DurableWorkflowEngine, Handle
from ..persistence.records import WorkflowSummary
from .connect import engine
from .given import attributes, span_or_moment
from .output import EXIT_NO, EXIT_OK, Output, json_option

_UNRUNG: Final = "the broker does not answer: accepted all the same, and run as soon as it is back"

_reason = click.option("--reason", default="", help="Why; kept in the history.")


@click.command("start")
@click.argument("type_name", metavar="TYPE")
@click.option("--id", "workflow_id", help="Its id; starting it again with the same input changes nothing.")
@click.option("--data", default="{}", metavar="JSON", help="Its data: JSON, @FILE, or - for standard input.")
@click.option("--delay", callback=span_or_moment, metavar="SPAN|TIME", help="Not to begin before; such as 10m.")
@click.option("--priority", default=0, show_default=True, help="0 to 9: what has more goes first.")
@click.option("--queue", help="Where its transitions run that name no queue of their own.")
@click.option(
    "attributes", "--attribute", multiple=True, callback=attributes, metavar="K=V", help="To find it by; repeatable."
)
@click.option("--deadline", callback=span_or_moment, metavar="SPAN|TIME", help="When it has to have ended.")
@click.option("--singleton", metavar="KEY", help="Only if no other of its type has the key, and has not ended.")
@click.option("--attach", is_flag=True, help="With --singleton: tell of the one that has the key, instead.")
@json_option
def start_command(out: Output, type_name: str, workflow_id: str | None, data: str, **conditions: Any) -> None:
    """Start a workflow of TYPE.

    An attribute's value is a number or a boolean if it is one in JSON, and a string otherwise.
    """
    used = engine()
    workflow = registry.get(type_name).from_dict(_object(data))
    handle = used.start(workflow, id=workflow_id, **conditions)
    if not handle.rung:
        out.warn(_UNRUNG)
    out.say({"id": handle.id, "new": handle.new, "rung": handle.rung}, _accepted(handle, conditions))


def _accepted(handle: Handle[Workflow], conditions: Mapping[str, Any]) -> str:
    if handle.new:
        return f"{handle.id} accepted"
    if conditions["attach"]:
        return f"{handle.id} has the key {conditions['singleton']}, or was accepted before"
    return f"{handle.id} was accepted before, with the same data"


@click.command("send")
@click.argument("workflow_id", metavar="ID")
@click.argument("event")
@click.argument("payload", default="null", metavar="[JSON]")
@click.option("--key", help="Received once under this key, however often it is sent.")
@_reason
@json_option
def send_command(out: Output, workflow_id: str, event: str, payload: str, key: str | None, reason: str) -> None:
    """Send an EVENT to workflow ID; it is kept until a state accepts it."""
    rung = engine().send(workflow_id, event, json_of("the payload", payload), key=key, reason=reason)
    if not rung:
        out.warn(_UNRUNG)
    out.say({"id": workflow_id, "event": event, "rung": rung}, f"{event} accepted for {workflow_id}")


@click.command("pause")
@click.argument("workflow_id", metavar="ID")
@_reason
@json_option
def pause_command(out: Output, workflow_id: str, reason: str) -> None:
    """Let nothing more begin; a handler that runs now may finish."""
    used = engine()
    used.pause(workflow_id, reason=reason)
    report(out, used, workflow_id, pausing=True)


@click.command("resume")
@click.argument("workflow_id", metavar="ID", required=False)
@click.option(
    "--all",
    "type_name",
    metavar="TYPE",
    help="Ring every workflow of a type that could run now, or that waits by older code.",
)
@_reason
@json_option
def resume_command(out: Output, workflow_id: str | None, type_name: str | None, reason: str) -> None:
    """Go on after a pause, or ring what is pending."""
    if (workflow_id is None) == (type_name is None):
        raise click.UsageError("give the ID of a workflow, or --all TYPE")
    used = engine()
    if type_name is not None:
        handles = used.resume_all_pending(registry.get(type_name))
        out.say({"resumed": [handle.id for handle in handles]}, f"{len(handles)} resumed")
    elif workflow_id is not None:
        used.resume(workflow_id, reason=reason)
        report(out, used, workflow_id)


@click.command("cancel")
@click.argument("workflow_id", metavar="ID")
@_reason
@json_option
def cancel_command(out: Output, workflow_id: str, reason: str) -> None:
    """End a workflow here; a handler that runs now is not recorded."""
    used = engine()
    used.cancel(workflow_id, reason=reason)
    report(out, used, workflow_id)


@click.command("checkpoint")
@click.argument("workflow_id", metavar="ID")
@json_option
def checkpoint_command(out: Output, workflow_id: str) -> None:
    """Keep one more checkpoint; a handler that runs now is asked for it."""
    made = engine().checkpoint(workflow_id)
    line = f"{workflow_id} was asked for a checkpoint" if made is None else f"{workflow_id} saved, {made.commitment}"
    out.say({"id": workflow_id, "checkpoint": made}, line)


@click.command("wait")
@click.argument("workflow_id", metavar="ID")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds; without it, for as long as it takes.")
@json_option
def wait_command(out: Output, workflow_id: str, timeout: float | None) -> int:
    """Wait until a workflow has ended.

    Exit status: 0 completed, 1 ended otherwise or not in time.
    """
    try:
        row = engine().wait_for_end(workflow_id, timeout=timeout)
    except WaitTimeout as error:
        out.say({"id": workflow_id, "status": error.status, "state": error.state, "ended": False}, str(error))
        return EXIT_NO
    out.say(_brief(row) | {"ended": True}, _sentence(row))
    return EXIT_OK if row.status == "completed" else EXIT_NO


def report(out: Output, used: DurableWorkflowEngine, workflow_id: str, *, pausing: bool = False) -> None:
    """Say how a workflow is after what was done to it."""
    row = used.describe(workflow_id)
    line = _sentence(row)
    if pausing and row.running:
        line = f"{workflow_id} pauses as soon as its handler has finished"
    out.say(_brief(row), line)


def _brief(row: WorkflowSummary) -> dict[str, object]:
    return {"id": row.id, "status": row.status, "state": row.state, "seq": row.seq}


def _sentence(row: WorkflowSummary) -> str:
    because = f": {row.error['message']}" if row.error else ""
    return f"{row.id} is {row.status} in state {row.state}{because}"


def _object(text: str) -> dict[str, Json]:
    value = json_of("the data", text)
    if not isinstance(value, dict):
        raise InvalidData("the data", [("", 'it is no JSON object, such as {"title": "..."}')])
    return value


def json_of(what: str, text: str) -> Json:
    """Return what an argument says: JSON, @FILE, or - for standard input."""
    if text == "-":
        return parse(sys.stdin.buffer.read())
    if text.startswith("@"):
        try:
            return parse(Path(text[1:]).read_bytes())
        except OSError as error:
            raise InvalidData(what, [("", f"{text[1:]} cannot be read ({error.strerror})")]) from None
    return parse(text)
