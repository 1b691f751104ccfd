"""``aegis keys``: making, listing and rotating the keys that sign anchors and authenticate transitions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
from rich.console import Console

from ..config import keys
from ..config.keys import ANCHOR, BACKUP, KINDS, KeyFile
from ..config.settings import Settings, settings
from ..core.anchor import log_name
from ..core.errors import ConfigurationError
from ..persistence.schema import deployment_name
from .connect import database
from .output import Output, json_option, moment, table

_grace = click.option(
    "--grace",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(0, 31_536_000),
    help="Of a mac key: seconds until every transition has to carry its code.",
)
_name = click.option("--name", help="Of an anchor key: who signs; the deployment by default.")


@click.group("keys")
def keys_command() -> None:
    """The keys that sign anchors, that authenticate transitions, and that open encrypted backups.

    They are files in the folder that AEGIS_KEYS names. `anchor-*.key` signs anchors, and has to be where beat
    runs; its public half, `anchor-*.vkey`, is for everybody who verifies. `mac-*.key` is one secret for all
    processes that write transitions, and for those that verify them. `backup-*.key` has to be where backups are
    taken, and a copy of it where neither the database nor the backups are.
    """


@keys_command.command("new")
@click.argument("kind", type=click.Choice(KINDS))
@_name
@_grace
@json_option
def new(out: Output, kind: str, name: str | None, grace: float) -> None:
    """Make the first key of a KIND: anchor, mac or backup."""
    configured = settings()
    if _of(configured, kind):
        remedy = f"`aegis keys rotate {kind}` makes the next one"
        raise ConfigurationError(f"AEGIS_KEYS={configured.key_folder}", f"there is a key for {kind} already", remedy)
    _tell(out, _make(configured, kind, name, grace))


@keys_command.command("rotate")
@click.argument("kind", type=click.Choice(KINDS))
@_name
@_grace
@json_option
def rotate(out: Output, kind: str, name: str | None, grace: float) -> None:
    """Make the next key of a KIND; those before stay, to verify what was made with them."""
    configured = settings()
    if not _of(configured, kind):
        remedy = f"`aegis keys new {kind}` makes the first one"
        raise ConfigurationError(f"AEGIS_KEYS={configured.key_folder}", f"there is no key for {kind} yet", remedy)
    if kind == BACKUP:
        remedy = "begin another repository with another key: other folders in AEGIS_KEYS and AEGIS_BACKUP_REPOSITORY"
        raise ConfigurationError("a key for backup", "what it has encrypted is opened by no other", remedy)
    _tell(out, _make(configured, kind, name, grace))


@keys_command.command("list")
@json_option
def list_(out: Output) -> None:
    """List the keys, of each kind the active one last."""
    configured = settings()
    found = keys.key_files(configured.key_folder)
    active = {file.kind: file.id for file in found}

    def render(console: Console) -> None:
        if not found:
            console.print(f"no keys in {configured.key_folder}: `aegis keys new anchor`, `aegis keys new mac`")
            return
        rows = [
            (
                file.kind,
                file.id,
                moment(file.created_at),
                "active" if active[file.kind] == file.id else "verifies",
                file.public or _what_for(file),
            )
            for file in found
        ]
        console.print(table(("kind", "id", "made", "", ""), rows))

    out.show({"folder": configured.key_folder, "keys": [_plain(file, active) for file in found]}, render)


def _what_for(file: KeyFile) -> str:
    if file.required_from is None:
        return "opens the backups"
    return f"every transition has a code from {moment(file.required_from)} on"


def _of(configured: Settings, kind: str) -> list[KeyFile]:
    return [file for file in keys.key_files(configured.key_folder) if file.kind == kind]


def _make(configured: Settings, kind: str, name: str | None, grace: float) -> KeyFile:
    if kind == ANCHOR:
        return keys.new_anchor_key(configured.key_folder, name or log_name(_deployment(configured)))
    if kind == BACKUP:
        return keys.new_backup_key(configured.key_folder)
    return keys.new_mac_key(configured.key_folder, grace=timedelta(seconds=grace))


def _deployment(configured: Settings) -> str:
    """Return the deployment's name: the setting's, or the one that the database has."""
    if configured.deployment:
        return configured.deployment
    with database().statement() as connection:
        return deployment_name(connection)


def _tell(out: Output, made: KeyFile) -> None:
    def render(console: Console) -> None:
        console.print(f"{made.path}: keep it, and keep it secret")
        if made.public is not None:
            console.print("public, for everybody who verifies (AEGIS_TRUSTED_KEYS):")
            console.print(f"  {made.public}", markup=False)
        elif made.required_from is not None:
            left = round((made.required_from - datetime.now(UTC)).total_seconds())
            console.print("the same file has to be where workers, beat and applications run; restart them all")
            console.print(f"within {left} s: from then on a transition without a code counts as tampered with")
        else:
            console.print("and keep a copy of it elsewhere: without it, no encrypted backup can be restored")

    out.show(_plain(made, {made.kind: made.id}), render)


def _plain(file: KeyFile, active: dict[str, str]) -> dict[str, object]:
    return {
        "kind": file.kind,
        "id": file.id,
        "active": active[file.kind] == file.id,
        "created_at": file.created_at,
        "path": file.path,
        "public": file.public,
        "required_from": file.required_from,
    }
