"""``aegis restore``: back to a point in time, beside what is there; ``--in-place`` for the private server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from ..config.settings import settings
from ..recovery.restore.difference import Difference
from ..recovery.restore.place import in_place
from ..recovery.restore.restore import Restored, restore
from .output import Output, json_option, moment

_SHOWN: Final = 10


@click.command("restore")
@click.option(
    "--to", required=True, help="A time with its zone, `latest`, a transition (ID:SEQ), or an anchor (size of its log)."
)
@click.option("--into", type=click.Path(path_type=Path), help="The data directory that is made; it must not be there.")
@click.option(
    "--in-place", "replace", is_flag=True, help="Put it in the place of `aegis up`'s database; keep that one."
)
@click.option("--dry-run", is_flag=True, help="Restore and verify it, say what would be lost, and leave nothing.")
@json_option
def restore_command(out: Output, to: str, into: Path | None, *, replace: bool, dry_run: bool) -> None:
    """Go back to a point in time.

    It is restored beside, every chain and the anchors up to there are verified, and it is compared with the live
    database, where that answers, and with all anchors; with --in-place, with the stopped database that it replaces,
    which is started for it where nobody else can reach it. Only then it is given. In what is given a new epoch
    begins: workers of before stop, and workflows that had gone on are paused, until `aegis reconcile`.
    """
    if (into is not None) + replace + dry_run != 1:
        raise click.UsageError("give one of --into DIRECTORY, --in-place, --dry-run")
    done = in_place(settings(), to) if replace else restore(settings(), to, into.absolute() if into else None)
    out.show(done, lambda console: _render(console, done))


def _render(console: Console, done: Restored) -> None:
    what = "would be restored" if done.into is None else f"restored to {done.into}"
    console.print(
        Text(
            f"{done.to} {what} from backup {done.backup} in {done.seconds:g} s: {done.workflows:,} histories, "
            f"{done.transitions:,} transitions, as committed; {done.anchored:,} compared with anchors"
        )
    )
    console.print(f"the newest transition in it is of {moment(done.last_at)}")
    if done.uncompared is not None:
        console.print(Text(f"it could not be compared with the database of before: {done.uncompared}"))
        console.print("-> what that had beyond the newest anchor is not listed here, and not paused")
    for lack in done.lacks:
        for line in _lines(lack, done):
            console.print(Text(line))
    if done.kept is not None:
        console.print(Text(f"what was there before is kept at {done.kept}"))
    if done.waited:
        console.print("its commits wait for nobody: set synchronous_standby_names again once its standbys are there")
    if done.epoch is not None:
        console.print(f"epoch {done.epoch} begins with it; {done.paused:,} workflows that had gone on are paused")
        console.print("next: start it, then `aegis reconcile`")


def _lines(lack: Difference, done: Restored) -> Iterator[str]:
    live = "the live database" if done.kept is None else "the database of before"
    source = live if lack.source == "live" else f"the anchors at {lack.source}"
    if not (lack.transitions or lack.events or lack.effects):
        yield f"nothing that {source} has is missing in it"
        return
    verb = "would be lost" if done.into is None else "are lost"
    if lack.transitions:
        yield (
            f"of what {source} has, {lack.transitions:,} transitions of {lack.workflows:,} workflows {verb}, "
            f"{lack.gone:,} of these altogether:"
        )
        yield from _some(lack.examples, lack.workflows, "workflows")
    if lack.effects:
        yield f"{len(lack.effects):,} effects came after that, or were on their way; their providers know, by the keys:"
        told = [f"{one.workflow_id} {one.seq} {one.name}: {one.status}, key {one.key}" for one in lack.effects[:_SHOWN]]
        yield from _some(told, len(lack.effects), "effects")
    if lack.events:
        yield f"{lack.events:,} events came after that; their senders can send them again:"
        sent = [f"{one.name} to {one.workflow_id}, key {one.key}, of {one.sender}" for one in lack.sent[:_SHOWN]]
        yield from _some(sent, lack.events, f"events; --json lists {len(lack.sent):,}")


def _some(lines: Sequence[str], of: int, what: str) -> Iterator[str]:
    yield from (f"  {line}" for line in lines)
    if of > len(lines):
        yield f"  ... and {of - len(lines):,} more {what}"
