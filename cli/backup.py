"""``aegis backup``: taking, listing and proving backups, and archiving what is written in between."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from ..config.settings import settings
from ..recovery.backup.adapter import Base
from ..recovery.backup.dump import dump
from ..recovery.backup.ledger import Proof
from ..recovery.backup.take import catalogue, take, verify
from .output import Output, json_option, moment, table

_MEGABYTE: Final = 1_000_000
_UNPROVED: Final = {"workflows": None, "transitions": None, "logged": None, "anchored": None, "seconds": None}


class _TakeByDefault(click.Group):
    """``aegis backup`` alone is ``aegis backup take``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in {"-h", "--help"}):
            args = ["take", *args]
        return super().parse_args(context, args)


@click.group("backup", cls=_TakeByDefault)
def backup_command() -> None:
    """Backups of the database, by Barman or pgBackRest (AEGIS_BACKUP_WITH), and the archive of its WAL.

    `aegis backup` alone is `aegis backup take`. They are in the folder that AEGIS_BACKUP_REPOSITORY names, or in
    AEGIS_BACKUP_BUCKET. A
    backup counts once it was restored onto a scratch server, and every chain in it was verified there.
    """


@backup_command.command("take")
@click.option("--incremental", is_flag=True, help="Only what changed since the last full one.")
@click.option("--verify/--no-verify", "proving", default=True, help="Restore it and verify it at once.")
@json_option
def take_command(out: Output, *, incremental: bool, proving: bool) -> None:
    """Take a backup; it is restored and verified at once."""
    base = take(settings(), incremental=incremental)
    proof = verify(settings(), base.id)[1] if proving else None
    _say(out, base, proof)


@backup_command.command("list")
@json_option
def list_command(out: Output) -> None:
    """List the backups, the newest first, and say which of them count."""
    listed = catalogue(settings())

    def render(console: Console) -> None:
        if not listed:
            console.print("no backups yet: `aegis backup` takes one")
            return
        rows = [(base.id, _kind(base), _size(base), moment(base.ended_at), _verdict(proof)) for base, proof in listed]
        console.print(table(("id", "kind", "size", "taken", "verified"), rows))

    out.show([_plain(base, proof) for base, proof in listed], render)


@backup_command.command("verify")
@click.argument("backup", metavar="ID", required=False)
@json_option
def verify_command(out: Output, backup: str | None) -> None:
    """Restore a backup onto a scratch server, and verify every chain in it and the last anchor there.

    ID is the newest by default. Once it is verified, backups go that are older than AEGIS_BACKUP_RETENTION.
    Exit status: 0 it counts, 2 it does not.
    """
    base, proof = verify(settings(), backup)
    _say(out, base, proof)


@backup_command.command("archive")
def archive_command() -> None:
    """Archive what the database writes, as it is written, until Ctrl-C.

    One can go back to any moment that is archived. `aegis up` runs this where AEGIS_BACKUP_INTERVAL or
    AEGIS_BACKUP_SYNCHRONOUS is set. Not with pgBackRest, to which the server hands its WAL by itself.
    """
    # This very process: signals and the pid stay what a process manager knows.
    os.execv(sys.executable, [sys.executable, "-m", "aegis.recovery.backup.archive"])  # noqa: S606


@backup_command.command("dump")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def dump_command(out: Output, file: Path) -> None:
    """Write the whole database to FILE with pg_dump: the portable copy, for another version or another place.

    `pg_restore` reads it; `aegis restore` does not, and no point in time can be gone back to with it.
    """
    size = dump(settings(), file)
    out.say({"file": file, "bytes": size}, f"{file}: {size / _MEGABYTE:,.1f} MB; `pg_restore` reads it")


def _say(out: Output, base: Base, proof: Proof | None) -> None:
    says = f"{_kind(base)} backup {base.id}, {_size(base)}"
    if proof is None:
        line = f"{says}: taken; it counts once `aegis backup verify` has restored it"
    else:
        line = (
            f"{says}: restored and verified in {proof.seconds:g} s: {proof.workflows:,} histories, "
            f"{proof.transitions:,} transitions, {proof.anchored:,} of them as anchored"
        )
    out.say(_plain(base, proof), line)


def _plain(base: Base, proof: Proof | None) -> dict[str, object]:
    return {
        "id": base.id,
        "kind": _kind(base),
        "parent": base.parent,
        "status": base.status,
        "bytes": base.size,
        "began_at": base.began_at,
        "ended_at": base.ended_at,
        "verified_at": None if proof is None or proof.problem else proof.at,
        "problem": None if proof is None else proof.problem or None,
        "proof": _UNPROVED if proof is None else {key: getattr(proof, key) for key in _UNPROVED},
    }


def _kind(base: Base) -> str:
    return "full" if base.parent is None else "incremental"


def _size(base: Base) -> str:
    return f"{base.size / _MEGABYTE:,.1f} MB"


def _verdict(proof: Proof | None) -> str:
    if proof is None:
        return "not yet"
    return proof.problem or moment(proof.at)
