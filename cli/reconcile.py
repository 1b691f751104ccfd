"""``aegis reconcile``: what a recovery lost, and the word that it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from ..config.settings import settings
from ..recovery.reconcile import Effect, Lost, Reconciliation, accept, look
from .connect import database
from .output import EXIT_NO, EXIT_OK, Output, json_option

_SHOWN: Final = 20


@click.command("reconcile")
@click.option("--accept", "accepting", is_flag=True, help="Put on record that exactly this is lost, and known to be.")
@click.option("--resume", is_flag=True, help="With --accept: let what was paused run again, with the same keys.")
@click.option("--reason", default="", help="With --accept: why, for whoever reads the record.")
@json_option
def reconcile_command(out: Output, *, accepting: bool, resume: bool, reason: str) -> int:
    """Say what the outside world has seen and the database no longer knows, after a restore or a fail-over.

    That is what was anchored and is gone, effects of which nobody knows how they went, those that the live database
    had and this one has not among them, and workflows that had gone on and are paused. Events that came after the
    point are not known here: senders may send again what they are not sure of, under the same key.

    Exit status: 0 nothing is open, 1 something is.
    """
    if (resume or reason) and not accepting:
        raise click.UsageError("--resume and --reason go with --accept")
    used = database()
    found = accept(settings(), used, reason, resume=resume) if accepting else look(settings(), used)
    out.show(
        {
            "epoch": found.epoch,
            "transitions": found.transitions,
            "lost": found.lost,
            "unplaced": found.unplaced,
            "effects": found.effects,
            "effects_unknown": found.unknown,
            "paused": found.paused,
            "record": found.record,
            "resumed": found.resumed,
        },
        lambda console: _render(console, found),
    )
    return EXIT_OK if found.is_done else EXIT_NO


def _render(console: Console, found: Reconciliation) -> None:
    for line in _lines(found):
        console.print(Text(line))


def _lines(found: Reconciliation) -> Iterator[str]:
    yield f"epoch {found.epoch}"
    if not found.lost:
        yield "nothing that was anchored is missing"
    else:
        yield f"{found.transitions:,} transitions of {len(found.lost):,} workflows were anchored, and are gone:"
        yield from _some([_line(one) for one in found.lost])
    if found.unplaced:
        yield f"{found.unplaced:,} that were anchored are there, and have no place in the log, which ends before them"
    if found.record is not None:
        yield f"accepted: record {found.record} of aegis:system says so; `aegis verify` tells it, and alarms no more"
    elif found.is_short:
        yield "-> `aegis reconcile --accept --reason ...`, once it is known what that meant outside"
    if found.unknown:
        yield f"{found.unknown:,} effects of which nobody here knows how they went; ask their providers, by the keys:"
        yield from _some([_said(one) for one in found.effects], of=found.unknown)
        yield "-> `aegis effect ID NAME --done JSON` or `--redo`; or let the workflow run, and its `check` ask"
    if found.resumed:
        yield f"{found.resumed:,} workflows run again, with the same idempotency keys as before"
    if found.paused:
        yield f"{len(found.paused):,} workflows had gone on, and are paused: `aegis resume ID`, or --accept --resume"
        yield from _some(found.paused)


def _line(one: Lost) -> str:
    first, last = one.seqs[0], one.seqs[-1]
    if one.whole:
        return f"{one.workflow_id}: all of it; whoever started it may start it again"
    return f"{one.workflow_id}: transition {first}" if first == last else f"{one.workflow_id}: {first} to {last}"


def _said(one: Effect) -> str:
    line = f"{one.workflow_id} {one.seq} {one.name}: {one.status}, key {one.key}"
    return line if one.told is None else f"{line} ({one.told})"


def _some(lines: Sequence[str], of: int | None = None) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:_SHOWN])
    every = len(lines) if of is None else of
    if every > _SHOWN:
        yield f"  ... and {every - _SHOWN:,} more"
