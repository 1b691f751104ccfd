"""``aegis export`` and ``aegis import``: a workflow's whole history, in a file that proves itself."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Final

import click

from ..core.bundle import Bundle
from ..core.errors import InvalidData
from ..persistence import history, transfer
from ..persistence.records import WorkflowSummary
from ..tasks.sinks import AnchorFile
from .connect import database, engine
from .output import Output, json_option

_VERIFIER: Final = "verify_bundle.py"
_STANDARD: Final = Path("-")


@click.command("export")
@click.argument("workflow_id", metavar="ID")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write; - for standard output."
)
@click.option("--with-verifier", is_flag=True, help=f"Write {_VERIFIER} beside it: it needs Python, and no AEGIS.")
@click.option("--force", is_flag=True, help="Write over what is there.")
@click.option("--without-effects", is_flag=True, help="For reading alone: also where its handler has begun effects.")
@json_option
def export_command(
    out: Output, workflow_id: str, output: Path, *, with_verifier: bool, force: bool, without_effects: bool
) -> None:
    """Write a workflow's whole history to a file that others can verify, or import.

    It holds the workflow's data, and is written for its owner's eyes only. It verifies as far as the log was
    anchored when it was written; what is younger is in it, and counts as not anchored.
    """
    if with_verifier and output == _STANDARD:
        raise click.UsageError("--with-verifier writes beside a file: give -o FILE")
    with database().snapshot() as connection:
        bundle = transfer.export(connection, workflow_id, without_effects=without_effects)
        row = history.summary(connection, workflow_id)
    _advise(out, bundle, row)
    if output == _STANDARD:
        sys.stdout.buffer.write(bundle.to_bytes())
        return
    written = [output]
    if with_verifier:
        written.append(output.parent / _VERIFIER)
        _write_verifier(written[-1], force=force)
    _write(output, bundle.to_bytes(), force=force)
    _report(out, bundle, written)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--accept-unanchored", is_flag=True, help="Also where its newest transitions are vouched for by nobody.")
@click.option(
    "--anchors",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A copy of the exporter's file of anchors: shows also whether the history was cut off.",
)
@json_option
def import_command(out: Output, file: Path, anchors: Path | None, *, accept_unanchored: bool) -> None:
    """Take over a workflow that `aegis export` wrote; one that has not ended is paused, until `aegis resume`.

    It is verified first, against keys that AEGIS_TRUSTED_KEYS names: of what does not verify, nothing is written.
    """
    data = _read(file)
    known = None if anchors is None else AnchorFile(anchors).anchors()
    handle = engine().import_bundle(data, accept_unanchored=accept_unanchored, anchors=known, source=str(file))
    row = handle.describe()
    line = f"{row.id} imported: {row.seq} transitions, it is {row.status} in state {row.state}"
    more = f"; `aegis resume {row.id}` lets it go on" if row.status == "paused" else ""
    out.say({"id": row.id, "status": row.status, "state": row.state, "seq": row.seq}, line + more)


def _advise(out: Output, bundle: Bundle, row: WorkflowSummary) -> None:
    """Say what is not in the file, or not proven by it."""
    count, anchored = len(bundle.transitions), bundle.head.anchored_length
    if anchored < count:
        when = "export it again after the next anchor" if bundle.head.note else "nothing was ever anchored here"
        out.warn(f"{count - anchored} of its {count} transitions are not anchored: {when}")
    if row.inbox:
        out.warn(f"{row.inbox} event{'s were' if row.inbox > 1 else ' was'} received and not taken: not in the file")


def _report(out: Output, bundle: Bundle, written: list[Path]) -> None:
    count, anchored = len(bundle.transitions), bundle.head.anchored_length
    names = " and ".join(map(str, written))
    out.say(
        {"id": bundle.head.workflow_id, "transitions": count, "anchored": anchored, "files": written},
        f"{bundle.head.workflow_id}: {count} transitions, {anchored} of them anchored, in {names}",
    )


# --- files ------------------------------------------------------------------------------------


def _read(file: Path) -> bytes:
    if file == _STANDARD:
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidData("the bundle", [("", f"{file} cannot be read ({error.strerror})")]) from None


def _write_verifier(path: Path, *, force: bool) -> None:
    body = (resources.files(__package__) / _VERIFIER).read_bytes()
    with suppress(OSError):
        if path.read_bytes() == body:
            return
    _write(path, body, force=force)


def _write(path: Path, body: bytes, *, force: bool) -> None:
    """Write a file whole or not at all, for its owner alone; over another one only if told to."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            if force:
                Path(name).replace(path)
            else:
                os.link(name, path)  # unlike a rename, it refuses where there is a file already
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError:
        raise click.UsageError(f"{path} is there already; --force writes over it") from None
    except OSError as error:
        raise InvalidData("the output", [("", f"{path} cannot be written ({error.strerror})")]) from None
