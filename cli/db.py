"""``aegis db``: the schema's version, and the way to the newest."""

from __future__ import annotations

import click

from ..config.settings import settings
from ..persistence import schema
from ..persistence.database import Database
from .output import EXIT_NO, EXIT_OK, Output, json_option


@click.group("db")
def db_command() -> None:
    """The database's schema."""


@db_command.command("upgrade")
@json_option
def upgrade(out: Output) -> None:
    """Bring the schema to its newest version; safe to run again, and from several places at once."""
    from ..persistence.migrate import upgrade as bring_up  # noqa: PLC0415 - Alembic takes time to load

    found = bring_up(_database(), deployment=settings().deployment)
    out.say({"version": found}, f"the schema is at {found}")


@db_command.command("current")
@json_option
def current(out: Output) -> None:
    """Say which version the schema has."""
    with _database().statement() as connection:
        found = schema.current(connection)
    out.say({"version": found, "wanted": schema.wanted()}, found or "no AEGIS schema: run `aegis db upgrade`")


@db_command.command("check")
@json_option
def check(out: Output) -> int:
    """Say whether the schema is the one that this AEGIS needs: exit status 0 yes, 1 no."""
    with _database().statement() as connection:
        found = schema.current(connection)
    fits = found == schema.wanted()
    says = (
        f"the schema is at {found}, as needed"
        if fits
        else (f"the schema is at {found or 'nothing'}, this AEGIS needs {schema.wanted()}: run `aegis db upgrade`")
    )
    out.say({"version": found, "wanted": schema.wanted(), "fits": fits}, says)
    return EXIT_OK if fits else EXIT_NO


def _database() -> Database:
    return Database(settings().database, pool_size=1, pre_ping=False)
